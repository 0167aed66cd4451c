"""fp8: accepted by recipes, refused where it cannot be computed, and what Megatron is told about it."""

from __future__ import annotations

import pytest
from megatron.core.transformer.transformer_config import TransformerConfig
from worlds import World, hf_model, on_ranks

from megatron_adapt.config import FP8
from megatron_adapt.engine import backend, fp8
from megatron_adapt.errors import ConfigError
from megatron_adapt.families import find_family
from megatron_adapt.hf.directory import HFDirectory


@pytest.fixture
def shape(world: World):
    config = HFDirectory.open(world.model("untied")).config
    return find_family(config).read_config(config)


@pytest.mark.parametrize("precision", FP8)
def test_refused_by_name_without_a_gpu(world: World, precision):
    with pytest.raises(ConfigError, match=rf"precision: {precision} needs a GPU and Transformer Engine's layers: .+ Choose bf16-mixed"):
        on_ranks(1, lambda: hf_model(world.model("untied"), precision=precision))


@pytest.mark.parametrize("precision", FP8)
def test_megatron_is_told(monkeypatch, shape, precision):
    monkeypatch.setattr(backend, "has_gpu", lambda: True)
    monkeypatch.setattr(backend, "uses_transformer_engine", lambda shape: True)
    monkeypatch.setattr(backend, "capability", lambda: (10, 0))
    fields = fp8.precision_fields(precision, shape)
    config = TransformerConfig(num_layers=2, hidden_size=32, num_attention_heads=4, bf16=True, **fields)
    assert config.fp8 == ("hybrid" if precision == "fp8-current" else "e4m3")
    with fp8.without_fp8(config):
        assert config.fp8 is None
    assert config.fp8 == fields["fp8"]


@pytest.mark.parametrize("precision, capability, named", [("fp8-current", (8, 0), "Ada"), ("fp8-mx", (9, 0), "Blackwell")])
def test_refused_on_a_gpu_that_is_too_old(monkeypatch, shape, precision, capability, named):
    monkeypatch.setattr(backend, "has_gpu", lambda: True)
    monkeypatch.setattr(backend, "uses_transformer_engine", lambda shape: True)
    monkeypatch.setattr(backend, "capability", lambda: capability)
    monkeypatch.setattr(backend, "name", lambda: "Old GPU")
    with pytest.raises(ConfigError, match=f"precision: {precision} .*Old GPU has no such arithmetic, which came with {named}"):
        fp8.precision_fields(precision, shape)


def test_other_precisions_add_nothing(shape):
    assert all(fp8.precision_fields(precision, shape) == {} for precision in ("fp32", "bf16-mixed", "bf16-true"))
