"""A law fitted to runs, with all that speaks for and against it, as lines for the terminal and as values for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from megatron_adapt.analysis import allocation, law_evidence as evidence, law_runs
from megatron_adapt.analysis.law_evidence import Comparison, Scores
from megatron_adapt.analysis.law_fit import Problem, missing
from megatron_adapt.analysis.law_runs import Runs
from megatron_adapt.analysis.report import columns
from megatron_adapt.analysis.scaling_law import FORMS, PUBLISHED, Law, as_json
from megatron_adapt.errors import DataError

SHOWN = 5  # runs that weigh most
LEVEL = 0.9


def run(
    runs: Runs, forms: Sequence[str], name: str, fixed: Mapping[str, float], tied: bool, samples: int, seed: int
) -> tuple[list[str], dict[str, Any], Law]:
    """Fit the forms, choose the one that predicts held-out runs best, and say how far it can be trusted.

    Raises DataError where the runs determine none of the forms.
    """
    compared = evidence.compare([FORMS[form] for form in forms], runs, fixed=fixed, tied=tied, seed=seed)
    usable = [each for each in compared if each.fit is not None]
    if not usable:
        raise DataError("\n".join(each.why for each in compared))
    chosen = min(usable, key=lambda each: (each.folds is None, (each.folds or each.fitted).log_rmse))  # type: ignore[union-attr]
    fitted = chosen.fit
    assert fitted is not None
    fitted = replace(fitted, law=replace(fitted.law, name=name))
    own = {constant: value for constant, value in fixed.items() if constant in chosen.form.constants}
    problem = Problem(chosen.form, runs, own, tied)
    lines = [law_runs.describe(runs), "", *_comparison(compared, runs), ""]
    if len(usable) > 1:
        lines.append(f"{chosen.form.name} predicts held-out runs best ({chosen.form.summary}):")
    else:
        lines.append(f"{chosen.form.name} ({chosen.form.summary}):")
    intervals = evidence.bootstrap(fitted, problem, samples, LEVEL, seed) if samples else None
    header, rows = ["constant", "fitted"] + [f"{100 * LEVEL:.0f} % of resamples"] * bool(intervals) + [""], []
    for constant, value in fitted.law.constants.items():
        told = [constant, f"{value:.4g}"]
        if intervals is not None:
            held = constant in own
            told.append("given" if held else f"{intervals.low[constant]:.4g} to {intervals.high[constant]:.4g}")
        told.append("hardly determined" if constant in fitted.loose else "")
        rows.append(told)
    lines += columns(header, rows)
    starts = fitted.starts
    lines.append(
        f"starts: {starts.count}, of which {starts.alike} ended alike at the best, {starts.unfinished} still moved, {starts.failed} led to no number"
        + ("" if intervals is None else f"; of {intervals.samples} resamples {intervals.failed} led to no number")
    )
    if chosen.form.data_decays:
        lines.append(_four_epochs(fitted.law, intervals))
    if fitted.loose:
        lines.append(f"warning: the runs hardly determine {', '.join(fitted.loose)}: add {'; '.join(missing(fitted.loose))}")
    influences = evidence.influences(fitted, problem)
    lines += ["", "runs that weigh most (none is taken out):"]
    told = [
        [each.name, f"{100 * np.expm1(each.error):+.1f} %", f"{each.constant} x {each.factor:.3g}"] for each in influences[:SHOWN]
    ]
    lines += columns(["run", "the others predict", "without it"], told)
    values = {
        "runs": len(runs), "law": as_json(fitted.law), "forms": [_values(each) for each in compared], "starts": asdict(starts),
        "loose": list(fitted.loose), "objective": fitted.objective,
        "published": {law.name: asdict(evidence.of_law(law, runs)) for law in PUBLISHED.values()},
        "intervals": intervals and {
            "level": LEVEL, "low": dict(intervals.low), "high": dict(intervals.high),
            "samples": intervals.samples, "failed": intervals.failed,
        },
        "influences": [asdict(each) for each in influences],
    }  # fmt: skip
    return lines, values, fitted.law


def _four_epochs(law: Law, intervals: evidence.Intervals | None) -> str:
    def worth(star: float) -> float:
        return replace(law, constants={**law.constants, "rd_star": star}).effective_tokens(4.0, 1.0)

    told = f"four epochs are worth {worth(law.constants['rd_star']):.2f} times the corpus"
    if intervals is not None:
        told += f" ({worth(intervals.low['rd_star']):.2f} to {worth(intervals.high['rd_star']):.2f})"
    return f"{told}; after {allocation.half_life(law):.3g} repetitions a token is worth half"


def _comparison(compared: Sequence[Comparison], runs: Runs) -> list[str]:
    """R2 and the errors of ln L, in percent, of every form and of the laws that are there already."""
    header = ["form", "constants", "R2", "RMSE", "error", f"in {evidence.FOLDS} parts held out", "largest fifth held out"]
    rows, why = [], []
    for each in compared:
        if each.fit is None or each.fitted is None:
            why.append(f"left out: {each.why}")
            continue
        count = len(each.fit.theta)
        rows.append([each.form.name, str(count), *_cells(each.fitted), _error(each.folds), _error(each.largest)])
        why += [f"{each.form.name}: {line}" for line in each.why.splitlines()]
    rows += [[f"{law.name}, as it is", "0", *_cells(evidence.of_law(law, runs)), "", ""] for law in PUBLISHED.values()]
    return [*columns(header, rows), *why]


def _cells(scores: Scores) -> list[str]:
    return [f"{scores.r2:.3f}", f"{scores.rmse:.4f}", _error(scores)]


def _error(scores: Scores | None) -> str:
    return "" if scores is None else f"{100 * scores.log_rmse:.2f} %"


def _values(each: Comparison) -> dict[str, Any]:
    parts = {name: value and asdict(value) for name, value in (("fitted", each.fitted), ("folds", each.folds), ("largest", each.largest))}
    return {"form": each.form.name, "constants": each.fit and dict(each.fit.law.constants), **parts, "why": each.why}
