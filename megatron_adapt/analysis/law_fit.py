"""Constants of a law fitted to runs: Huber's loss of ln L, from a grid of starts; what the runs cannot determine is told.

After Hoffmann et al. 2022 (arXiv 2203.15556), section 3.3 and appendix D.3: sum of Huber(ln L_law - ln L, 1e-3).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_adapt.analysis import bfgs
from megatron_adapt.analysis.law_runs import Runs
from megatron_adapt.analysis.scaling_law import MAY_BE_NEGATIVE, Form, Law, check
from megatron_adapt.config_types import did_you_mean
from megatron_adapt.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

DELTA = 1e-3  # of Huber's loss: errors of ln L beyond it count linearly
_SAME = 1e-3  # relative difference of the objective up to which two starts have ended alike
_LOOSE = 1.0  # standard error of ln of a constant (factor e) from which on it counts as hardly determined
_FREE = 6.0  # and as not determined at all
GRID = {
    "alpha": (0.15, 0.35, 0.7), "beta": (0.15, 0.35, 0.7), "rd_star": (1.0, 5.0, 25.0, 125.0), "rn_star": (1.0, 5.0, 25.0),
    "delta": (0.4, 1.0), "kappa": (0.2, 0.8),
}  # fmt: skip
MISSING = {
    "E": "larger models trained for longer, whose loss comes nearer its floor",
    "A": "more different numbers of parameters, not all in step with the tokens",
    "B": "more different numbers of tokens, not all in step with the parameters",
    "rd_star": "runs with more and with fewer repetitions",
    "rn_star": "runs with more parameters than suit their unique tokens",
    "P": "runs with more and with fewer repetitions, by small and by large models",
}
_LIKE = {"alpha": "A", "beta": "B", "delta": "P", "kappa": "P"}


@dataclass(frozen=True)
class Starts:
    """How the searches from all starts ended: not at a number, still moving, where the best one did."""

    count: int
    failed: int
    unfinished: int
    alike: int


@dataclass(frozen=True)
class Fit:
    """A law with how well it describes its runs. ``theta`` [p]: where its search ended."""

    law: Law
    theta: np.ndarray
    objective: float  # mean Huber loss of (ln L_law - ln L) / DELTA
    errors: np.ndarray  # ln L_law - ln L [n]
    starts: Starts
    loose: tuple[str, ...]  # constants that the runs hardly determine


class Problem:
    """A form and runs as a function of free numbers theta: logarithms of the constants, kappa itself.

    A, B and P enter by the size of their terms amid the runs; as they stand each is tied to its exponent so closely
    that searches stall.
    """

    def __init__(self, form: Form, runs: Runs, fixed: Mapping[str, float] | None = None, tied: bool = False) -> None:
        """``fixed``: constants that are given; ``tied``: alpha = beta. Raises ConfigError for others than the form has."""
        self.form, self.runs, self.fixed, self.tied = form, runs, dict(fixed or {}), tied
        unknown = [name for name in self.fixed if name not in form.constants]
        if unknown:
            hint = did_you_mean(unknown[0], form.constants, "It has")
            raise ConfigError(f"the form {form.name} has no constant '{unknown[0]}'.{hint}")
        check(self.fixed, "constants that are given")
        if tied and self.fixed.keys() & {"alpha", "beta"}:
            raise ConfigError("alpha and beta are tied to one another: give none of them.")
        self.free = [name for name in form.constants if name not in self.fixed and not (tied and name == "beta")]
        repeated = runs.epochs > 1
        with np.errstate(divide="ignore"):
            ratio = np.log(runs.parameters) - np.log(runs.unique)
            repeats = np.log(runs.epochs - 1)
        self.center = {
            "A": float(np.log(runs.parameters).mean()), "B": float(np.log(runs.tokens).mean()),
            "repeats": float(repeats[repeated].mean()) if repeated.any() else 0.0,
            "ratio": float(ratio[repeated].mean()) if repeated.any() else 0.0,
        }  # fmt: skip

    @cached_property
    def columns(self) -> tuple[Tensor, ...]:
        import torch

        runs = self.runs
        return tuple(torch.as_tensor(values) for values in (runs.parameters, runs.tokens, runs.unique, np.log(runs.losses)))

    def constants(self, xp: Any, theta: Any) -> dict[str, Any]:
        """theta [..., p] -> constants [...]; ``xp``: numpy or torch."""
        raw = {name: theta[..., i] for i, name in enumerate(self.free)}
        like = theta[..., 0] * 0
        c = {name: like + value for name, value in self.fixed.items()}
        c |= {name: value if name in MAY_BE_NEGATIVE else xp.exp(value) for name, value in raw.items()}
        if self.tied:
            c["beta"] = c["alpha"]
        shifts = {"A": lambda: c["alpha"] * self.center["A"], "B": lambda: c["beta"] * self.center["B"]}
        shifts["P"] = lambda: -c["delta"] * self.center["repeats"] - c["kappa"] * self.center["ratio"]
        for name, shift in shifts.items():
            if name in raw:
                c[name] = xp.exp(raw[name] + shift())
        return c

    def theta(self, constants: Mapping[str, Any]) -> np.ndarray:
        """The inverse, [s, p] of constants [s]."""
        c = {name: np.asarray(value, float) for name, value in constants.items()}
        shifts = {"A": lambda: -c["alpha"] * self.center["A"], "B": lambda: -c["beta"] * self.center["B"]}
        shifts["P"] = lambda: c["delta"] * self.center["repeats"] + c["kappa"] * self.center["ratio"]
        return np.stack([c[n] if n in MAY_BE_NEGATIVE else np.log(c[n]) + shifts.get(n, lambda: 0.0)() for n in self.free], -1)

    def errors(self, theta: Tensor) -> Tensor:
        """ln L_law - ln L, [s, p] -> [s, n]."""
        import torch

        n, d, u, target = self.columns
        c = {name: value[:, None] for name, value in self.constants(torch, theta).items()}
        return self.form.log_loss(torch, c, n, d, u) - target

    def solve(self, starts: np.ndarray, weights: np.ndarray | None = None, iterations: int = 400) -> bfgs.Minima:
        """Minimise the mean Huber loss over runs, weighted by ``weights`` [s, n], from each start [s, p]."""
        import torch

        weight = torch.ones(1, len(self.runs), dtype=torch.float64) if weights is None else torch.as_tensor(weights)
        total = weight.sum(1, keepdim=True)

        def objective(theta: Tensor, rows: Tensor) -> Tensor:
            size = (self.errors(theta) / DELTA).abs()
            loss = torch.where(size <= 1, size * size / 2, size - 0.5)
            own = slice(None) if weights is None else rows
            return (loss * weight[own] / total[own]).sum(1)

        return bfgs.minimize(objective, torch.as_tensor(starts), iterations)

    def starts(self) -> np.ndarray:
        """A grid over exponents and rates; the sizes of the terms, for each, by least squares of the relative error. [s, p]"""
        grid = [name for name in self.free if name in GRID]
        runs, found = self.runs, []
        for values in itertools.product(*(GRID[name] for name in grid)):
            c = {**self.fixed, **dict(zip(grid, values))}
            if self.tied:
                c["beta"] = c["alpha"]
            d = runs.tokens
            if self.form.data_decays:
                d = runs.unique * (1 + c["rd_star"] * -np.expm1(-(runs.epochs - 1) / c["rd_star"]))
            shapes = {"E": np.ones(len(runs)), "A": runs.parameters ** -c["alpha"], "B": d ** -c["beta"]}
            if self.form.is_penalized:
                shapes["P"] = np.maximum(runs.epochs - 1, 0) ** c["delta"] * (runs.parameters / runs.unique) ** c["kappa"]
            wanted = [name for name in shapes if name in self.free]
            scale = {name: shapes[name].mean() or 1.0 for name in wanted}
            left = 1 - sum(self.fixed[name] * shapes[name] for name in shapes if name in self.fixed) / runs.losses
            if wanted:
                matrix = np.stack([shapes[name] / scale[name] / runs.losses for name in wanted], 1)
                sizes = np.linalg.lstsq(matrix, left, rcond=1e-8)[0]
                floor = 0.03 * runs.losses.mean()  # a term that is not there could not grow again
                c |= {name: max(size, floor) / scale[name] for name, size in zip(wanted, sizes)}
            found.append(self.theta({name: c[name] for name in self.form.constants}))
        return np.stack(found)

    def looseness(self, theta: np.ndarray) -> dict[str, float]:
        """Standard errors of theta by the errors' curvature and spread; inf where the runs say nothing of it."""
        import torch

        here = torch.as_tensor(theta)[None]
        steps = 1e-5 * torch.eye(len(theta), dtype=torch.float64)
        slopes = ((self.errors(here + steps) - self.errors(here - steps)) / 2e-5).numpy()  # [p, n]
        errors = self.errors(here)[0].numpy()
        spread = max(1.4826 * float(np.median(np.abs(errors))), 1e-6)
        u, sizes, _ = np.linalg.svd(slopes, full_matrices=False)
        with np.errstate(divide="ignore", invalid="ignore"):
            parts = np.where(np.abs(u) > 1e-6, (u / np.where(sizes > 1e-9 * sizes.max(), sizes, 0.0)) ** 2, 0.0)
        return dict(zip(self.free, spread * np.sqrt(parts.sum(1))))


