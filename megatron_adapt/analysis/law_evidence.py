"""How far a fit can be trusted: resampled runs, runs left out one by one and in parts, and other forms beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_adapt.analysis.law_fit import Fit, Problem, fit, search
from megatron_adapt.analysis.law_runs import Runs
from megatron_adapt.analysis.scaling_law import Form, Law
from megatron_adapt.errors import DataError

FOLDS = 5
LARGEST = 0.2  # the share of the runs, those of the most FLOPs, that the others have to predict
_STARTS = 4  # for a resample
_SPREAD = 0.3
_BEGUN = 16  # starts of the grid for a part held out


@dataclass(frozen=True)
class Scores:
    """Of predictions: R2 and root-mean-square error of the loss, the latter of its logarithm too (0.01: 1 %)."""

    runs: int
    r2: float
    rmse: float
    log_rmse: float


@dataclass(frozen=True)
class Intervals:
    """Percentile intervals of the constants over resamples of the runs. ``failed`` resamples led to no number."""

    low: Mapping[str, float]
    high: Mapping[str, float]
    samples: int
    failed: int
    constants: Mapping[str, np.ndarray]  # of each resample that led to one


@dataclass(frozen=True)
class Influence:
    """A run, how far it lies from what the others predict (of ln L), and the constant that moves most without it."""

    name: str
    error: float
    constant: str
    factor: float  # the constant without the run, over that with it


@dataclass(frozen=True)
class Comparison:
    """One form: fitted to all runs, predicting parts held out, and the largest runs from the others. ``why`` not."""

    form: Form
    fit: Fit | None
    fitted: Scores | None
    folds: Scores | None
    largest: Scores | None
    why: str = ""


def scores(losses: np.ndarray, predicted: np.ndarray) -> Scores:
    """R2 is nan for runs that all have one loss."""
    spread = ((losses - losses.mean()) ** 2).sum()
    square = ((predicted - losses) ** 2).mean()
    r2 = 1 - square * len(losses) / spread if spread > 0 else float("nan")
    return Scores(len(losses), float(r2), float(np.sqrt(square)), float(np.sqrt((np.log(predicted / losses) ** 2).mean())))


def of_law(law: Law, runs: Runs) -> Scores:
    return scores(runs.losses, law.loss(runs.parameters, runs.tokens, runs.unique))


def _refit(
    problem: Problem, theta: np.ndarray, weights: np.ndarray, seed: int = 0, tries: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Best theta [s, p] and whether it is a number [s], for each row of weights [s, n], from ``tries`` starts each:
    where the whole fit ended, and others around it."""
    generator = np.random.default_rng(seed)
    count, size = len(weights), len(theta)
    starts = theta + _SPREAD * generator.standard_normal((count, tries, size)) * (np.arange(tries) > 0)[None, :, None]
    ends = problem.solve(starts.reshape(-1, size), np.repeat(weights, tries, 0))
    values = ends.value.numpy().reshape(count, tries)
    values = np.where(np.isfinite(values), values, np.inf)
    best = values.argmin(1)
    return ends.x.numpy().reshape(count, tries, size)[np.arange(count), best], np.isfinite(values.min(1))


def bootstrap(fitted: Fit, problem: Problem, samples: int, level: float = 0.9, seed: int = 0) -> Intervals:
    """Runs drawn with replacement, ``samples`` times; ``level``: how many of the resamples lie in the interval."""
    count = len(problem.runs)
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), samples).astype(float)
    theta, sane = _refit(problem, fitted.theta, weights, seed, _STARTS)
    constants = {name: np.broadcast_to(values, sane.sum()) for name, values in problem.constants(np, theta[sane]).items()}
    if not sane.any():
        raise DataError(f"the form {problem.form.name}: no resample of the runs led to a number.")
    cut = 100 * (1 - level) / 2
    low, high = ({name: float(np.percentile(values, at)) for name, values in constants.items()} for at in (cut, 100 - cut))
    return Intervals(low, high, samples, int((~sane).sum()), constants)


