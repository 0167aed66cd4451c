"""families/: configurations in both spellings, refusals by name, and frequencies equal to transformers'."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from megatron_adapt.errors import ConfigError
from megatron_adapt.families import ModelShape, family_named, find_family
from megatron_adapt.families.rope import attention_factor

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}


def config(**changes):
    base = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 48, "intermediate_size": 20,
        "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3, "vocab_size": 11,
    }  # fmt: skip
    return {**base, **changes}


def read(**changes) -> ModelShape:
    return find_family(config(**changes)).read_config(config(**changes))


WITHOUT_LENGTH = {key: value for key, value in LLAMA3.items() if key != "original_max_position_embeddings"}
ROPES = [
    {},
    {"rope_theta": 500000.0, "rope_scaling": None},
    {"rope_theta": 500000},
    {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
    {"rope_scaling": {"rope_type": "linear", "factor": 3}},
    {"rope_theta": 500000.0, "rope_scaling": LLAMA3},
    {"rope_theta": 500000.0, "rope_scaling": {**LLAMA3, "factor": 32, "high_freq_factor": 5}},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 20000.0}},
    {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.5}},
    {"rope_parameters": {"rope_theta": 500000.0, **LLAMA3}},
    {"rope_scaling": WITHOUT_LENGTH},
    {"rope_scaling": YARN},
    {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": 16, "beta_slow": 2.0}},
    {"rope_scaling": {"rope_type": "yarn", "factor": 40, "mscale": 0.707, "mscale_all_dim": 1.0, "truncate": False}},
    {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5, "factor": 8.0, "attention_factor": 1.3}},
]


@pytest.mark.parametrize("rope", ROPES, ids=str)
@pytest.mark.parametrize("sizes", [{}, {"head_dim": 20}, {"hidden_size": 768}])
def test_inverse_frequencies_equal_those_of_transformers(rope, sizes):
    import transformers
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    if transformers.__version__.startswith("4.") and ("rope_parameters" in rope or rope.get("rope_scaling") == WITHOUT_LENGTH):
        pytest.skip("transformers 4 reads over rope_parameters, and refuses llama3 without the original length")
    given_config = config(**copy.deepcopy(rope), **sizes, max_position_embeddings=4096)
    ours = family_named("llama").read_config(given_config).inverse_frequencies()
    theirs = LlamaRotaryEmbedding(LlamaConfig(**copy.deepcopy(given_config)))
    assert ours.dtype == torch.float32 and ours.equal(theirs.inv_freq)
    assert attention_factor(family_named("llama").read_config(given_config).rope) == theirs.attention_scaling


def test_both_spellings_mean_the_same():
    old = read(rope_theta=500000.0, rope_scaling=LLAMA3)
    assert old == read(rope_parameters={"rope_theta": 500000.0, **LLAMA3}) and hash(old) is not None
    assert old.rope == {"rope_theta": 500000.0, **LLAMA3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' is not supported. Supported: default"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope type 'yarn' needs a positive number factor, found None"),
        ({"rope_scaling": {**YARN, "beta_fast": "x"}}, "positive number beta_fast, found 'x'"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope type 'longrope'"),
        ({"rope_scaling": {"rope_type": "linear", "type": "yarn"}}, "names two types, 'linear' and 'yarn'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "needs a positive number factor, found None"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "must be greater than low_freq_factor"),
        ({"rope_scaling": "linear"}, "is not a table of settings"),
        ({"rope_theta": "10000"}, "needs a positive number rope_theta, found '10000'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not supported"),
        ({"attention_bias": 1}, "attention_bias = 1 is not true or false"),
        ({"mlp_bias": "yes"}, "mlp_bias = 'yes' is not true or false"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"attention_dropout": 0.1}, "attention_dropout = 0.1"),
        ({"quantization_config": {"bits": 4}}, "announces quantised weights"),
        ({"auto_map": {"AutoModelForCausalLM": "x.Y"}}, "a model with code of its own"),
        ({"num_key_value_heads": 4}, "6 attention heads cannot be shared by 4 key/value heads"),
        ({"hidden_size": 50}, "hidden_size 50 is not a multiple of 6 heads"),
        ({"head_dim": 5}, "head_dim 5 is odd"),
        ({"num_hidden_layers": None}, "lacks num_hidden_layers"),
        ({"vocab_size": "11"}, "vocab_size = '11' is not a positive whole number"),
        ({"hidden_size": True}, "hidden_size = True is not a positive whole number"),
        ({"rms_norm_eps": 3}, "rms_norm_eps = 3 is not a number between 0 and 1"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings = 'no' is not true or false"),
    ],
)
def test_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match="config.json.*" + message):
        read(**changes)


def test_defaults_are_those_of_transformers():
    shape = read(num_key_value_heads=None, pretraining_tp=4)
    assert (shape.num_query_groups, shape.head_dim, shape.norm_epsilon, shape.tied) == (6, 8, 1e-6, False)
    assert (shape.max_position_embeddings, shape.init_std) == (2048, 0.02)


def test_unsupported_architectures_list_the_supported():
    with pytest.raises(ConfigError, match=r"a/config\.json: the architecture \(MixtralForCausalLM\).*LlamaForCausalLM"):
        find_family({"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}, where="a/config.json")
    with pytest.raises(ConfigError, match=r"\(LlamaForSequenceClassification\) is not supported"):
        find_family({"architectures": ["LlamaForSequenceClassification"], "model_type": "llama"})
    with pytest.raises(ConfigError, match=r"\(nothing named\)"):
        find_family({})
    assert find_family({"model_type": "llama"}).name == "llama"
    with pytest.raises(ConfigError, match="no model family 'lama'; there are: .*llama"):
        family_named("lama")


SCRATCH = {"hidden_size": 48, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 6}


@pytest.mark.parametrize("rope", ROPES, ids=str)
def test_complete_config_loads_in_transformers(tmp_path, rope):
    from transformers import AutoConfig

    family = family_named("llama")
    full = family.complete_config({**SCRATCH, **rope, "torch_dtype": "bfloat16"}, vocab_size=300, bos=1, eos=2)
    (tmp_path / "config.json").write_text(json.dumps(full))
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded).__name__ == "LlamaConfig" and loaded.vocab_size == 300 and loaded.dtype == torch.bfloat16
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (1, 2, None)
    assert family.read_config(loaded.to_dict()) == family.read_config(full)
    assert family.read_config(full).vocab_size == 300


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hiden_size": 3}, r"unknown key 'hiden_size' \(did you mean 'hidden_size'\?\)"),
        ({"colour": 3, "rope_teta": 1}, r"unknown key 'colour'; unknown key 'rope_teta' \(did you mean 'rope_theta'"),
        ({"hidden_size": None, "num_hidden_layers": None}, "lacks num_hidden_layers, hidden_size"),
        ({"vocab_size": 301}, r"vocab_size = 301 contradicts the tokenizer \(300\)"),
        ({"bos_token_id": 0}, "bos_token_id = 0 contradicts"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu' is not supported"),
        ({"head_dim": 4, "hidden_size": 50}, "transformers refuses such a configuration"),
        ({"dtype": "float64"}, "dtype = 'float64' is not one of float32, bfloat16, float16"),
    ],
)
def test_complete_config_refuses(changes, message):
    with pytest.raises(ConfigError, match=message):
        family_named("llama").complete_config({**SCRATCH, **changes}, vocab_size=300, bos=1, eos=2)
