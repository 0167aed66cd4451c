"""Documents that lie one behind another in a file or an array, what a filter says about them, and spans cut out of them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

_WRITE_BYTES = 64 << 20


@dataclass(frozen=True)
class Texts:
    """Document i is ``text[begins[i]:ends[i]]``.

    Attributes:
        text: uint8, UTF-8; of a file it is mapped, not read.
        begins, ends: [documents] int64, ascending; documents do not overlap, and there may be gaps.
    """

    text: np.ndarray
    begins: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, documents: list[str]) -> Texts:
        pieces = [document.encode("utf-8") for document in documents]
        offsets = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(pieces), np.uint8), offsets[:-1], offsets[1:])

    @classmethod
    def map(cls, file: Path, offsets: np.ndarray) -> Texts:
        """A file of documents without gaps; ``offsets``: [documents + 1] int64."""
        text = np.asarray(np.memmap(file, np.uint8, "r")) if file.stat().st_size else np.empty(0, np.uint8)
        return cls(text, offsets[:-1], offsets[1:])

    def __len__(self) -> int:
        return len(self.begins)

    @property
    def bytes(self) -> int:
        return int((self.ends - self.begins).sum())

    def encoded(self, number: int) -> bytes:
        return self.text[self.begins[number] : self.ends[number]].tobytes()

    def __getitem__(self, number: int) -> str:
        return self.encoded(number).decode("utf-8")

    def where(self, is_kept: np.ndarray) -> Texts:
        return replace(self, begins=self.begins[is_kept], ends=self.ends[is_kept])

    def part(self, first: int) -> Texts:
        """Documents from this one on."""
        return replace(self, begins=self.begins[first:], ends=self.ends[first:])


@dataclass
class Outcome:
    """What a filter says about each document.

    Attributes:
        names: of the reasons why documents are dropped.
        reasons: [documents] int16, number of the reason; -1: kept.
        values: [documents] float64, what was measured, where something was.
        repeats: [documents] int64, the document that a dropped one repeats; -1: none.
        spans: [spans, 3] int64: document, begin and end in ``Texts.text`` of what is cut out of documents that are kept, in order.
        facts: what else the report says.
    """

    names: tuple[str, ...]
    reasons: np.ndarray
    values: np.ndarray | None = None
    repeats: np.ndarray | None = None
    spans: np.ndarray | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def repeated(kept: np.ndarray, names: tuple[str, ...], **more: Any) -> Outcome:
    """For each document the kept one that it repeats, or -1."""
    return Outcome(names, np.where(kept < 0, -1, 0).astype(np.int16), repeats=kept, **more)


def behind(known: int, outcome: Outcome) -> Outcome:
    """An outcome that knows nothing of other documents and cuts none, behind ``known`` documents that stay."""
    assert outcome.repeats is None and outcome.spans is None
    values = outcome.values if outcome.values is None else np.concatenate([np.full(known, np.nan), outcome.values])
    return replace(outcome, reasons=np.concatenate([np.full(known, -1, np.int16), outcome.reasons]), values=values)


def cut(texts: Texts, spans: np.ndarray, file: Path) -> Texts:
    """The same documents without the spans, written to a file and mapped.

    Raises:
        OSError: it cannot be written.
    """
    documents = np.concatenate([np.arange(len(texts)), spans[:, 0]])
    starts = np.concatenate([texts.begins, spans[:, 2]])
    stops = np.sort(np.concatenate([texts.ends, spans[:, 1]]))
    order = np.lexsort((documents, starts))  # what is left of a document begins no later than the next document
    starts, documents = starts[order], documents[order]
    sizes = np.zeros(len(texts), np.int64)
    np.add.at(sizes, documents, stops - starts)
    is_gap = starts[1:] != stops[:-1]
    first, last = np.concatenate([starts[:1], starts[1:][is_gap]]), np.concatenate([stops[:-1][is_gap], stops[-1:]])
    with file.open("wb") as stream:
        for begin, end in zip(first.tolist(), last.tolist()):
            for at in range(begin, end, _WRITE_BYTES):
                stream.write(texts.text[at : min(at + _WRITE_BYTES, end)].data)
        stream.flush()
        os.fsync(stream.fileno())
    return Texts.map(file, np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]))
