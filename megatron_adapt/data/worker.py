"""What is done with one task: read, encode, count, and put into its place. The same in this process and in forked ones."""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np

from megatron_adapt.data.chat import Chats, Rendered, encode, from_json
from megatron_adapt.data.documents import Bad, Batch, Task
from megatron_adapt.data.encoder import Encoder, Reference, Sample
from megatron_adapt.data.held_out import held_out_between, writing
from megatron_adapt.data.parts import Parts, digest_of
from megatron_adapt.data.readers import read

_MEMORY = 64 << 20  # bytes of ids that wait for their place in memory; the others wait on disk
_WRITE_BYTES = 8 << 20
_REPORT_SECONDS = 0.2


class BadInput(Exception):
    """A bad line that ends the run."""

    def __init__(self, number: int, bad: Bad) -> None:
        super().__init__(number, bad)
        self.number, self.bad = number, bad


@dataclass
class Job:
    """What is the same for all tasks.

    Attributes:
        share: of the non-empty documents that is held out; ``last``: this one instead, where the share is below one.
        split: text -> sentences, where documents are stored as several sequences.
    """

    text_key: str
    on_error: str
    encoder: Encoder
    share: Fraction = Fraction(0)
    last: int | None = None
    split: Callable[[str], list[str]] | None = None
    chats: Chats | None = None
    seed: int = 0


