"""Derived numbers against counts by hand."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from megatron_adapt.analysis import estimate, recomputation
from megatron_adapt.config import Optimizer, Parallel, Phase
from megatron_adapt.families import family_named
from megatron_adapt.families.family import ModelShape

VOCABULARY = 400
H, F, Q, K = 32, 48, 32, 16  # hidden, feed-forward, rows of queries, rows of keys
EMBEDDING = VOCABULARY * H
SPLIT = (Q + 2 * K) * H + H * Q + 3 * F * H  # matrices of a layer
NORMS = 2 * H  # of a layer
LAYER = SPLIT + NORMS
OUTSIDE, MLP = 8 * H, 2 * 3 * F  # bytes of a layer's activations a position: h wide, and inside the MLP
KEPT = OUTSIDE + MLP + 2 * (2 * Q + 2 * K)  # all of them: queries, keys, values and attention's output besides


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
    assert estimate.memory_per_rank(whole, Parallel(), settings, "bf16-mixed") == 18 * parameters + positions * KEPT * 2 + logits
    assert estimate.memory_per_rank(whole, Parallel(), settings, "fp32") == 16 * parameters + positions * 2 * KEPT * 2 + logits


def test_context_ranks_have_a_part_of_the_positions_and_all_keys() -> None:
    whole, positions, logits = shape(), 2 * 32, 8 * VOCABULARY
    for recompute, kept, layers in (("none", 2 * KEPT, 2), ("full", 2 * 2 * H + KEPT, 1), (1, 2 * H + KEPT, 1)):
        settings = phase(micro_batch_size=2, recompute=recompute)
        found = estimate.memory_per_rank(whole, Parallel(context=2), settings, "bf16-mixed")
        keys = layers * 2 * 2 * K * positions * 1.25
        assert found == 18 * whole.num_parameters() + positions / 2 * (kept + logits) + keys
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
    assert interleaved - plain == positions * KEPT * 2 * 2 * 0.25  # of 2 layers, 2 micro-batches


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


def test_so_many_layers_recomputed() -> None:
    """The first of each rank's: nothing on top when their turn comes, as the later ones have freed theirs."""
    positions, layers = 2 * 32, shape(num_hidden_layers=4)
    sizes = [recomputation.needs(one, layers, Parallel(), phase(), "bf16-mixed") for one in ("none", 1, 2, 3, 4, "full")]
    saved = positions * (KEPT - 2 * H)
    assert [sizes[0] - size for size in sizes] == [0, saved, 2 * saved, 3 * saved, 4 * saved - positions * KEPT, 4 * saved - positions * KEPT]
    # Of 2 stages with as many micro-batches under way; of twice the width.
    deep = [recomputation.needs(one, layers, Parallel(pipeline=2), phase(batch_size=8), "fp32") for one in ("none", 1)]
    assert deep[0] - deep[1] == 2 * 2 * saved
    # fp8 copies of weights are not kept from one micro-batch to the next as soon as memory is short.
    low = [recomputation.needs(one, layers, Parallel(), phase(), "fp8-current-true") for one in ("none", 1)]
    assert low[0] - low[1] == saved + 2 * 4 * SPLIT


def test_the_fewest_layers_that_fit() -> None:
    layers, stages = shape(num_hidden_layers=8), Parallel(pipeline=2, virtual_pipeline=2)
    assert recomputation.choices(layers, Parallel()) == ["none", 1, 2, 3, 4, 5, 6, 7, "full"]
    assert recomputation.choices(layers, stages) == ["none", 2, "full"]
    for parallel in (Parallel(), stages):
        for choice in recomputation.choices(layers, parallel)[:-1]:
            limit = recomputation.needs(choice, layers, parallel, phase(batch_size=8), "bf16-mixed")
            assert recomputation.fewest(layers, parallel, phase(batch_size=8), "bf16-mixed", limit) == choice
    assert recomputation.fewest(layers, Parallel(), phase(), "bf16-mixed", 1) == "full"
    assert recomputation.words("none", layers, 1) == "nothing is computed again"
    assert recomputation.words(3, layers, 2) == "3 of 4 layers of each rank are computed again"


def test_activations_by_the_model() -> None:
    def bytes_of(changes: dict[str, Any] = {}, parallel: Parallel = Parallel(), **settings: Any) -> tuple[float, ...]:
        return estimate.layer_bytes(replace(shape(), **changes), parallel, phase(**settings))

    assert bytes_of() == (KEPT, MLP, 2 * H)
    assert bytes_of({"gated": False}) == (KEPT - 2 * F, 4 * F, 2 * H)
    assert bytes_of({"norm_place": "around"}) == (KEPT + 4 * H, MLP, 2 * H)
    assert bytes_of({"norm_place": "after"}) == bytes_of({"parallel_residual": True}) == (KEPT, MLP, 2 * H)
    # Capped scores have no kernel that computes them again.
    assert bytes_of({"attention_softcap": 50.0})[0] - KEPT == 8 * 4 * 32
    assert bytes_of(dropout=0.1)[0] - KEPT == 2 * H
    inside = (KEPT - OUTSIDE) / 2
    assert bytes_of(parallel=Parallel(tensor=2)) == (OUTSIDE + inside, MLP / 2, 2 * H)
    assert bytes_of(parallel=Parallel(tensor=2, sequence=True)) == (OUTSIDE / 2 + inside, MLP / 2, H)
    # Korthikanti et al. 2022, equation 2 without scores: 34 h of a GPT with 4 h feed-forward units and dropout, here 2 h of it in masks
    # of attention's and the MLP's outputs.
    gpt = {"gated": False, "ffn_hidden_size": 4 * H, "num_attention_heads": 4, "num_query_groups": 4}
    assert bytes_of(gpt, dropout=0.1)[0] == 34 * H


def test_frozen_weights_have_no_gradients_and_moments() -> None:
    whole, embeddings = shape(), phase(train=["embedding", "output"])
    less = estimate.memory_per_rank(whole, Parallel(), phase(), "bf16-mixed") - estimate.memory_per_rank(whole, Parallel(), embeddings, "bf16-mixed")
    assert less == 16 * (whole.num_parameters() - 2 * EMBEDDING)
    assert estimate.parameters_per_rank(whole, Parallel(tensor=2), ("embedding", "norms")) == EMBEDDING / 2 + 2 * NORMS + H


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
    assert kept["none"] - kept["selective"] == positions * MLP  # two layers' worth, less that of the one at work
    assert kept["none"] - kept["full"] == positions * (2 * KEPT - 2 * 2 * H - KEPT)
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
    assert many - one == 32 * 2 * KEPT


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
    assert re.fullmatch(r"~0\.0\d GB", table[1]["memory per rank"])
    (auto,) = estimate.rows([("copy", phase(recompute="auto"), shape())], Parallel(), "bf16-mixed", {"adapted": {}})
    assert re.fullmatch(r"~0\.0\d to ~0\.0\d GB, as the GPU has \(recompute: auto\)", auto["memory per rank"])
    assert table[1]["parameters"] == f"{shape().num_parameters():,}"