def missing(constants: Iterable[str]) -> list[str]:
    """Runs that would determine these constants."""
    return list(dict.fromkeys(MISSING[_LIKE.get(constant, constant)] for constant in constants))


def shortages(problem: Problem) -> list[str]:
    """What the runs lack for a fit, before it is tried."""
    runs, form, free = problem.runs, problem.form, problem.free
    found = []
    if len(runs) < len(free) + 2:
        found.append(f"{len(free)} constants need at least {len(free) + 2} runs, and there are {len(runs)}")
    for what, values, exponent in (("parameters", runs.parameters, "alpha"), ("tokens", runs.tokens, "beta")):
        levels = len(np.unique(np.round(np.log(values), 2)))
        if exponent in free and levels < 3:
            found.append(f"{exponent} needs runs with at least 3 different numbers of {what}, and there are {levels}")
    levels = len(np.unique(np.round(runs.epochs[runs.epochs > 1.01], 1)))
    if form.sees_repeats and {"rd_star", "delta", "P"} & set(free) and levels < 2:
        constant = "rd_star" if form.data_decays else "P"
        found.append(f"{constant} needs runs with at least 2 different numbers of repeated epochs, and there are {levels}")
    return found


def fit(form: Form, runs: Runs, *, fixed: Mapping[str, float] | None = None, tied: bool = False, name: str = "fitted") -> Fit:
    """Fit a form's constants to runs, from all starts of the grid.

    Raises:
        ConfigError: constants in ``fixed`` that the form does not have.
        DataError: the runs do not determine the constants; it says which, and what is missing.
    """
    problem = Problem(form, runs, fixed, tied)
    found, loose = search(problem, name)
    if lost := [constant for constant, error in loose.items() if error > _FREE and constant != "E"]:
        raise DataError(
            f"the form {form.name}: these runs do not determine {', '.join(lost)}. Add {'; '.join(missing(lost))}; "
            "or hold constants with --fix, or choose another form."
        )
    return found


