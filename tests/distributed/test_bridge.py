"""Checkpoints of Megatron-Bridge, whose run_config.yaml tells what the model is."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from test_conversion import Lines, assert_same, weights
from test_foreign import LAYOUTS, arguments, megatron, save  # noqa: F401 (a fixture)
from worlds import World

from megatron_adapt.errors import CheckpointError
from megatron_adapt.steps import export_hf
from megatron_adapt.steps.foreign import find_source


def test_megatron_bridge_by_its_run_config(world: World, megatron: Path, tmp_path: Path):
    place = shutil.copytree(megatron / "iter_0000005", tmp_path / "iter_0000005")
    (place / "common.pt").write_bytes(b"?")
    given = vars(arguments())
    model = {key: given[key] for key in given if key not in ("norm_epsilon", "swiglu", "params_dtype", "model_type", "num_experts")}
    model |= {
        "_target_": "megatron.bridge.models.llama.llama_provider.LlamaModelProvider", "layernorm_epsilon": 1e-6,
        "gated_linear_unit": True, "activation_func": {"_target_": "torch.nn.functional.silu", "_call_": False},
        "share_embeddings_and_output_weights": False, "num_moe_experts": None, "rope_scaling": False,
    }  # fmt: skip
    del model["untie_embeddings_and_output_weights"], model["padded_vocab_size"]
    (place / "run_config.yaml").write_text(yaml.safe_dump({"model": model, "train": {"train_iters": 5}}))
    shutil.copytree(world.tokenizer, place / "tokenizer")
    reporter = Lines()
    result = export_hf.run(tmp_path, tmp_path / "out", reporter, "keep", family="llama")
    assert result["positions"] > 100 and "run_config.yaml" in reporter.lines[0]
    assert_same(tmp_path / "out", weights(world.model("untied")))
    made = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (made["bos_token_id"], made["eos_token_id"]) == (0, 1) and (tmp_path / "out" / "tokenizer.json").is_file()
    (place / "run_config.yaml").write_text("model: [1]")
    with pytest.raises(CheckpointError, match="run_config.yaml has no readable section 'model'"):
        find_source(tmp_path)


# As Megatron-Bridge writes its run_config.yaml, every section and most settings of the model left out: keys in the order of the
# alphabet, functions and types as tables with _target_. In 2025 a flat "provider" with Llama 3.1's rotation in settings of its own, ...
PROVIDER = """\
_target_: megatron.bridge.training.config.ConfigContainer
checkpoint:
  _target_: megatron.bridge.training.config.CheckpointConfig
  ckpt_format: torch_dist
model:
  _target_: megatron.bridge.models.llama.llama_provider.Llama31ModelProvider
  activation_func:
    _call_: false
    _target_: torch.nn.functional.silu
  activation_func_clamp_value: null
  add_bias_linear: false
  add_qkv_bias: false
  attention_backend:
    _args_:
    - 5
    _call_: true
    _target_: megatron.core.transformer.enums.AttnBackend
  ffn_hidden_size: 48
  gated_linear_unit: true
  generation_config: null
  glu_linear_offset: 0.0
  hidden_size: 32
  high_freq_factor: 4.0
  init_method:
    _args_: []
    _partial_: true
    _target_: torch.nn.init.normal_
    mean: 0.0
    std: 0.1
  init_method_std: 0.1
  kv_channels: 16
  layernorm_epsilon: 1.0e-06
  layernorm_zero_centered_gamma: false
  low_freq_factor: 1.0
  make_vocab_size_divisible_by: 128
  multi_latent_attention: false
  no_rope_freq: null
  normalization: RMSNorm
  num_attention_heads: 4
  num_layers: 4
  num_moe_experts: null
  num_query_groups: 2
  old_context_len: 32
  params_dtype:
    _call_: false
    _target_: torch.bfloat16
  position_embedding_type: rope
  rotary_base: 500.0
  rotary_interleaved: false
  rotary_percent: 1.0
  scale_factor: 4.0
  seq_len_interpolation_factor: null
  seq_length: 128
  share_embeddings_and_output_weights: false
  should_pad_vocab: true
  softmax_scale: null
  softmax_type: vanilla
  transformer_layer_spec:
    _call_: false
    _target_: megatron.bridge.models.gpt_provider.default_layer_spec
  vocab_size: 321
  window_size: null
peft: null
"""
# ... since 2026 the settings of Megatron Core's TransformerConfig within those of the model.
BUILDER = """\
_target_: megatron.bridge.training.config.ConfigContainer
model:
  _builder_: megatron.bridge.models.gpt.gpt_builder.GPTModelBuilder
  _target_: megatron.bridge.models.gpt.model_config.BridgeGPTModelConfig
  extra_checkpoint_metadata:
    hf_model_id: someone/something
  make_vocab_size_divisible_by: 128
  position_embedding_type: rope
  restore_modelopt_state: false
  rope_scaling: false
  rope_scaling_factor: 8.0
  rotary_base: 10000
  rotary_percent: 1.0
  seq_len_interpolation_factor: null
  seq_length: 128
  share_embeddings_and_output_weights: false
  should_pad_vocab: true
  transformer:
    _target_: megatron.bridge.models.transformer_config.TransformerConfig
    activation_func: silu
    add_bias_linear: false
    add_qkv_bias: false
    ffn_hidden_size: 48
    gated_linear_unit: true
    hidden_size: 32
    init_method_std: 0.1
    kv_channels: 8
    layernorm_epsilon: 1.0e-06
    normalization: RMSNorm
    num_attention_heads: 4
    num_layers: 4
    num_moe_experts: null
    num_query_groups: 2
    window_size: null
  vocab_size: 321
"""


@pytest.mark.parametrize("name, text", [("llama3", PROVIDER), ("untied", BUILDER)], ids=["2025", "2026"])
def test_run_configs_as_megatron_bridge_writes_them(world: World, megatron: Path, tmp_path: Path, name, text):
    place = tmp_path / "iter_0000005"
    if name == "untied":
        shutil.copytree(megatron / "iter_0000005", place)
    else:
        save(world.model(name), place, LAYOUTS["one"], arguments())
    (place / "run_config.yaml").write_text(text)
    export_hf.run(tmp_path, tmp_path / "out", Lines(), "keep", family="llama")
    assert_same(tmp_path / "out", weights(world.model(name)))
    ours, made = (json.loads((folder / "config.json").read_text()) for folder in (world.model(name), tmp_path / "out"))
    left = ("architectures", "bos_token_id", "eos_token_id", "pad_token_id")
    assert {key: made.get(key) for key in ours if key not in left} == {key: ours[key] for key in ours if key not in left}


@pytest.mark.parametrize(
    "name, before, after, problem",
    [
        ("2026", "    activation_func: silu\n", "", "hidden_act = 'another activation' is not supported"),
        ("2025", "softmax_scale: null", "softmax_scale: 0.5", "softmax_scale = 0.5 has no place in config.json"),
        ("2025", "no_rope_freq: null", "no_rope_freq: 4", "no_rope_freq = 4 has no place in config.json"),
    ],
)
def test_what_a_run_config_does_not_tell_is_refused(megatron: Path, tmp_path: Path, name, before, after, problem):
    shutil.copytree(megatron / "iter_0000005", tmp_path / "iter_0000005")
    text = {"2025": PROVIDER, "2026": BUILDER}[name]
    assert text.count(before) == 1
    (tmp_path / "iter_0000005" / "run_config.yaml").write_text(text.replace(before, after))
    with pytest.raises(CheckpointError, match=re.escape(problem)):
        find_source(tmp_path, family="llama")
