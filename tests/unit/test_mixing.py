"""The order of samples: complete, balanced, resumable, and never changed by accident."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_adapt.data.mixing import Blend, SampleOrder
from megatron_adapt.errors import ConfigError, DataError


def sizes():
    """(num_tokens, sequence_length) with at least one window and few enough to look at every one."""
    return st.tuples(st.integers(1, 40), st.integers(1, 60), st.integers(0, 39)).map(
        lambda x: (1 + x[1] * x[0] + x[2] % x[0], x[0])
    )


@settings(max_examples=150, deadline=None)
@given(sizes(), st.integers(-(2**70), 2**70), st.integers(0, 4))
def test_every_epoch_visits_every_window_once(size, seed, epochs):
    num_tokens, length = size
    order = SampleOrder(num_tokens, length, seed)
    first = sum(order.windows_per_epoch(epoch) for epoch in range(epochs))
    windows = order.windows_per_epoch(epochs)
    starts = order.start(np.arange(first, first + windows))
    assert (order.epoch(np.arange(first, first + windows)) == epochs).all()
    offset = starts.min()
    assert sorted(starts) == [offset + i * length for i in range(windows)]
    assert 0 <= offset < length and starts.max() + length + 1 <= num_tokens
    if epochs == 0:
        assert offset == 0 and windows == (num_tokens - 1) // length
    else:
        lost = (num_tokens - 1) // length - windows
        assert lost <= (1 if (num_tokens - 1) // length >= 16 else 0)


@settings(max_examples=100, deadline=None)
@given(sizes(), st.integers(0, 2**63), st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
def test_one_by_one_equals_many_at_once(size, seed, samples):
    order = SampleOrder(*size, seed)
    many = order.start(np.array(samples))
    assert many.dtype == np.int64 and many.tolist() == [order.start(n) for n in samples]
    assert order.start(np.array([samples, samples])).tolist() == [many.tolist()] * 2
    assert isinstance(order.start(samples[0]), int)


def test_order_never_changes():
    """If this fails, runs would not resume on the data that they left: do not adapt the numbers."""
    order = SampleOrder(1001, 8, seed=1234)
    assert [order.windows_per_epoch(epoch) for epoch in (0, 1, 9)] == [125, 124, 124]
    assert order.start(np.arange(8)).tolist() == [56, 248, 792, 0, 768, 632, 784, 696]
    assert order.start(np.arange(125, 133)).tolist() == [543, 783, 311, 183, 703, 383, 799, 271]
    large = [SampleOrder(10**12, 4096, seed).start(10**10) for seed in (0, 1, -1)]
    assert large == [764720044948, 596401595728, 810022441056]


def test_epochs_and_seeds_differ():
    windows = 1000
    starts = SampleOrder(10_001, 10, seed=0).start(np.arange(3 * windows - 2)).tolist()
    first, second, third = starts[:windows], starts[windows : 2 * windows - 1], starts[2 * windows - 1 :]
    other = SampleOrder(10_001, 10, seed=1).start(np.arange(windows)).tolist()
    for a, b in ((first, second), (second, third), (first, other), (first, sorted(first))):
        assert sum(x // 10 == y // 10 for x, y in zip(a, b)) < 10  # 1 expected by chance
    offsets = {SampleOrder(10_001, 10, seed=0).start(1000 + 999 * epoch) % 10 for epoch in range(100)}
    assert offsets == set(range(10))


@pytest.mark.parametrize("windows", [2, 3, 5, 12])
def test_permutations_are_uniform(windows):
    """Over many seeds every window is about equally often at every place of the epoch."""
    seeds = 600
    counts = np.zeros((windows, windows))
    for seed in range(seeds):
        counts[np.arange(windows), SampleOrder(windows * 3 + 1, 3, seed).start(np.arange(windows)) // 3] += 1
    expected = seeds / windows
    chi_square = ((counts - expected) ** 2 / expected).sum()
    degrees = (windows - 1) ** 2
    assert chi_square < degrees + 5 * (2 * degrees) ** 0.5 + 5


def test_neighbours_are_torn_apart():
    starts = SampleOrder(100_001, 10, seed=5).start(np.arange(10_000)) // 10
    assert abs(np.corrcoef(starts[:-1], starts[1:])[0, 1]) < 0.05
    assert (np.abs(np.diff(starts)) == 1).mean() < 0.002


def test_short_corpora():
    assert SampleOrder(9, 8, seed=0).start(np.arange(3)).tolist() == [0, 0, 0]
    assert set(SampleOrder(12, 8, seed=0).start(np.arange(100)).tolist()) == {0, 1, 2, 3}
    with pytest.raises(DataError, match=r"the corpus german has 8 tokens, fewer than one sample \(8 \+ 1\); shorten"):
        SampleOrder(8, 8, seed=0, name="german")
    with pytest.raises(DataError, match="the corpus given has 0 tokens"):
        SampleOrder(0, 8, seed=0)
    with pytest.raises(ConfigError, match="sequence_length must be at least 1, not 0"):
        SampleOrder(8, 0, seed=0)
    with pytest.raises(ValueError, match="counted from 0"):
        SampleOrder(9, 8, seed=0).start(-1)


weights = st.lists(st.integers(0, 1000) | st.floats(0, 100, allow_subnormal=False), min_size=1, max_size=8).filter(any)


@settings(max_examples=60, deadline=None)
@given(weights)
def test_blend_stays_within_one_sample(values):
    blend = Blend({str(i): value for i, value in enumerate(values)})
    samples, counters = blend.next(blend.first(), 200)
    exact = [Fraction(str(value)) for value in values]
    drawn = [0] * len(values)
    for position, (name, number) in enumerate(samples, start=1):
        assert number == drawn[int(name)]
        drawn[int(name)] += 1
        for count, weight in zip(drawn, exact):
            assert abs(count - weight / sum(exact) * position) < 1
    assert counters == {str(i): count for i, count in enumerate(drawn)}


@settings(max_examples=100, deadline=None)
@given(weights, st.lists(st.integers(0, 40), max_size=6))
def test_blend_in_parts_is_the_same(values, parts):
    blend = Blend({str(i): value for i, value in enumerate(values)})
    counters, samples = blend.first(), []
    for count in parts:
        former = dict(counters)
        part, after = blend.next(counters, count)
        assert counters == former
        samples, counters = samples + part, after
    assert (samples, counters) == blend.next(blend.first(), sum(parts))


def test_blend_never_changes():
    """If this fails, runs would not resume on the data that they left: do not adapt the letters."""

    def letters(weights: dict[str, float], count: int) -> str:
        blend = Blend(weights)
        return "".join(name for name, _ in blend.next(blend.first(), count)[0])

    assert letters({"a": 0.5, "b": 0.5}, 6) == "ababab"
    assert letters({"b": 1, "a": 1, "c": 1}, 6) == "bacbac"
    assert letters({"a": 0.9, "b": 0.1}, 20) == "aaaaabaaaaaaaaabaaaa"
    assert letters({"a": 7, "b": 2, "c": 1}, 20) == "aabaacaabaaabaacaaba"
    assert letters({"a": 0.1, "b": 0.0, "c": 0.2}, 6) == "caccac"


def test_blend_of_one():
    assert Blend({"a": 3}).next({"a": 5}, 2) == ([("a", 5), ("a", 6)], {"a": 7})


@pytest.mark.parametrize(
    "values, message",
    [
        ({}, r"a blend needs a corpus with a weight above 0 \(given: none\)"),
        ({"a": 0, "b": 0.0}, r"a blend needs a corpus with a weight above 0 \(given: a, b\)"),
        ({"a": 1, "b": -1}, "the weight of the corpus b must be a number of at least 0, not -1"),
        ({"a": float("nan")}, "the weight of the corpus a must be a number of at least 0, not nan"),
        ({"a": float("inf")}, "the weight of the corpus a must be a number of at least 0, not inf"),
    ],
)
def test_bad_weights(values, message):
    with pytest.raises(ConfigError, match=message):
        Blend(values)


def test_counters_of_other_corpora():
    with pytest.raises(ConfigError, match="the data position is of the corpora a, the blend of a, b; continue with"):
        Blend({"a": 1, "b": 1}).next({"a": 1}, 1)
