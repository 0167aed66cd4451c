"""Whole chats packed into training samples: which chats the n-th sample of a corpus holds, and which of its tokens are learnt.

A chat that is cut has answers without their questions, so none is. Chats come in a random order and go one after the
other into the open sample that they fill best (online best fit, as bin packing calls it), which keeps the order but for a
window of samples: sorting by length first would fill them no better and make them all of one length. The samples are the
same in every epoch, so an epoch is a number that is known before it begins; they come in another order each time.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megatron_adapt.data.index_cache import load_or_build
from megatron_adapt.data.indexed import IndexedReader
from megatron_adapt.data.loss_mask import open_mask
from megatron_adapt.data.sampling import Piece, Row
from megatron_adapt.errors import ConfigError, DataError

FORMAT = 1  # of the packing: part of every key
FILL = -1  # in place of a document's number: what a sample has left over
_OPEN = 64  # samples that wait for a chat that fills them better


class PackedOrder:
    """The samples of a corpus of chats, ``sequence_length + 1`` tokens each, for as many epochs as wanted.

    What a sample has left over is one piece more, of token 0, where nothing is learnt. The packing is stored in
    PREFIX.order/ by the first process that needs it.

    Attributes:
        samples: of an epoch.
        chats, left_out: of the corpus, and those of them that are longer than a sample.
        free: share of the samples that no chat fills.

    Raises:
        DataError: no chat is short enough, or PREFIX.loss_mask is missing or damaged.
    """

    def __init__(self, reader: IndexedReader, sequence_length: int, seed: int, name: str = "") -> None:
        if sequence_length < 1:
            raise ConfigError(f"sequence_length must be at least 1, not {sequence_length}")
        self.sequence_length = sequence_length
        self._reader = reader
        self._size = sequence_length + 1
        self._mask = open_mask(reader)
        self._seed = f"chats {FORMAT} {seed} {name} {sequence_length}"
        fits = int((reader.sizes <= self._size).sum())
        self.chats, self.left_out = reader.num_documents, reader.num_documents - fits
        if not fits:
            raise DataError(
                f"every chat of the corpus {name or reader.prefix} is longer than sequence_length {sequence_length} (the shortest has "
                f"{int(min(reader.sizes, default=0))} tokens); lengthen it"
            )
        lengths = hashlib.sha256(np.ascontiguousarray(reader.sizes)).hexdigest()
        key = hashlib.sha256(f"{self._seed} {reader.sizes.dtype} {lengths}".encode()).hexdigest()[:20]
        found = load_or_build(
            Path(f"{reader.prefix}.order") / f"{key}.packs",
            self._packed,
            lambda array: len(array) > 1 and 0 < array[0] <= fits and len(array) == 1 + array[0] + 1 + fits,
        )
        self.samples = int(found[0])
        self.free = 1 - int(reader.sizes[reader.sizes <= self._size].sum(dtype=np.int64)) / (self.samples * self._size)
        # The chats of all samples back to back, and where each sample's begin.
        self._starts, self._chats = found[1 : self.samples + 2], found[self.samples + 2 :]

    def epoch(self, sample: int) -> int:
        """The epoch that a sample is of, from 0."""
        return sample // self.samples

    def pieces(self, sample: int) -> list[Piece]:
        """The chats of a sample, counted from 0 on through all epochs, and a piece of :data:`FILL` where they leave room."""
        from megatron_adapt import _C

        if sample < 0:
            raise ValueError("samples are counted from 0")
        epoch, place = divmod(sample, self.samples)
        number = int(_C.permute(np.array([place]), self.samples, self._key(f"samples {epoch}"))[0])
        chats = self._chats[self._starts[number] : self._starts[number + 1]]
        found = [Piece(int(chat), 0, int(self._reader.sizes[chat])) for chat in chats]
        left = self._size - sum(piece.end for piece in found)
        return [*found, Piece(FILL, 0, left)] if left else found

    def read(self, pieces: Sequence[Piece]) -> np.ndarray:
        """The ids of some pieces, one after the other."""
        fill = self._reader.dtype.type(0)
        return np.concatenate([
            np.full(piece.end, fill) if piece.document == FILL else self._reader[piece.document] for piece in pieces
        ])  # fmt: skip

    def learnt(self, pieces: Sequence[Piece]) -> np.ndarray:
        """uint8, 1 for the tokens of some pieces that are to be predicted. The first one of a chat never is."""
        masks = []
        for piece in pieces:
            begin = 0 if piece.document == FILL else self._reader.first_token(piece.document)
            mask = np.zeros(piece.end, np.uint8) if piece.document == FILL else self._mask[begin : begin + piece.end].copy()
            mask[:1] = 0
            masks.append(mask)
        return np.concatenate(masks)

    def row(self, sample: int) -> Row:
        """The ids of a sample, where chats end in it, and what of them is learnt."""
        pieces = self.pieces(sample)
        return Row(self.read(pieces), [piece.end - piece.begin for piece in pieces], self.learnt(pieces))

    def _packed(self) -> np.ndarray:
        """[samples, where each begins among the chats (samples + 1), the chats]"""
        from megatron_adapt import _C

        sizes = self._reader.sizes
        order = _C.permute(np.arange(len(sizes)), len(sizes), self._key("documents"))
        order = order[sizes[order] <= self._size]
        starts, packed = packs(sizes[order], self._size)
        return np.concatenate([[len(starts) - 1], starts, order[packed]]).astype(np.int64)

    def _key(self, purpose: str) -> int:
        digest = hashlib.blake2b(f"{purpose} {self._seed}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little")


def packs(sizes: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`pack`: (where each sample begins [samples + 1] among what they hold, the numbers of the sizes that they hold)."""
    owners = np.array(pack(sizes.tolist(), capacity), dtype=np.int64)
    return np.concatenate([[0], np.cumsum(np.bincount(owners))]), np.argsort(owners, kind="stable")


def pack(sizes: Sequence[int], capacity: int) -> list[int]:
    """The sample of each size, in order: of at most 64 open ones that with the least room for it, else a new one, for which the
    fullest is closed. No size is above the capacity."""
    room: list[tuple[int, int]] = []  # (what is left, sample), ascending
    owners, samples = [], 0
    for size in sizes:
        at = bisect_left(room, (size, -1))
        if at < len(room):
            left, sample = room.pop(at)
        else:
            if len(room) == _OPEN:
                room.pop(0)
            left, sample, samples = capacity, samples, samples + 1
        owners.append(sample)
        insort(room, (left - size, sample))
    return owners
