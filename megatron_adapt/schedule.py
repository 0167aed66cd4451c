"""Learning rate as a pure function of the step: nothing to save, nothing that a resumed run could get wrong.

With s the step, w the warm-up, T all steps, low = ``min_lr_ratio`` and p the progress of the decay from 0 to 1:

    warm-up        from + (1 - from) s/w                                     from = warmup_from
    constant       1
    linear, cosine shape(p), p = (s-w)/(T-w)
    inverse-sqrt   sqrt(w/s)                                                 Vaswani et al. 2017, section 5.3
    wsd            1, then shape(p) over the last ``decay`` steps            Hu et al. 2024, section 4
    infinite       cosine from 1 to c = constant_ratio over ``cooldown`` steps, then c, then c (low/c)^p over the last
                   ``decay`` steps                                           Ibrahim et al. 2024, section 4.3

``shape`` falls from 1 to low: cosine, linear, 1-sqrt (Haegele et al. 2024) or exponential (low^p).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_adapt.config import Schedule

# 0-based step -> the s of (warm-up, decay). "useful" lets the first step train and the last one, too.
_COUNTED = {"useful": (1, 0), "from-0": (0, 0), "from-1": (1, 1)}


def in_steps(value: float, total: int) -> int:
    """Recipe convention: below 1 a share of all steps, from 1 a number of steps."""
    return round(value * total) if value < 1 else int(value)


def factor(schedule: Schedule, step: int, total: int) -> float:
    """Multiplier of the peak learning rate for the 0-based ``step`` of ``total``.

    The field's conventions of counting differ by one step (``schedule.counting``): "from-0" is that of transformers,
    Megatron and Composer, where the first step of a warm-up has the learning rate 0; "from-1" reaches the lowest one at
    the last step; "useful" wastes neither.
    """
    value = _value(schedule, step, total)
    return max(value, schedule.min_lr_ratio) if schedule.floor == "clamp" else value


def _value(schedule: Schedule, step: int, total: int) -> float:
    warming, decaying = (step + shift for shift in _COUNTED[schedule.counting])
    warmup = min(in_steps(schedule.warmup, total), total)
    if step < warmup:
        return schedule.warmup_from + (1 - schedule.warmup_from) * warming / warmup
    low = 0.0 if schedule.floor == "clamp" else schedule.min_lr_ratio
    if schedule.type == "constant":
        return 1.0
    if schedule.type == "inverse-sqrt":
        return max(math.sqrt(max(warmup, 1) / max(warming, 1)), schedule.min_lr_ratio)
    if schedule.type == "infinite":
        return _infinite(schedule, decaying, warmup, total)
    begin = warmup
    if schedule.type == "wsd":
        begin = max(warmup, total - in_steps(schedule.decay, total))
        if step < begin:
            return 1.0
    shape = schedule.type if schedule.type in ("linear", "cosine") else schedule.decay_shape
    return _fall(shape, (decaying - begin) / (total - begin), low)


def _infinite(schedule: Schedule, step: int, warmup: int, total: int) -> float:
    cooldown, decay = int(schedule.cooldown), int(schedule.decay)
    constant = schedule.constant_ratio
    if step < warmup + cooldown:
        return _fall("cosine", (step - warmup) / cooldown, constant)
    if step <= total - decay:
        return constant
    return constant * (schedule.min_lr_ratio / constant) ** ((step - (total - decay)) / decay)


def _fall(shape: str, progress: float, low: float) -> float:
    """From 1 to ``low`` while ``progress`` goes from 0 to 1."""
    if shape == "cosine":
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress))
    if shape == "1-sqrt":
        return low + (1 - low) * (1 - math.sqrt(progress))
    if shape == "exponential":
        return low**progress
    return low + (1 - low) * (1 - progress)


def problem(schedule: Schedule, total: int) -> str | None:
    """Why the schedule does not fit into ``total`` steps, in words; None: it does."""
    parts = ("warmup", "cooldown", "decay") if schedule.type == "infinite" else ("warmup", "decay")
    lengths = {part: in_steps(getattr(schedule, part), total) for part in parts}
    if schedule.type in ("wsd", "infinite") and sum(lengths.values()) > total:
        listed = " + ".join(f"{part} {length:,}" for part, length in lengths.items())
        return f"{listed} are more than all {total:,} steps"
    return None


def learning_rates(phases: Sequence[tuple[Schedule, float, int]]) -> list[list[float]]:
    """The learning rate of every step of consecutive phases.

    Args:
        phases: (schedule, peak learning rate, steps) of each.
    """
    total = sum(steps for _, _, steps in phases)
    curves, offset = [], 0
    for schedule, peak, steps in phases:
        begin, length = (offset, total) if schedule.over == "run" else (0, steps)
        curves.append([peak * factor(schedule, begin + step, length) for step in range(steps)])
        offset += steps
    return curves
