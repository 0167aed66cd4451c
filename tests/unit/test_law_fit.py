"""Fits of laws: known constants come back, intervals hold them, what runs do not determine is told and refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from megatron_adapt.analysis import bfgs, law_evidence as evidence, law_fit
from megatron_adapt.analysis.law_fit import Problem
from megatron_adapt.analysis.law_runs import Run, Runs, gather
from megatron_adapt.analysis.scaling_law import FORMS, PUBLISHED, Law
from megatron_adapt.errors import ConfigError, DataError

PENALTY = PUBLISHED["c4-penalty"]
C4 = PUBLISHED["c4"]
TRUTHS = {
    "chinchilla": Law("", FORMS["chinchilla"], {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 800.0, "beta": 0.29}, ""),
    "repeated-data": Law("", FORMS["repeated-data"], {"E": 1.7, "A": 400.0, "alpha": 0.34, "B": 800.0, "beta": 0.29, "rd_star": 12.0}, ""),
    "data-constrained": replace(C4, constants={**C4.constants, "alpha": 0.37}),
    "penalty": PENALTY,
}
N, U, E = (1e7, 6e7, 4e8, 2.5e9), (2e8, 1.5e9, 1e10), (1, 2, 5, 14, 40)


def made(law: Law, noise: float = 0.0, seed: int = 0, n: Any = N, u: Any = U, e: Any = E) -> Runs:
    """Losses by a law on a grid of runs, with log-normal noise."""
    generator = np.random.default_rng(seed)
    points = [(p, epochs * unique, unique) for p in n for unique in u for epochs in e]
    return gather(
        Run(f"run{i}", *point, law.loss(*point) * math.exp(noise * generator.standard_normal())) for i, point in enumerate(points)
    )


@pytest.fixture(scope="module")
def noisy() -> Runs:
    return made(TRUTHS["repeated-data"], noise=0.004, seed=3)


@pytest.fixture
def few_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for a form: for tests of what comes after a search."""
    monkeypatch.setattr(law_fit, "GRID", {name: values[1:2] for name, values in law_fit.GRID.items()})


@pytest.mark.parametrize("form", list(FORMS))
def test_constants_come_back(form: str) -> None:
    truth = TRUTHS[form]
    found = law_fit.fit(FORMS[form], made(truth))
    assert found.law.constants == pytest.approx(truth.constants, rel=1e-4)
    assert np.abs(found.errors).max() < 1e-6 and not found.loose
    assert found.starts.count == len(Problem(FORMS[form], made(truth)).starts()) and found.starts.failed == 0
    assert 1 <= found.starts.alike <= found.starts.count
    assert found.law.ranges["parameters"] == (1e7, 2.5e9) and found.law.ranges["epochs"] == (1, 40)


def test_tied_and_given_constants(few_starts: None) -> None:
    truth = TRUTHS["chinchilla"]
    truth = replace(truth, constants={**truth.constants, "beta": 0.34})
    runs = made(truth)
    tied = law_fit.fit(truth.form, runs, tied=True)
    assert tied.law.constants == pytest.approx(truth.constants, rel=1e-4) and len(tied.theta) == 4
    given = law_fit.fit(truth.form, runs, fixed={"alpha": 0.34, "A": 400.0, "E": 1.8})
    assert given.law.constants["E"] == 1.8 and given.law.constants["A"] == 400 and len(given.theta) == 2
    assert given.objective > 1 > tied.objective


def test_noise_stays_within_the_intervals(noisy: Runs, few_starts: None) -> None:
    truth = TRUTHS["repeated-data"].constants
    problem = Problem(FORMS["repeated-data"], noisy)
    found = law_fit.fit(problem.form, noisy)
    intervals = evidence.bootstrap(found, problem, 60, level=0.95)
    assert intervals.failed == 0 and len(intervals.constants["E"]) == intervals.samples == 60
    for name, value in truth.items():
        assert intervals.low[name] < value < intervals.high[name], name
        assert intervals.low[name] < found.law.constants[name] < intervals.high[name], name
    assert intervals.high["rd_star"] < 1.5 * truth["rd_star"]  # and they say something
    again, same = (evidence.bootstrap(found, problem, 3, seed=1) for _ in range(2))
    assert again.low == same.low


