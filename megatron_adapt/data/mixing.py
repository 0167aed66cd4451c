"""From which corpus the n-th training sample of a blend comes: a function of the samples drawn from each so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from megatron_adapt.errors import ConfigError


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