def influences(fitted: Fit, problem: Problem) -> list[Influence]:
    """For every run, strongest first: the fit without it. Names what hangs on single runs; none is taken out."""
    runs, here = problem.runs, fitted.law.constants
    theta, sane = _refit(problem, fitted.theta, 1 - np.eye(len(runs)))
    constants = problem.constants(np, theta)
    left_out = np.log(_predicted(problem, theta, runs).diagonal() / runs.losses)
    moved = theta - fitted.theta
    firm = [name not in fitted.loose for name in problem.free]
    moved[:, [not each for each in firm]] *= 0 if any(firm) else 1  # what is hardly determined moves for nothing
    found = []
    for i, name in enumerate(runs.names):
        if not sane[i]:
            raise DataError(f"the form {problem.form.name}: without the run {name} no start led to a number; all hangs on it.")
        constant = problem.free[int(np.abs(moved[i]).argmax())]
        found.append(Influence(name, float(left_out[i]), constant, float(constants[constant][i] / here[constant])))
    order = np.abs(moved).max(1).argsort()[::-1]
    return [found[i] for i in order]


def _predicted(problem: Problem, theta: np.ndarray, runs: Runs) -> np.ndarray:
    """Losses [s, n] by constants of theta [s, p]."""
    c = {name: np.asarray(value)[:, None] for name, value in problem.constants(np, theta).items()}
    return np.exp(problem.form.log_loss(np, c, runs.parameters, runs.tokens, runs.unique))


def held_out(form: Form, runs: Runs, groups: Sequence[np.ndarray], fixed: Mapping[str, float] | None, tied: bool) -> Scores:
    """Each group (indices) predicted by a fit to all other runs from the grid, whether or not they determine all constants.

    Raises DataError: these are too few.
    """
    everything = np.arange(len(runs))
    losses, predicted = [], []
    for group in groups:
        rest, _ = search(Problem(form, runs.part(np.setdiff1d(everything, group)), fixed, tied), most=_BEGUN)
        part = runs.part(group)
        losses.append(part.losses)
        predicted.append(rest.law.loss(part.parameters, part.tokens, part.unique))
    return scores(np.concatenate(losses), np.concatenate(predicted))


def folds(runs: Runs, seed: int = 0) -> list[np.ndarray]:
    """Indices of FOLDS parts. Runs of one configuration (seeds) stay together: to have seen one is to know the other."""
    keys = np.stack([runs.parameters, runs.tokens, runs.unique], 1)
    _, place = np.unique(keys, axis=0, return_inverse=True)
    part = np.random.default_rng(seed).permutation(place.max() + 1) % FOLDS
    groups = [np.flatnonzero(part[place.ravel()] == number) for number in range(FOLDS)]
    return [group for group in groups if len(group)]


def largest(runs: Runs) -> np.ndarray:
    order = np.argsort(runs.parameters * runs.tokens, kind="stable")
    return order[len(order) - max(1, round(LARGEST * len(order))) :]


def compare(
    forms: Sequence[Form], runs: Runs, *, fixed: Mapping[str, float] | None = None, tied: bool = False, seed: int = 0
) -> list[Comparison]:
    """Every form fitted and tested on the same parts; one that the runs do not determine is told, not left out."""
    found = []
    for form in forms:
        own = {name: value for name, value in (fixed or {}).items() if name in form.constants}
        try:
            whole = fit(form, runs, fixed=own, tied=tied)
        except DataError as error:
            found.append(Comparison(form, None, None, None, None, str(error)))
            continue
        parts, why = [], []
        for what, groups in ((f"{FOLDS} parts held out", folds(runs, seed)), ("the largest held out", [largest(runs)])):
            try:
                parts.append(held_out(form, runs, groups, own, tied))
            except DataError as error:
                parts.append(None)
                why.append(f"{what}: {error}")
        found.append(Comparison(form, whole, of_law(whole.law, runs), parts[0], parts[1], "\n".join(why)))
    return found
