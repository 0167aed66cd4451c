"""The learning rate of every step."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_adapt.config import Schedule
from megatron_adapt.engine.schedule import factor, in_steps

TYPES = ("constant", "linear", "cosine", "wsd")
lengths = st.one_of(st.just(0.0), st.floats(0.01, 0.99), st.integers(1, 40))
schedules = st.builds(
    Schedule, type=st.sampled_from(TYPES), warmup=lengths, decay=lengths, min_lr_ratio=st.floats(0, 1)
)


def curve(total: int, **settings) -> list[float]:
    return [factor(Schedule(**settings), step, total) for step in range(total)]


@pytest.mark.parametrize("value, steps", [(0, 0), (0.1, 20), (0.999, 200), (1, 1), (7, 7), (300, 300)])
def test_below_one_a_share_from_one_a_number_of_steps(value, steps):
    assert in_steps(value, 200) == steps


def test_warm_up_is_linear_and_its_first_step_trains():
    for kind in TYPES:
        assert curve(20, type=kind, warmup=0.25)[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
        assert curve(20, type=kind, warmup=5) == curve(20, type=kind, warmup=0.25)
        assert curve(20, type=kind)[0] == 1


def test_constant():
    assert curve(6, type="constant", warmup=2, min_lr_ratio=0.1) == [0.5, 1, 1, 1, 1, 1]


def test_linear():
    assert curve(4, type="linear") == [1, 0.75, 0.5, 0.25]
    assert curve(4, type="linear", min_lr_ratio=0.2) == pytest.approx([1, 0.8, 0.6, 0.4])
    assert curve(6, type="linear", warmup=2) == [0.5, 1, 1, 0.75, 0.5, 0.25]


def test_cosine():
    assert curve(4, type="cosine") == pytest.approx([1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2])
    assert curve(2, type="cosine", min_lr_ratio=0.1) == pytest.approx([1, 0.55])


def test_wsd():
    assert curve(10, type="wsd", warmup=2, decay=4) == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert curve(10, type="wsd", warmup=2, decay=0.4) == curve(10, type="wsd", warmup=2, decay=4)
    assert curve(5, type="wsd", decay=0) == [1] * 5
    assert curve(4, type="wsd", warmup=2, decay=4) == [0.5, 1, 1, 0.5]  # the decay begins after the warm-up


def test_a_warm_up_longer_than_the_phase_ends_with_it():
    assert curve(4, type="cosine", warmup=100) == [0.25, 0.5, 0.75, 1]


@given(schedules, st.integers(1, 60))
def test_every_schedule_rises_then_falls_between_its_bounds(schedule, total):
    values = [factor(schedule, step, total) for step in range(total)]
    peak = values.index(max(values))
    assert all(0 < value <= 1 for value in values)
    assert values[: peak + 1] == sorted(values[: peak + 1])
    assert all(later <= earlier + 1e-12 for earlier, later in zip(values[peak:], values[peak + 1 :]))
    warmup = min(in_steps(schedule.warmup, total), total)
    assert all(value >= schedule.min_lr_ratio - 1e-12 for value in values[warmup:])
    assert max(values) == 1
