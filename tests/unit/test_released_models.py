"""families/: config.json of released models, as published, against the number of weights that they are known to have."""

from __future__ import annotations

import pytest

from megatron_adapt.families import find_family

DECODER = {"rms_norm_eps": 1e-6, "hidden_act": "silu", "initializer_range": 0.02, "attention_dropout": 0.0, "use_cache": True}
LLAMA_3_2 = {
    "architectures": ["LlamaForCausalLM"], **DECODER, "attention_bias": False, "mlp_bias": False, "head_dim": 64,
    "hidden_size": 2048, "intermediate_size": 8192, "max_position_embeddings": 131072, "num_attention_heads": 32,
    "num_hidden_layers": 16, "num_key_value_heads": 8, "pretraining_tp": 1, "rope_theta": 500000.0, "vocab_size": 128256,
    "rope_scaling": {
        "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "tie_word_embeddings": True, "torch_dtype": "bfloat16",
}  # fmt: skip
MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"], **DECODER, "hidden_size": 4096, "intermediate_size": 14336,
    "max_position_embeddings": 32768, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False, "vocab_size": 32000,
}  # fmt: skip
QWEN_2_5 = {
    "architectures": ["Qwen2ForCausalLM"], **DECODER, "hidden_size": 896, "intermediate_size": 4864,
    "max_position_embeddings": 32768, "max_window_layers": 24, "num_attention_heads": 14, "num_hidden_layers": 24,
    "num_key_value_heads": 2, "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": True,
    "use_mrope": False, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
QWEN_3 = {
    "architectures": ["Qwen3ForCausalLM"], **DECODER, "attention_bias": False, "head_dim": 128, "hidden_size": 1024,
    "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28, "num_attention_heads": 16,
    "num_hidden_layers": 28, "num_key_value_heads": 8, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None,
    "tie_word_embeddings": True, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
OLMO_2 = {
    "architectures": ["Olmo2ForCausalLM"], **DECODER, "attention_bias": False, "hidden_size": 2048, "intermediate_size": 8192,
    "max_position_embeddings": 4096, "num_attention_heads": 16, "num_hidden_layers": 16, "num_key_value_heads": 16,
    "rope_scaling": None, "rope_theta": 500000, "tie_word_embeddings": False, "vocab_size": 100352,
}  # fmt: skip
GEMMA_2 = {
    "architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid", "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "intermediate_size": 9216,
    "max_position_embeddings": 8192, "num_attention_heads": 8, "num_hidden_layers": 26, "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "sliding_window": 4096, "vocab_size": 256000,
}  # fmt: skip
GEMMA_3 = {
    "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attn_logit_softcapping": None, "final_logit_softcapping": None, "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152, "intermediate_size": 6912,
    "max_position_embeddings": 32768, "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_local_base_freq": 10000, "rope_scaling": None,
    "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6, "vocab_size": 262144,
}  # fmt: skip
GPT_2 = {
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 50256,
    "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt2",
    "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1, "vocab_size": 50257,
}  # fmt: skip
PYTHIA_70M = {
    "architectures": ["GPTNeoXForCausalLM"], "hidden_act": "gelu", "hidden_size": 512, "intermediate_size": 2048,
    "layer_norm_eps": 1e-05, "max_position_embeddings": 2048, "num_attention_heads": 8, "num_hidden_layers": 6,
    "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False, "torch_dtype": "float16",
    "use_parallel_residual": True, "vocab_size": 50304,
}  # fmt: skip
MPT_7B = {
    "architectures": ["MPTForCausalLM"], "model_type": "mpt", "d_model": 4096, "n_heads": 32, "n_layers": 32,
    "expansion_ratio": 4, "max_seq_len": 2048, "vocab_size": 50432, "resid_pdrop": 0, "emb_pdrop": 0, "learned_pos_emb": True,
    "attn_config": {
        "alibi": True, "alibi_bias_max": 8, "attn_impl": "torch", "attn_pdrop": 0, "attn_type": "multihead_attention",
        "attn_uses_sequence_id": False, "clip_qkv": None, "prefix_lm": False, "qk_ln": False, "softmax_scale": None,
    },
    "auto_map": {"AutoModelForCausalLM": "modeling_mpt.MPTForCausalLM"}, "logit_scale": None, "no_bias": True,
    "embedding_fraction": 1.0, "norm_type": "low_precision_layernorm",
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "weights"),
    [
        (LLAMA_3_2, 1_235_814_400),
        (MISTRAL_7B, 7_241_732_096),
        (QWEN_2_5, 494_032_768),
        (QWEN_3, 596_049_920),
        (OLMO_2, 1_484_916_736),
        (GEMMA_2, 2_614_341_888),
        (GEMMA_3, 999_885_952),
        (GPT_2, 124_439_808),
        (PYTHIA_70M, 70_426_624),
        (MPT_7B, 6_649_286_656),
    ],
    ids=lambda value: value["architectures"][0] if isinstance(value, dict) else "",
)
def test_number_of_weights(config, weights):
    assert find_family(config).read_config(config).num_parameters() == weights


def test_what_their_layers_see():
    def read(config):
        return find_family(config).read_config(config)

    assert set(read(MISTRAL_7B).windows) == {4096} and read(QWEN_2_5).windows == read(QWEN_3).windows == ()
    assert [layer for layer, window in enumerate(read(GEMMA_3).windows) if window is None] == [5, 11, 17, 23]
    assert read(GEMMA_2).windows[:3] == (4096, None, 4096)
    assert read(PYTHIA_70M).rotary_dim == 16 and read(PYTHIA_70M).parallel_residual
