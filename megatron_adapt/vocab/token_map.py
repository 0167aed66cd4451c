"""TokenMap: every row of a new embedding matrix as a weighted sum of old rows, or as a draw.

A vocabulary method only builds such a map; ``TokenMap.apply`` and ``blocks`` are the only code that touches weights, so dtype,
padding, determinism, norms and memory are solved once.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Callable, Iterator, Sequence

import numpy as np

from megatron_adapt.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 1024  # rows held in float32 at a time
CHUNK_VALUES = 2**26  # values of the source gathered in float32 at a time

# Standard deviation of drawn rows by width and number of rows, before ``spread``; "matched" follows the source's rows.
DEVIATIONS: dict[str, Callable[[int, int], float]] = {
    "normal": lambda width, rows: 1.0,
    "small_init": lambda width, rows: math.sqrt(2 / (5 * width)),  # Nguyen & Salazar 2019
    "xavier": lambda width, rows: math.sqrt(2 / (width + rows)),  # Glorot & Bengio 2010, normal
    "wang": lambda width, rows: 2 / math.sqrt(width),  # with spread 1 / layers: Wang & Komatsuzaki 2021
}
DRAWS = ("matched", *DEVIATIONS)

# What is done about the length of composed rows; sums of different rows are shorter than these.
NORMS = ("none", "length", "deviation", "clip")


@dataclass(frozen=True)
class Factors:
    """Dense weights of low rank: row ``rows[i]`` is ``left[i] @ right.T @ source[anchors]``.

    Attributes:
        rows: int64 [n], target rows. left: float32 [n, h].
        anchors: int64 [m], source ids. right: float32 [m, h].
    """

    rows: np.ndarray
    left: np.ndarray
    anchors: np.ndarray
    right: np.ndarray


@dataclass(frozen=True)
class TokenMap:
    """Row ``i`` of the target is ``sum_k weights[k] * source[source_ids[k]]`` for ``k`` in ``indptr[i]:indptr[i+1]``,
    or comes from ``factors``, or is drawn.

    Attributes:
        indptr: int64 [rows + 1].
        source_ids: int64 [entries].
        weights: float32 [entries].
        drawn: bool [rows]; a drawn row has no entries.
        source_size: ids of the source tokenizer. Rows of the source matrix beyond are padding: they can be copied, and
            nothing else looks at them.
        spread: multiplies the standard deviation of drawn rows; 0 with "matched" makes each the mean of the source.
        draw: distribution of drawn rows: "matched" is N(mean, std²) per dimension over the source's rows, the others
            N(0, s²) with s from ``DEVIATIONS``.
        norm: of composed rows. "length" gives a row the weighted mean length of its sources, "clip" at most that;
            "deviation" does so for what a row has beyond the mean of the source's rows; "none" leaves it.
        factors: rows with so many sources that only a product can be stored.
    """

    indptr: np.ndarray
    source_ids: np.ndarray
    weights: np.ndarray
    drawn: np.ndarray
    source_size: int
    spread: float = 1.0
    draw: str = "matched"
    norm: str = "none"
    factors: Factors | None = None

    def __post_init__(self) -> None:
        entries = np.diff(self.indptr)
        dense = np.zeros(len(self.drawn), dtype=bool)
        if self.factors is not None:
            dense[self.factors.rows] = True
        assert len(entries) == len(self.drawn) and self.indptr[0] == 0 and (entries >= 0).all()
        assert len(self.source_ids) == len(self.weights) == self.indptr[-1]
        assert ((entries == 0) == (self.drawn ^ dense)).all(), "a row has entries or is drawn"
        assert not len(self.source_ids) or 0 <= self.source_ids.min()
        assert not (self.source_ids[np.repeat(~self.copies(), entries)] >= self.source_size).any()
        assert self.draw in DRAWS and self.norm in NORMS

    @classmethod
    def from_copies(
        cls, source_ids: Sequence[int] | np.ndarray, source_size: int, spread: float = 1.0, draw: str = "matched"
    ) -> TokenMap:
        """A map that copies row ``source_ids[i]`` to row ``i``; where that is -1, the row is drawn."""
        ids = np.asarray(source_ids, dtype=np.int64)
        kept = np.flatnonzero(ids >= 0)
        return cls.from_entries(kept, ids[kept], np.ones(len(kept)), len(ids), source_size, spread=spread, draw=draw)

    @classmethod
    def from_entries(
        cls, rows: np.ndarray, source_ids: np.ndarray, weights: np.ndarray, size: int, source_size: int,
        spread: float = 1.0, draw: str = "matched", norm: str = "none", factors: Factors | None = None,
    ) -> TokenMap:
        """A map of ``size`` rows from (target row, source id, weight) triples in any order; each pair of row and id
        at most once. Rows without entries and factors are drawn."""
        order = np.lexsort((source_ids, rows))
        indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=size))]).astype(np.int64)
        drawn = np.diff(indptr) == 0
        if factors is not None:
            drawn[factors.rows] = False
        ids, values = np.asarray(source_ids, dtype=np.int64)[order], np.asarray(weights, dtype=np.float32)[order]
        return cls(indptr, ids, values, drawn, source_size, spread, draw, norm, factors)

    @property
    def rows(self) -> int:
        return len(self.drawn)

    def copies(self) -> np.ndarray:
        """Rows with a single entry of weight 1, which keep the bits of their source: bool [rows]."""
        single = np.diff(self.indptr) == 1
        single[single] = self.weights[self.indptr[:-1][single]] == 1
        return single

    def counts(self) -> dict[str, int]:
        """How many rows are copies of one row, composed of several, and drawn."""
        copied = int(self.copies().sum())
        drawn = int(self.drawn.sum())
        return {"copied": copied, "composed": self.rows - copied - drawn, "drawn": drawn}

    def padded(self, rows: int) -> TokenMap:
        """The same map with further drawn rows at the end, ``rows`` in all."""
        extra = rows - self.rows
        assert extra >= 0, f"{self.rows} rows cannot be padded to {rows}"
        indptr = np.concatenate([self.indptr, np.full(extra, self.indptr[-1])])
        return replace(self, indptr=indptr, drawn=np.concatenate([self.drawn, np.ones(extra, dtype=bool)]))

    def keeping(self, source_rows: np.ndarray) -> TokenMap:
        """The same map, except that row ``i`` is a copy of row ``source_rows[i]`` (int64 [rows]) where that is not -1."""
        mine = source_rows < 0
        rows = np.repeat(np.arange(self.rows), np.diff(self.indptr))
        stay, kept = mine[rows], np.flatnonzero(~mine)
        factors = self.factors
        if factors is not None:
            left = mine[factors.rows]
            factors = replace(factors, rows=factors.rows[left], left=factors.left[left])
        return TokenMap.from_entries(
            np.concatenate([rows[stay], kept]), np.concatenate([self.source_ids[stay], source_rows[kept]]),
            np.concatenate([self.weights[stay], np.ones(len(kept), dtype=np.float32)]), self.rows, self.source_size,
            self.spread, self.draw, self.norm, factors,
        )  # fmt: skip

    def apply(self, matrix: Tensor, seed: int, name: str = "embedding") -> Tensor:
        """The target matrix [rows, d]: what :meth:`blocks` gives, in one piece; raises like it."""
        import torch

        target = torch.empty(self.rows, matrix.shape[1], dtype=matrix.dtype, device="cpu")
        for _ in self.blocks(matrix, seed, name, target):
            pass
        return target

    def blocks(self, matrix: Tensor, seed: int, name: str = "embedding", target: Tensor | None = None) -> Iterator[Tensor]:
        """The target matrix of a source matrix [at least source_size, d], in the source's dtype, ``CHUNK`` rows at a time.

        Copied rows keep their bits. Everything else is computed in float32 (statistics in float64) on the CPU. The
        draw depends on ``seed``, ``name`` and the map alone, so input and output embeddings differ when their names do.
        The blocks are parts of ``target`` [rows, d] where it is given.

        Raises:
            CheckpointError: fewer rows than the source tokenizer has ids, or values that are not finite.
        """
        if matrix.shape[0] < self.source_size:
            raise CheckpointError(
                f"{name} has {matrix.shape[0]} rows, but the source tokenizer has {self.source_size} ids."
            )
        work = _Work(self, matrix.detach().cpu(), seed, name)
        for begin in range(0, self.rows, CHUNK):
            end = min(begin + CHUNK, self.rows)
            yield work.rows(begin, end, None if target is None else target[begin:end])


class _Work:
    """One application of a map: what all its blocks share."""

    def __init__(self, token_map: TokenMap, matrix: Tensor, seed: int, name: str) -> None:
        import torch

        self.map, self.source = token_map, matrix.contiguous()
        ordinary = matrix[: token_map.source_size]
        self.copies = token_map.copies()
        self.composed = ~self.copies & ~token_map.drawn
        self.mean, self.std = torch.zeros(matrix.shape[1]), torch.zeros(matrix.shape[1])
        deviation = token_map.norm == "deviation" and self.composed.any()
        if token_map.drawn.any() or deviation:
            self.mean, self.std = statistics(ordinary)
            if not (self.mean.isfinite().all() and self.std.isfinite().all()):
                raise CheckpointError(f"{name} holds values that are not finite; the source model is broken.")
        self.centre = self.mean if token_map.norm == "deviation" else torch.zeros(matrix.shape[1])
        if token_map.factors is not None:
            self.dense = np.full(token_map.rows, -1, dtype=np.int64)
            self.dense[token_map.factors.rows] = np.arange(len(token_map.factors.rows))
            self.composed[token_map.factors.rows] = False
            self.product, self.length = self._product(token_map.factors)
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        self.generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)

    def rows(self, begin: int, end: int, target: Tensor | None = None) -> Tensor:
        """Rows ``begin`` to ``end`` of the target, into ``target`` where given; blocks are asked for in order."""
        import torch

        indptr = self.map.indptr
        if target is None:
            target = torch.empty(end - begin, self.source.shape[1], dtype=self.source.dtype, device="cpu")
        copied = np.flatnonzero(self.copies[begin:end])
        target[torch.from_numpy(copied)] = self.source[torch.from_numpy(self.map.source_ids[indptr[begin + copied]])]
        self._compose(begin + np.flatnonzero(self.composed[begin:end]), begin, target)
        if self.map.factors is not None:
            chosen = np.flatnonzero(self.dense[begin:end] >= 0)
            target[torch.from_numpy(chosen)] = self._multiply(self.dense[begin + chosen]).to(target.dtype)
        drawn = np.flatnonzero(self.map.drawn[begin:end])
        target[torch.from_numpy(drawn)] = self._draw(len(drawn)).to(target.dtype)
        return target

    def _compose(self, rows: np.ndarray, begin: int, target: Tensor) -> None:
        """The sparse rows into a target that begins at row ``begin``, as many at a time as CHUNK_VALUES allows."""
        import torch

        indptr = self.map.indptr
        groups = np.cumsum(indptr[rows + 1] - indptr[rows]) // max(1, CHUNK_VALUES // self.source.shape[1])
        for chosen in np.split(rows, np.flatnonzero(np.diff(groups)) + 1) if len(rows) else ():
            counts = indptr[chosen + 1] - indptr[chosen]
            starts = np.concatenate([[0], np.cumsum(counts)])
            entries = np.arange(starts[-1]) + np.repeat(indptr[chosen] - starts[:-1], counts)
            ids, weights = self.map.source_ids[entries], self.map.weights[entries]
            if self.source.dtype == torch.float32 and self.map.norm == "none":  # nothing to convert or to measure
                _add_up(self.source, starts, ids, weights, target, chosen - begin)
                continue
            unique, local = np.unique(ids, return_inverse=True)
            gathered, local = self.source[torch.from_numpy(unique)].float(), local.reshape(-1)
            sums = _summed(gathered, starts, local, weights)
            if self.map.norm != "none":
                lengths_of = (gathered - self.centre).norm(dim=1, keepdim=True)
                wanted = _summed(lengths_of, starts, local, np.abs(weights))
                total = _summed(torch.ones(len(unique), 1), starts, local, np.abs(weights))
                sums = self._scaled(sums, wanted / total.clamp_min(1e-30))
            target[torch.from_numpy(chosen - begin)] = sums.to(target.dtype)

    def _product(self, factors: Factors) -> tuple[Tensor, float]:
        """``right.T @ source[anchors]``, float32 [h, d], and the mean length of the anchors."""
        import torch

        right, anchors = torch.from_numpy(factors.right), torch.from_numpy(factors.anchors)
        product = torch.zeros(right.shape[1], self.source.shape[1])
        length = 0.0
        for begin in range(0, len(anchors), CHUNK):
            rows = self.source[anchors[begin : begin + CHUNK]].float()
            product += right[begin : begin + CHUNK].T @ rows
            length += float((rows - self.centre).norm(dim=1).sum())
        return product, length / max(1, len(anchors))

    def _multiply(self, numbers: np.ndarray) -> Tensor:
        import torch

        assert self.map.factors is not None
        sums = torch.from_numpy(self.map.factors.left[numbers]) @ self.product
        return self._scaled(sums, torch.full((len(sums), 1), self.length)) if self.map.norm != "none" else sums

    def _scaled(self, sums: Tensor, wanted: Tensor) -> Tensor:
        deviation = sums - self.centre
        factor = wanted / deviation.norm(dim=1, keepdim=True).clamp_min(1e-12)
        return self.centre + deviation * (factor.clamp_max(1) if self.map.norm == "clip" else factor)

    def _draw(self, count: int) -> Tensor:
        import torch

        mean, std, width = self.mean, self.std, self.source.shape[1]
        if self.map.draw != "matched":
            mean, std = torch.zeros(width), torch.full((width,), DEVIATIONS[self.map.draw](width, self.map.rows))
        noise = torch.randn(count, width, generator=self.generator, dtype=torch.float32, device="cpu")
        return mean + self.map.spread * std * noise


def _add_up(
    source: Tensor, starts: np.ndarray, ids: np.ndarray, weights: np.ndarray, target: Tensor, places: np.ndarray
) -> None:
    """Row ``places[i]`` of ``target`` becomes the weighted sum of the source's rows ``ids[starts[i]:starts[i + 1]]``."""
    import torch

    from megatron_adapt import _C

    _C.weighted_rows(target.numpy(), places, source.numpy(), starts, ids, weights, threads=torch.get_num_threads())


def _summed(source: Tensor, starts: np.ndarray, ids: np.ndarray, weights: np.ndarray) -> Tensor:
    """The weighted sums alone, float32 [n, d]."""
    import torch

    sums = torch.empty(len(starts) - 1, source.shape[1])
    _add_up(source, starts, ids, weights, sums, np.arange(len(sums)))
    return sums


def statistics(source: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (population) standard deviation of the rows per dimension, float32 [d]; accumulated in float64 so that
    neither the size of the vocabulary nor the number of threads shows."""
    import torch

    from megatron_adapt import _C

    def average(centre: np.ndarray | None) -> np.ndarray:
        """Of the rows, or of their squared distances from ``centre``."""
        total = np.zeros(source.shape[1])
        for rows in source.split(CHUNK):
            _C.add_columns(total, rows.float().contiguous().numpy(), centre, threads=torch.get_num_threads())
        return total / source.shape[0]

    mean = average(None)
    return torch.from_numpy(mean).float(), torch.from_numpy(average(mean)).sqrt().float()
