"""Learning rate as a pure function of the step: nothing to save, nothing that a resumed run could get wrong."""

from __future__ import annotations

import math

from megatron_adapt.config import Schedule


def in_steps(value: float, total: int) -> int:
    """Recipe convention: below 1 a share of all steps, from 1 a number of steps."""
    return round(value * total) if value < 1 else int(value)


def factor(schedule: Schedule, step: int, total: int) -> float:
    """Multiplier of the peak learning rate for the 0-based ``step`` of ``total``.

    Warm-up is linear and reaches 1 at its last step (step ``w-1`` of ``w`` gets 1), so that the first step already
    trains. The decay starts at 1 and would reach ``min_lr_ratio`` at step ``total``: no step is wasted at zero. WSD
    (Hu et al. 2024) = warm-up, constant, then linear decay over its last ``decay`` steps.
    """
    warmup = min(in_steps(schedule.warmup, total), total)
    if step < warmup:
        return (step + 1) / warmup
    low = schedule.min_lr_ratio
    if schedule.type == "constant":
        return 1.0
    begin = warmup
    if schedule.type == "wsd":
        begin = max(warmup, total - in_steps(schedule.decay, total))
        if step < begin:
            return 1.0
    progress = (step - begin) / (total - begin)
    if schedule.type == "cosine":
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress))
    return low + (1 - low) * (1 - progress)
