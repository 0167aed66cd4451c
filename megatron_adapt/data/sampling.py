"""Which tokens the n-th training sample of a corpus is.

Everything is a function of a few integers, so a run's position in a corpus is one integer, whatever the data-parallel
size is or was, and reaching it costs the same anywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from megatron_adapt.data.index_cache import load_or_build
from megatron_adapt.data.indexed import IndexedReader
from megatron_adapt.errors import ConfigError, DataError

FORMAT = 1  # of the order: part of every key, so that an index of another version is never taken for one's own


class Piece(NamedTuple):
    """The tokens [begin, end) of one document."""

    document: int
    begin: int
    end: int


class Row(NamedTuple):
    """A training sample.

    Attributes:
        ids: [sequence_length + 1].
        lengths: of the documents in it, in their order: all its tokens together.
        learnt: as ids, 1 for the tokens that are to be predicted; None: all are.
        prefixes: of each document how many tokens come before its targets; None: of none any.
    """

    ids: np.ndarray
    lengths: list[int]
    learnt: np.ndarray | None = None
    prefixes: list[int] | None = None


@dataclass(frozen=True)
class Passes:
    """How often and how much of a corpus is read.

    Attributes:
        unique_tokens: read no more than so many tokens, again and again; None: all.
        shuffled_epochs: passes shuffled into one another; 1 reads everything once before anything twice.
    """

    unique_tokens: int | None = None
    shuffled_epochs: int = 1


class SampleOrder:
    """The samples of one corpus, for as many epochs as wanted.

    The corpus is an endless stream: in each epoch its documents come in another order (with ``shuffled_epochs`` = k, k
    epochs are one such span, in which every document comes k times). The stream is cut into samples of
    ``sequence_length + 1`` tokens every ``sequence_length`` tokens, across documents and across spans: the last token of
    one is the first of the next. The samples that begin in a span are visited in a random order, except for the last
    one, which runs into the next span and comes last.

    So each token of each epoch is predicted exactly once, only the very first token of the stream never. And with
    ``shuffled_epochs`` = 1 every sample that begins in an epoch is visited before any that begins in the next: everything
    once before anything twice.

    With ``unique_tokens`` only the first documents of one random order of all are read, the last of them cut so that
    there are exactly so many tokens: a smaller number is a part of a larger one.

    What is computed from all documents, eight bytes for every 64 of them and each span, is stored in PREFIX.order/ by the first
    process that needs it (see :mod:`megatron_adapt.data.index_cache`); it depends on the lengths of the documents, the
    seed, the name and the passes, and all are in its key.

    Args:
        reader: the corpus.
        sequence_length: tokens predicted per sample.
        seed: any integer.
        name: of the corpus in the recipe: another name, another order.

    Raises:
        DataError: the corpus is shorter than one sample, or than ``unique_tokens``.
    """

    def __init__(
        self, reader: IndexedReader, sequence_length: int, seed: int, name: str = "", passes: Passes = Passes()
    ) -> None:
        if sequence_length < 1:
            raise ConfigError(f"sequence_length must be at least 1, not {sequence_length}")
        if passes.shuffled_epochs < 1 or (passes.unique_tokens is not None and passes.unique_tokens < 1):
            raise ConfigError(f"shuffled_epochs and unique_tokens must be at least 1, not {passes}")
        known = reader.num_tokens
        if passes.unique_tokens is not None and passes.unique_tokens > known:
            raise DataError(
                f"data.{name}.unique_tokens is {passes.unique_tokens}, but the corpus has {known} tokens; lower it, or "
                "add text"
            )
        self.num_tokens = known if passes.unique_tokens is None else passes.unique_tokens
        if self.num_tokens < sequence_length + 1:
            raise DataError(
                f"the corpus {name or 'given'} has {self.num_tokens} tokens, fewer than one sample ({sequence_length} + "
                "1); shorten sequence_length or add text"
            )
        self.sequence_length = sequence_length
        self._reader = reader
        self._passes = passes
        self.span_tokens = self.num_tokens * passes.shuffled_epochs
        self._seed = f"{FORMAT} {seed} {name}"
        lengths = hashlib.sha256(np.ascontiguousarray(reader.sizes)).hexdigest()
        key = f"{self._seed} {passes.unique_tokens} {passes.shuffled_epochs} {reader.sizes.dtype} {lengths}"
        self.files = Path(f"{reader.prefix}.order"), hashlib.sha256(key.encode()).hexdigest()[:20]
        self._subset: tuple[int, int] | None = None
        if passes.unique_tokens is not None:
            self._subset = self._find_subset(passes.unique_tokens)
        self._spans: dict[int, tuple[Any, np.ndarray]] = {}  # (order, its index) of the one or two needed last

    def build(self) -> None:
        """Store what the first epoch needs, for any length of samples; later ones are built when they begin."""
        self.stream(0, 0, 1)

    def epoch(self, sample: int) -> int:
        """The epoch in which a sample begins, from 0."""
        return sample * self.sequence_length // self.num_tokens

    def pieces(self, sample: int) -> list[Piece]:
        """Where the tokens of a sample lie, in their order: ``sequence_length + 1`` together.

        A document that does not fit goes on in another sample; where it ends and a copy of it begins are two pieces.

        Args:
            sample: its number, from 0 on through all epochs.
        """
        if sample < 0:
            raise ValueError("samples are counted from 0")
        length, size = self.sequence_length, self.span_tokens
        span = sample * length // size
        first, behind = -(-span * size // length), -(-(span + 1) * size // length)
        window = sample
        if sample < behind - 1:  # the last one stays where it is
            window = first + self._permute(sample - first, behind - 1 - first, f"samples {span} {length}")
        begin = window * length - span * size
        end = begin + length + 1
        found = self.stream(span, begin, min(end, size)).tolist()
        if end > size:
            found += self.stream(span + 1, 0, end - size).tolist()
        return [Piece(*row) for row in found]

    def tokens(self, sample: int) -> np.ndarray:
        """The ids of a sample: [sequence_length + 1], the type of the corpus."""
        return self.read(self.pieces(sample))

    def read(self, pieces: Sequence[Piece]) -> np.ndarray:
        """The ids of some pieces, one after the other."""
        return np.concatenate([self._reader[piece.document][piece.begin : piece.end] for piece in pieces])

    def row(self, sample: int) -> Row:
        """The ids of a sample, and where documents end in it."""
        pieces = self.pieces(sample)
        return Row(self.read(pieces), [piece.end - piece.begin for piece in pieces])

    def _find_subset(self, tokens: int) -> tuple[int, int]:
        from megatron_adapt import _C

        folder, key = self.files
        sizes, seed = self._reader.sizes, self._key("subset")
        found = load_or_build(
            folder / f"{key}.subset",
            lambda: np.array(_C.find_subset(sizes, seed, tokens), dtype=np.int64),
            lambda array: array.shape == (2,) and 0 < array[0] <= len(sizes) and array[1] > 0,
        )
        return int(found[0]), int(found[1])

    def stream(self, number: int, begin: int, end: int) -> np.ndarray:
        """The tokens [begin, end) of a span of epochs that are shuffled into one another: [pieces, 3] of document, begin and end."""
        if number not in self._spans:
            from megatron_adapt import _C

            copies = self._passes.shuffled_epochs
            keys = self._key(f"documents {number}"), self._key("subset")
            order = _C.DocumentOrder(self._reader.sizes, copies, keys[0], self._subset, keys[1])
            folder, key = self.files
            # What lies two spans back is needed by nobody but a run that starts again from there.
            path, obsolete = folder / f"{key}.{number}", folder / f"{key}.{number - 2}"
            starts = load_or_build(path, order.starts, self._is_index, obsolete)
            near = {other: span for other, span in self._spans.items() if abs(other - number) == 1}
            self._spans = {number: (order, starts)} | near
        order, starts = self._spans[number]
        return order.pieces(starts, begin, end)

    def _is_index(self, array: np.ndarray) -> bool:
        """Whether an array has the form of a span's index."""
        documents = self._reader.num_documents if self._subset is None else self._subset[0]
        blocks = -(-documents * self._passes.shuffled_epochs // 64)
        return array.shape == (blocks + 1,) and array[0] == 0 and array[-1] == self.span_tokens

    def _permute(self, place: int, size: int, purpose: str) -> int:
        from megatron_adapt import _C

        return int(_C.permute(np.array([place]), size, self._key(purpose))[0])

    def _key(self, purpose: str) -> int:
        """64 bits that are independent for each purpose."""
        digest = hashlib.blake2b(f"{purpose} {self._seed}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little")

