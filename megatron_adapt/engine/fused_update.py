"""AdamW and LionW of bf16 weights in one pass over memory: a Triton kernel, for GPUs.

The arithmetic is that of ``updates``, in float32 registers instead of copies in memory. Random numbers for stochastic rounding
are Philox 4x32 with 7 rounds (Salmon et al. 2011: the fewest that pass all of BigCrush), whose counter is the place of an
element in its parameter: the same for every launch, rank and part of a parameter that has the same seed, and not those that
torch's generators draw elsewhere.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROUNDINGS = {"nearest": 0, "stochastic": 1, "kahan": 2}
BLOCK = 1024  # elements of a program


def update(
    weights: Tensor,
    gradient: Tensor,
    moments: list[Tensor],
    compensation: Tensor | None,
    group: dict[str, Any],
    *,
    rounding: str,
    gradient_scale: float,
    seed: int,
    first: int,
    changed: Tensor | None = None,
) -> Tensor:
    """Change ``weights``, ``moments`` and ``compensation`` (Kahan's), contiguous in bf16, in place by one update.

    Args:
        moments: first and second (AdamW), or the momentum alone (LionW).
        group: ``lr``, ``weight_decay``, ``betas``, ``step`` and, for AdamW, ``eps``.
        seed: below 2^63, of the random numbers; ``first``: the place of the first element in its whole parameter.
        changed: int64 on the device, to which the number of weights that are not what they were is added; else it begins at 0.
    Returns:
        ``changed``
    """
    adam = len(moments) == 2
    (beta1, beta2), step, lr = group["betas"], group["step"], group["lr"]
    changed = torch.zeros((), dtype=torch.int64, device=weights.device) if changed is None else changed
    if not weights.numel():
        return changed
    _update[(triton.cdiv(weights.numel(), BLOCK),)](
        weights, gradient, moments[0], moments[-1], weights if compensation is None else compensation, changed,
        weights.numel(), first, seed, gradient_scale, 1 - lr * group["weight_decay"],
        lr / (1 - beta1**step) if adam else lr, beta1, 1 - beta1, beta2, 1 - beta2,
        (1 - beta2**step) ** 0.5, group.get("eps", 0.0),
        ADAM=adam, ROUNDING=ROUNDINGS[rounding], BLOCK=BLOCK,
    )  # fmt: skip
    return changed


@triton.jit(do_not_specialize=["count", "first", "seed"])
def _update(
    weights, gradients, firsts, seconds, compensations, changed, count, first, seed, gradient_scale, decay, rate,
    beta1, rest1, beta2, rest2, correction, eps, ADAM: tl.constexpr, ROUNDING: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    before = tl.load(weights + index, mask=inside, other=0.0)
    gradient = tl.load(gradients + index, mask=inside, other=0.0).to(tl.float32) * gradient_scale
    moment = tl.load(firsts + index, mask=inside, other=0.0).to(tl.float32)
    weight = before.to(tl.float32)
    if ROUNDING == 2:
        weight += tl.load(compensations + index, mask=inside, other=0.0).to(tl.float32)
    weight *= decay
    second = moment
    if ADAM:
        second = tl.load(seconds + index, mask=inside, other=0.0).to(tl.float32)
        moment += rest1 * (gradient - moment)
        second = second * beta2 + rest2 * gradient * gradient
        weight -= rate * moment / (tl.sqrt(second) / correction + eps)
    else:
        direction = gradient + beta1 * (moment - gradient)
        weight -= rate * ((direction > 0).to(tl.float32) - (direction < 0).to(tl.float32))
        moment += rest2 * (gradient - moment)
    if ROUNDING == 1:
        place = first + index
        low, high = place.to(tl.uint32), (place >> 32).to(tl.uint32)
        one, two, three, _ = tl.philox(seed, low, high, low * 0, low * 0, 7)
        after, moment, second = _between(weight, one), _between(moment, two), _between(second, three)
    else:
        after, moment, second = _nearest(weight), _nearest(moment), _nearest(second)
    if ROUNDING == 2:
        tl.store(compensations + index, _nearest(weight - after).to(tl.bfloat16), mask=inside)
    tl.store(weights + index, after.to(tl.bfloat16), mask=inside)
    tl.store(firsts + index, moment.to(tl.bfloat16), mask=inside)
    if ADAM:
        tl.store(seconds + index, second.to(tl.bfloat16), mask=inside)
    tl.atomic_add(changed, tl.sum((inside & (after != before.to(tl.float32))).to(tl.int64)))


@triton.jit
def _between(x, random):
    """float32 whose lower half is 0, above or below ``x`` as 16 random bits say."""
    bits = x.to(tl.int32, bitcast=True) + (random & 0xFFFF).to(tl.int32)
    return (bits & -65536).to(tl.float32, bitcast=True)


@triton.jit
def _nearest(x):
    """float32 whose lower half is 0, nearest to ``x``; between two, the even one."""
    bits = x.to(tl.int32, bitcast=True)
    bits += 0x7FFF + ((bits >> 16) & 1)
    return (bits & -65536).to(tl.float32, bitcast=True)
