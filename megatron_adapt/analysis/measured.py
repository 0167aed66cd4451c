"""What one GPU was measured to reach, from results.json of benchmarks/gpu/first_call.py: the rates that ``step_cost`` predicts with.

Each row there says what model it trained how, in which precision, and how long a step took. Put into the formulas of ``step_cost``:

    bf16    the share of the peak is the one with which the step takes just so long
    fp8     what is left of a step, when all that is not fp8 is taken off at the bf16 row's share, is products and casts. Rows of
            shapes that differ enough in these two give both, by least squares of relative errors; else what both together
            take by the formula is scaled, and where products would come out above fp8's peak they have the peak and the
            rest is casts'.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Iterator

from megatron_adapt.analysis.step_cost import Cluster, Rates, step_seconds
from megatron_adapt.config import FP8, Parallel, Phase
from megatron_adapt.errors import AdaptError, ConfigError
from megatron_adapt.families import find_family
from megatron_adapt.families.family import ModelShape

BF16 = ("bf16-mixed", "bf16-true")
DIFFERENT = 1e-3  # of 1: the squared sine of the angle between products' and casts' shares of several rows


@dataclass(frozen=True)
class Row:
    """One training run on one GPU; ``share`` of the bf16 peak where the row says no more than its speed."""

    name: str
    precision: str
    seconds: float = 0.0
    shape: ModelShape | None = None
    phase: Phase | None = None
    share: float = 0.0


class Measured:
    """The rows of a file. Raises ``ConfigError`` for a file that is none, for another GPU, and for a row that cannot be."""

    def __init__(self, file: Path, cluster: Cluster) -> None:
        self.file, self.one = file, Cluster(1, 1, cluster.gpu)
        try:
            sections = json.loads(file.read_text(encoding="utf-8"))
            self.device = str(sections["versions"]["device"])
            found = [(name, row) for name, section in sections.items() for name, row in _rows(name, section)]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"--measured {file}: not the results.json of benchmarks/gpu/first_call.py ({error}).") from error
        if cluster.gpu.split("-")[0] not in self.device.lower().replace("gh200", ""):
            raise ConfigError(f"--measured {file}: measured on {self.device}, not on {cluster.gpu}.")
        self.bf16: list[Row] = []
        self.fp8: list[Row] = []
        for name, row in found:
            try:
                one = self._row(name, row)
            except (AdaptError, ValueError, KeyError, TypeError, AssertionError) as error:
                raise ConfigError(f"--measured {file}: row '{name}': {error}") from error
            if one is not None:
                (self.fp8 if one.precision in FP8 else self.bf16).append(one)
        if not self.bf16:
            raise ConfigError(f"--measured {file}: no bf16 training speed in it; run the llama part of benchmarks/gpu/first_call.py.")

    def rates(self, shape: ModelShape, phase: Phase, precision: str) -> tuple[Rates, list[str]]:
        """Of training this; and in words, where they come from."""
        row = self._alike(shape, phase)
        reached = row.share * self.one.card.tflops
        said = [f"training at {row.share:.0%} of {self.one.card.tflops:g} TFLOP/s, measured: {reached:.0f} TFLOP/s in {row.name} on {self.device}"]
        if precision not in FP8:
            return Rates(row.share), said
        kind = precision.removesuffix("-true")
        same = [one for one in self.fp8 if one.precision.removesuffix("-true") == kind]
        rows = same or self.fp8
        if not rows:
            return Rates(row.share), [*said, by_formula(self.one)]
        rates, words = self._fp8(rows, row.share)
        others = "" if same else f", which is not {kind}"
        return rates, [*said, f"fp8 measured: {words}, by {', '.join(one.name for one in rows)}{others}"]

    def _row(self, name: str, row: dict[str, Any]) -> Row | None:
        precision = row.get("mode", row.get("precision"))
        if precision == "bf16" and "step_seconds" in row and "config" not in row:
            share = _positive(row, "tflops") / self.one.card.tflops
            return Row(name, precision, share=_possible(share))
        if precision not in (*BF16, *FP8):
            raise ValueError(f"mode: {precision!r} is no precision that a row is measured in")
        shape = find_family(row["config"]).read_config(row["config"])
        read = Row(name, precision, _positive(row, "step_seconds"), shape, Phase(**row["phase"]))
        if precision in FP8:
            return read
        # Of its time a part goes as one over the share, and the rest stays.
        rest = self._seconds(read, Rates(math.inf))
        if read.seconds <= rest:
            raise ValueError(f"step_seconds {read.seconds:g} are fewer than its update alone takes, {rest:.3g}")
        return replace(read, share=_possible((self._seconds(read, Rates(1.0)) - rest) / (read.seconds - rest)))

    def _seconds(self, row: Row, rates: Rates) -> float:
        assert row.shape is not None and row.phase is not None
        return step_seconds(row.shape, row.phase, row.precision, Parallel(), self.one, rates)

    def _alike(self, shape: ModelShape, phase: Phase) -> Row:
        """The bf16 row of the same packing, if there is one, whose model is nearest in width; of several the fastest."""

        def distance(row: Row) -> tuple:
            if row.shape is None or row.phase is None:
                return (2, 0.0, -row.share)
            apart = round(abs(math.log(row.shape.hidden_size / shape.hidden_size)), 6)
            return (int(row.phase.packing != phase.packing), apart, -row.share)

        return min(self.bf16, key=distance)

    def _fp8(self, rows: list[Row], share: float) -> tuple[Rates, str]:
        """(``share`` with what these rows reach in products and casts, the same in words)"""
        parts = []  # of each row's time in products and casts: what products take at the peak, and casts by the formula
        for row in rows:
            assert row.shape is not None and row.phase is not None
            bare = Rates(self._alike(row.shape, row.phase).share, math.inf, 0.0)
            rest = self._seconds(row, bare)
            if row.seconds <= rest:
                raise ConfigError(
                    f"--measured {self.file}: row '{row.name}': step_seconds {row.seconds:g} are fewer than what is not in fp8 takes "
                    f"alone at the bf16 rows' speed, {rest:.3g}."
                )
            products = self._seconds(row, replace(bare, products=1.0)) - rest
            casts = self._seconds(row, replace(bare, casts=1.0)) - rest
            parts.append((products / (row.seconds - rest), casts / (row.seconds - rest)))
        peak, large = self.one.card.fp8, Rates(share).large_products
        slower, dearer = _both(parts)
        if slower < 1 or dearer < 0:
            together = [products / large + casts for products, casts in parts]
            times = sum(together) / sum(each**2 for each in together)
            if times / large >= 1:
                return Rates(share, large / times, times), f"layers' products and bringing operands into fp8 take {times:.2f} times the formula's time"
            slower = 1.0
            dearer = sum((1 - products) * casts for products, casts in parts) / sum(casts**2 for _, casts in parts)
        if dearer < 0:
            names = ", ".join(f"'{row.name}'" for row in rows)
            raise ConfigError(f"--measured {self.file}: {names}: faster than the fp8 products alone are at the peak of {peak:g} TFLOP/s.")
        words = f"layers' products at {peak / slower:.0f} of {peak:g} TFLOP/s, bringing operands into fp8 takes {dearer:.2f} times the formula's time"
        return Rates(share, 1 / slower, dearer), words


def by_formula(cluster: Cluster) -> str:
    return f"fp8 is predicted, not measured: layers' products at {cluster.card.fp8:g} TFLOP/s, all else as in bf16"


def _rows(name: str, section: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every measured training run, those within other sections' results as well."""
    if "config" in section or (section.get("precision") == "bf16" and "tflops" in section):
        yield name, section
    for part, inner in section.items():
        if isinstance(inner, dict) and "step_seconds" in inner and "config" in inner:
            yield f"{name}, {part}", inner


def _both(parts: list[tuple[float, float]]) -> tuple[float, float]:
    """(u, c) such that products u + casts c is nearest to 1 in all rows; (0, 0) where these are too much alike."""
    square = [sum(row[i] * row[j] for row in parts) for i, j in ((0, 0), (0, 1), (1, 1))]
    determinant = square[0] * square[2] - square[1] ** 2
    if determinant <= DIFFERENT * square[0] * square[2]:
        return 0.0, 0.0
    first, second = (sum(row[i] for row in parts) for i in (0, 1))
    return (first * square[2] - second * square[1]) / determinant, (second * square[0] - first * square[1]) / determinant


def _positive(row: dict[str, Any], key: str) -> float:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"{key}: {value!r} is no number above 0")
    return value


def _possible(share: float) -> float:
    if share > 1:
        raise ValueError(f"its speed is {share:.0%} of the GPU's peak, which cannot be")
    return share
