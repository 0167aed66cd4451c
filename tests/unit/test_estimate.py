"""Derived numbers against counts by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from megatron_adapt.analysis import estimate
from megatron_adapt.config import Optimizer, Parallel, Phase
from megatron_adapt.families import family_named
from megatron_adapt.families.family import ModelShape

VOCABULARY = 400
H, F, Q, K = 32, 48, 32, 16  # hidden, feed-forward, rows of queries, rows of keys
EMBEDDING = VOCABULARY * H
SPLIT = (Q + 2 * K) * H + H * Q + 3 * F * H  # matrices of a layer
NORMS = 2 * H  # of a layer
LAYER = SPLIT + NORMS


def shape(**changes: Any) -> ModelShape:
    family = family_named("llama")
    return family.read_config(family.complete_config({**tiny.CONFIG, **changes}, VOCABULARY, None, None))


def phase(**changes: Any) -> Phase:
    return Phase(**{**tiny.phase("full", 8), **changes})


@pytest.mark.parametrize(
    ("changes", "parallel", "expected"),
    [
        ({}, {}, 2 * EMBEDDING + 2 * LAYER + H),
        ({"tie_word_embeddings": True}, {}, EMBEDDING + 2 * LAYER + H),
        ({}, {"tensor": 2}, EMBEDDING + SPLIT + 2 * NORMS + H),
        ({}, {"pipeline": 2}, EMBEDDING + LAYER + H),
        ({"tie_word_embeddings": True}, {"pipeline": 2}, EMBEDDING + LAYER + H),  # both stages hold the shared matrix
        ({}, {"tensor": 2, "pipeline": 2}, EMBEDDING // 2 + SPLIT // 2 + NORMS + H),
        ({}, {"data": 4}, 2 * EMBEDDING + 2 * LAYER + H),
    ],
)
def test_parameters_of_the_largest_rank(changes: dict, parallel: dict, expected: int) -> None:
    assert estimate.parameters_per_rank(shape(**changes), Parallel(**parallel)) == expected


def test_memory() -> None:
    whole, settings = shape(), phase(micro_batch_size=2)
    positions = 32 * 2
    logits = positions * VOCABULARY * 8
    parameters = whole.num_parameters()
    assert estimate.memory_per_rank(whole, Parallel(), settings, "bf16-mixed") == 18 * parameters + positions * H * 34 * 2 + logits
    assert estimate.memory_per_rank(whole, Parallel(), settings, "fp32") == 16 * parameters + positions * H * 68 * 2 + logits


def test_context_ranks_have_a_part_of_the_positions_and_all_keys() -> None:
    whole, positions, logits = shape(), 2 * 32, 8 * VOCABULARY
    for recompute, kept, layers in (("none", 34 * 2, 2), ("full", 2 * 2 + 34, 1)):
        settings = phase(micro_batch_size=2, recompute=recompute)
        found = estimate.memory_per_rank(whole, Parallel(context=2), settings, "bf16-mixed")
        keys = layers * 2 * 2 * K * positions * 1.25
        assert found == 18 * whole.num_parameters() + positions / 2 * (H * kept + logits) + keys
    shared = Parallel(context=4, distributed_optimizer=True)
    less = [estimate.memory_per_rank(whole, one, settings, "bf16-mixed") for one in (Parallel(context=4), shared)]
    assert less[0] - less[1] == (12 - 12 / 4) * whole.num_parameters()
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2}
    split = [estimate.gathered_bytes(shape(**sizes), Parallel(tensor=tensor, context=2), settings, 2) for tensor in (1, 2)]
    assert split == [2 * 2 * K * positions, 2 * K * positions]


def test_an_interleaved_pipeline_keeps_more_activations() -> None:
    settings, positions = phase(batch_size=8, micro_batch_size=1), 32
    plain, interleaved = (
        estimate.memory_per_rank(shape(num_hidden_layers=4), Parallel(pipeline=2, virtual_pipeline=stages), settings, "bf16-mixed")
        for stages in (1, 2)
    )
    assert interleaved - plain == positions * H * 34 * 2 * 2 * 0.25  # of 2 layers, 2 micro-batches


def test_logits_in_slices() -> None:
    whole, positions = shape(), 2 * 32
    sizes = {name: estimate.memory_per_rank(whole, Parallel(), phase(logits=name), "fp32") for name in ("auto", "whole", "sliced")}
    assert sizes["auto"] == sizes["whole"] and sizes["sliced"] - sizes["whole"] == positions * (4 * VOCABULARY + 4 * H)
    large = replace(whole, vocab_size=128_256)
    for tensor in (1, 2):
        long = phase(logits="auto", sequence_length=8192)
        kept = {name: estimate.memory_per_rank(large, Parallel(tensor=tensor), long.model_copy(update={"logits": name}), "fp32") for name in ("auto", "whole", "sliced")}
        assert kept["auto"] == kept["sliced"]
        assert kept["whole"] - kept["sliced"] == 2 * 8192 * (8 * 128_256 / tensor - 4 * H) - 12 * (1 << 26)


def test_checkpoints() -> None:
    whole = shape()
    assert estimate.checkpoint_bytes(whole, phase(), "bf16-mixed") == 14 * whole.num_parameters()
    assert estimate.checkpoint_bytes(whole, phase(train="embedding"), "fp32") == 4 * whole.num_parameters() + 8 * EMBEDDING
    lion = phase(optimizer={"lr": 1.0, "type": "lionw", "rounding": "kahan"})
    one = estimate.checkpoint_bytes(whole, lion, "bf16-true")
    assert one == 6 * whole.num_parameters()
    for steps, settings, count in (
        (8, {}, 1), (8, {"save_every": 4}, 2), (8, {"save_every": 2, "keep_last": 2}, 3), (8, {"save_every": 2, "keep_every": 4}, 4),
        (None, {"save_every": 2, "keep_last": 2}, 3), (None, {}, 1),
    ):  # fmt: skip
        changed = lion.model_copy(update=settings)
        assert estimate.checkpoints_bytes(whole, changed, "bf16-true", steps) == count * one, (steps, settings)


def test_corpora(tmp_path: Path) -> None:
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl.zst"]
    for file in files:
        file.write_bytes(bytes(1000))
    assert estimate.corpus_bytes(files, 32_000, 0.0) == 5000 / 4 * 2
    assert estimate.corpus_bytes(files, 100_000, 0.1) == 4500 / 4 * 4 + 500


def test_recomputation_and_a_shared_state() -> None:
    whole, positions = shape(), 2 * 32
    names = ("none", "selective", "full")
    kept = {name: estimate.memory_per_rank(whole, Parallel(), phase(recompute=name, batch_size=8), "bf16-mixed") for name in names}
    assert kept["none"] - kept["selective"] == positions * H * 16  # two layers' worth, less that of the one at work
    assert kept["none"] - kept["full"] == positions * H * (34 * 2 - 2 * 2 - 34)
    shared = estimate.memory_per_rank(whole, Parallel(data=4, distributed_optimizer=True), phase(batch_size=8), "bf16-mixed")
    assert kept["none"] - shared == (18 - (6 + 12 / 4)) * whole.num_parameters()
    shared = estimate.memory_per_rank(whole, Parallel(data=4, distributed_optimizer=True), phase(batch_size=8), "fp32")
    assert shared - estimate.memory_per_rank(whole, Parallel(), phase(batch_size=8), "fp32") == -6 * whole.num_parameters()
    muon = phase(batch_size=8, optimizer={"lr": 1e-3, "type": "muon"})
    without = kept["none"] - estimate.memory_per_rank(whole, Parallel(), muon, "bf16-mixed")
    assert without == 4 * (whole.num_parameters() - 2 * EMBEDDING)
    assert estimate.state_bytes(Optimizer(lr=1e-3, type="adamw8bit"), "bf16-mixed") == 12
    assert estimate.state_bytes(Optimizer(lr=1e-3, offload=True), "bf16-mixed") == 10
    low = Optimizer(lr=1e-3, rounding="kahan")
    assert [estimate.state_bytes(low, "bf16-true", sharers) for sharers in (1, 4)] == [10, 4 + 6 / 4]


def test_fp8_keeps_copies_of_the_layers_matrices() -> None:
    whole, matrices = shape(), shape().num_layers * SPLIT

    def more(precision: str, without: str, recompute: str, **parallel: int) -> float:
        settings, layout = phase(recompute=recompute, batch_size=8), Parallel(**parallel)
        return estimate.memory_per_rank(whole, layout, settings, precision) - estimate.memory_per_rank(whole, layout, settings, without)

    for low in ("fp8-current-true", "fp8-delayed-true", "fp8-blockwise-true", "fp8-mx-true"):
        assert more(low, "bf16-true", "none") == more(low.removesuffix("-true"), "bf16-mixed", "none") == 2 * matrices
        assert more(low, "bf16-true", "selective", tensor=2, pipeline=2) == 2 * matrices / 4
        assert more(low, "bf16-true", "full") == 0
        assert estimate.state_bytes(Optimizer(lr=1e-3), low) == 8


def test_what_saves_memory() -> None:
    layouts = [{}, {"tensor": 2}, {"tensor": 2, "sequence": True}, {"tensor": 2, "sequence": True, "pipeline": 2}]
    sizes = [estimate.memory_per_rank(shape(), Parallel(**layout), phase(), "bf16-mixed") for layout in layouts]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes)
    # A pipeline keeps the activations of as many micro-batches as it has stages, if there are as many.
    deep = Parallel(pipeline=2)
    one, many = (estimate.memory_per_rank(shape(), deep, phase(batch_size=size), "bf16-mixed") for size in (2, 8))
    assert many - one == 32 * 2 * H * 34


def test_rows() -> None:
    steps, tokens, epochs = phase(), phase(name="long", steps=None, tokens=1000), phase(name="again", steps=None, epochs=3)
    table = estimate.rows(
        [("base", epochs, shape()), ("copy", steps, shape()), ("copy", tokens, shape()), ("copy", epochs, shape())],
        Parallel(data=2), "bf16-mixed", {"base": {"german": 256}, "adapted": {}},
    )  # fmt: skip
    assert [row["phase"] for row in table] == ["base/again", "copy/full", "copy/long", "copy/again"]
    assert [row["steps"] for row in table] == ["6", "8", "8", "3 epochs"]
    assert [row["tokens"] for row in table] == ["768", "1,024", "1,024", "known after preprocessing"]
    assert table[1]["batch"] == "4 x 32 = 128 tokens"
    assert table[1]["split"] == "2 data ranks x 1 micro-batches of 2"
    assert table[1]["parameters"] == f"{shape().num_parameters():,}"
