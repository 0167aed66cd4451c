"""Llama 1, 2 and 3, and the models that share their architecture (Mistral 7B as Llama, SmolLM, TinyLlama, ...)."""

from __future__ import annotations

from megatron_adapt.families.family import Family
from megatron_adapt.families.rules import EMBEDDING, OUTPUT, QKV, Copy, GateUp

MEGATRON = "decoder.layers.{layer}."
HF = "model.layers.{layer}."

NAMES = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "num_attention_heads": "num_attention_heads",
    "num_query_groups": "num_key_value_heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
    "norm_epsilon": "rms_norm_eps",
    "tied": "tie_word_embeddings",
    "init_std": "initializer_range",
}
# One setting for all four projections of attention; not every relative of Llama looks at it.
ATTENTION_BIAS = {"qkv_bias": "attention_bias", "proj_bias": "attention_bias"}
# Defaults of transformers, without settings of biases.
NO_BIAS = {
    "num_key_value_heads": None,  # as many as there are attention heads
    "head_dim": None,  # hidden_size / heads
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
}

FAMILY = Family(
    name="llama",
    architectures=("LlamaForCausalLM",),
    model_types=("llama",),
    names={**NAMES, **ATTENTION_BIAS, "mlp_bias": "mlp_bias"},
    defaults={**NO_BIAS, "attention_bias": False, "mlp_bias": False},
    fixed={"hidden_act": "silu", "attention_dropout": 0.0},
    rope_types=("default", "linear", "llama3", "yarn"),
    # pretraining_tp > 1 makes transformers slice its matrix products, with the same result.
    other_keys=("dtype", "torch_dtype", "pretraining_tp", "use_cache", "transformers_version"),
    rules=(
        Copy(EMBEDDING, ("model.embed_tokens.weight",), ("vocab_size", "hidden_size")),
        Copy(
            MEGATRON + "self_attention.linear_qkv.layer_norm_weight",
            (HF + "input_layernorm.weight",), ("hidden_size",), init="ones",
        ),
        QKV(
            MEGATRON + "self_attention.linear_qkv.weight",
            (HF + "self_attn.q_proj.weight", HF + "self_attn.k_proj.weight", HF + "self_attn.v_proj.weight"),
        ),
        QKV(
            MEGATRON + "self_attention.linear_qkv.bias",
            (HF + "self_attn.q_proj.bias", HF + "self_attn.k_proj.bias", HF + "self_attn.v_proj.bias"),
            sizes=(), init="zeros", when="qkv_bias",
        ),
        Copy(
            MEGATRON + "self_attention.linear_proj.weight",
            (HF + "self_attn.o_proj.weight",), ("hidden_size", "query_size"), init="residual",
        ),
        Copy(
            MEGATRON + "self_attention.linear_proj.bias",
            (HF + "self_attn.o_proj.bias",), ("hidden_size",), init="zeros", when="proj_bias",
        ),
        Copy(
            MEGATRON + "mlp.linear_fc1.layer_norm_weight",
            (HF + "post_attention_layernorm.weight",), ("hidden_size",), init="ones",
        ),
        GateUp(MEGATRON + "mlp.linear_fc1.weight", (HF + "mlp.gate_proj.weight", HF + "mlp.up_proj.weight")),
        GateUp(
            MEGATRON + "mlp.linear_fc1.bias",
            (HF + "mlp.gate_proj.bias", HF + "mlp.up_proj.bias"), sizes=(), init="zeros", when="mlp_bias",
        ),
        Copy(
            MEGATRON + "mlp.linear_fc2.weight",
            (HF + "mlp.down_proj.weight",), ("hidden_size", "ffn_hidden_size"), init="residual",
        ),
        Copy(MEGATRON + "mlp.linear_fc2.bias", (HF + "mlp.down_proj.bias",), ("hidden_size",), init="zeros", when="mlp_bias"),
        Copy("decoder.final_layernorm.weight", ("model.norm.weight",), ("hidden_size",), init="ones"),
        Copy(OUTPUT, ("lm_head.weight",), ("vocab_size", "hidden_size")),
    ),
)  # fmt: skip