class Comparer:
    """Compares samples."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference

    def load(self) -> None:
        self.reference.load()

    def compare(self, number: int | None, sample: Sample) -> int | None:
        """Of a task; None: of none. Returns the number.

        Raises:
            Difference: the fast encoder gives other ids than the library that defines them.
        """
        self.reference.compare(sample)
        return number


class Worker:
    """Does tasks.

    Args:
        send: receives "report", {"read", "bytes", "documents", "tokens"} now and then, as increments; and "sample", the
            number of a task and a Sample of it that :meth:`Comparer.compare` must accept before :meth:`place` is called.
    """

    def __init__(self, job: Job, parts: Parts, send: Callable[[str, Any], None]) -> None:
        self.job, self.parts, self.send = job, parts, send
        self.waiting: dict[int, _Waiting] = {}
        self._unreported: Counter[str] = Counter()
        self._reported = time.monotonic()

    def count(self, task: Task) -> dict[str, Any]:
        """Number of non-empty documents."""
        documents = sum(int(np.count_nonzero(np.diff(batch.offsets))) for batch in self._read(task))
        return {"number": task.number, "documents": documents}

    def encode(self, task: Task) -> dict[str, Any]:
        """Everything but the place: it depends on the tasks before. Returns counts, "size" in bytes, "sha256", and "report":
        what has not been sent.

        Raises:
            BadInput: at a bad line, unless these are skipped.
        """
        done = self.parts.finished(task.number)
        if done is not None and not (done["skipped"] and self.job.on_error == "stop"):
            return {**done, "report": {"read": task.size, **{key: done[key] for key in ("bytes", "documents", "tokens")}}}
        with writing(self.parts.folder):
            waiting = self.waiting[task.number] = _Waiting(self.parts, task.number)
        try:
            header = self._encode(task, waiting)
            return {**header, "report": self._take_report()}
        except BaseException:
            self.waiting.pop(task.number).discard()
            raise

    def _read(self, task: Task) -> Iterator[Batch]:
        return read(task, self.job.text_key, self.job.chats)

    def _encode(self, task: Task, waiting: _Waiting) -> dict[str, Any]:
        chance = random.Random(f"{self.job.seed} {task.number}")  # not NumPy's: its import takes as long as a task
        total: Counter[str] = Counter(dict.fromkeys(_COUNTS, 0))
        seen = 0
        for batch in self._read(task):
            total["lines"] = batch.passed
            left = None if task.limit is None else task.limit - seen
            kept = _first(batch, left)
            self._skip(task, batch.bad if left is None else [bad for bad in batch.bad if bad.before < kept], waiting, total)
            total["replaced_surrogates"] += sum(count for number, count in batch.replaced.items() if number < kept)
            text, offsets = batch.text, batch.offsets[: kept + 1]
            nonempty = int(np.count_nonzero(np.diff(offsets)))
            if self.job.share:
                text, offsets = self._hold_out(text, offsets, (task.first or 0) + seen, nonempty, waiting, total)
            seen += nonempty
            first_text = None
            if self.job.split is not None:
                text, offsets, first_text = _split(self.job.split, text, offsets)
            mask = None
            if self.job.chats is not None:
                encoded = encode(self.job.encoder.tokenizer, _documents(text, offsets))
                ids, id_offsets, offsets, mask = encoded.ids, encoded.id_offsets, encoded.text_offsets, encoded.mask
                total.update(trained_tokens=int(mask.sum()), trained_bytes=encoded.bytes)
            else:
                ids, id_offsets = self.job.encoder.encode(text, offsets)
            for sample in self.job.encoder.sample(text, offsets, ids, id_offsets, chance):
                self.send("sample", (task.number, sample))
            sequences = self.job.encoder.build(ids, id_offsets, offsets, first_text)
            with writing(self.parts.folder):
                waiting.add(sequences.ids, sequences.sizes, sequences.texts if self.job.split else None, mask)
                self._spill()
            total.update(sequences.counts, tokens=len(sequences.ids), sequences=len(sequences.sizes))
            self._report(
                read=batch.size, bytes=sequences.counts["bytes"], documents=sequences.counts["documents"],
                tokens=len(sequences.ids),
            )  # fmt: skip
            if left is not None and seen >= task.limit:  # type: ignore[operator]
                break
        with writing(self.parts.folder):
            return waiting.complete({"number": task.number, **total})

    def _report(self, **increments: int) -> None:
        """Each message wakes the process that distributes the work, which takes the place of one that does it."""
        self._unreported.update(increments)
        if time.monotonic() - self._reported > _REPORT_SECONDS:
            self.send("report", self._take_report())

    def _take_report(self) -> dict[str, int]:
        report, self._unreported = dict(self._unreported), Counter()
        self._reported = time.monotonic()
        return report

    def place(self, number: int, offset: int) -> int:
        """Write the ids of an encoded task where they belong, in bytes; the part is finished then."""
        waiting = self.waiting.pop(number, None)
        if waiting is not None:
            with writing(self.parts.folder / "data"):
                waiting.place(offset)
            self.parts.record(number, {**waiting.header, "offset": offset})
        return number

    def _skip(self, task: Task, bad: list[Bad], waiting: _Waiting, total: Counter[str]) -> None:
        for one in bad:
            if self.job.on_error == "stop" or one.fatal:
                raise BadInput(task.number, one)
            total["skipped"] += 1
            data = one.data.rstrip(b"\r\n").decode("utf-8", "backslashreplace")
            waiting.side("skipped", {"file": one.file, "line": one.line, "error": one.message, "data": data})

    def _hold_out(
        self, text: np.ndarray, offsets: np.ndarray, first: int, count: int, waiting: _Waiting, total: Counter[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Takes the held-out documents away; ``first`` and ``count`` number the non-empty ones."""
        numbers = held_out_between(first, first + count, self.job.share, self.job.last)
        if not numbers:
            return text, offsets
        nonempty = np.flatnonzero(np.diff(offsets))
        taken = [int(nonempty[number - first]) for number in numbers]
        for document in taken:
            piece = text[offsets[document] : offsets[document + 1]].tobytes()
            entry = {"text": piece.decode("utf-8")} if self.job.chats is None else json.loads(piece)
            waiting.side("held", entry)
            total["held_out_documents"] += 1
            total["held_out_bytes"] += len(entry["text"].encode("utf-8"))
        stay = np.ones(len(offsets) - 1, dtype=bool)
        stay[taken] = False
        sizes = np.diff(offsets)
        keep = np.repeat(stay, sizes)
        return text[offsets[0] : offsets[-1]][keep], np.concatenate([[0], np.cumsum(sizes[stay])])

    def _spill(self) -> None:
        while sum(waiting.memory for waiting in self.waiting.values()) > _MEMORY:
            max(self.waiting.values(), key=lambda waiting: waiting.memory).spill()


_COUNTS = (
    "documents", "tokens", "sequences", "bytes", "empty", "skipped", "replaced_surrogates", "unknown_tokens",
    "held_out_documents", "held_out_bytes", "lines", "trained_tokens", "trained_bytes",
)  # fmt: skip


