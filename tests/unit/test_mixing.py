"""Blends of corpora: balanced, resumable, and never changed by accident."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_adapt.data.mixing import Blend
from megatron_adapt.errors import ConfigError


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
