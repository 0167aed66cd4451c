"""vocab/token_map.py and every method in vocab/methods: sums, determinism, dtype, padding, formulas."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import write_tokenizer

from megatron_adapt.errors import CheckpointError, ConfigError
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.vocab import methods
from megatron_adapt.vocab.material import Material
from megatron_adapt.vocab.matching import match
from megatron_adapt.vocab.token_map import Factors, TokenMap

WORDS = [f"▁w{i}" for i in range(300)]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    tokens = ["<unk>", "<s>", "</s>", *WORDS]
    special = {"unk": "<unk>", "bos": "<s>", "eos": "</s>"}
    return Tokenizer.load(write_tokenizer(tmp_path_factory.mktemp("source"), tokens, "sentencepiece", special))


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    tokens = ["<|end|>", *(f"Ġw{i}" for i in range(100, 500)), "Ġnew"]
    special = {"bos": "<|end|>", "eos": "<|end|>"}
    return Tokenizer.load(write_tokenizer(tmp_path_factory.mktemp("target"), tokens, "byte-level", special))


def matrix(source, dtype=torch.float32, padding=5, width=16):
    """Rows with a mean far from 0 and a different scale per dimension; padded rows that must not be looked at."""
    generator = torch.Generator().manual_seed(7)
    scale = torch.linspace(0.1, 2, width)
    rows = torch.randn(source.vocab_size, width, generator=generator) * scale + 3
    return torch.cat([rows, torch.full((padding, width), 1e9)]).to(dtype)


def build(method, target, source):
    return methods.build(method, Material(target, source)).input


def test_copy(source, target):
    token_map = build("copy", target, source)
    ids = match(target, source).source_ids
    assert ((ids < 0) == token_map.drawn).all() and (ids >= 0).sum() == 201
    old = matrix(source).bfloat16()
    new = token_map.apply(old, seed=0)
    assert new[torch.from_numpy(ids >= 0)].equal(old[torch.from_numpy(ids[ids >= 0])])
    assert token_map.counts() == {"copied": 201, "composed": 0, "drawn": 201}


def test_mean(source, target):
    token_map = build("mean", target, source)
    old = matrix(source)
    new = token_map.apply(old, seed=0)
    ids = torch.from_numpy(match(target, source).source_ids)
    assert new[ids >= 0].equal(old[ids[ids >= 0]])
    mean = old[: source.vocab_size].mean(0).expand(int((ids < 0).sum()), -1)
    assert torch.allclose(new[ids < 0], mean, atol=1e-5)
    assert new.equal(token_map.apply(old, seed=1))


def test_random(source, target):
    token_map = build("random", target, source)
    assert token_map.counts() == {"copied": 0, "composed": 0, "drawn": target.vocab_size}
    old = matrix(source)[: source.vocab_size]
    new = token_map.padded(20_000).apply(old, seed=0)
    assert torch.allclose(new.mean(0), old.mean(0), atol=0.06)
    assert torch.allclose(new.std(0), old.std(0, correction=0), rtol=0.03)


def test_draws_depend_on_seed_and_matrix(source, target):
    token_map = build("random", target, source)
    old = matrix(source)
    one = token_map.apply(old, seed=0, name="embedding")
    assert not one.equal(token_map.apply(old, seed=1, name="embedding"))
    assert not one.equal(token_map.apply(old, seed=0, name="output"))


def test_draws_are_the_same_on_any_number_of_threads(source, target):
    token_map = build("random", target, source).padded(5000)
    old = matrix(source, width=256)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(token_map.apply(old, seed=0))
    finally:
        torch.set_num_threads(threads)
    assert results[0].equal(results[1])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_weighted_rows(data):
    """Against the dense product: any mixture of copied, composed and drawn rows."""
    size, rows = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 8))
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    dense = np.zeros((rows, size), dtype=np.float32)
    ids, weights, indptr = [], [], [0]
    for row in range(rows):
        chosen = generator.choice(size, generator.integers(0, size + 1), replace=False)
        values = generator.dirichlet(np.ones(len(chosen))).astype(np.float32) if len(chosen) else []
        dense[row, chosen] = values
        ids, weights = [*ids, *chosen], [*weights, *values]
        indptr.append(len(ids))
    drawn = np.diff(indptr) == 0
    arrays = np.array(indptr), np.array(ids, dtype=np.int64), np.array(weights, dtype=np.float32)
    token_map = TokenMap(*arrays, drawn, size, spread=0.0)
    old = torch.from_numpy(generator.normal(size=(size, 3)).astype(np.float32))
    expected = torch.from_numpy(dense) @ old
    expected[torch.from_numpy(drawn)] = old.mean(0)
    assert torch.allclose(token_map.apply(old, seed=0), expected, atol=1e-5)
    counts = token_map.counts()
    assert sum(counts.values()) == rows and counts["drawn"] == drawn.sum()


def test_a_matrix_smaller_than_the_tokenizer(source, target):
    with pytest.raises(CheckpointError, match="head has 302 rows, but the source tokenizer has 303 ids"):
        build("copy", target, source).apply(torch.zeros(302, 4), seed=0, name="head")


def test_a_broken_source(source, target):
    old = matrix(source)
    old[4, 2] = float("nan")
    with pytest.raises(CheckpointError, match="embedding holds values that are not finite"):
        build("copy", target, source).apply(old, seed=0)


def test_inconsistent_maps_are_our_own_mistake():
    with pytest.raises(AssertionError, match="has entries or is drawn"):
        TokenMap(np.array([0, 0]), np.array([], dtype=int), np.array([]), np.array([False]), 3)
    with pytest.raises(AssertionError, match="cannot be padded"):
        TokenMap.from_copies([0, 1, -1], 2).padded(2)


def test_factors_are_their_product():
    generator = np.random.default_rng(0)
    left, right = generator.normal(size=(3, 2)).astype(np.float32), generator.normal(size=(4, 2)).astype(np.float32)
    factors = Factors(np.array([1, 2, 5]), left, np.array([0, 2, 3, 6]), right)
    token_map = TokenMap.from_entries(np.array([0, 4]), np.array([5, 1]), np.array([1.0, 0.5]), 6, 7, factors=factors)
    old = torch.from_numpy(generator.normal(size=(7, 9)).astype(np.float32))
    new = token_map.apply(old, seed=0)
    assert torch.allclose(new[[1, 2, 5]], torch.from_numpy(left @ right.T) @ old[[0, 2, 3, 6]], atol=1e-5)
    assert new[0].equal(old[5]) and torch.allclose(new[4], old[1] / 2) and token_map.drawn.tolist() == [False] * 3 + [True] + [False] * 2
    assert token_map.counts() == {"copied": 1, "composed": 4, "drawn": 1}
    scaled = TokenMap.from_entries(np.array([0]), np.array([5]), np.array([1.0]), 6, 7, factors=factors, norm="length").apply(old, seed=0)
    assert torch.allclose(scaled[[1, 2, 5]].norm(dim=1), old[[0, 2, 3, 6]].norm(dim=1).mean().expand(3), atol=1e-4)


def test_blocks_of_composed_rows_do_not_show(monkeypatch):
    generator = np.random.default_rng(0)
    rows, ids = np.repeat(np.arange(50), 4), np.concatenate([generator.choice(30, 4, replace=False) for _ in range(50)])
    token_map = TokenMap.from_entries(rows, ids, generator.random(200), 50, 30, norm="deviation")
    old = torch.from_numpy(generator.normal(size=(30, 8)).astype(np.float32))
    whole = token_map.apply(old, seed=0)
    monkeypatch.setattr("megatron_adapt.vocab.token_map.CHUNK_VALUES", 8 * 8)
    assert torch.allclose(token_map.apply(old, seed=0), whole, atol=1e-6)


def test_unknown_methods(source, target):
    with pytest.raises(ConfigError, match="no vocabulary method 'copi'; there are: align, .*, wechsel. Did you mean 'copy'"):
        build("copi", target, source)


def test_names_and_options_need_no_torch():
    code = (
        "import sys; from megatron_adapt.vocab import methods; "
        "[check({'x': 1}) for check in methods.checks().values()]; sys.exit('torch' in sys.modules or 'tokenizers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
