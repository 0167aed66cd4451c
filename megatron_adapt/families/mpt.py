"""MPT: positions by ALiBi, LayerNorm without bias, no bias anywhere, exact GELU; as transformers implements it."""

from __future__ import annotations

from typing import Any, Mapping

from megatron_adapt.errors import ConfigError
from megatron_adapt.families.family import Family
from megatron_adapt.families.rules import EMBEDDING, OUTPUT, QKV, Copy
from megatron_adapt.families.values import positive

MEGATRON = "decoder.layers.{layer}."
HF = "transformer.blocks.{layer}."
HIDDEN = ("hidden_size",)
NORMS = ("low_precision_layernorm", "layernorm")  # the same norm; the first computes in bfloat16 in the original program


def derive(settings: Mapping[str, Any], fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    if settings["norm_type"] not in NORMS:
        raise ConfigError(f"{where}: norm_type = {settings['norm_type']!r} is not supported (mpt: {' or '.join(NORMS)}).")
    return {
        "attention_scale": positive("attn_config.softmax_scale", settings, where),
        "clip_qkv": positive("attn_config.clip_qkv", settings, where),
    }


FAMILY = Family(
    name="mpt",
    architectures=("MptForCausalLM", "MPTForCausalLM"),
    model_types=("mpt",),
    names={
        "num_layers": "n_layers",
        "hidden_size": "d_model",
        "num_attention_heads": "n_heads",
        "vocab_size": "vocab_size",
        "max_position_embeddings": "max_seq_len",
        "norm_epsilon": "layer_norm_epsilon",
        "tied": "tie_word_embeddings",
        "init_std": "initializer_range",
    },
    defaults={
        "max_seq_len": 2048,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
    },
    # transformers computes with these values whatever the config says; with others the model is another one.
    fixed={
        "expansion_ratio": 4, "no_bias": True, "logit_scale": None, "embedding_fraction": 1.0,
        "attn_config.attn_type": "multihead_attention", "attn_config.alibi": True, "attn_config.alibi_bias_max": 8,
        "attn_config.qk_ln": False, "attn_config.prefix_lm": False, "attn_config.attn_uses_sequence_id": False,
        "attn_config.qk_gn": False, "attn_config.rope": False, "attn_config.sliding_window_size": -1,
    },
    rope_types=(),
    constants={"norm": "layernorm_no_bias", "activation": "gelu", "gated": False, "position": "alibi"},
    settings={"attn_config.softmax_scale": None, "attn_config.clip_qkv": None, "norm_type": NORMS[0]},
    derive=derive,
    nested=("attn_config",),
    # Dropout is no part of the model: a phase says what it drops. learned_pos_emb is true in files without such a tensor.
    # auto_map names the program of the model's makers, which transformers has its own version of: that is this one.
    other_keys=(
        "attn_config.attn_pdrop", "attn_config.attn_impl", "emb_pdrop", "resid_pdrop", "learned_pos_emb", "init_device",
        "init_config", "verbose", "tokenizer_name", "auto_map", "use_cache", "dtype", "torch_dtype", "transformers_version",
    ),
    rules=(
        Copy(EMBEDDING, ("transformer.wte.weight",), ("vocab_size", "hidden_size")),
        Copy(MEGATRON + "self_attention.linear_qkv.layer_norm_weight", (HF + "norm_1.weight",), HIDDEN, init="ones"),
        QKV(MEGATRON + "self_attention.linear_qkv.weight", (HF + "attn.Wqkv.weight",)),
        Copy(
            MEGATRON + "self_attention.linear_proj.weight",
            (HF + "attn.out_proj.weight",), ("hidden_size", "query_size"), init="residual",
        ),
        Copy(MEGATRON + "mlp.linear_fc1.layer_norm_weight", (HF + "norm_2.weight",), HIDDEN, init="ones"),
        Copy(MEGATRON + "mlp.linear_fc1.weight", (HF + "ffn.up_proj.weight",), ("ffn_hidden_size", "hidden_size")),
        Copy(
            MEGATRON + "mlp.linear_fc2.weight",
            (HF + "ffn.down_proj.weight",), ("hidden_size", "ffn_hidden_size"), init="residual",
        ),
        Copy("decoder.final_layernorm.weight", ("transformer.norm_f.weight",), HIDDEN, init="ones"),
        Copy(OUTPUT, ("lm_head.weight",), ("vocab_size", "hidden_size")),
    ),
)  # fmt: skip
