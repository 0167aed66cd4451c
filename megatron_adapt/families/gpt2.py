"""GPT-2 and its descendants: learned positions, LayerNorm, biases everywhere, matrices stored as [in, out]."""

from __future__ import annotations

from megatron_adapt.families.family import Family
from megatron_adapt.families.rules import EMBEDDING, OUTPUT, QKV, Copy

MEGATRON = "decoder.layers.{layer}."
HF = "transformer.h.{layer}."
HIDDEN = ("hidden_size",)

FAMILY = Family(
    name="gpt2",
    architectures=("GPT2LMHeadModel",),
    model_types=("gpt2",),
    names={
        "num_layers": "n_layer",
        "hidden_size": "n_embd",
        "ffn_hidden_size": "n_inner",
        "num_attention_heads": "n_head",
        "vocab_size": "vocab_size",
        "max_position_embeddings": "n_positions",
        "norm_epsilon": "layer_norm_epsilon",
        "activation": "activation_function",
        "tied": "tie_word_embeddings",
        "init_std": "initializer_range",
    },
    defaults={
        "n_inner": None,  # 4 * n_embd
        "n_positions": 1024,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
    },
    fixed={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    rope_types=(),
    constants={"norm": "layernorm", "gated": False, "qkv_bias": True, "proj_bias": True, "mlp_bias": True, "position": "learned"},
    # Dropout is no part of the model: a phase says what it drops. reorder_and_upcast_attn is about half precision.
    other_keys=(
        "attn_pdrop", "embd_pdrop", "resid_pdrop", "reorder_and_upcast_attn", "n_ctx", "summary_type", "summary_use_proj",
        "summary_activation", "summary_proj_to_labels", "summary_first_dropout", "task_specific_params", "use_cache",
        "dtype", "torch_dtype", "transformers_version",
    ),
    buffers=(r".*\.attn\.(masked_)?bias",),
    optional_prefix="transformer.",
    rules=(
        Copy(EMBEDDING, ("transformer.wte.weight",), ("vocab_size", "hidden_size")),
        Copy(
            "embedding.position_embeddings.weight",
            ("transformer.wpe.weight",), ("max_position_embeddings", "hidden_size"),
        ),
        Copy(MEGATRON + "self_attention.linear_qkv.layer_norm_weight", (HF + "ln_1.weight",), HIDDEN, init="ones"),
        Copy(MEGATRON + "self_attention.linear_qkv.layer_norm_bias", (HF + "ln_1.bias",), HIDDEN, init="zeros"),
        QKV(MEGATRON + "self_attention.linear_qkv.weight", (HF + "attn.c_attn.weight",), transposed=True),
        QKV(MEGATRON + "self_attention.linear_qkv.bias", (HF + "attn.c_attn.bias",), sizes=(), init="zeros"),
        Copy(
            MEGATRON + "self_attention.linear_proj.weight",
            (HF + "attn.c_proj.weight",), ("hidden_size", "query_size"), init="residual", transposed=True,
        ),
        Copy(MEGATRON + "self_attention.linear_proj.bias", (HF + "attn.c_proj.bias",), HIDDEN, init="zeros"),
        Copy(MEGATRON + "mlp.linear_fc1.layer_norm_weight", (HF + "ln_2.weight",), HIDDEN, init="ones"),
        Copy(MEGATRON + "mlp.linear_fc1.layer_norm_bias", (HF + "ln_2.bias",), HIDDEN, init="zeros"),
        Copy(
            MEGATRON + "mlp.linear_fc1.weight",
            (HF + "mlp.c_fc.weight",), ("ffn_hidden_size", "hidden_size"), transposed=True,
        ),
        Copy(MEGATRON + "mlp.linear_fc1.bias", (HF + "mlp.c_fc.bias",), ("ffn_hidden_size",), init="zeros"),
        Copy(
            MEGATRON + "mlp.linear_fc2.weight",
            (HF + "mlp.c_proj.weight",), ("hidden_size", "ffn_hidden_size"), init="residual", transposed=True,
        ),
        Copy(MEGATRON + "mlp.linear_fc2.bias", (HF + "mlp.c_proj.bias",), HIDDEN, init="zeros"),
        Copy("decoder.final_layernorm.weight", ("transformer.ln_f.weight",), HIDDEN, init="ones"),
        Copy("decoder.final_layernorm.bias", ("transformer.ln_f.bias",), HIDDEN, init="zeros"),
        Copy(OUTPUT, ("lm_head.weight",), ("vocab_size", "hidden_size")),
    ),
)  # fmt: skip
