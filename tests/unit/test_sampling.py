"""The order of samples: every token once an epoch, subsets nested, the same everywhere, never changed by accident."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_merge import write_sequences

from megatron_adapt import _C
from megatron_adapt.data.indexed import IndexedReader, IndexedWriter
from megatron_adapt.data.sampling import Passes, SampleOrder
from megatron_adapt.errors import ConfigError, DataError


def corpus(folder: Path, lengths: list[int]) -> IndexedReader:
    """Documents of these lengths; every id occurs once, so that a token is its id."""
    with IndexedWriter(folder / "c", 100_000) as writer:
        writer.add(np.arange(sum(lengths)), np.array(lengths, dtype=np.int64))
    return IndexedReader(folder / "c")


@pytest.fixture
def reader(tmp_path: Path) -> IndexedReader:
    return corpus(tmp_path, np.random.default_rng(0).integers(0, 30, 500).tolist())


cases = st.tuples(
    st.lists(st.integers(0, 12), min_size=1, max_size=150).filter(lambda lengths: sum(lengths) > 1),
    st.integers(1, 9),  # sequence_length, made to fit
    st.integers(1, 3),  # shuffled_epochs
    st.none() | st.floats(0.0, 1.0),  # the share of the corpus that is read
    st.integers(-(2**70), 2**70),
)


def order_of(folder: Path, case: tuple) -> SampleOrder:
    lengths, length, together, share, seed = case
    total = sum(lengths)
    unique = None if share is None else max(2, round(share * total))
    length = min(length, (unique or total) - 1)
    return SampleOrder(corpus(folder, lengths), length, seed, "x", Passes(unique, together))


@settings(max_examples=80, deadline=None)
@given(cases, st.integers(1, 3))
def test_every_token_of_every_epoch_is_predicted_once(case, spans):
    with tempfile.TemporaryDirectory() as folder:
        order = order_of(Path(folder), case)
        length, span_tokens = order.sequence_length, case[2] * order.num_tokens
        predicted, read = np.zeros((2, sum(case[0])), dtype=int)
        done = 0
        for span in range(1, spans + 1):
            samples = range(done, -(-span * span_tokens // length))  # those that begin in the span
            for sample in samples:
                tokens = order.tokens(sample)
                assert len(tokens) == length + 1 and span - 1 <= order.epoch(sample) // case[2] < span
                np.add.at(predicted, tokens[1:], 1)
                read[tokens] = 1
            done = samples.stop
            assert read.sum() == order.num_tokens
            extra = (predicted - span * case[2])[read == 1]
            # The very first token has nothing before it; the sample that runs into the next span is ahead by less than
            # its length.
            assert extra.min() >= -1 and (extra < 0).sum() <= 1
            assert -1 <= extra.sum() == done * length - span * span_tokens < length


@settings(max_examples=60, deadline=None)
@given(cases, st.integers(0, 400))
def test_pieces_are_the_tokens_and_the_borders_of_documents(case, sample):
    with tempfile.TemporaryDirectory() as folder:
        order = order_of(Path(folder), case)
        reader = IndexedReader(Path(folder) / "c")
        pieces = order.pieces(sample)
        assert order.tokens(sample).tolist() == [token for p in pieces for token in reader[p.document][p.begin : p.end]]
        assert all(0 <= piece.begin < piece.end <= reader.sizes[piece.document] for piece in pieces)
        assert all(piece.begin == 0 for piece in pieces[1:])
        cut = [piece for piece in pieces[:-1] if piece.end < reader.sizes[piece.document]]
        assert len({piece.document for piece in cut}) <= (case[3] is not None)  # the last one of a subset


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=80), st.lists(st.integers(2, 900), min_size=2, max_size=4), st.integers())
def test_budgets_are_exact_and_nested(lengths, budgets, seed):
    total = sum(lengths)
    budgets = sorted(2 + budget % max(total - 1, 1) for budget in budgets)
    if total < 2 or budgets[-1] > total:
        budgets = []
    former: set[int] = set()
    with tempfile.TemporaryDirectory() as folder:
        reader = corpus(Path(folder), lengths)
        for budget in budgets:
            order = SampleOrder(reader, 1, seed, "x", Passes(budget))
            pieces = [piece for sample in range(budget) for piece in order.pieces(sample)]
            tokens = {token for p in pieces for token in reader[p.document][p.begin : p.end].tolist()}
            assert len(tokens) == budget and former <= tokens
            former = tokens
            ends = {piece.document: 0 for piece in pieces}
            for piece in pieces:
                ends[piece.document] = max(ends[piece.document], piece.end)
            assert sum(end < reader.sizes[document] for document, end in ends.items()) <= 1


def test_everything_once_before_anything_twice(reader):
    """Sample by sample; shuffled together, many tokens are seen twice before all are seen once."""
    length, size = 16, reader.num_tokens
    inside = -(-size // length) - 1
    for together, twice in ((1, 0), (3, size // 5)):
        order = SampleOrder(reader, length, 0, "x", Passes(None, together))
        predicted = np.bincount(np.concatenate([order.tokens(n)[1:] for n in range(inside)]), minlength=size)
        assert (predicted > 1).sum() >= twice and ((predicted > 1).any() == (together > 1))


def test_orders_differ_by_epoch_seed_and_name_and_by_nothing_else(reader, tmp_path):
    def starts(seed: int = 0, name: str = "x", epoch: int = 0, length: int = 16) -> list[int]:
        order = SampleOrder(reader, length, seed, name)
        first = -(-epoch * reader.num_tokens // length)
        return [int(order.tokens(first + i)[0]) for i in range(300)]

    assert starts() == starts()
    for other in (starts(seed=1), starts(name="y"), starts(epoch=1), starts(epoch=2)):
        assert sum(a == b for a, b in zip(starts(), other)) < 10
    shutil.copy(tmp_path / "c.bin", tmp_path / "moved.bin"), shutil.copy(tmp_path / "c.idx", tmp_path / "moved.idx")
    moved = SampleOrder(IndexedReader(tmp_path / "moved"), 16, 0, "x")
    assert [int(moved.tokens(i)[0]) for i in range(300)] == starts()


def test_any_sample_without_those_before_it(reader):
    far = 10**9 + 7
    order = SampleOrder(reader, 16, 0)
    tokens = order.tokens(far).tolist()
    assert tokens == SampleOrder(reader, 16, 0).tokens(far).tolist() and order.epoch(far) == far * 16 // reader.num_tokens


def test_order_never_changes(reader):
    """If this fails, runs would not resume on the data that they left: do not adapt the numbers without FORMAT."""
    order = SampleOrder(reader, 8, 1234, "german")
    assert [int(order.tokens(n)[0]) for n in (0, 1, 2, 948, 949, 10**6)] == [3693, 2740, 2026, 4293, 7295, 4508]
    part = SampleOrder(reader, 8, 1234, "german", Passes(1000, 2))
    assert [int(part.tokens(n)[0]) for n in (0, 1, 2, 249, 250, 10**6)] == [5684, 2560, 4909, 4954, 2232, 2554]
    assert _C.permute(np.arange(10), 10, 7).tolist() == [1, 9, 6, 5, 8, 4, 0, 2, 3, 7]
    assert _C.permute(np.array([0, 2**61]), 2**62, 2**64 - 1).tolist() == [1273905950970851953, 181644062056090134]


def test_positions_beyond_32_bits():
    """Six million million tokens in 3,000 documents, of which only the index exists."""
    sizes = np.full(3000, 2**31 - 1, dtype=np.int32)
    total = int(sizes.sum(dtype=np.int64))
    huge = SimpleNamespace(sizes=sizes, num_tokens=total, num_documents=3000, prefix="/nowhere/c")
    order = SampleOrder(huge, 2**20, 0)
    for sample in (0, total // 2**20 - 1, total // 2**20, 5 * total // 2**20):
        pieces = order.pieces(sample)
        assert sum(piece.end - piece.begin for piece in pieces) == 2**20 + 1
        assert all(0 <= piece.begin < piece.end <= 2**31 - 1 and 0 <= piece.document < 3000 for piece in pieces)
    part = SampleOrder(huge, 8, 0, "x", Passes(total - 5))
    assert part._subset == (3000, 2**31 - 6)


def test_documents_of_several_sequences(tmp_path):
    write_sequences(tmp_path / "c", [[[1, 2], [3]], [], [[4, 5, 6], [7], [8]]], np.int32)
    order = SampleOrder(IndexedReader(tmp_path / "c"), 7, 0)
    assert sorted(order.pieces(0)[:2]) == [(0, 0, 3), (2, 0, 5)] and sorted(order.tokens(0)) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_permutations_are_permutations():
    for size in [*range(1, 200), 255, 256, 257, 1000, 4095, 4096, 4097]:
        assert sorted(_C.permute(np.arange(size), size, size * 7919)) == list(range(size))
    with pytest.raises(IndexError, match="a place outside the permutation"):
        _C.permute(np.array([3]), 3, 0)
    for size in (0, 2**62 + 1):
        with pytest.raises(ValueError, match="it must have 1 to 2\\^62"):
            _C.permute(np.array([0]), size, 0)


@pytest.mark.parametrize("size", [2, 3, 5, 12, 37])
def test_permutations_are_uniform(size):
    """Over many keys each element is about equally often at each place, and each pair of neighbours about equally often."""
    keys = 4000
    counts, pairs = np.zeros((size, size)), np.zeros((size, size))
    for key in range(keys):
        permuted = _C.permute(np.arange(size), size, key * 0x9E3779B97F4A7C15 % 2**64)
        counts[np.arange(size), permuted] += 1
        np.add.at(pairs, (permuted[:-1], permuted[1:]), 1)
    expected = keys / size
    chi_square = ((counts - expected) ** 2 / expected).sum()
    degrees = (size - 1) ** 2
    assert chi_square < degrees + 5 * (2 * degrees) ** 0.5 + 5
    if size > 3:
        between = pairs[~np.eye(size, dtype=bool)]
        expected = keys * (size - 1) / len(between)
        assert ((between - expected) ** 2 / expected).sum() < len(between) + 5 * (2 * len(between)) ** 0.5 + 5


def test_neighbours_are_torn_apart():
    permuted = _C.permute(np.arange(100_000), 100_000, 5)
    assert abs(np.corrcoef(permuted[:-1], permuted[1:])[0, 1]) < 0.02
    assert (np.abs(np.diff(permuted)) == 1).mean() < 0.0002


def test_wrong_settings(tmp_path):
    reader = corpus(tmp_path, [3, 5])
    with pytest.raises(DataError, match=r"the corpus german has 8 tokens, fewer than one sample \(8 \+ 1\); shorten"):
        SampleOrder(reader, 8, 0, "german")
    with pytest.raises(DataError, match=r"the corpus given has 4 tokens, fewer than one sample \(4 \+ 1\)"):
        SampleOrder(reader, 4, 0, passes=Passes(4))
    with pytest.raises(DataError, match="data.german.unique_tokens is 9, but the corpus has 8 tokens; lower it, or add text"):
        SampleOrder(reader, 2, 0, "german", Passes(9))
    with pytest.raises(ConfigError, match="sequence_length must be at least 1, not 0"):
        SampleOrder(reader, 0, 0)
    for passes in (Passes(0), Passes(None, 0)):
        with pytest.raises(ConfigError, match="shuffled_epochs and unique_tokens must be at least 1"):
            SampleOrder(reader, 2, 0, "german", passes)
    with pytest.raises(ValueError, match="counted from 0"):
        SampleOrder(reader, 2, 0).tokens(-1)
    with pytest.raises(TypeError, match="sizes must be one contiguous dimension of int32 or int64"):
        _C.DocumentOrder(np.zeros(3), 1, 0, None, 0)
    with pytest.raises(ValueError, match="a subset of 9 tokens of a corpus of 8"):
        _C.find_subset(np.array([3, 5]), 0, 9)
