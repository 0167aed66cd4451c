"""The output matrix of a new vocabulary made to expect every token as often as a text has it.

Rows that are put together from old ones know what a token is like, but not how often it comes: a token whose row is close to
that of a frequent piece takes that piece's whole probability. A bias b_i for each token would settle it; few models have
one, so it is laid in the direction v in which hidden states agree best: u_i <- alpha u_i + b_i v with v'h ~ 1 for all h.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # candidates for alpha
ROUNDS = 5  # of fitting the biases
RIDGE = 1e-3  # times the mean square of a dimension
LOGITS = 2**24  # held at a time


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
    """The output matrix with the biases laid in, and what was done.

    The biases are fitted by iterative proportional fitting: b_i += log(share of token i in the text / mean probability that it
    gets). alpha is the candidate under which tokens of the other half of the positions are the likeliest.

    Args:
        output: [rows, d]. hidden: [n, d], what the output matrix is multiplied with at some positions of the text.
        following: int64 [n], the token after each of them.
        counts: of every token in the text, [rows]; half an occurrence is added to each.
    Returns:
        float32 [rows, d]; alpha, nats a token before and after on the half that was not fitted.
    """
    import torch

    rows = output.float()
    direction = constant_direction(hidden)
    shares = torch.from_numpy((counts + 0.5) / (counts + 0.5).sum()).float()
    fitted, judged = hidden[0::2], (hidden[1::2], following[1::2])
    before = _loss(rows, *judged)
    best = (math.inf, 0.0)
    for alpha in SHARES:
        biases = _biases(alpha * rows, direction, shares, fitted)
        best = min(best, (_loss(alpha * rows + biases[:, None] * direction, *judged), alpha))
    after, alpha = best
    biases = _biases(alpha * rows, direction, shares, hidden)
    report = {"alpha": alpha, "positions": len(hidden), "nats_before": round(before, 4), "nats_after": round(after, 4)}
    return alpha * rows + biases[:, None] * direction, report


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
