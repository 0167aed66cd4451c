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
from megatron_adapt.vocab.matching import overlap
from megatron_adapt.vocab.token_map import TokenMap

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


@pytest.mark.parametrize("method", methods.names())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_method(method, dtype, source, target):
    token_map = methods.build(method, target, source)
    assert token_map.rows == target.vocab_size and token_map.source_size == source.vocab_size
    sums = token_map.row_sums()
    assert np.allclose(sums[~token_map.drawn], 1, atol=1e-5) and (sums[token_map.drawn] == 0).all()
    old = matrix(source, padding=0).to(dtype)
    new = token_map.apply(old, seed=3)
    assert new.dtype == dtype and tuple(new.shape) == (target.vocab_size, old.shape[1])
    assert new.isfinite().all() and new.float().abs().max() < 100
    assert new.equal(methods.build(method, target, source).apply(old, seed=3))
    padded = torch.cat([old, torch.full((5, old.shape[1]), 1e4, dtype=dtype)])
    assert new.equal(token_map.apply(padded, seed=3)), "padded rows of the source must not matter"
    assert token_map.padded(500).rows == 500 and token_map.padded(500).drawn[target.vocab_size :].all()
    assert new.equal(token_map.padded(500).apply(old, seed=3)[: target.vocab_size])


def test_copy(source, target):
    token_map = methods.build("copy", target, source)
    ids = overlap(target, source)
    assert ((ids < 0) == token_map.drawn).all() and (ids >= 0).sum() == 201
    old = matrix(source).bfloat16()
    new = token_map.apply(old, seed=0)
    assert new[torch.from_numpy(ids >= 0)].equal(old[torch.from_numpy(ids[ids >= 0])])
    assert token_map.counts() == {"copied": 201, "composed": 0, "drawn": 201}


def test_mean(source, target):
    token_map = methods.build("mean", target, source)
    old = matrix(source)
    new = token_map.apply(old, seed=0)
    ids = torch.from_numpy(overlap(target, source))
    assert new[ids >= 0].equal(old[ids[ids >= 0]])
    mean = old[: source.vocab_size].mean(0).expand(int((ids < 0).sum()), -1)
    assert torch.allclose(new[ids < 0], mean, atol=1e-5)
    assert new.equal(token_map.apply(old, seed=1))


def test_random(source, target):
    token_map = methods.build("random", target, source)
    assert token_map.counts() == {"copied": 0, "composed": 0, "drawn": target.vocab_size}
    old = matrix(source)[: source.vocab_size]
    new = token_map.padded(20_000).apply(old, seed=0)
    assert torch.allclose(new.mean(0), old.mean(0), atol=0.06)
    assert torch.allclose(new.std(0), old.std(0, correction=0), rtol=0.03)


def test_draws_depend_on_seed_and_matrix(source, target):
    token_map = methods.build("random", target, source)
    old = matrix(source)
    one = token_map.apply(old, seed=0, name="embedding")
    assert not one.equal(token_map.apply(old, seed=1, name="embedding"))
    assert not one.equal(token_map.apply(old, seed=0, name="output"))


def test_draws_are_the_same_on_any_number_of_threads(source, target):
    token_map = methods.build("random", target, source).padded(5000)
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
    assert np.allclose(token_map.row_sums(), dense.sum(1), atol=1e-5)


def test_a_matrix_smaller_than_the_tokenizer(source, target):
    with pytest.raises(CheckpointError, match="head has 302 rows, but the source tokenizer has 303 ids"):
        methods.build("copy", target, source).apply(torch.zeros(302, 4), seed=0, name="head")


def test_a_broken_source(source, target):
    old = matrix(source)
    old[4, 2] = float("nan")
    with pytest.raises(CheckpointError, match="embedding holds values that are not finite"):
        methods.build("copy", target, source).apply(old, seed=0)


def test_inconsistent_maps_are_our_own_mistake():
    with pytest.raises(AssertionError, match="has entries or is drawn"):
        TokenMap(np.array([0, 0]), np.array([], dtype=int), np.array([]), np.array([False]), 3)
    with pytest.raises(AssertionError, match="cannot be padded"):
        TokenMap.from_copies([0, 1, -1], 2).padded(2)


def test_unknown_methods(source, target):
    with pytest.raises(ConfigError, match="no vocabulary method 'copi'; there are: copy, mean, random.*mean 'copy'"):
        methods.build("copi", target, source)


def test_names_need_no_torch():
    code = (
        "import sys; from megatron_adapt.vocab import methods; "
        "assert methods.names() == ['copy', 'mean', 'random'], methods.names(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