def test_a_blown_up_run_is_named_and_hardly_moves_the_fit(few_starts: None) -> None:
    clean = made(TRUTHS["repeated-data"], noise=0.001)
    losses = clean.losses.copy()
    losses[7] *= 2
    runs = replace(clean, losses=losses)
    found = law_fit.fit(FORMS["repeated-data"], runs)
    assert found.law.constants["rd_star"] == pytest.approx(12, rel=0.1)
    influences = evidence.influences(found, Problem(FORMS["repeated-data"], runs))
    assert len(influences) == len(runs)
    (bad,) = (each for each in influences if each.name == "run7")
    assert bad.error == pytest.approx(-math.log(2), abs=0.02)
    assert max(abs(each.error) for each in influences if each.name != "run7") < 0.02


def test_the_true_form_predicts_best(noisy: Runs, few_starts: None) -> None:
    compared = {each.form.name: each for each in evidence.compare([FORMS["chinchilla"], FORMS["repeated-data"]], noisy)}
    right, wrong = compared["repeated-data"], compared["chinchilla"]
    for which in ("fitted", "folds", "largest"):
        assert getattr(right, which).log_rmse < 0.006 < 0.02 < getattr(wrong, which).log_rmse
    assert right.folds.runs == len(noisy) and right.largest.runs == 12 and right.fitted.r2 > 0.99 and not right.why


def test_scores() -> None:
    found = evidence.scores(np.array([2.0, 4.0]), np.array([2.0, 5.0]))
    assert (found.r2, found.rmse, found.log_rmse) == pytest.approx((0.5, math.sqrt(0.5), math.log(1.25) / math.sqrt(2)))
    assert math.isnan(evidence.scores(np.array([2.0]), np.array([2.0])).r2)


def test_seeds_of_a_configuration_stay_together() -> None:
    runs = made(C4)
    double = Runs(runs.names * 2, *(np.tile(values, 2) for values in (runs.parameters, runs.tokens, runs.unique, runs.losses)))
    groups = evidence.folds(double)
    assert sorted(np.concatenate(groups)) == list(range(len(double))) and len(groups) == evidence.FOLDS
    for group in groups:
        assert {i % len(runs) for i in group} == {i for i in group if i < len(runs)}
    top = evidence.largest(runs)
    assert len(top) == 12 and (runs.parameters * runs.tokens)[top].min() >= np.delete(runs.parameters * runs.tokens, top).max()


# --------------------------------------------------------------------------------------------------- what is refused


def refused(form: str, runs: Runs, *words: str, **options: Any) -> None:
    with pytest.raises(DataError) as error:
        law_fit.fit(FORMS[form], runs, **options)
    for word in words:
        assert word in str(error.value), error.value


def test_too_little_is_refused_by_name(few_starts: None) -> None:
    few = made(C4, n=N[:2], u=U[:1], e=(1, 2))
    refused(
        "data-constrained", few, "7 constants need at least 9 runs, and there are 4", "alpha needs runs with at least 3 different numbers of parameters",
        "beta needs runs with at least 3 different numbers of tokens, and there are 2", "rd_star needs runs with at least 2 different numbers of repeated epochs",
        "--fix",
    )  # fmt: skip
    once = made(TRUTHS["chinchilla"], e=(1,))
    refused("repeated-data", once, "rd_star needs runs with at least 2 different numbers of repeated epochs, and there are 0")
    refused("penalty", once, "P needs runs with")
    assert law_fit.fit(FORMS["chinchilla"], once).law.constants == pytest.approx(TRUTHS["chinchilla"].constants, rel=1e-4)


