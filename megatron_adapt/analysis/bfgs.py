"""Many small smooth problems minimised at once: BFGS (Nocedal & Wright 2006, section 6.1), every problem with its own memory.

With a handful of variables the whole matrix is kept, which L-BFGS approximates; and hundreds of starts and resamples of
one fit, each of which a library would take in turn, cost little more than one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_DECREASE, _CURVATURE = 1e-4, 0.9  # of the weak Wolfe conditions
_HALVINGS = 16
_NOTHING = 1e-13  # a gain that is none, of objectives around 1


@dataclass
class Minima:
    """Where each problem ended: x [s, p], value [s] (not finite: it failed), and whether it came to rest [s]."""

    x: Tensor
    value: Tensor
    rested: Tensor


def minimize(objective: Callable[[Tensor, Tensor], Tensor], x: Tensor, iterations: int = 400, tolerance: float = 1e-8) -> Minima:
    """Minimise ``objective(x [r, p], rows [r]) -> [r]``, of the problems ``rows``, from every start x [s, p], float64.

    A problem rests when three steps in a row have gained less than ``tolerance`` of its value, or no step gains at all.
    """
    import torch

    def evaluate(at: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            at = at.detach().requires_grad_()
            values = objective(at, rows)
            (gradient,) = torch.autograd.grad(values.sum(), at)
        return values.detach(), gradient

    count, size = x.shape
    every, unit = torch.arange(count), torch.eye(size, dtype=x.dtype)
    x = x.clone()
    value, slope = evaluate(x, every)
    sane = torch.isfinite(value) & torch.isfinite(slope).all(1)
    value = torch.where(sane, value, torch.inf)
    inverse = unit / slope.norm(dim=1).clamp(min=1e-12)[:, None, None] * 0.1
    fresh = torch.ones(count, dtype=torch.bool)
    idle, rested = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.bool)
    for _ in range(iterations):
        rows = every[sane & ~rested]
        if not len(rows):
            break
        direction = -(inverse[rows] @ slope[rows, :, None])[..., 0]
        uphill = ~((direction * slope[rows]).sum(1) < 0)
        if uphill.any():
            again = rows[uphill]
            inverse[again], fresh[again] = unit / slope[again].norm(dim=1).clamp(min=1e-12)[:, None, None] * 0.1, True
            direction[uphill] = -(inverse[again] @ slope[again, :, None])[..., 0]
        new_x, new_value, new_slope = _search(evaluate, rows, x[rows], value[rows], slope[rows], direction)
        step, change = new_x - x[rows], new_slope - slope[rows]
        gain = value[rows] - new_value
        idle[rows] = torch.where(gain <= tolerance * new_value.abs() + _NOTHING, idle[rows] + 1, 0)
        rested[rows] = (idle[rows] >= 3) | (step == 0).all(1)
        curved = (step * change).sum(1)
        useful = curved > 1e-14 * step.norm(dim=1) * change.norm(dim=1)
        kept = rows[useful]
        s, y, sy = step[useful], change[useful], curved[useful]
        first = fresh[kept]
        inverse[kept[first]] = unit * (sy / (y * y).sum(1))[first][:, None, None]
        fresh[kept] = False
        left = unit - s[:, :, None] * y[:, None] / sy[:, None, None]
        inverse[kept] = left @ inverse[kept] @ left.transpose(1, 2) + s[:, :, None] * s[:, None] / sy[:, None, None]
        x[rows], value[rows], slope[rows] = new_x, new_value, new_slope
    return Minima(x, value, rested)


def _search(
    evaluate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    rows: Tensor,
    x: Tensor,
    value: Tensor,
    slope: Tensor,
    direction: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Points along the directions, by bisection for the weak Wolfe conditions; the start itself where none is lower.

    These conditions do without a continuous derivative (Lewis & Overton 2013, section 4), which Huber's loss hardly has.
    """
    import torch

    best_x, best_value, best_slope = x.clone(), value.clone(), slope.clone()
    low, high = torch.zeros_like(value), torch.full_like(value, torch.inf)
    length, descent = torch.ones_like(value), (slope * direction).sum(1)
    open_ = torch.arange(len(rows))
    for _ in range(_HALVINGS):
        at = x[open_] + length[open_, None] * direction[open_]
        values, slopes = evaluate(at, rows[open_])
        lower = (values <= value[open_] + _DECREASE * length[open_] * descent[open_]) & torch.isfinite(slopes).all(1)
        flat = (slopes * direction[open_]).sum(1) >= _CURVATURE * descent[open_]
        taken = open_[lower]
        best_x[taken], best_value[taken], best_slope[taken] = at[lower], values[lower], slopes[lower]
        low[taken] = length[taken]
        high[open_[~lower]] = length[open_[~lower]]
        open_ = open_[~(lower & flat)]
        if not len(open_):
            break
        length[open_] = torch.where(torch.isinf(high[open_]), 2 * low[open_], (low[open_] + high[open_]) / 2)
    return best_x, best_value, best_slope
