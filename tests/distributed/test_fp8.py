"""fp8: accepted by recipes, refused where it cannot be computed, and what Megatron is told about it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from megatron.core.transformer.transformer_config import TransformerConfig
from worlds import LAYOUTS, World, assert_identical, hf_model, on_ranks, stored

from megatron_adapt.config import FP8
from megatron_adapt.engine import backend, checkpoint, fp8, model as models
from megatron_adapt.errors import ConfigError
from megatron_adapt.families import find_family
from megatron_adapt.hf.directory import HFDirectory


@pytest.mark.parametrize("precision", FP8)
def test_refused_by_name_without_a_gpu(world: World, precision):
    of = "true" if precision.endswith("-true") else "mixed"
    with pytest.raises(ConfigError, match=rf"precision: {precision} needs a GPU and Transformer Engine's layers: .+ Choose bf16-{of}"):
        on_ranks(1, lambda: hf_model(world.model("untied"), precision=precision))


@pytest.mark.parametrize("precision", FP8)
def test_megatron_is_told(monkeypatch, precision):
    monkeypatch.setattr(backend, "has_gpu", lambda: True)
    monkeypatch.setattr(backend, "uses_transformer_engine", lambda: True)
    monkeypatch.setattr(backend, "capability", lambda: (10, 0))
    fields = fp8.precision_fields(precision)
    config = TransformerConfig(num_layers=2, hidden_size=32, num_attention_heads=4, bf16=True, **fields)
    assert config.fp8 == ("hybrid" if "current" in precision or "delayed" in precision else "e4m3")
    assert fp8.has_history(config) is ("delayed" in precision)
    assert not config.fp8_param  # weights stay in bf16
    fp8.set_history(config, 16, "most-recent")
    assert (config.fp8_amax_history_len, config.fp8_amax_compute_algo) == (16, "most_recent")
    model = torch.nn.Module()
    model.config = config
    with fp8.without_fp8(model):
        assert config.fp8 is None
    assert config.fp8 == fields["fp8"]


@pytest.mark.parametrize("precision, capability, named", [("fp8-current", (8, 0), "Ada"), ("fp8-mx-true", (9, 0), "Blackwell")])
def test_refused_on_a_gpu_that_is_too_old(monkeypatch, precision, capability, named):
    monkeypatch.setattr(backend, "has_gpu", lambda: True)
    monkeypatch.setattr(backend, "uses_transformer_engine", lambda: True)
    monkeypatch.setattr(backend, "capability", lambda: capability)
    monkeypatch.setattr(backend, "name", lambda: "Old GPU")
    with pytest.raises(ConfigError, match=f"precision: {precision} .*Old GPU has no such arithmetic, which came with {named}"):
        fp8.precision_fields(precision)


def test_fp8_copies_are_not_kept_where_layers_are_recomputed(world: World, monkeypatch):
    config = HFDirectory.open(world.model("untied")).config
    shape = find_family(config).read_config(config)
    monkeypatch.setattr(backend, "has_gpu", lambda: False)
    kept = {name: models.transformer_config(shape, backend.Layout(), "bf16-true", name) for name in ("none", "selective", 1, "full")}
    assert [config.disable_parameter_transpose_cache for config in kept.values()] == [False, False, True, True]


def test_with_true_everything_but_products_is_as_in_bf16_true(world: World, tmp_path: Path, monkeypatch):
    """Where fp8's own settings are left out, which only Transformer Engine can follow, the two are one, to the bit."""
    options = {"steps": 3, "start": "tied"}
    reference = world.train(tmp_path / "bf16", precision="bf16-true", **options)
    monkeypatch.setattr(fp8, "precision_fields", lambda precision: {})
    assert_identical(world.train(tmp_path / "fp8", precision="fp8-current-true", **options), reference)
    assert {tensor.dtype for tensor in stored(tmp_path / "fp8").values()} == {torch.bfloat16}


def test_other_precisions_add_nothing():
    assert all(fp8.precision_fields(precision) == {} for precision in ("fp32", "bf16-mixed", "bf16-true"))


def test_history_is_in_the_checkpoint(world: World, tmp_path: Path):
    """Saved on one rank, loaded on two stages; Megatron's own layers stand in for Transformer Engine's, which need a GPU."""

    def model_with_history(layout: str, known: bool):
        ColumnParallelLinear.get_extra_state = lambda layer: getattr(layer, "history", None)
        ColumnParallelLinear.set_extra_state = lambda layer, state: setattr(layer, "history", state)
        model, _ = hf_model(world.model("untied"), LAYOUTS[layout][0])
        model.config.fp8, model.config.fp8_recipe = "hybrid", "delayed"
        for layer in model.decoder.layers if known else ():
            layer.self_attention.linear_qkv.history = torch.full((4,), float(layer.layer_number))
        return model

    def save() -> None:
        for folder, known in (("with", True), ("without", False)):
            model = model_with_history("one", known)
            if not known:
                model.config.fp8 = None  # as another precision writes it
            checkpoint.save(tmp_path / folder, model, None, checkpoint.Position(), world.model("untied"))

    def load() -> list[list[float] | None]:
        found = []
        for folder in ("with", "without"):
            model = model_with_history("PP2", False)
            checkpoint.load(checkpoint.resolve(tmp_path / folder), model)
            states = [getattr(layer.self_attention.linear_qkv, "history", None) for layer in model.decoder.layers]
            found.append([None if state is None else state.tolist() for state in states])
        return found

    on_ranks(1, save)
    for rank, (with_history, without) in enumerate(on_ranks(2, load)):
        assert with_history == [[2.0 * rank + 1] * 4, [2.0 * rank + 2] * 4] and without == [None, None]
