"""Which tokens the n-th training sample is, without tables: the order within a corpus and the blend of several.

Both are pure functions of a few integers, so a run's position in its data is those integers, whatever the data-parallel
size is or was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from megatron_adapt.errors import ConfigError, DataError

_ROUNDS = 8
_FEW_WINDOWS = 16


class SampleOrder:
    """The order in which the windows of one corpus are visited, for as many epochs as wanted.

    The corpus is one stream of tokens, cut into windows of ``sequence_length + 1`` tokens every ``sequence_length``
    tokens: the last token of a window is the first of the next, so each token but the first is predicted once. Every
    epoch visits each of its windows exactly once, in an order of its own. Epochs after the first begin cutting at an
    offset of their own, below ``sequence_length``, so that documents lie differently in the windows. A corpus of fewer
    than 16 windows is too short to lose one to the offset, which then stays within what the last whole window leaves.

    Args:
        num_tokens: length of the stream.
        sequence_length: tokens predicted per sample.
        seed: any integer.
        name: of the corpus, for the error.

    Raises:
        DataError: the corpus is shorter than one window.
    """

    def __init__(self, num_tokens: int, sequence_length: int, seed: int, name: str = "") -> None:
        if sequence_length < 1:
            raise ConfigError(f"sequence_length must be at least 1, not {sequence_length}")
        if num_tokens < sequence_length + 1:
            raise DataError(
                f"the corpus {name or 'given'} has {num_tokens} tokens, fewer than one sample ({sequence_length} + 1); "
                "shorten sequence_length or add text"
            )
        first = (num_tokens - 1) // sequence_length
        leftover = (num_tokens - 1) % sequence_length
        # Up to this offset there is room for the same number of windows: the epoch of a sample is a division.
        self._largest_offset = leftover if first < _FEW_WINDOWS else sequence_length - 1
        later = (num_tokens - 1 - self._largest_offset) // sequence_length
        self._windows = np.array([first, later], dtype=np.int64)  # of epoch 0, of any later one
        self._grids = [_grid(first), _grid(later)]
        self.sequence_length = sequence_length
        self._seed = np.uint64(seed & 0xFFFFFFFFFFFFFFFF)

    def windows_per_epoch(self, epoch: int) -> int:
        return int(self._windows[min(epoch, 1)])

    def epoch(self, samples: np.ndarray | int) -> np.ndarray:
        """The epoch that each sample belongs to: int64, shape of ``samples``."""
        first, later = self._windows
        samples = np.asarray(samples, dtype=np.int64)
        return np.where(samples < first, 0, 1 + (samples - first) // later)

    def start(self, samples: np.ndarray | int) -> np.ndarray | int:
        """Where each sample begins: it is the tokens [start, start + sequence_length + 1) of the corpus.

        Args:
            samples: numbers of samples from 0, any shape; they may exceed an epoch.

        Returns:
            int64, shape of ``samples``; an int for an int.
        """
        flat = np.asarray(samples, dtype=np.int64).reshape(-1)
        if flat.size and flat.min() < 0:
            raise ValueError("samples are counted from 0")
        epoch = self.epoch(flat)
        first, later = self._windows
        index = np.where(epoch == 0, flat, flat - first - (epoch - 1) * later)
        keys = _mix(_mix(self._seed) ^ epoch.astype(np.uint64))
        offset = np.where(epoch == 0, 0, (_mix(keys) % np.uint64(self._largest_offset + 1)).astype(np.int64))
        window = np.empty_like(index)
        for windows, grid, part in zip(self._windows, self._grids, (epoch == 0, epoch > 0)):
            window[part] = _permute(index[part], int(windows), grid, keys[part])
        starts = offset + window * self.sequence_length
        return int(starts[0]) if np.ndim(samples) == 0 else starts.reshape(np.shape(samples))


def _mix(values: np.ndarray | np.uint64) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64-bit integers that scatters them."""
    z = np.atleast_1d(values) + np.uint64(0x9E3779B97F4A7C15)  # arrays wrap around without a warning
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _grid(size: int) -> tuple[int, int]:
    """Rows and columns of a nearly square grid with at least ``size`` cells."""
    rows = math.isqrt(size - 1) + 1
    return rows, -(-size // rows)


def _permute(index: np.ndarray, size: int, grid: tuple[int, int], keys: np.ndarray) -> np.ndarray:
    """Each key's permutation of 0 ... size - 1, applied to the index beside the key.

    A Feistel network on (row, column) of the index in a grid: each round shifts the row by a hash of the column, or the
    column by a hash of the row, cyclically. That permutes the cells of the grid; where it leaves the first ``size``
    cells it is applied again until it returns (cycle walking), which permutes those.
    """
    rows, columns = (np.uint64(side) for side in grid)
    result = index.astype(np.uint64)
    todo = np.arange(len(result))
    while todo.size:
        row, column, key = result[todo] // columns, result[todo] % columns, keys[todo]
        for number in range(_ROUNDS):
            key = _mix(key)
            if number % 2:
                column = (column + _mix(key ^ row) % columns) % columns
            else:
                row = (row + _mix(key ^ column) % rows) % rows
        result[todo] = row * columns + column
        todo = todo[result[todo] >= np.uint64(size)]
    return result.astype(np.int64)


class Blend:
    """Draws samples from several corpora in fixed proportions.

    After any number of samples each corpus has been drawn its weight's share of them, to within less than one sample
    (Tijdeman, "The chairman assignment problem", 1980: among the corpora that lag enough, the one that would first lag
    by the bound; always taking the one that lags most does not keep within one sample). The arithmetic is of exact
    integers: no rounding error accumulates, and no machine differs from another.

    Args:
        weights: {corpus: weight >= 0}, in any unit; ties go to the corpus named first.

    Raises:
        ConfigError: no weight is positive, or one is not a finite number >= 0.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise ConfigError(f"the weight of the corpus {name} must be a number of at least 0, not {weight}")
        if not any(weights.values()):
            raise ConfigError(f"a blend needs a corpus with a weight above 0 (given: {', '.join(weights) or 'none'})")
        # As the decimal number that the user wrote, 0.1 is 1/10.
        shares = {name: Fraction(str(weight)) for name, weight in weights.items()}
        scale = math.lcm(*(share.denominator for share in shares.values()))
        self.weights = dict(weights)
        self._parts = {name: int(share * scale) for name, share in shares.items()}
        self._whole = sum(self._parts.values())

    def first(self) -> dict[str, int]:
        """The counters at the beginning."""
        return dict.fromkeys(self._parts, 0)

    def next(self, consumed: Mapping[str, int], count: int) -> tuple[list[tuple[str, int]], dict[str, int]]:
        """The next ``count`` samples.

        Args:
            consumed: {corpus: samples drawn from it so far}; not modified.

        Returns:
            [(corpus, number of the sample within it)], and the counters after them.

        Raises:
            ConfigError: the counters are of other corpora.
        """
        if set(consumed) != set(self._parts):
            raise ConfigError(
                f"the data position is of the corpora {', '.join(consumed)}, the blend of {', '.join(self._parts)}; "
                "continue with the same corpora or start a new phase"
            )
        counters = {name: consumed[name] for name in self._parts}
        active = [(name, part) for name, part in self._parts.items() if part]
        if len(active) == 1:
            name, begin = active[0][0], counters[active[0][0]]
            counters[name] += count
            return [(name, begin + i) for i in range(count)], counters
        total = sum(counters.values())
        samples = []
        for position in range(total + 1, total + count + 1):
            name = self._choose(active, counters, position)
            samples.append((name, counters[name]))
            counters[name] += 1
        return samples, counters

    def _choose(self, active: list[tuple[str, int]], counters: dict[str, int], position: int) -> str:
        # Lags are in units of 1 / (whole * unit) samples; the theorem's bound is 1 - 1/unit samples.
        unit = 2 * len(active) - 2
        best, best_slack, best_part = "", 0, 0
        for name, part in active:
            lag = unit * (part * position - counters[name] * self._whole)
            if lag < self._whole:
                continue
            slack = (unit - 1) * self._whole - lag  # over `part`: samples until the lag reaches the bound
            if not best or slack * best_part < best_slack * part:
                best, best_slack, best_part = name, slack, part
        assert best, "lags add up to one sample, so one of them is at least 1/unit"
        return best
