"""Which windows of text, hidden how, the n-th training sample of a denoised corpus holds.

The corpus is the stream of :class:`~megatron_adapt.data.sampling.SampleOrder`, in blocks of so many tokens. In a block each document is cut
into windows, one after the other: a denoiser is drawn for each, and it takes as much of the document as a sample can hold. Nothing is left
out, and a long document fills whole samples; what is left at the ends of documents is packed, as chats are. The samples of a block come in a
random order, the blocks in the stream's, whose documents are shuffled anew in every epoch, as are denoisers and spans.

A block is computed again wherever it is needed, by every rank, from its number. Stored are only counts, four integers a block, in
PREFIX.order/ by the first process that needs them: so that a place in the corpus is one integer, as in other corpora.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_adapt.data.denoising import Ids, Mixture, Sample, made
from megatron_adapt.data.index_cache import load_or_build
from megatron_adapt.data.indexed import IndexedReader
from megatron_adapt.data.packing import packs
from megatron_adapt.data.sampling import Passes, Row, SampleOrder

if TYPE_CHECKING:
    from megatron_adapt.config import Denoising

FORMAT = 1  # of the windows: part of every key
BLOCK = 1 << 22  # tokens of the stream


@dataclass(frozen=True)
class Windows:
    """Some windows, each array [windows]: tokens [begin, end) of a document as it is stored, BOS and EOS aside; ``hidden``: how many of
    them are; ``starts``, ``ends``: the window is at that end of its document; ``lengths``: of their samples."""

    document: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    denoiser: np.ndarray
    hidden: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    lengths: np.ndarray


@dataclass(frozen=True)
class _Block:
    windows: Windows
    first: np.ndarray  # [samples + 1] where each sample's windows begin in `order`
    order: np.ndarray


@dataclass(frozen=True)
class Counts:
    """Of a span of the stream: samples, tokens in them, those that are learnt, and those of these that are text."""

    samples: int
    tokens: int
    learnt: int
    text: int


class DenoisedOrder:
    """The samples of a denoised corpus, ``sequence_length + 1`` tokens each, for as many epochs as wanted.

    Args:
        stats: the corpus's description.
        ids: needed by :meth:`row` alone. The others are those of ``SampleOrder``.

    Raises:
        ConfigError: not one token of text fits into a sample, or there are too few sentinels.
        DataError: as of ``SampleOrder``.
    """

    def __init__(
        self, reader: IndexedReader, stats: Mapping[str, Any], settings: Denoising, ids: Ids | None, sequence_length: int, seed: int,
        name: str = "", passes: Passes = Passes(),
    ) -> None:  # fmt: skip
        self.sequence_length = sequence_length
        self.mixture = Mixture(settings, sequence_length + 1, bool(stats.get("append_bos")), bool(stats.get("append_eod")))
        if ids is not None:
            ids.enough(self.mixture)
        self._ids, self._reader, self._passes = ids, reader, passes
        self._stream = SampleOrder(reader, sequence_length, seed, name, passes)
        self._blocks = -(-self._stream.span_tokens // BLOCK)
        self._seed = f"windows {FORMAT} {BLOCK} {seed} {name} {sequence_length} {settings.digest} {self.mixture.bos} {self.mixture.eos}"
        self._counts: dict[int, np.ndarray] = {}
        self._made: dict[tuple[int, int], _Block] = {}  # the one or two needed last

    @property
    def samples(self) -> float:
        """Of the first epoch; those of others are about as many."""
        return self.counts(0).samples / self._passes.shuffled_epochs

    def counts(self, span: int) -> Counts:
        """Of a whole span of epochs that are shuffled into one another."""
        return Counts(*map(int, self._table(span).sum(axis=0)))

    @property
    def text_share(self) -> float:
        """Of the tokens that are learnt those that are text, in the first span."""
        counts = self.counts(0)
        return counts.text / counts.learnt

    def row(self, sample: int) -> Row:
        """The windows of a sample, counted from 0 on through all epochs, and what they leave free."""
        span, number, place = self.locate(sample)
        block = self._block(span, number)
        chosen = block.order[block.first[place] : block.first[place + 1]]
        parts = [self.sample(block.windows, int(window), f"{span} {number}") for window in chosen]
        ids, learnt = np.zeros(self.sequence_length + 1, np.int64), np.zeros(self.sequence_length + 1, np.uint8)
        lengths = [len(part.ids) for part in parts]
        ids[: sum(lengths)] = np.concatenate([part.ids for part in parts])
        learnt[: sum(lengths)] = np.concatenate([part.learnt for part in parts])
        left = len(ids) - sum(lengths)
        prefixes = [part.prefix for part in parts]
        return Row(ids, [*lengths, left], learnt, [*prefixes, 0]) if left else Row(ids, lengths, learnt, prefixes)

    def sample(self, windows: Windows, number: int, place: str) -> Sample:
        """What a model is shown of one of some windows; ``place``: of these windows, other ones are hidden elsewhere."""
        assert self._ids is not None, "ids are known where samples are made"
        begin, end = int(windows.begin[number]), int(windows.end[number])
        text = self._reader[int(windows.document[number])][begin:end].astype(np.int64)
        key = hashlib.blake2b(f"spans {number} {place} {self._seed}".encode(), digest_size=16).digest()
        facts = int(windows.hidden[number]), key, bool(windows.starts[number]), bool(windows.ends[number])
        return made(self.mixture, self._ids, int(windows.denoiser[number]), text, *facts)

    def locate(self, sample: int) -> tuple[int, int, int]:
        """(span, block, place of the sample's windows in it)"""
        from megatron_adapt import _C

        if sample < 0:
            raise ValueError("samples are counted from 0")
        span = 0
        while sample >= (count := self.counts(span).samples):
            sample, span = sample - count, span + 1
        ends = np.cumsum(self._table(span)[:, 0])
        number = int(np.searchsorted(ends, sample, side="right"))
        count = int(self._table(span)[number, 0])
        inside = sample - int(ends[number]) + count
        return span, number, int(_C.permute(np.array([inside]), count, self._key(f"samples {span} {number}"))[0])

    def cut(self, pieces: np.ndarray, place: str) -> Windows:
        """The windows of pieces of documents, [pieces, 3] of document, begin and end, in their order."""
        mixture, document = self.mixture, pieces[:, 0]
        sizes = self._reader.sizes[document]
        starts, ends = pieces[:, 1] == 0, pieces[:, 2] == sizes
        begin, end = pieces[:, 1] + (starts & mixture.bos), pieces[:, 2] - (ends & mixture.eos)
        random = np.random.Philox(key=np.frombuffer(hashlib.blake2b(f"cut {place} {self._seed}".encode(), digest_size=16).digest(), np.uint64))
        found: list[np.ndarray] = []
        at, open_ = begin.copy(), np.flatnonzero(begin < end)
        while len(open_):
            denoiser = mixture.draw(random.random_raw(len(open_)))
            until = np.minimum(at[open_] + mixture.capacities[denoiser], end[open_])
            split = random.random_raw(len(open_)) >> np.uint64(1)
            found.append(np.stack([open_, at[open_], until, denoiser, split.astype(np.int64)]))
            at[open_] = until
            open_ = open_[until < end[open_]]
        rows = np.concatenate(found, axis=1) if found else np.empty((5, 0), np.int64)
        piece, first, last, denoiser, split = rows[:, np.argsort(rows[0], kind="stable")]
        is_first, is_last = starts[piece] & (first == begin[piece]), ends[piece] & (last == end[piece])
        return self._measured(document[piece], first, last, denoiser, split, is_first, is_last)

    def _measured(self, document, begin, end, denoiser, split, starts, ends) -> Windows:  # type: ignore[no-untyped-def]
        """With how much is hidden: of S a random part, between one token and twice the mean."""
        text, hidden, lengths = end - begin, np.zeros_like(begin), np.zeros_like(begin)
        for number in range(self.mixture.causal + 1):
            mine = denoiser == number
            count = self.mixture.hidden(number, text[mine])
            if number < self.mixture.causal and self.mixture.settings.mixture[number].span is None:
                count = np.minimum(1 + split[mine] % (2 * count - 1), np.maximum(text[mine] - 1, 1))
            hidden[mine] = count
            lengths[mine] = self.mixture.lengths(number, text[mine], starts[mine], ends[mine])
        return Windows(document, begin, end, denoiser, hidden, starts, ends, lengths)

    def _windows(self, span: int, number: int) -> Windows:
        begin = number * BLOCK
        pieces = self._stream.stream(span, begin, min(begin + BLOCK, self._stream.span_tokens))
        return self.cut(pieces, f"{span} {number}")

    def _block(self, span: int, number: int) -> _Block:
        if (span, number) not in self._made:
            windows = self._windows(span, number)
            first, order = packs(windows.lengths, self.sequence_length + 1)
            last = dict([*self._made.items()][-1:])
            self._made = last | {(span, number): _Block(windows, first, order)}
        return self._made[span, number]

    def _table(self, span: int) -> np.ndarray:
        """[blocks, 4]: ``Counts`` of each block."""
        if span not in self._counts:
            self._stream.stream(span, 0, 1)  # it stores an index, for which the same lock is taken as for ours
            folder, key = self._stream.files
            key = hashlib.sha256(f"{key} {self._seed}".encode()).hexdigest()[:20]
            found = load_or_build(
                folder / f"{key}.{span}.windows", lambda: np.concatenate([self._counted(span, number) for number in range(self._blocks)]),
                lambda array: len(array) == 4 * self._blocks and bool((array >= 0).all()) and array[0] > 0,
            )  # fmt: skip
            self._counts[span] = found.reshape(-1, 4)
        return self._counts[span]

    def _counted(self, span: int, number: int) -> np.ndarray:
        block = self._block(span, number)
        windows, mixture = block.windows, self.mixture
        learnt, text = np.zeros_like(windows.hidden), np.zeros_like(windows.hidden)
        for denoiser in range(mixture.causal + 1):
            mine = windows.denoiser == denoiser
            hidden = windows.hidden[mine]
            spans = mixture.spans(denoiser, windows.end[mine] - windows.begin[mine])
            last = windows.ends[mine] & mixture.eos
            if denoiser == mixture.causal:  # its first token is not predicted
                text[mine] = hidden - ~(windows.starts[mine] & mixture.bos)
                learnt[mine] = windows.lengths[mine] - 1
            else:
                text[mine] = hidden
                first = 0 if mixture.settings.separator else 1
                learnt[mine] = hidden + np.where(spans > 0, spans - first + 1, last)
        return np.array([len(block.first) - 1, windows.lengths.sum(), learnt.sum(), text.sum()], dtype=np.int64)

    def _key(self, purpose: str) -> int:
        digest = hashlib.blake2b(f"{purpose} {self._seed}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little")
