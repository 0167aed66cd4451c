"""Qwen 3 (dense): Llama with an RMS norm of every head's query and key before they are rotated."""

from __future__ import annotations

from dataclasses import replace

from megatron_adapt.families.llama import ATTENTION_BIAS, FAMILY as LLAMA, HF, MEGATRON, NAMES
from megatron_adapt.families.qwen2 import FAMILY as QWEN2
from megatron_adapt.families.rules import Copy

FAMILY = replace(
    LLAMA,
    name="qwen3",
    architectures=("Qwen3ForCausalLM",),
    model_types=("qwen3",),
    names={**NAMES, **ATTENTION_BIAS},
    defaults={**QWEN2.defaults, "head_dim": 128, "attention_bias": False},
    fixed={"hidden_act": "silu", "attention_dropout": 0.0},
    constants={"qk_norm": "head"},
    settings=QWEN2.settings,
    derive=QWEN2.derive,
    other_keys=QWEN2.other_keys,
    rules=(
        *LLAMA.rules,
        Copy(MEGATRON + "self_attention.q_layernorm.weight", (HF + "self_attn.q_norm.weight",), ("head_dim",), init="ones"),
        Copy(MEGATRON + "self_attention.k_layernorm.weight", (HF + "self_attn.k_norm.weight",), ("head_dim",), init="ones"),
    ),
)
