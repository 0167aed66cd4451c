"""What cross-entropy takes from logits, and its gradient, in one pass over them each: two Triton kernels, for GPUs.

The arithmetic is that of ``cross_entropy``, in float32 registers: of bf16 logits 2 bytes each are read for the loss, and 2 read
and 2 written for the gradient, where torch's operations move some 60 by way of float32 copies.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048  # logits of a row at a time


def add_statistics(logits: Tensor, places: Tensor, top: Tensor, total: Tensor, chosen: Tensor, softcap: float | None) -> None:
    """Take a slice's ``logits [n, c]``, contiguous, into what there is of the slices before it.

    Args:
        places: int64 ``[n]``, columns of the labels; outside of 0 .. c - 1: in another slice.
        top, total, chosen: float32 ``[n]``, changed in place: largest logit so far, sum of exp(logit - top), the label's logit.
        softcap: logits are ``softcap * tanh(logits / softcap)``.
    """
    assert all(tensor.is_contiguous() for tensor in (logits, places, top, total, chosen))
    _add_statistics[(len(logits),)](
        logits, places, top, total, chosen, logits.size(1), 1.0 if softcap is None else softcap, CAPPED=softcap is not None, BLOCK=BLOCK
    )


def gradient(logits: Tensor, places: Tensor, log_total: Tensor, factor: Tensor, slope: Tensor, softcap: float | None) -> Tensor:
    """``logits [n, c]``, changed in place to ``factor`` exp(logit - ``log_total``), less ``slope`` at the label, times the softcap's
    derivative; these are float32 ``[n]``, ``places`` as above."""
    slope = slope.contiguous()  # the gradient of a sum is one number for all positions, which the kernel would read beyond
    assert all(tensor.is_contiguous() for tensor in (logits, places, log_total, factor))
    _gradient[(len(logits), triton.cdiv(logits.size(1), BLOCK))](
        logits, places, log_total, factor, slope, logits.size(1), 1.0 if softcap is None else softcap,
        CAPPED=softcap is not None, BLOCK=BLOCK,
    )  # fmt: skip
    return logits


@triton.jit
def _tanh(x):
    return 1 - 2 / (tl.exp(2 * x) + 1)


@triton.jit
def _add_statistics(logits, places, top, total, chosen, columns, softcap, CAPPED: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    start = logits + row.to(tl.int64) * columns
    highest, added = tl.load(top + row), tl.load(total + row)
    for first in range(0, columns, BLOCK):
        index = first + tl.arange(0, BLOCK)
        x = tl.load(start + index, mask=index < columns, other=0.0).to(tl.float32)
        if CAPPED:
            x = softcap * _tanh(x / softcap)
        x = tl.where(index < columns, x, float("-inf"))
        higher = tl.maximum(highest, tl.max(x, axis=0))
        added = added * tl.exp(highest - higher) + tl.sum(tl.exp(x - higher), axis=0)
        highest = higher
    tl.store(top + row, highest)
    tl.store(total + row, added)
    place = tl.load(places + row)
    here = (place >= 0) & (place < columns)
    x = tl.load(start + place, mask=here, other=0.0).to(tl.float32)
    if CAPPED:
        x = softcap * _tanh(x / softcap)
    tl.store(chosen + row, x, mask=here)


@triton.jit
def _gradient(logits, places, log_total, factor, slope, columns, softcap, CAPPED: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    start = row.to(tl.int64) * columns
    index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + start + index, mask=index < columns, other=0.0).to(tl.float32)
    if CAPPED:
        x = softcap * _tanh(x / softcap)
    found = tl.exp(x - tl.load(log_total + row)) * tl.load(factor + row)
    found -= tl.where(index == tl.load(places + row), tl.load(slope + row), 0.0)
    if CAPPED:
        found *= 1 - (x / softcap) * (x / softcap)
    tl.store(logits + start + index, found.to(logits.dtype.element_ty), mask=index < columns)
