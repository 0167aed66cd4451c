"""The output matrix of a new vocabulary made to expect every token where, and as often as, a text has it.

Rows that are put together from old ones know what a token is like, but neither how often it comes nor after what. One
forward pass over some text tells both, without training. Where token i follows, hidden states have a mean of their own; for
states that are normally distributed around such means with one covariance S, the softmax over S^-1 (mean_i - mean) h + b_i
is exact (linear discriminant analysis), so row i becomes the average of its old row and of that, weighted k to N_i, its
occurrences: few sightings change little. S is mixed with a multiple of the identity, for it is far from known.

A pass that is cheap sees most tokens a few times, but how often one token follows another is counted in all of the text for
nothing. So mean_i is that of the states after all tokens that come before i there, m_t for token t, and the pass adds what the
states before i have beyond the m_t of their own t (a control variate): the larger part of the mean is known from some fifteen times
as much text as the model has read.

The biases b_i make every token as likely as it is frequent. Few models have any, so they are laid in the direction v in
which hidden states agree best: u_i <- ... + b_i v with v'h ~ 1 for all h.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # candidates for alpha, which multiplies the old rows
RIDGES = (1.0, 3.0, 10.0)  # candidates for the identity's share in the covariance, times the mean variance of a dimension
WEIGHTS = (10.0, 30.0, 100.0)  # candidates for k
NEVER = math.inf  # as k: the old rows alone
BEYOND = 10.0  # sightings by the pass at which half of what they say beyond the token before is believed
ROUNDS = 5  # of fitting the biases
POSITIONS = 2048  # on which candidates are fitted and judged
RIDGE = 1e-3  # times the mean square of a dimension
LOGITS = 2**24  # held at a time


@dataclass(frozen=True)
class _Recipe:
    alpha: float
    ridge: float
    weight: float


class Moments:
    """Sums over the positions of a text: what linear discriminants need to know of them, in the memory of two output matrices."""

    def __init__(self, tokens: int, width: int) -> None:
        import torch

        self.positions = 0
        self.total = torch.zeros(width, dtype=torch.float64)
        self.square = torch.zeros(width, width, dtype=torch.float64)
        self.after, self.before = torch.zeros(tokens, width), torch.zeros(tokens, width)
        self._windows: list[np.ndarray] = []

    def add(self, hidden: Tensor, ids: Tensor) -> None:
        """``hidden`` [n, d]: the states after ids[:-1], [n + 1] tokens."""
        self.positions += len(hidden)
        self.total += hidden.sum(0)
        self.square += hidden.T @ hidden
        self.after.index_add_(0, ids[:-1], hidden)
        self.before.index_add_(0, ids[1:], hidden)
        self._windows.append(ids.numpy())

    def mean(self) -> Tensor:
        return (self.total / self.positions).float()

    def pairs(self) -> _Pairs:
        windows = np.stack(self._windows)
        return _Pairs(windows[:, 1:], windows[:, :-1], len(self.after))


class _Pairs:
    """How often one token comes before another."""

    def __init__(self, tokens: np.ndarray, before: np.ndarray, size: int) -> None:
        self._size = size
        codes = tokens.reshape(-1).astype(np.int64) * size + before.reshape(-1)
        self._codes, self._times = np.unique(codes, return_counts=True)

    def less(self, others: _Pairs) -> _Pairs:
        """Without ``others``, all of which are among these."""
        left = copy.copy(self)
        left._times = self._times.copy()
        left._times[np.searchsorted(self._codes, others._codes)] -= others._times
        return left

    def occurrences(self) -> Tensor:
        """Of every token after another, [size, 1]."""
        return _tensor(np.bincount(self._codes // self._size, self._times, self._size))[:, None]

    def after(self) -> Tensor:
        """Of every token before another, [size, 1]."""
        return _tensor(np.bincount(self._codes % self._size, self._times, self._size))[:, None]

    def sums(self, states: Tensor) -> Tensor:
        """For every token the sum of the ``states`` [size, d] of the tokens before it."""
        import torch

        indices = torch.from_numpy(np.stack([self._codes // self._size, self._codes % self._size]))
        shape = (self._size, self._size)
        return torch.sparse_coo_tensor(indices, _tensor(self._times), shape, check_invariants=False) @ states


def constant_direction(square: Tensor, mean: Tensor) -> Tensor:
    """The v that minimises the mean of (v'h - 1)² plus a small ridge, scaled so that v'h is 1 on average.

    Args:
        square: the mean of h h', [d, d]. mean: of h, [d].
    """
    import torch

    penalty = RIDGE * square.diagonal().mean() * torch.eye(len(mean))
    direction = torch.linalg.solve(square + penalty, mean)
    return direction / (direction @ mean)


def calibrated(
    output: Tensor, windows: Tensor, states: Callable[[Tensor], Tensor], text: np.ndarray
) -> tuple[Tensor, dict[str, Any]]:
    """The output matrix refitted, and what was done.

    Biases are fitted by iterative proportional fitting: b_i += log(share of token i in the text / mean probability that it gets).
    alpha, ridge and k are the candidates under which the tokens of the last quarter of the windows, which are not fitted, are
    the likeliest; the rows returned are fitted to all.

    Args:
        output: [rows, d].
        windows: of the text, int64 [n, length].
        states: gives what the output matrix is multiplied with at each position of a window, [length, d]; called once for each, in order.
        text: ids of all text, one document after the other: how often each comes (half an occurrence is added) and follows another.
    Returns:
        float32 [rows, d]; the candidates chosen (weight None: no means), nats a token before and after where not fitted.
    """
    rows = output.float()
    shares = shares_of(text, len(rows))
    pairs = _Pairs(text[1:], text[:-1], len(rows))
    moments, fit = Moments(*rows.shape), None
    cut = len(windows) * 3 // 4
    kept: list[tuple[Tensor, Tensor]] = []
    thin = slice(None, None, max(1, windows[:, 1:].numel() // (8 * POSITIONS)))
    for place, window in enumerate(windows):
        if place == cut and place:
            unseen = windows[cut:].numpy()
            without = pairs.less(_Pairs(unseen[:, 1:], unseen[:, :-1], len(rows)))
            fit = _Fit(rows, moments, shares, without)
        hidden = states(window)[:-1].float()
        moments.add(hidden, window)
        kept.append((hidden[thin].clone(), window[1:][thin]))
    whole = _Fit(rows, moments, shares, pairs)
    fit = fit or whole
    fitted, judged = _joined(kept[:cut] or kept), _joined(kept[cut:])
    tried: dict[_Recipe, float] = {}

    def judge(recipe: _Recipe) -> float:
        if recipe not in tried:
            tried[recipe] = loss(fit.matrix(recipe, spread(fitted[0])), *map(spread, judged))
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
    report = {
        "alpha": best.alpha, "ridge": best.ridge, "weight": None if best.weight == NEVER else best.weight,
        "positions": moments.positions, "tokens_counted": len(text),
        "nats_before": round(loss(rows, *map(spread, judged)), 4), "nats_after": round(tried[best], 4),
    }  # fmt: skip
    return whole.matrix(best, spread(_joined(kept)[0], 4 * POSITIONS)), report


class _Fit:
    """What some positions of a text, and the pairs of tokens in all of it, say about the rows."""

    def __init__(self, rows: Tensor, moments: Moments, shares: Tensor, text: _Pairs) -> None:
        mean, passed = moments.mean(), moments.pairs()
        square = (moments.square / moments.positions).float()
        states = (moments.after - passed.after() * mean) / (passed.after() + 1)  # after each token, without what all have in common
        seen = passed.occurrences()
        self.rows, self.shares = rows, shares
        self.direction = constant_direction(square, mean)
        self.covariance = square - mean[:, None] * mean
        self.occurrences = text.occurrences()
        self._known = text.sums(states)
        self._beyond = (moments.before - seen * mean - passed.sums(states)) / (seen + BEYOND)
        self._discriminant: dict[tuple[float, float], Tensor] = {}

    def means(self, weight: float) -> Tensor:
        """Of the states before each token, without the mean of all; ``weight`` of sightings that say nothing are added."""
        return self._known / (self.occurrences + weight) + self._beyond

    def matrix(self, recipe: _Recipe, positions: Tensor) -> Tensor:
        """The rows by a recipe, with biases fitted to the hidden states ``positions``."""
        import torch

        rows = recipe.alpha * self.rows
        if recipe.weight != NEVER:
            key = recipe.ridge, recipe.weight
            if key not in self._discriminant:
                variance = self.covariance.diagonal().mean()
                smooth = self.covariance + recipe.ridge * variance * torch.eye(len(self.covariance))
                self._discriminant = {key: torch.linalg.solve(smooth, self.means(recipe.weight).T).T}
            rows = rows - self.shares @ rows  # what all rows have in common says nothing, unless they are weighted
            rows = recipe.weight * rows / (self.occurrences + recipe.weight) + self._discriminant[key]
        return rows + fitted_biases(rows, self.direction, self.shares, positions)[:, None] * self.direction


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    import torch

    return torch.cat([states for states, _ in parts]), torch.cat([tokens for _, tokens in parts])


def _tensor(values: np.ndarray) -> Tensor:
    import torch

    return torch.from_numpy(values).float()


def shares_of(text: np.ndarray, size: int) -> Tensor:
    """How much of the text each of ``size`` tokens is, float32 [size]; half an occurrence is added to each."""
    counts = np.bincount(text, minlength=size) + 0.5
    return _tensor(counts / counts.sum())


def spread(values: Tensor, most: int = POSITIONS) -> Tensor:
    """At most ``most`` of the positions, evenly."""
    return values[:: -(-len(values) // most)]


def fitted_biases(rows: Tensor, direction: Tensor, shares: Tensor, hidden: Tensor) -> Tensor:
    """b [rows] for which the mean of softmax(h @ rows.T + (h @ direction) b) over ``hidden`` [n, d] is ``shares``, in ROUNDS steps."""
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


def loss(rows: Tensor, hidden: Tensor, following: Tensor) -> float:
    """Mean negative log likelihood of the tokens that follow, in nats."""
    size = max(1, LOGITS // len(rows))
    total = 0.0
    for h, token in zip(hidden.split(size), following.split(size)):
        total -= float((h @ rows.T).log_softmax(-1).gather(-1, token[:, None]).double().sum())
    return total / len(hidden)
