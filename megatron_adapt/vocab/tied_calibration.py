"""A tied matrix made to expect every token as often as a text has it, with its input side disturbed as little as can be.

Where input and output are one matrix E, composed rows are too sure of themselves: they were put together to be read, and as
an output each wins where a hidden state is like its own input. So rows become

    e_i <- mean + alpha (e_i - mean) + b_i v

with the mean of all rows, v the direction in which hidden states agree best (v'h ~ 1 for all h, see ``calibration``), and
b_i fitted so that every token is expected as often as it comes. What all rows share shows in no softmax: the mean costs nothing
on the output side, and what the first layer reads keeps its length and loses what it is wrong about. Of b_i, too, only differences
show; their mean, weighted with how often tokens come, is taken off, which leaves the least sum of squares: the tokens that are read
most are moved least.

A change of rows changes the hidden states. So every candidate for alpha is fitted and judged by passes of its own, with its rows on
both sides, on text that nothing was fitted to; leaving all as it is is one of the candidates. Linear discriminants, which help
an untied output most, change the input so much that they do not settle, and are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable

import numpy as np

from megatron_adapt.vocab.calibration import constant_direction, fitted_biases, loss, shares_of, spread

if TYPE_CHECKING:
    from torch import Tensor

SHARES = (1.0, 0.5, 0.25)  # candidates for alpha; less is no better at once, and learns slower
FITTED, JUDGED = 48, 32  # windows of a pass
POSITIONS = 8192  # that biases are fitted to


def calibrated(rows: Tensor, windows: Tensor, states: Callable[[Tensor, Tensor], Tensor], text: np.ndarray) -> tuple[Tensor, dict[str, Any]]:
    """The matrix refitted, and what was done.

    Args:
        rows: of input and output, [rows, d].
        windows: of the text, int64 [n, length]; biases are fitted to three of five of the first FITTED + JUDGED.
        states: of rows as the input and a window gives what the output is multiplied with at each position, [length, d].
        text: ids of all text: how often each comes, half an occurrence is added.
    Returns:
        float32 [rows, d]; alpha (None: nothing changed), nats a token before and after where not fitted.
    """
    rows = rows.float()
    shares = shares_of(text, len(rows))
    cut = min(FITTED, max(1, len(windows) * FITTED // (FITTED + JUDGED)))
    fitted, judged = windows[:cut], windows[cut : cut + JUDGED]
    judged = judged if len(judged) else fitted

    def hidden(matrix: Tensor, some: Tensor) -> Tensor:
        import torch

        return torch.cat([states(matrix, window)[:-1].float() for window in some])

    def nats(matrix: Tensor) -> float:
        return loss(matrix, hidden(matrix, judged), judged[:, 1:].flatten())

    mean = rows.mean(0)
    before = least = nats(rows)
    best, chosen = rows, None
    for alpha in SHARES:
        nearer = mean + alpha * (rows - mean)
        found = hidden(nearer, fitted)
        direction = constant_direction(found.T @ found / len(found), found.mean(0))
        biases = fitted_biases(nearer, direction, shares, spread(found, POSITIONS))
        candidate = nearer + (biases - shares @ biases)[:, None] * direction
        if (value := nats(candidate)) < least:
            least, best, chosen = value, candidate, alpha
    return best, {
        "alpha": chosen, "positions": fitted[:, 1:].numel(), "tokens_counted": len(text),
        "nats_before": round(before, 4), "nats_after": round(least, 4),
    }  # fmt: skip
