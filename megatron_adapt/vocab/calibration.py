"""The output matrix of a new vocabulary made to expect every token where, and as often as, a text has it.

Rows that are put together from old ones know what a token is like, but neither how often it comes nor after what. One
forward pass over some text tells both, without training. Where token i follows, hidden states have a mean of their own; for
states that are normally distributed around such means with one covariance S, the softmax over S^-1 (mean_i - mean) h + b_i
is exact (linear discriminant analysis), so row i becomes the average of its old row and of that, weighted k to n_i, its
occurrences: few sightings change little. S is mixed with a multiple of the identity, for it is far from known.

The biases b_i make every token as likely as it is frequent. Few models have any, so they are laid in the direction v in
which hidden states agree best: u_i <- ... + b_i v with v'h ~ 1 for all h.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # candidates for alpha, which multiplies the old rows
RIDGES = (1.0, 3.0, 10.0)  # candidates for the identity's share in the covariance, times the mean variance of a dimension
WEIGHTS = (1.0, 3.0, 10.0)  # candidates for k
NEVER = math.inf  # as k: the old rows alone
ROUNDS = 5  # of fitting the biases
POSITIONS = 2048  # on which candidates are fitted and judged
RIDGE = 1e-3  # times the mean square of a dimension
LOGITS = 2**24  # held at a time


@dataclass(frozen=True)
class _Recipe:
    alpha: float
    ridge: float
    weight: float


def constant_direction(hidden: Tensor) -> Tensor:
    """The v that minimises the mean of (v'h - 1)² plus a small ridge, scaled so that v'h is 1 on average.

    Args:
        hidden: [n, d], float32.
    """
    import torch

    square = hidden.T @ hidden / len(hidden)
    penalty = RIDGE * square.diagonal().mean() * torch.eye(hidden.shape[1])
    mean = hidden.mean(0)
    direction = torch.linalg.solve(square + penalty, mean)
    return direction / (direction @ mean)


def calibrated(output: Tensor, hidden: Tensor, following: Tensor, counts: np.ndarray) -> tuple[Tensor, dict[str, Any]]:
    """The output matrix refitted, and what was done.

    Biases are fitted by iterative proportional fitting: b_i += log(share of token i in the text / mean probability that it gets).
    alpha, ridge and k are the candidates under which the tokens of the last quarter of the positions, which are not fitted, are
    the likeliest; the rows returned are fitted to all.

    Args:
        output: [rows, d]. hidden: [n, d], what the output matrix is multiplied with at some positions of the text, in order.
        following: int64 [n], the token after each of them.
        counts: of every token in the text, [rows]; half an occurrence is added to each.
    Returns:
        float32 [rows, d]; the candidates chosen (weight None: no means), nats a token before and after where not fitted.
    """
    rows = output.float()
    shares = _tensor((counts + 0.5) / (counts + 0.5).sum())
    cut = len(hidden) * 3 // 4
    fit = _Fit(rows, hidden[:cut], following[:cut], shares)
    judged = _spread(hidden[cut:]), _spread(following[cut:])
    tried: dict[_Recipe, float] = {}

    def judge(recipe: _Recipe) -> float:
        if recipe not in tried:
            tried[recipe] = _loss(fit.matrix(recipe, _spread(hidden[:cut])), *judged)
        return tried[recipe]

    for alpha in SHARES:
        judge(_Recipe(alpha, 1.0, NEVER))
    start = min(tried, key=tried.__getitem__).alpha
    for ridge in RIDGES:
        for weight in WEIGHTS:
            judge(_Recipe(start, ridge, weight))
    best = min(tried, key=tried.__getitem__)
    for alpha in SHARES:
        judge(_Recipe(alpha, best.ridge, best.weight))
    best = min(tried, key=tried.__getitem__)
    before = _loss(rows, *judged)
    report = {
        "alpha": best.alpha, "ridge": best.ridge, "weight": None if best.weight == NEVER else best.weight,
        "positions": len(hidden), "nats_before": round(before, 4), "nats_after": round(tried[best], 4),
    }  # fmt: skip
    return _Fit(rows, hidden, following, shares).matrix(best, _spread(hidden, 4 * POSITIONS)), report


class _Fit:
    """What some positions of a text say about the rows."""

    def __init__(self, rows: Tensor, hidden: Tensor, following: Tensor, shares: Tensor) -> None:
        import torch

        mean = hidden.mean(0)
        centred = hidden - mean
        self.rows, self.shares = rows, shares
        self.direction = constant_direction(hidden)
        self.occurrences = torch.bincount(following, minlength=len(rows)).float()[:, None]
        self.sums = torch.zeros_like(rows).index_add_(0, following, centred)
        self.covariance = centred.T @ centred / len(hidden)
        self._discriminant: dict[float, Tensor] = {}

    def matrix(self, recipe: _Recipe, positions: Tensor) -> Tensor:
        """The rows by a recipe, with biases fitted to the hidden states ``positions``."""
        import torch

        rows = recipe.alpha * self.rows
        if recipe.weight != NEVER:
            if recipe.ridge not in self._discriminant:
                variance = self.covariance.diagonal().mean()
                smooth = self.covariance + recipe.ridge * variance * torch.eye(len(self.covariance))
                self._discriminant = {recipe.ridge: torch.linalg.solve(smooth, self.sums.T).T}
            rows = rows - self.shares @ rows  # what all rows have in common says nothing, unless they are weighted
            rows = (recipe.weight * rows + self._discriminant[recipe.ridge]) / (self.occurrences + recipe.weight)
        return rows + _biases(rows, self.direction, self.shares, positions)[:, None] * self.direction


def _tensor(values: np.ndarray) -> Tensor:
    import torch

    return torch.from_numpy(values).float()


def _spread(values: Tensor, most: int = POSITIONS) -> Tensor:
    """At most ``most`` of the positions, evenly."""
    return values[:: -(-len(values) // most)]


def _biases(rows: Tensor, direction: Tensor, shares: Tensor, hidden: Tensor) -> Tensor:
    import torch

    biases = torch.zeros(len(rows))
    along = hidden @ direction
    size = max(1, LOGITS // len(rows))
    for _ in range(ROUNDS):
        expected = torch.zeros(len(rows), dtype=torch.float64)
        for h, a in zip(hidden.split(size), along.split(size)):
            expected += (h @ rows.T + a[:, None] * biases).softmax(-1).sum(0, dtype=torch.float64)
        biases = biases + (shares / (expected / len(hidden)).clamp_min(1e-12)).log().float()
    return biases


def _loss(rows: Tensor, hidden: Tensor, following: Tensor) -> float:
    """Mean negative log likelihood of the tokens that follow, in nats."""
    size = max(1, LOGITS // len(rows))
    total = 0.0
    for h, token in zip(hidden.split(size), following.split(size)):
        total -= float((h @ rows.T).log_softmax(-1).gather(-1, token[:, None]).double().sum())
    return total / len(hidden)
