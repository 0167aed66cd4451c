"""The learning rate of every step."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_adapt.config import Schedule
from megatron_adapt.schedule import factor, in_steps, learning_rates, problem

TYPES = ("constant", "linear", "cosine", "wsd")
lengths = st.one_of(st.just(0.0), st.floats(0.01, 0.99), st.integers(1, 40))
schedules = st.builds(
    Schedule,
    type=st.sampled_from((*TYPES, "inverse-sqrt")),
    warmup=lengths,
    decay=lengths,
    decay_shape=st.sampled_from(("linear", "cosine", "1-sqrt", "exponential")),
    min_lr_ratio=st.floats(1e-3, 1),
    floor=st.sampled_from(("interpolate", "clamp")),
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


@pytest.mark.parametrize("shape, half", [("linear", 0.505), ("cosine", 0.505), ("exponential", 0.1), ("1-sqrt", 0.29997)])
def test_shapes_of_the_decay(shape, half):
    """Half-way from 1 to 0.01."""
    values = curve(20, type="wsd", decay=10, decay_shape=shape, min_lr_ratio=0.01)
    assert values[:11] == [1] * 11 and values[15] == pytest.approx(half, rel=1e-4)


def test_inverse_sqrt():
    assert curve(401, type="inverse-sqrt", warmup=100)[99:401:100] == pytest.approx([1, 0.5**0.5, (1 / 3) ** 0.5, 0.5])
    assert curve(401, type="inverse-sqrt", warmup=1, min_lr_ratio=0.25)[400] == 0.25


def test_rewarming_from_a_share_of_the_peak():
    assert curve(6, type="constant", warmup=4, warmup_from=0.2) == pytest.approx([0.4, 0.6, 0.8, 1, 1, 1])


TIGHT_BUDGET = {"type": "infinite", "counting": "from-1"}


def test_infinite_is_that_of_the_tight_budget_recipes():
    """Values of the published configurations: 7,680 steps of training, 100 steps of embedding tuning."""
    full = Schedule(**TIGHT_BUDGET, warmup=76, cooldown=4608, decay=1075, constant_ratio=0.55, min_lr_ratio=2 / 30)
    rates = {step: 3e-5 * factor(full, step - 1, 7680) for step in (1, 76, 2380, 4684, 5000, 6605, 7142, 7680)}
    expected = {1: 3.947e-7, 76: 3e-5, 2380: 2.325e-5, 4684: 1.65e-5, 5000: 1.65e-5, 6605: 1.65e-5, 7142: 5.75e-6, 7680: 2e-6}
    assert rates == pytest.approx(expected, rel=2e-4)
    tuning = Schedule(**TIGHT_BUDGET, warmup=10, cooldown=60, decay=14, constant_ratio=0.5, min_lr_ratio=0.025)
    rates = {step: 4e-4 * factor(tuning, step - 1, 100) for step in (1, 10, 40, 70, 86, 93, 100)}
    expected = {1: 4e-5, 10: 4e-4, 40: 3e-4, 70: 2e-4, 86: 2e-4, 93: 4.472e-5, 100: 1e-5}
    assert rates == pytest.approx(expected, rel=2e-4)


def test_cosine_is_that_of_the_tight_budget_recipe():
    """There it ends a warm-up after the last step: the cosine spans 7,680 steps behind 76 of warm-up."""
    main = Schedule(type="cosine", counting="from-1", warmup=76, min_lr_ratio=0.05)
    assert 4e-5 * factor(main, 7679, 7756) == pytest.approx(2.0092e-6, rel=1e-4)


def test_an_infinite_schedule_is_extended_without_changing_what_was_trained():
    settings = {"type": "infinite", "warmup": 5, "cooldown": 10, "decay": 8, "constant_ratio": 0.5, "min_lr_ratio": 0.01}
    short, long = curve(40, **settings), curve(90, **settings)
    assert short[:32] == long[:32] and short[32:] == pytest.approx(long[82:]) and set(long[15:83]) == {0.5}
    assert curve(20, **(settings | {"decay": 0}))[15:] == [0.5] * 5


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20), st.floats(0.01, 1), st.integers(1, 30))
def test_infinite_only_falls_after_its_warm_up(warmup, cooldown, decay, constant, rest):
    total = warmup + cooldown + decay + rest
    for counting in ("useful", "from-0", "from-1"):
        values = curve(
            total, type="infinite", warmup=warmup, cooldown=cooldown, decay=decay, constant_ratio=constant,
            min_lr_ratio=constant / 2, counting=counting,
        )  # fmt: skip
        assert values[:warmup] == sorted(values[:warmup])
        assert all(later <= earlier + 1e-12 for earlier, later in zip(values[warmup:], values[warmup + 1 :]))
        assert min(values[warmup:]) >= constant / 2 - 1e-12


CLP = {"floor": "clamp", "counting": "from-0"}
TUNE, FULL, LOW = 1e-3, 3e-4, 3e-5
CLP_STUDY = {
    # name: (type of embedding tuning, what it spans, of full training, what it spans, peak of full training, published rates)
    "cosine": ("cosine", "phase", "cosine", "phase", FULL, (3e-5, 1e-3, 5.87e-4, 3e-5, 3e-5, 3e-4, 1.79e-4, 3e-5)),
    "denominator": ("cosine", "run", "cosine", "phase", FULL, (3e-5, 1e-3, 9.96e-4, 9.80e-4, 3e-5, 3e-4, 1.79e-4, 3e-5)),
    "mixed": ("constant", "phase", "cosine", "phase", FULL, (3e-5, 1e-3, 1e-3, 1e-3, 3e-5, 3e-4, 1.79e-4, 3e-5)),
    "constant": ("constant", "phase", "constant", "phase", FULL, (3e-5, 1e-3, 1e-3, 1e-3, 3e-5, 3e-4, 3e-4, 3e-4)),
    "unified": ("cosine", "run", "cosine", "run", TUNE, (3e-5, 1e-3, 9.96e-4, 9.80e-4, 9.80e-4, 9.75e-4, 5.08e-4, 9.7e-5)),
}


@pytest.mark.parametrize("name", CLP_STUDY)
def test_the_five_schedules_of_the_clp_study(name):
    """1,000 steps, 100 of them embedding tuning, warm-ups of 10: the rates at steps 0, 10, 50, 99, 100, 110, 500 and late."""
    tuning, tuning_over, training, training_over, peak, expected = CLP_STUDY[name]
    first = Schedule(type=tuning, over=tuning_over, warmup=10, min_lr_ratio=LOW / TUNE, **CLP)
    second = Schedule(type=training, over=training_over, warmup=10, min_lr_ratio=LOW / peak, **CLP)
    tuned, trained = learning_rates([(first, TUNE, 100), (second, peak, 900)])
    rates = [*tuned, *trained]
    assert len(rates) == 1000
    late = 800 if name == "unified" else 820  # where the others have come down to the floor
    assert [rates[step] for step in (0, 10, 50, 99, 100, 110, 500, late)] == pytest.approx(list(expected), rel=6e-3)


def test_a_schedule_that_does_not_fit():
    assert problem(Schedule(type="wsd", warmup=30, decay=0.5), 40) == "warmup 30 + decay 20 are more than all 40 steps"
    assert problem(Schedule(type="infinite", warmup=3, cooldown=4, decay=5, min_lr_ratio=0.1), 11) == (
        "warmup 3 + cooldown 4 + decay 5 are more than all 11 steps"
    )
    assert problem(Schedule(type="infinite", warmup=3, cooldown=4, decay=5, min_lr_ratio=0.1), 12) is None
    assert problem(Schedule(type="cosine", warmup=100), 10) is None
