"""Gemma 2: norms around both sub-layers that multiply by 1 + weight, soft-capped scores and logits, windows in turns."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Mapping

from megatron_adapt.families.llama import ATTENTION_BIAS, FAMILY as LLAMA, HF, MEGATRON, NAMES
from megatron_adapt.families.rules import Copy
from megatron_adapt.families.values import layer_windows, positive

NORMS = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "post_self_attn_layernorm.weight": "post_attention_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_feedforward_layernorm.weight",
    "post_mlp_layernorm.weight": "post_feedforward_layernorm.weight",
}


def derive(settings: Mapping[str, Any], fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    sliding = [layer % 2 == 0 for layer in range(fields["num_layers"])]
    return {
        "windows": layer_windows(settings, sliding, where),
        "attention_scale": (positive("query_pre_attn_scalar", settings, where) or 256.0) ** -0.5,
        "attention_softcap": positive("attn_logit_softcapping", settings, where),
        "logit_softcap": positive("final_logit_softcapping", settings, where),
        "embedding_scale": fields["hidden_size"] ** 0.5,
    }


FAMILY = replace(
    LLAMA,
    name="gemma2",
    architectures=("Gemma2ForCausalLM",),
    model_types=("gemma2",),
    names={**NAMES, **ATTENTION_BIAS, "activation": "hidden_activation"},
    defaults={
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "attention_bias": False,
    },
    fixed={"attention_dropout": 0.0, "use_bidirectional_attention": False},
    constants={"norm": "rms_plus_one", "norm_place": "around"},
    settings={
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window": 4096,
        "layer_types": None,
    },
    derive=derive,
    # hidden_act stands in some files beside hidden_activation, which alone counts.
    other_keys=("dtype", "torch_dtype", "use_cache", "transformers_version", "hidden_act", "cache_implementation"),
    rules=(
        *(rule for rule in LLAMA.rules if "norm" not in rule.megatron),
        *(Copy(MEGATRON + ours, (HF + theirs,), ("hidden_size",), init="zeros") for ours, theirs in NORMS.items()),
        Copy("decoder.final_layernorm.weight", ("model.norm.weight",), ("hidden_size",), init="zeros"),
    ),
)