def test_what_runs_do_not_determine_is_refused_by_name(few_starts: None) -> None:
    small = made(C4, n=(1e5, 3e5, 1e6, 3e6))  # always fewer than suit the data
    refused("data-constrained", small, "do not determine rn_star. Add runs with more parameters than suit their unique tokens")
    held = law_fit.fit(FORMS["data-constrained"], small, fixed={"rn_star": 5.0})
    assert held.law.constants["rd_star"] == pytest.approx(C4.constants["rd_star"], rel=1e-3)
    truth = TRUTHS["chinchilla"]
    in_step = gather(Run(f"r{n:g}", n, 20 * n, 20 * n, truth.loss(n, 20 * n)) for n in np.geomspace(1e7, 1e10, 12))
    same = replace(truth, constants={**truth.constants, "beta": truth.constants["alpha"]})
    in_step = replace(in_step, losses=same.loss(in_step.parameters, in_step.tokens))
    refused("chinchilla", in_step, "do not determine", "not all in step with the")


def test_hardly_determined_constants_are_told(few_starts: None) -> None:
    close = made(TRUTHS["chinchilla"], noise=0.005, seed=1, u=(1e9, 1.3e9, 1.7e9), e=(1,))
    found = law_fit.fit(FORMS["chinchilla"], close)
    told = evidence.influences(found, Problem(FORMS["chinchilla"], close))
    assert {each.constant for each in told} <= {name for name in found.law.constants if name not in found.loose}
    assert "E" in found.loose and found.law.caution == f"its runs hardly determine {', '.join(found.loose)}"


def test_constants_that_are_none() -> None:
    runs = made(C4)
    for fixed, tied, words in (
        ({"rd_stat": 1.0}, False, "the form data-constrained has no constant 'rd_stat'. Did you mean 'rd_star'?"),
        ({"alpha": -1.0}, False, "constants that are given: alpha must be a number above 0"),
        ({"alpha": 0.3}, True, "alpha and beta are tied to one another"),
        (dict(C4.constants), False, "all constants of the form data-constrained are given: nothing is left to fit"),
    ):
        with pytest.raises(ConfigError, match=words):
            law_fit.fit(FORMS["data-constrained"], runs, fixed=fixed, tied=tied)


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_no_start_leads_to_a_number() -> None:
    refused("chinchilla", made(C4), "no start out of 1 led to a number", fixed={"alpha": 1e308, "beta": 1e308})


def test_a_form_that_is_not_determined_is_told_in_the_comparison() -> None:
    (alone,) = evidence.compare([FORMS["repeated-data"]], made(TRUTHS["chinchilla"], e=(1,)))
    assert alone.fit is None and "rd_star needs runs" in alone.why


# ------------------------------------------------------------------------------------------------------ the search


def test_many_minima_at_once() -> None:
    """Rosenbrock's valley, each problem with a minimum of its own."""
    a = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)

    def valley(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return (a[rows] - x[:, 0]) ** 2 + 100 * (x[:, 1] - x[:, 0] ** 2) ** 2

    ends = bfgs.minimize(valley, torch.tensor([[-1.2, 1.0], [3.0, -2.0], [0.0, 0.0]], dtype=torch.float64))
    assert torch.allclose(ends.x, torch.stack([a, a**2], 1), atol=1e-5) and ends.rested.all()


def test_a_start_that_is_no_number_is_told() -> None:
    ends = bfgs.minimize(lambda x, rows: torch.log(x[:, 0]) ** 2, torch.tensor([[-1.0], [9.0]], dtype=torch.float64))
    assert not torch.isfinite(ends.value[0]) and ends.x[1].item() == pytest.approx(1, abs=1e-4)


def test_no_worse_than_the_library(noisy: Runs) -> None:
    """torch's L-BFGS with strong Wolfe conditions from the same start, with as much patience."""
    problem = Problem(FORMS["chinchilla"], noisy)
    start = problem.starts()[:1]
    ours = problem.solve(start).value
    for row, own in zip(start, ours):
        x = torch.tensor(row, requires_grad=True)
        library = torch.optim.LBFGS([x], max_iter=60, tolerance_grad=0, tolerance_change=0, history_size=20, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            library.zero_grad()
            size = (problem.errors(x[None])[0] / law_fit.DELTA).abs()
            loss = torch.where(size <= 1, size * size / 2, size - 0.5).mean()
            loss.backward()
            return loss

        library.step(closure)
        assert own <= closure().item() * (1 + 1e-3)