class _Waiting:
    """Ids of a task that have no place yet, and its side files."""

    def __init__(self, parts: Parts, number: int) -> None:
        self.parts, self.number = parts, number
        self.header: dict[str, Any] = {}
        self.memory = self.size = 0
        self._arrays: list[np.ndarray] = []
        self._digest = hashlib.sha256()
        self._files: dict[str, BinaryIO] = {}
        for kind in ("texts", "mask", "skipped", "held"):  # what a killed run may have left
            parts.path(number, kind).unlink(missing_ok=True)
        self._file("sizes")

    def add(self, ids: np.ndarray, sizes: np.ndarray, texts: np.ndarray | None, mask: np.ndarray | None) -> None:
        data = ids.view(np.uint8)
        self._digest.update(data)
        self._file("sizes").write(sizes.data)
        if texts is not None:
            self._file("texts").write(texts.data)
        if mask is not None:
            self._file("mask").write(mask.data)
        self.size += len(data)
        if "ids" in self._files:
            self._files["ids"].write(data.data)
        else:
            self._arrays.append(data)
            self.memory += len(data)

    def side(self, kind: str, entry: dict[str, Any]) -> None:
        with writing(self.parts.path(self.number, kind)):
            self._file(kind).write(json.dumps(entry, ensure_ascii=False).encode("utf-8") + b"\n")

    def spill(self) -> None:
        file = self._file("ids", "w+b")
        for data in self._arrays:
            file.write(data.data)
        self._arrays, self.memory = [], 0

    def complete(self, header: dict[str, Any]) -> dict[str, Any]:
        for kind, file in self._files.items():
            file.flush()
            if kind != "ids":
                file.close()
        files = {kind: digest_of(self.parts.path(self.number, kind)) for kind in self._files if kind != "ids"}
        self.header = {**header, "size": self.size, "sha256": self._digest.hexdigest(), "files": files}
        return self.header

    def place(self, offset: int) -> None:
        from megatron_adapt import _C

        position = offset
        for data in self._pieces():
            position += _write(self.parts.data, data, position)
        _C.start_writeback(self.parts.data, offset, position - offset)
        self.discard()

    def discard(self) -> None:
        for file in self._files.values():
            file.close()
        self.parts.path(self.number, "ids").unlink(missing_ok=True)
        self._arrays, self.memory = [], 0

    def _pieces(self) -> Any:
        if "ids" not in self._files:
            yield from self._arrays
            return
        self._files["ids"].seek(0)
        while data := self._files["ids"].read(_WRITE_BYTES):
            yield np.frombuffer(data, np.uint8)

    def _file(self, kind: str, mode: str = "wb") -> BinaryIO:
        if kind not in self._files:
            self._files[kind] = self.parts.path(self.number, kind).open(mode)  # type: ignore[assignment]
        return self._files[kind]


def _write(descriptor: int, data: np.ndarray, offset: int) -> int:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:].data, offset + done)
    return done


def _first(batch: Batch, left: int | None) -> int:
    """How many documents of a batch to use so that ``left`` of them are not empty."""
    if left is None:
        return len(batch.lines)
    nonempty = np.flatnonzero(np.diff(batch.offsets))
    return len(batch.lines) if len(nonempty) < left else int(nonempty[left - 1]) + 1


def _documents(text: np.ndarray, offsets: np.ndarray) -> list[Rendered]:
    """Chats; of one with nothing to learn nothing is left."""
    pieces = (text[begin:end].tobytes() for begin, end in zip(offsets[:-1], offsets[1:]))
    return [from_json(piece.decode("utf-8")) if piece else Rendered("", (), 0) for piece in pieces]


def _split(
    split: Callable[[str], list[str]], text: np.ndarray, offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sentences of all documents, their offsets, and the first sentence of each document."""
    sentences: list[bytes] = []
    first = [0]
    for begin, end in zip(offsets[:-1], offsets[1:]):
        sentences += [sentence.encode("utf-8") for sentence in split(text[begin:end].tobytes().decode("utf-8"))]
        first.append(len(sentences))
    joined = np.frombuffer(b"".join(sentences), np.uint8)
    return joined, np.cumsum([0, *map(len, sentences)], dtype=np.int64), np.array(first)
