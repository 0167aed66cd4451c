"""When a step's loss is a spike, and what has been done about spikes.

A spike is a loss of at least ``factor`` times the mean of the last ``window`` accepted ones (the outlier rule of
llm-foundry's KillLossSpike), or a loss or gradient norm that is not finite.
"""

from __future__ import annotations

import math

from megatron_adapt.config import Spikes
from megatron_adapt.errors import CheckpointError
from megatron_adapt.torch_dist.directory import History

MOST_IN_A_ROW = 4


def spike(settings: Spikes, history: History, loss: float, norm: float) -> str | None:
    """Why this step is a spike, in words; None: it is not."""
    if not math.isfinite(loss) or not math.isfinite(norm):
        return f"loss {loss:.4g} and gradient norm {norm:.4g}"
    if len(history.recent) < settings.window:
        return None
    mean = sum(history.recent) / len(history.recent)
    if loss < settings.factor * mean:
        return None
    return f"loss {loss:.4g}, {loss / mean:.3g} times the mean of the last {settings.window} steps"


def accept(settings: Spikes, history: History, loss: float) -> None:
    history.recent = [*history.recent, loss][-settings.window :]
    history.in_a_row = 0


def record(settings: Spikes, history: History, phase: str, step: int, why: str) -> None:
    """Note a spike at ``step``; raises ``CheckpointError`` when spikes do not end, so the run has diverged."""
    history.in_a_row += 1
    history.events = [*history.events, {"phase": phase, "step": step, "spike": why, "action": settings.action}]
    if settings.action != "log" and history.in_a_row > MOST_IN_A_ROW:
        raise CheckpointError(
            f"phase '{phase}' diverged: {history.in_a_row} spikes in a row, the last at step {step} ({why}). Lower "
            "optimizer.lr or lengthen schedule.warmup; checkpoints before are intact."
        )
