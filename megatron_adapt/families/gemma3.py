"""Gemma 3 (text): Gemma 2 with norms of queries and keys, and a rotary base of their own for layers with a window."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Mapping

from megatron_adapt.errors import ConfigError
from megatron_adapt.families.gemma2 import FAMILY as GEMMA2, HF, MEGATRON
from megatron_adapt.families.rope import read_rope
from megatron_adapt.families.rules import Copy
from megatron_adapt.families.values import layer_windows, positive


def derive(settings: Mapping[str, Any], fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    if settings["sliding_window"] is None:
        raise ConfigError(f"{where}: sliding_window = None is not supported (gemma3: a positive whole number).")
    sliding = [(layer + 1) % settings["sliding_window_pattern"] != 0 for layer in range(fields["num_layers"])]
    # transformers 5 writes the parameters of both kinds of layer; read_rope takes those of full_attention.
    local = (settings["rope_parameters"] or {}).get("sliding_attention") or {}
    return {
        "windows": layer_windows(settings, sliding, where),
        "local_rope": read_rope({"rope_parameters": local}, ("default",), where, theta=settings["rope_local_base_freq"]),
        "attention_scale": (positive("query_pre_attn_scalar", settings, where) or 256.0) ** -0.5,
        "logit_softcap": positive("final_logit_softcapping", settings, where),
        "embedding_scale": fields["hidden_size"] ** 0.5,
    }


FAMILY = replace(
    GEMMA2,
    name="gemma3",
    architectures=("Gemma3ForCausalLM",),
    model_types=("gemma3_text",),
    defaults={**GEMMA2.defaults, "max_position_embeddings": 131072, "rope_theta": 1e6},
    # Of the two soft caps transformers reads that of the logits only.
    fixed={**GEMMA2.fixed, "attn_logit_softcapping": None},
    rope_types=("default", "linear"),
    constants={**GEMMA2.constants, "qk_norm": "head"},
    settings={
        "query_pre_attn_scalar": 256,
        "final_logit_softcapping": None,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "layer_types": None,
        "rope_local_base_freq": 10000.0,
        "rope_parameters": None,
    },
    derive=derive,
    rules=(
        *GEMMA2.rules,
        Copy(MEGATRON + "self_attention.q_layernorm.weight", (HF + "self_attn.q_norm.weight",), ("head_dim",), init="zeros"),
        Copy(MEGATRON + "self_attention.k_layernorm.weight", (HF + "self_attn.k_norm.weight",), ("head_dim",), init="zeros"),
    ),
)
