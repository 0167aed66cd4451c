"""AdamW and LionW in one pass over memory, many parameters a launch: a Triton kernel, for GPUs.

The arithmetic is that of ``updates``, in float32 registers instead of copies in memory, of weights in bf16 or float32.
Random numbers for stochastic rounding are Philox 4x32 with 7 rounds (Salmon et al. 2011: the fewest that pass all of
BigCrush), whose counter is the place of an element in its parameter: the same for every launch, rank and part of a
parameter that has the same seed, and not those that torch's generators draw elsewhere.

A launch reads a table with a row of 128 bytes for each parameter: the addresses of its tensors and its numbers. It is
written anew for each launch and kept for none: no address in it can be that of a tensor which is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from megatron_adapt.engine import backend

if TYPE_CHECKING:
    from megatron_adapt.engine.rates import RowRates

ROUNDINGS = {"nearest": 0, "stochastic": 1, "kahan": 2}
EXACT = 3  # of float32: not rounded
BLOCK = 1024  # elements of a program
TOGETHER = 16  # parameters of a launch: while a GPU is at work on them, the rows of the next are written

# A row of the table, in the order in which the kernel reads it; "program" is the first of its programs.
ADDRESSES = ("weights", "gradient", "first", "second", "compensation", "factors")
COUNTS = ("count", "place", "seed", "program", "columns", "turn")
NUMBERS = ("decay", "rate", "beta1", "rest1", "beta2", "rest2", "correction", "eps")
ROW = np.dtype([*((name, np.int64) for name in ADDRESSES + COUNTS), *((name, np.float32) for name in NUMBERS)])
PROGRAM: tl.constexpr = tl.constexpr((ADDRESSES + COUNTS).index("program"))
INTEGERS: tl.constexpr = tl.constexpr(len(ADDRESSES + COUNTS))
WIDTH: tl.constexpr = tl.constexpr(ROW.itemsize // 8)

Addresses = tuple[int, int, int, int, int]


class Part(NamedTuple):
    """A parameter, or a part of one, and what belongs to its update; tensors are contiguous and of one type."""

    weights: Tensor
    gradient: Tensor
    moments: Sequence[Tensor]  # first and second (AdamW), or the momentum alone (LionW)
    compensation: Tensor | None  # Kahan's
    group: Mapping[str, Any]  # lr, weight_decay, betas, step and, for AdamW, eps
    seed: int = 0  # of the random numbers, below 2^63
    place: int = 0  # of the first element in its whole parameter
    rates: RowRates | None = None  # where rows have learning rates of their own


def update(parts: Iterable[Part], *, rounding: str, gradient_scale: float) -> Tensor | int:
    """Change weights, moments and compensations of ``parts``, all of AdamW or all of LionW, in place by one update.

    Args:
        rounding: of bf16 weights and moments.
    Returns:
        int64 on the device: how many bf16 weights are not what they were.
    """
    parts, changed = iter(parts), None
    while some := list(islice(parts, TOGETHER)):
        if changed is None:
            changed = torch.zeros((), dtype=torch.int64, device=some[0].weights.device)
        alike: dict[tuple[torch.dtype, bool, bool], list[tuple[Part, Addresses]]] = {}
        for part in some:
            addresses = _addresses(part)
            kind = (part.weights.dtype, _are_aligned(addresses, part.weights.nbytes), part.rates is not None)
            alike.setdefault(kind, []).append((part, addresses))
        for (dtype, aligned, rates), chosen in alike.items():
            table, programs = _table(chosen, changed.device)
            if programs:
                _update[(programs,)](
                    table, len(chosen), changed, gradient_scale, ADAM=len(some[0].moments) == 2, RATES=rates,
                    ROUNDING=ROUNDINGS[rounding] if dtype == torch.bfloat16 else EXACT, ALIGNED=aligned, BLOCK=BLOCK,
                )  # fmt: skip
    return 0 if changed is None else changed


def _addresses(part: Part) -> Addresses:
    """Of the tensors; asserts what the kernel cannot see of an address."""
    weights, gradient, first, second = part.weights, part.gradient, part.moments[0], part.moments[-1]
    lost = weights if part.compensation is None else part.compensation
    for tensor in (weights, gradient, first, second, lost):
        assert tensor.device == weights.device and tensor.dtype == weights.dtype
        assert tensor.numel() == weights.numel() and tensor.is_contiguous()
    return weights.data_ptr(), gradient.data_ptr(), first.data_ptr(), second.data_ptr(), lost.data_ptr()


def _are_aligned(addresses: Addresses, size: int) -> bool:
    """Whether 16 bytes may be moved at a time."""
    a, b, c, d, e = addresses
    return (a | b | c | d | e | size) % 16 == 0


def _table(chosen: Sequence[tuple[Part, Addresses]], device: torch.device) -> tuple[Tensor, int]:
    """(rows on the device, programs that they take)"""
    rows, programs = [], 0
    for part, addresses in chosen:
        group, count, factors, columns, turn = part.group, part.weights.numel(), 0, 0, 0
        if part.rates is not None:
            kept = part.rates.turn(device)
            factors, columns, turn = kept.data_ptr(), part.rates.columns, len(kept)
        eps, adam = group.get("eps", 0.0), len(part.moments) == 2
        numbers = _numbers(group["lr"], group["weight_decay"], *group["betas"], eps, group["step"], adam)
        rows.append((*addresses, factors, count, part.place, part.seed, programs, columns, turn, *numbers))
        programs += -(-count // BLOCK)
    return backend.send(torch.from_numpy(np.array(rows, dtype=ROW).view(np.int64)), device), programs


@lru_cache(maxsize=64)
def _numbers(
    lr: float, weight_decay: float, beta1: float, beta2: float, eps: float, step: int, adam: bool
) -> tuple[float, ...]:
    rate = lr / (1 - beta1**step) if adam else lr
    return 1 - lr * weight_decay, rate, beta1, 1 - beta1, beta2, 1 - beta2, (1 - beta2**step) ** 0.5, eps


@triton.jit(do_not_specialize=["rows"])
def _update(
    table, rows, changed, gradient_scale, ADAM: tl.constexpr, ROUNDING: tl.constexpr, ALIGNED: tl.constexpr,
    RATES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = tl.float32 if ROUNDING == 3 else tl.bfloat16
    program = tl.program_id(0)
    low, high = 0, rows
    while high - low > 1:  # the last row whose first program is not behind this one
        middle = (low + high) // 2
        if tl.load(table + middle * WIDTH + PROGRAM) <= program:
            low = middle
        else:
            high = middle
    row = table + low * WIDTH
    weights, gradients = _pointer(row, dtype, ALIGNED), _pointer(row + 1, dtype, ALIGNED)
    firsts, seconds = _pointer(row + 2, dtype, ALIGNED), _pointer(row + 3, dtype, ALIGNED)
    compensations = _pointer(row + 4, dtype, ALIGNED)
    count, place, seed = tl.load(row + 6), tl.load(row + 7), tl.load(row + 8)
    if ALIGNED:
        count = tl.multiple_of(count, 4 if ROUNDING == 3 else 8)
    numbers = (row + INTEGERS).to(tl.pointer_type(tl.float32))
    decay, full_rate = tl.load(numbers), tl.load(numbers + 1)
    beta1, rest1, beta2, rest2 = tl.load(numbers + 2), tl.load(numbers + 3), tl.load(numbers + 4), tl.load(numbers + 5)
    correction, eps = tl.load(numbers + 6), tl.load(numbers + 7)
    start = (program - tl.load(row + PROGRAM)) * BLOCK
    index = start + tl.arange(0, BLOCK)
    inside = index < count
    before = tl.load(weights + index, mask=inside, other=0.0)
    gradient = tl.load(gradients + index, mask=inside, other=0.0).to(tl.float32) * gradient_scale
    moment = tl.load(firsts + index, mask=inside, other=0.0).to(tl.float32)
    weight = before.to(tl.float32)
    if ROUNDING == 2:
        weight += tl.load(compensations + index, mask=inside, other=0.0).to(tl.float32)
    rate = full_rate
    if RATES:
        rate *= _factor(row, place + start, BLOCK)
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
    after = weight
    if ROUNDING == 1:
        counter = place + index
        lower, upper = counter.to(tl.uint32), (counter >> 32).to(tl.uint32)
        one, two, three, _ = tl.philox(seed, lower, upper, lower * 0, lower * 0, 7)
        after, moment, second = _between(weight, one), _between(moment, two), _between(second, three)
    elif ROUNDING != 3:
        after, moment, second = _nearest(weight), _nearest(moment), _nearest(second)
    if ROUNDING == 2:
        tl.store(compensations + index, _nearest(weight - after).to(dtype), mask=inside)
    tl.store(weights + index, after.to(dtype), mask=inside)
    tl.store(firsts + index, moment.to(dtype), mask=inside)
    if ADAM:
        tl.store(seconds + index, second.to(dtype), mask=inside)
    if ROUNDING != 3:
        tl.atomic_add(changed, tl.sum((inside & (after != before.to(tl.float32))).to(tl.int64)))


@triton.jit
def _pointer(place, dtype: tl.constexpr, ALIGNED: tl.constexpr):
    pointer = tl.load(place).to(tl.pointer_type(dtype))
    return tl.multiple_of(pointer, 16) if ALIGNED else pointer


@triton.jit
def _factor(row, start, BLOCK: tl.constexpr):
    """Of the learning rate, for elements from ``start`` of the whole parameter on; one division of 64 bits for all."""
    columns, turn = tl.load(row + 10), tl.load(row + 11).to(tl.int32)
    factors = tl.load(row + 5).to(tl.pointer_type(tl.float32))
    line = start // columns
    within = (start - line * columns).to(tl.int32) + tl.arange(0, BLOCK)
    return tl.load(factors + ((line % turn).to(tl.int32) + within // columns.to(tl.int32)) % turn)


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
