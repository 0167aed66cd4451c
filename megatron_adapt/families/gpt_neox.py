"""GPT-NeoX and Pythia: attention and MLP side by side, each with its norm, and a part of every head rotated."""

from __future__ import annotations

from megatron_adapt.families.family import Family
from megatron_adapt.families.rules import EMBEDDING, OUTPUT, Copy

MEGATRON = "decoder.layers.{layer}."
HF = "gpt_neox.layers.{layer}."
HIDDEN = ("hidden_size",)

FAMILY = Family(
    name="gpt_neox",
    architectures=("GPTNeoXForCausalLM",),
    model_types=("gpt_neox",),
    names={
        "num_layers": "num_hidden_layers",
        "hidden_size": "hidden_size",
        "ffn_hidden_size": "intermediate_size",
        "num_attention_heads": "num_attention_heads",
        "vocab_size": "vocab_size",
        "max_position_embeddings": "max_position_embeddings",
        "norm_epsilon": "layer_norm_eps",
        "activation": "hidden_act",
        "parallel_residual": "use_parallel_residual",
        "qkv_bias": "attention_bias",
        "proj_bias": "attention_bias",
        "tied": "tie_word_embeddings",
        "init_std": "initializer_range",
    },
    defaults={
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
        "use_parallel_residual": True,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "initializer_range": 0.02,
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000.0,
    },
    fixed={},
    rope_types=("default", "linear"),
    theta_key="rotary_emb_base",
    fraction_key="rotary_pct",
    constants={"norm": "layernorm", "gated": False, "mlp_bias": True},
    # Dropout is no part of the model: a phase says what it drops.
    other_keys=(
        "attention_dropout", "hidden_dropout", "classifier_dropout", "is_decoder", "use_cache", "dtype", "torch_dtype",
        "transformers_version",
    ),
    buffers=(r".*\.attention\.(masked_)?bias",),
    rules=(
        Copy(EMBEDDING, ("gpt_neox.embed_in.weight",), ("vocab_size", "hidden_size")),
        Copy(MEGATRON + "self_attention.linear_qkv.layer_norm_weight", (HF + "input_layernorm.weight",), HIDDEN, init="ones"),
        Copy(MEGATRON + "self_attention.linear_qkv.layer_norm_bias", (HF + "input_layernorm.bias",), HIDDEN, init="zeros"),
        # Query, key and value of one head after the other: Megatron's own order.
        Copy(
            MEGATRON + "self_attention.linear_qkv.weight",
            (HF + "attention.query_key_value.weight",), ("qkv_size", "hidden_size"),
        ),
        Copy(
            MEGATRON + "self_attention.linear_qkv.bias",
            (HF + "attention.query_key_value.bias",), ("qkv_size",), init="zeros", when="qkv_bias",
        ),
        Copy(
            MEGATRON + "self_attention.linear_proj.weight",
            (HF + "attention.dense.weight",), ("hidden_size", "query_size"), init="residual",
        ),
        Copy(
            MEGATRON + "self_attention.linear_proj.bias",
            (HF + "attention.dense.bias",), HIDDEN, init="zeros", when="proj_bias",
        ),
        Copy(MEGATRON + "mlp.linear_fc1.layer_norm_weight", (HF + "post_attention_layernorm.weight",), HIDDEN, init="ones"),
        Copy(MEGATRON + "mlp.linear_fc1.layer_norm_bias", (HF + "post_attention_layernorm.bias",), HIDDEN, init="zeros"),
        Copy(MEGATRON + "mlp.linear_fc1.weight", (HF + "mlp.dense_h_to_4h.weight",), ("ffn_hidden_size", "hidden_size")),
        Copy(MEGATRON + "mlp.linear_fc1.bias", (HF + "mlp.dense_h_to_4h.bias",), ("ffn_hidden_size",), init="zeros"),
        Copy(
            MEGATRON + "mlp.linear_fc2.weight",
            (HF + "mlp.dense_4h_to_h.weight",), ("hidden_size", "ffn_hidden_size"), init="residual",
        ),
        Copy(MEGATRON + "mlp.linear_fc2.bias", (HF + "mlp.dense_4h_to_h.bias",), HIDDEN, init="zeros"),
        Copy("decoder.final_layernorm.weight", ("gpt_neox.final_layer_norm.weight",), HIDDEN, init="ones"),
        Copy("decoder.final_layernorm.bias", ("gpt_neox.final_layer_norm.bias",), HIDDEN, init="zeros"),
        Copy(OUTPUT, ("embed_out.weight",), ("vocab_size", "hidden_size")),
    ),
)  # fmt: skip
