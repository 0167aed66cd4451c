"""What counts as a spike of the loss."""

from __future__ import annotations

import math

import pytest

from megatron_adapt.config import Spikes
from megatron_adapt.engine.guard import accept, record, spike
from megatron_adapt.errors import CheckpointError
from megatron_adapt.torch_dist.directory import History

SETTINGS = Spikes(action="skip", factor=2, window=3)


def history(*losses: float) -> History:
    kept = History()
    for loss in losses:
        accept(SETTINGS, kept, loss)
    return kept


def test_a_spike_is_a_multiple_of_the_mean_of_the_window():
    assert spike(SETTINGS, history(9, 1, 2, 3), 3.99, 1) is None
    assert spike(SETTINGS, history(9, 1, 2, 3), 4, 1) == "loss 4, 2 times the mean of the last 3 steps"
    assert spike(SETTINGS, history(1, 2), 1000, 1) is None  # too few to compare with


@pytest.mark.parametrize("loss, norm", [(math.nan, 1.0), (1.0, math.inf), (math.inf, math.nan)])
def test_what_is_not_finite_is_one_at_once(loss, norm):
    assert spike(SETTINGS, history(), loss, norm) == f"loss {loss:.4g} and gradient norm {norm:.4g}"


def test_spikes_that_do_not_end_are_divergence():
    kept = history(1, 1, 1)
    for step in range(4):
        record(SETTINGS, kept, "full", step, "loss 9")
    with pytest.raises(CheckpointError, match="phase 'full' diverged: 5 spikes in a row, the last at step 4 .loss 9.. Lower"):
        record(SETTINGS, kept, "full", 4, "loss 9")
    accept(SETTINGS, kept, 1)
    record(SETTINGS, kept, "full", 9, "loss 8")
    assert kept.events[-1] == {"phase": "full", "step": 9, "spike": "loss 8", "action": "skip"} and kept.in_a_row == 1
    noted = Spikes(window=3)
    for step in range(9):
        record(noted, kept, "full", step, "loss 9")
