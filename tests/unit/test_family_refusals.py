"""families/: of every family, what its configs may say, what is refused by name, and what a config from scratch becomes."""

from __future__ import annotations

import json

import pytest
from family_models import CONFIGS

from megatron_adapt.errors import ConfigError
from megatron_adapt.families import ModelShape, families, find_family


def config(name: str, **changes: object) -> dict:
    family = families()[name]
    first = next(iter(CONFIGS[name].values()))
    return {"architectures": [family.architectures[0]], "model_type": family.model_types[0], **first, **changes}


def read(name: str, **changes: object) -> ModelShape:
    given = config(name, **changes)
    return find_family(given).read_config(given)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mistral", {"sliding_window": 0}, "sliding_window = 0 is not a positive whole number"),
        ("mistral", {"layer_types": ["full_attention"] * 2}, r"layer_types = .* is not supported \(mistral: None only\)"),
        ("mistral", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("mistral", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic' is not supported"),
        ("qwen2", {"use_sliding_window": True, "layer_types": ["full_attention"]}, "for each of 2 layers"),
        ("qwen2", {"use_sliding_window": True, "layer_types": ["chunked", "full_attention"]}, "layer_types = .*chunked"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 2.5, "max_window_layers": 0}, "sliding_window = 2.5"),
        ("gemma2", {"hidden_activation": "relu"}, "hidden_activation = 'relu' is not supported. Supported: silu, .*gelu_new"),
        ("gemma2", {"attn_logit_softcapping": -1}, "attn_logit_softcapping = -1 is not a positive number"),
        ("gemma2", {"query_pre_attn_scalar": "x"}, "query_pre_attn_scalar = 'x' is not a positive number"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, r"attn_logit_softcapping = 50.0 is not supported \(gemma3: None only\)"),
        ("gemma3", {"sliding_window": None}, "sliding_window = None is not supported"),
        ("gemma3", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope type 'yarn' is not supported"),
        ("gemma3", {"rope_local_base_freq": -1}, "needs a positive number rope_theta"),
        ("gpt2", {"activation_function": "relu"}, "activation_function = 'relu' is not supported"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention = True"),
        ("gpt2", {"n_embd": 33}, "hidden_size 33 is not a multiple of 4 heads"),
        ("gpt2", {"n_layer": None}, "lacks n_layer"),
        ("gpt_neox", {"attention_bias": 0}, "attention_bias = 0 is not true or false"),
        ("gpt_neox", {"rotary_pct": 0.4}, "the rotated part of head_dim 3 is odd"),
        ("gpt_neox", {"rotary_pct": 1.5}, "rotary_pct = 1.5 is not a number above 0, up to 1"),
        ("gpt_neox", {"use_parallel_residual": "yes"}, "use_parallel_residual = 'yes' is not true or false"),
        ("gpt_neox", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope type 'yarn' is not supported"),
        ("mpt", {"attn_config": {"alibi": False}}, "attn_config.alibi = False is not supported"),
        ("mpt", {"attn_config": {"alibi_bias_max": 16}}, "attn_config.alibi_bias_max = 16"),
        ("mpt", {"attn_config": {"qk_ln": True}}, "attn_config.qk_ln = True"),
        ("mpt", {"attn_config": {"clip_qkv": -6}}, "attn_config.clip_qkv = -6 is not a positive number"),
        ("mpt", {"attn_config": "alibi"}, "attn_config = 'alibi' is not a table of settings"),
        ("mpt", {"logit_scale": "inv_sqrt_d_model"}, "logit_scale = 'inv_sqrt_d_model' is not supported"),
        ("mpt", {"no_bias": False}, "no_bias = False"),
        ("mpt", {"norm_type": "rmsnorm"}, r"norm_type = 'rmsnorm' is not supported \(mpt: low_precision_layernorm or layernorm"),
        ("mpt", {"attn_config": {"rope": True}}, "attn_config.rope = True"),
        ("gpt_neox", {"auto_map": {"AutoModel": "x.Y"}}, "a model with code of its own"),
        ("mpt", {"expansion_ratio": 2}, "expansion_ratio = 2"),
    ],
)
def test_refused_by_name(name, changes, message):
    with pytest.raises(ConfigError, match="config.json.*" + message):
        read(name, **changes)


def test_biases():
    """(of queries, keys and values; of attention's output; of the MLP)"""

    def biases(name: str, **changes: object) -> tuple[bool, bool, bool]:
        shape = read(name, **changes)
        return shape.qkv_bias, shape.proj_bias, shape.mlp_bias

    assert biases("llama") == (False, False, False) and biases("llama", attention_bias=True) == (True, True, False)
    assert biases("llama", attention_bias=True, mlp_bias=True) == (True, True, True)
    for name in ("mistral", "qwen2"):  # transformers does not look at the setting
        assert biases(name, attention_bias=True) == biases(name) == (name == "qwen2", False, False)
    for name in ("qwen3", "olmo2", "gemma2", "gemma3"):
        assert biases(name) == (False, False, False) and biases(name, attention_bias=True) == (True, True, False)
    assert biases("gpt_neox") == (True, True, True) and biases("gpt_neox", attention_bias=False) == (False, False, True)


def test_windows():
    assert read("mistral").windows == (7, 7) and read("mistral", sliding_window=None).windows == ()
    absent = {key: value for key, value in config("mistral").items() if key != "sliding_window"}
    assert find_family(absent).read_config(absent).windows == (4096, 4096)  # as in transformers
    assert read("qwen2", sliding_window=5).windows == ()
    above = read("qwen2", use_sliding_window=True, sliding_window=5, max_window_layers=1)
    assert above.windows == (None, 5) and above.window(0) is None and above.window(1) == 5
    assert read("gemma2").windows == (7, None) and read("gemma3", layer_types=None).windows == (7, 7)
    assert read("gemma3", layer_types=None, sliding_window_pattern=2).windows == (7, None)


def test_both_spellings_of_rope():
    old = read("gpt_neox", rotary_pct=0.5, rotary_emb_base=500)
    assert old.rotary_dim == 4 and old.rope["rope_theta"] == 500
    assert old == read("gpt_neox", rope_parameters={"rope_theta": 500, "rope_type": "default", "partial_rotary_factor": 0.5})
    new = {"full_attention": {"rope_type": "default", "rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    assert read("gemma3") == read("gemma3", rope_parameters=new)
    assert read("gemma3").local_rope == {"rope_type": "default", "rope_theta": 1e4}


@pytest.mark.parametrize(("name", "key"), [(name, key) for name in CONFIGS for key in CONFIGS[name]])
def test_complete_config_is_read_by_transformers(tmp_path, name, key):
    from transformers import AutoConfig

    family = families()[name]
    given = {option: value for option, value in CONFIGS[name][key].items() if not option.endswith("token_id")}
    full = family.complete_config({**given, "torch_dtype": "bfloat16"}, given["vocab_size"], bos=1, eos=2)
    (tmp_path / "config.json").write_text(json.dumps(full))
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.model_type == family.model_types[0] and str(loaded.dtype) == "torch.bfloat16"
    shape = family.read_config(full)
    assert family.read_config(loaded.to_dict()) == shape
    assert shape == find_family(full).read_config({**CONFIGS[name][key], "architectures": full["architectures"]})


def test_complete_config_of_nested_tables():
    family = families()["mpt"]
    full = family.complete_config({"d_model": 32, "n_layers": 1, "n_heads": 4, "attn_config": {"clip_qkv": 6}}, 50, 1, 2)
    assert full["attn_config"]["clip_qkv"] == 6 and full["attn_config"]["alibi"] is True
    assert not any("." in key for key in full)
    with pytest.raises(ConfigError, match=r"unknown key 'attn_config.clip' \(did you mean 'attn_config.clip_qkv'\?\)"):
        family.complete_config({"d_model": 32, "n_layers": 1, "n_heads": 4, "attn_config": {"clip": 6}}, 50, 1, 2)
    with pytest.raises(ConfigError, match=r"unknown key 'n_layer' \(did you mean 'n_layers'\?\)"):
        family.complete_config({"d_model": 32, "n_layer": 1, "n_heads": 4}, 50, 1, 2)