def search(problem: Problem, name: str = "fitted", most: int | None = None) -> tuple[Fit, dict[str, float]]:
    """The best fit, whether or not the runs determine it, and the standard error of each number of theta.

    ``most``: only from so many starts of the grid, those that fit best before any step.
    Raises ConfigError where nothing is free, DataError for too few runs and where no start leads to a number.
    """
    form, runs = problem.form, problem.runs
    if not problem.free:
        raise ConfigError(f"all constants of the form {form.name} are given: nothing is left to fit.")
    if lacking := shortages(problem):
        why = "; ".join(lacking)
        raise DataError(f"the form {form.name} cannot be fitted to these runs: {why}. Add runs, or hold constants with --fix.")
    grid = problem.starts()
    if most is not None and most < len(grid):
        begun = problem.solve(grid, iterations=0).value.numpy()
        grid = grid[np.argsort(begun, kind="stable")[:most]]
    ends = problem.solve(grid)
    values = ends.value.numpy()
    best = int(np.argmin(np.where(np.isfinite(values), values, np.inf)))
    if not math.isfinite(values[best]):
        raise DataError(
            f"the form {form.name}: no start out of {len(values)} led to a number; look for losses or sizes that cannot be."
        )
    theta = ends.x[best].numpy()
    errors = problem.looseness(theta)
    starts = Starts(
        len(values), int((~np.isfinite(values)).sum()), int((np.isfinite(values) & ~ends.rested.numpy()).sum()),
        int((values <= values[best] * (1 + _SAME) + 1e-9).sum()),
    )  # fmt: skip
    constants = {constant: float(value) for constant, value in problem.constants(np, theta).items()}
    loose = tuple(constant for constant, error in errors.items() if error > _LOOSE)
    caution = f"its runs hardly determine {', '.join(loose)}" if loose else ""
    ordered = {constant: constants[constant] for constant in form.constants}
    law = Law(name, form, ordered, f"fitted to {len(runs)} runs", runs.ranges, caution)
    return Fit(law, theta, float(values[best]), problem.errors(ends.x[best : best + 1])[0].numpy(), starts, loose), errors
