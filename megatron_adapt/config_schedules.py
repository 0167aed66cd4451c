"""What must hold between the keys of a schedule."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_adapt.config_phases import Schedule
from megatron_adapt.config_types import INVALID
from megatron_adapt.schedule import problem

# Keys that mean something for some types only.
_OWN_KEYS = {
    "decay": ("wsd", "infinite"), "decay_shape": ("wsd",), "cooldown": ("infinite",), "constant_ratio": ("infinite",),
}  # fmt: skip


def check(schedule: Schedule, steps: int | None) -> Iterator[tuple[str, str]]:
    """(key, what is wrong): keys that the type knows, lengths that are shares or steps and fit; ``steps`` are None while unknown."""
    if schedule.type is INVALID:
        return
    default = type(schedule).model_fields
    for key, types in _OWN_KEYS.items():
        value = getattr(schedule, key)
        if schedule.type not in types and value not in (INVALID, default[key].default):
            listed = " or ".join(f"'{name}'" for name in types)
            yield key, f"belongs to {listed}, not to {schedule.type!r}; remove it or change the type"
    yield from _ratios(schedule)
    yield from _idle(schedule)
    lengths = {key: getattr(schedule, key) for key in ("warmup", "cooldown", "decay")}
    lengths = {key: length for key, length in lengths.items() if length is not INVALID}
    whole = True
    for key, length in lengths.items():
        if length >= 1 and length != int(length):
            whole = False
            yield key, f"{length} is neither a share of the steps (below 1) nor a whole number of steps"
        elif schedule.type == "infinite" and 0 < length < 1:
            whole = False
            why = "a share would change what was trained when the phase is extended"
            yield key, f"'infinite' needs a number of steps here (or 0), not {length}: {why}"
    if whole and len(lengths) == 3 and schedule.over is not INVALID:
        shares = schedule.type == "wsd" and max(schedule.warmup, schedule.decay) < 1 < schedule.warmup + schedule.decay
        # Without a number of steps, shares can be compared with one another.
        why = problem(schedule, steps) if steps is not None and schedule.over == "phase" else None
        if why or shares:
            yield "decay", why or "warmup and decay together are more than all steps"


def _ratios(schedule: Schedule) -> Iterator[tuple[str, str]]:
    """Shares of the peak that can be reached, and are by something."""
    low, constant = schedule.min_lr_ratio, schedule.constant_ratio
    if schedule.type == "infinite" and 0 in (constant, low):
        key = "constant_ratio" if constant == 0 else "min_lr_ratio"
        yield key, "'infinite' decays exponentially, which never reaches 0; give a share above 0"
    elif schedule.type == "infinite" and INVALID not in (constant, low) and low > constant:
        yield "min_lr_ratio", f"{low:g} is above constant_ratio {constant:g}, from where the learning rate is to fall"
    if (schedule.type, schedule.decay_shape) == ("wsd", "exponential"):
        if low == 0:
            yield "min_lr_ratio", "an exponential decay never reaches 0; give a share above 0"
        if schedule.floor == "clamp":
            yield "floor", "an exponential decay ends at min_lr_ratio and has no other floor; use 'interpolate'"
    if schedule.type == "constant" and schedule.floor == "interpolate" and low not in (0, INVALID):
        yield "min_lr_ratio", "'constant' does not fall; remove it or change the type"
    if schedule.warmup == 0 and schedule.warmup_from not in (0, INVALID):
        yield "warmup_from", "is where a warm-up starts, and there is none; give a warmup or remove it"


def _idle(schedule: Schedule) -> Iterator[tuple[str, str]]:
    """Keys that change no learning rate of this type and warm-up."""
    none = "and there is none; remove it"
    warms = schedule.warmup != 0
    if schedule.type == "wsd" and schedule.decay == 0:
        if schedule.decay_shape not in (INVALID, "linear"):
            yield "decay_shape", f"is that of the final decay, {none}"
        if not warms and schedule.min_lr_ratio not in (0, INVALID):
            yield "min_lr_ratio", f"is where the final decay ends, {none}"
    if schedule.type == "constant" and not warms:
        for key in ("counting", "over"):
            if getattr(schedule, key) not in (INVALID, type(schedule).model_fields[key].default):
                yield key, f"is about a warm-up or a decay, {none}"
    if schedule.floor == "clamp" and schedule.decay_shape != "exponential":
        if schedule.min_lr_ratio == 0:
            yield "floor", "'clamp' holds the learning rate at min_lr_ratio, which is 0; remove it, or give a share above 0"
        elif schedule.type in ("constant", "inverse-sqrt", "infinite") and not warms:
            yield "floor", f"'clamp' is about a decay to 0 (linear, cosine, wsd) or a warm-up, {none}"
