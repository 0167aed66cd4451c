"""The compiled parts of vocab: sparsemax against its definition, weighted rows against numpy's product."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from megatron_adapt import _C
from megatron_adapt.vocab import similarity
from megatron_adapt.vocab.token_map import TokenMap, statistics

LANES = 64  # of csrc/sparsemax.cpp


def definition(scores: np.ndarray) -> np.ndarray:
    """Martins & Astudillo 2016, algorithm 1, in float64: with z sorted downwards, k the largest with 1 + k z_k > sum z_1..k."""
    scores = scores.astype(np.float64)
    ordered = -np.sort(-scores)
    sums = np.cumsum(ordered)
    k = np.flatnonzero(1 + np.arange(1, len(scores) + 1) * ordered > sums)[-1] + 1
    return np.maximum(scores - (sums[k - 1] - 1) / k, 0)


def dense(scores: np.ndarray, threads: int = 2) -> np.ndarray:
    rows, columns, weights = _C.sparsemax(scores, threads=threads)
    assert (weights > 0).all() and (np.diff(rows * scores.shape[1] + columns) > 0).all()
    found = np.zeros(scores.shape)
    found[rows, columns] = weights
    return found


def check(scores: np.ndarray) -> None:
    expected = np.stack([definition(row) for row in scores])
    assert np.abs(dense(scores) - expected).max() <= 1e-12


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_sparsemax_is_its_definition(data):
    """Few distinct values, so that many are equal; and as many columns as lie around one or several steps."""
    shape = data.draw(st.integers(1, 5)), data.draw(st.one_of(st.integers(1, 9), st.sampled_from([63, 64, 65, 128, 200])))
    values = st.one_of(st.sampled_from([0.0, 0.5, -0.5, 1.0, -0.0]), st.floats(-3, 3, width=32))
    check(data.draw(arrays(np.float32, shape, elements=values)))


@pytest.mark.parametrize("columns", [1, 50, LANES, 3 * LANES + 5, 5000])
@pytest.mark.parametrize("scale", [0.0, 1e-5, 1e-3, 0.1, 2.0])
def test_supports_from_one_column_to_all(columns, scale):
    scores = (np.random.default_rng(2).normal(size=(20, columns)) * scale + 0.3).astype(np.float32)
    check(scores)
    check(np.sort(scores))  # the largest ones last, and first
    check(-np.sort(-scores))
    if scale == 0:
        assert np.allclose(dense(scores), 1 / columns, rtol=1e-12)


def test_the_largest_columns_share_a_lane():
    scores = np.full((3, 40 * LANES), -0.4, dtype=np.float32)
    scores[:, 7::LANES] = 0.5 + np.random.default_rng(0).normal(size=(3, 40)) * 0.01
    check(scores)


def test_large_scores_do_not_swallow_the_one():
    scores = np.array([[1e20, 1e20, 0], [3e9, 0, -3e38], [-1e20] * 3], dtype=np.float32)
    assert np.allclose(dense(scores), [[0.5, 0.5, 0], [1, 0, 0], [1 / 3] * 3])


def test_what_is_not_finite_weighs_nothing():
    scores = np.zeros((5, 100), dtype=np.float32)
    scores[0, 3], scores[1], scores[2, 5], scores[3, ::2], scores[4] = np.nan, np.nan, np.inf, -np.inf, -np.inf
    sums = dense(scores)
    assert np.allclose(sums.sum(1), [1, 0, 0, 1, 0]) and sums[0, 3] == 0 and (sums[3, ::2] == 0).all()


def test_nothing_to_project():
    for shape in ((0, 5), (3, 0), (0, 0)):
        rows, columns, weights = similarity.sparsemax(np.zeros(shape, dtype=np.float32))
        assert len(rows) == len(columns) == len(weights) == 0
        assert rows.dtype == columns.dtype == np.int64 and weights.dtype == np.float64


def test_any_number_of_threads_finds_the_same():
    scores = np.random.default_rng(3).normal(size=(23, 333)).astype(np.float32)
    first = _C.sparsemax(scores, threads=1)
    for threads in (2, 5, 64):
        assert all(np.array_equal(one, other) for one, other in zip(first, _C.sparsemax(scores, threads=threads)))


def test_scores_of_another_type_or_layout_are_refused():
    scores = np.zeros((4, 6), dtype=np.float32)
    for wrong in (scores.astype(np.float64), scores.T, scores[:, ::2]):
        with pytest.raises(TypeError, match="incompatible function arguments"):
            _C.sparsemax(wrong, threads=1)
    with pytest.raises(ValueError, match="two dimensions"):
        _C.sparsemax(scores[0], threads=1)
    with pytest.raises(ValueError, match="at least one thread"):
        _C.sparsemax(scores, threads=0)


def test_blocks_of_similarities_do_not_show(monkeypatch):
    generator = np.random.default_rng(4)
    vectors, anchors = generator.normal(size=(57, 12)), generator.normal(size=(130, 12))
    whole = similarity.weights_over(vectors, anchors)
    monkeypatch.setattr(similarity, "BLOCK_VALUES", 130 * 10)
    parts = similarity.weights_over(vectors, anchors)
    assert np.array_equal(whole[0], parts[0]) and np.array_equal(whole[1], parts[1]) and np.allclose(whole[2], parts[2], atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(0, 9), st.integers(1, 4), st.integers(0, 1000))
def test_weighted_rows_are_a_product(width, rows, threads, seed):
    """Widths around a tile of 16, rows without entries, an id several times, places in any order and some left alone."""
    generator = np.random.default_rng(seed)
    source = generator.normal(size=(6, width)).astype(np.float32)
    starts = np.concatenate([[0], np.cumsum(generator.integers(0, 12, rows))]).astype(np.int64)
    ids, weights = generator.integers(0, 6, starts[-1]), generator.normal(size=starts[-1]).astype(np.float32)
    target = np.full((rows + 2, width), 7, dtype=np.float32)
    places = generator.permutation(rows + 2)[:rows]
    _C.weighted_rows(target, places, source, starts, ids, weights, threads=threads)
    expected = np.full((rows + 2, width), 7.0)
    for row, place in enumerate(places):
        part = slice(starts[row], starts[row + 1])
        expected[place] = weights[part].astype(np.float64) @ source[ids[part]].astype(np.float64)
    assert np.allclose(target, expected, atol=1e-5)


def test_weighted_rows_stay_inside_their_matrices():
    source, target, weights = np.ones((3, 4), np.float32), np.zeros((2, 4), np.float32), np.ones(2, np.float32)
    starts, ids, places = np.array([0, 1, 2]), np.array([0, 2]), np.array([0, 1])
    for name, changed in {
        "ids must be rows": {"ids": np.array([0, 3])}, "places must be rows": {"places": np.array([-1, 1])},
        "starts must ascend": {"starts": np.array([0, 2, 1])}, "one more than places": {"starts": np.array([0, 2])},
        "every id needs a weight": {"weights": weights[:1]}, "same width": {"source": np.ones((3, 5), np.float32)},
        "at least one thread": {"threads": 0},
    }.items():  # fmt: skip
        given_ = {"target": target, "places": places, "source": source, "starts": starts, "ids": ids, "weights": weights, "threads": 1}
        with pytest.raises(ValueError, match=name):
            _C.weighted_rows(**given_ | changed)
    assert (target == 0).all()
    target.flags.writeable = False
    with pytest.raises(ValueError, match="not writeable"):
        _C.weighted_rows(target, places, source, starts, ids, weights, threads=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", ["none", "length"])
def test_rows_are_the_same_on_any_number_of_threads_and_in_any_layout(dtype, norm):
    generator = np.random.default_rng(5)
    rows, ids = np.repeat(np.arange(1500), 5), np.concatenate([generator.choice(80, 5, replace=False) for _ in range(1500)])
    token_map = TokenMap.from_entries(rows, ids, generator.random(len(ids)), 1500, 80, norm=norm)
    old = torch.from_numpy(generator.normal(size=(80, 33)).astype(np.float32)).to(dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = token_map.apply(old, seed=0)
        torch.set_num_threads(3)
        other = token_map.apply(old.t().contiguous().t(), seed=0)
    finally:
        torch.set_num_threads(before)
    assert one.equal(other) and one.dtype == dtype
    if norm == "none":
        weights = torch.zeros(1500, 80, dtype=torch.float64)
        weights[rows, token_map.source_ids] = torch.from_numpy(token_map.weights).double()
        assert torch.allclose(one.double(), weights @ old.double(), atol=1e-5 if dtype == torch.float32 else 2e-2)


def test_statistics_are_those_of_float64():
    """In parts and in whole, on any number of threads; a mean far from 0, which squares of the values would not survive."""
    source = np.random.default_rng(6).normal(size=(2500, 19)).astype(np.float32) * np.float32(1e-3) + 100
    mean, deviation = statistics(torch.from_numpy(source))
    assert np.array_equal(mean.numpy(), source.mean(0, dtype=np.float64).astype(np.float32))
    assert np.allclose(deviation.numpy(), source.std(0, dtype=np.float64), rtol=1e-6)
    totals = []
    for threads, parts in ((1, 1), (2, 5), (30, 3)):
        totals.append(np.zeros(19))
        for part in np.array_split(source, parts):
            _C.add_columns(totals[-1], part, mean.double().numpy(), threads=threads)
    assert np.array_equal(totals[0], totals[1]) and np.array_equal(totals[0], totals[2])
    for totals, centre in ((np.zeros(18), None), (np.zeros(19), np.zeros(1))):
        with pytest.raises(ValueError, match="a value for each column"):
            _C.add_columns(totals, source, centre, threads=1)


@pytest.mark.skipif(sys.platform != "linux", reason="counts the threads of /proc")
def test_no_thread_stays_behind():
    def threads() -> int:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("Threads:"))

    before = threads()
    _C.sparsemax(np.zeros((50, 50), dtype=np.float32), threads=8)
    assert threads() == before
