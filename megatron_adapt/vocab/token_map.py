"""TokenMap: every row of a new embedding matrix as a weighted sum of old rows, or as a draw around their mean.

A vocabulary method only builds such a map; :meth:`TokenMap.apply` is the only code that touches weights, so dtype,
padding, determinism and memory are solved once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Sequence

import numpy as np

from megatron_adapt.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Generator, Tensor

CHUNK = 4096  # rows held in float32 at a time


@dataclass(frozen=True)
class TokenMap:
    """Row ``i`` of the target is ``sum_k weights[k] * source[source_ids[k]]`` for ``k`` in ``indptr[i]:indptr[i+1]``,
    unless ``drawn[i]``; then it is drawn from N(mean, (spread * std)²), per dimension, over the source's rows.

    Attributes:
        indptr: int64 [rows + 1].
        source_ids: int64 [entries].
        weights: float32 [entries]; they sum to 1 within a row.
        drawn: bool [rows]; a drawn row has no entries.
        source_size: ids of the source tokenizer. Rows of the source matrix beyond are padding and never looked at.
        spread: 1 draws rows that are distributed like the source's; 0 makes every drawn row their mean.
    """

    indptr: np.ndarray
    source_ids: np.ndarray
    weights: np.ndarray
    drawn: np.ndarray
    source_size: int
    spread: float = 1.0

    def __post_init__(self) -> None:
        entries = np.diff(self.indptr)
        assert len(entries) == len(self.drawn) and self.indptr[0] == 0 and (entries >= 0).all()
        assert len(self.source_ids) == len(self.weights) == self.indptr[-1]
        assert ((entries == 0) == self.drawn).all(), "a row has entries or is drawn"
        assert not len(self.source_ids) or 0 <= self.source_ids.min() <= self.source_ids.max() < self.source_size

    @classmethod
    def from_copies(cls, source_ids: Sequence[int] | np.ndarray, source_size: int, spread: float = 1.0) -> TokenMap:
        """A map that copies row ``source_ids[i]`` to row ``i``; where that is -1, the row is drawn."""
        ids = np.asarray(source_ids, dtype=np.int64)
        copied = ids >= 0
        indptr = np.concatenate([[0], np.cumsum(copied)]).astype(np.int64)
        weights = np.ones(int(copied.sum()), dtype=np.float32)
        return cls(indptr, ids[copied], weights, ~copied, source_size, spread)

    @property
    def rows(self) -> int:
        return len(self.drawn)

    def row_sums(self) -> np.ndarray:
        """Sum of the weights of every row, float64 [rows]; 0 for drawn rows."""
        cumulated = np.concatenate([[0.0], np.cumsum(self.weights, dtype=np.float64)])
        return cumulated[self.indptr[1:]] - cumulated[self.indptr[:-1]]

    def counts(self) -> dict[str, int]:
        """How many rows are copies of one row, composed of several, and drawn."""
        copied = int(self._copies().sum())
        drawn = int(self.drawn.sum())
        return {"copied": copied, "composed": self.rows - copied - drawn, "drawn": drawn}

    def padded(self, rows: int) -> TokenMap:
        """The same map with further drawn rows at the end, ``rows`` in all."""
        extra = rows - self.rows
        assert extra >= 0, f"{self.rows} rows cannot be padded to {rows}"
        indptr = np.concatenate([self.indptr, np.full(extra, self.indptr[-1])])
        drawn = np.concatenate([self.drawn, np.ones(extra, dtype=bool)])
        return TokenMap(indptr, self.source_ids, self.weights, drawn, self.source_size, self.spread)

    def apply(self, matrix: Tensor, seed: int, name: str = "embedding") -> Tensor:
        """The target matrix [rows, d] of a source matrix [at least source_size, d], in the source's dtype.

        Copied rows keep their bits. Everything else is computed in float32 (statistics in float64) on the CPU. The
        draw depends on ``seed``, ``name`` and the map alone, so input and output embeddings differ when their names do.

        Raises:
            CheckpointError: fewer rows than the source tokenizer has ids, or values that are not finite.
        """
        import torch

        if matrix.shape[0] < self.source_size:
            raise CheckpointError(
                f"{name} has {matrix.shape[0]} rows, but the source tokenizer has {self.source_size} ids."
            )
        source = matrix.detach().cpu()[: self.source_size]
        target = torch.empty(self.rows, source.shape[1], dtype=source.dtype, device="cpu")
        copies = self._copies()
        first = torch.from_numpy(self.indptr[:-1][copies])
        target[torch.from_numpy(np.flatnonzero(copies))] = source[torch.from_numpy(self.source_ids)[first]]
        self._compose(source, target, np.flatnonzero(~copies & ~self.drawn))
        if self.drawn.any():
            digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
            generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            self._draw(source, target, np.flatnonzero(self.drawn), generator, name)
        return target

    def _copies(self) -> np.ndarray:
        """Rows with a single entry of weight 1: bool [rows]."""
        single = np.diff(self.indptr) == 1
        single[single] = self.weights[self.indptr[:-1][single]] == 1
        return single

    def _compose(self, source: Tensor, target: Tensor, rows: np.ndarray) -> None:
        import torch

        for row in rows:
            entries = slice(self.indptr[row], self.indptr[row + 1])
            weights = torch.from_numpy(self.weights[entries].astype(np.float32))
            target[row] = (weights @ source[torch.from_numpy(self.source_ids[entries])].float()).to(target.dtype)

    def _draw(self, source: Tensor, target: Tensor, rows: np.ndarray, generator: Generator, name: str) -> None:
        import torch

        mean, std = _statistics(source)
        if not (mean.isfinite().all() and std.isfinite().all()):
            raise CheckpointError(f"{name} holds values that are not finite; the source model is broken.")
        for begin in range(0, len(rows), CHUNK):
            chunk = torch.from_numpy(rows[begin : begin + CHUNK])
            noise = torch.randn(len(chunk), source.shape[1], generator=generator, dtype=torch.float32, device="cpu")
            target[chunk] = (mean + self.spread * std * noise).to(target.dtype)


def _statistics(source: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (population) standard deviation of the rows per dimension, float32 [d]; accumulated in float64 so that
    neither the size of the vocabulary nor the number of threads shows."""
    chunks = source.split(CHUNK)
    mean = sum(chunk.double().sum(0) for chunk in chunks) / source.shape[0]
    variance = sum((chunk.double() - mean).square().sum(0) for chunk in chunks) / source.shape[0]
    return mean.float(), variance.sqrt().float()
