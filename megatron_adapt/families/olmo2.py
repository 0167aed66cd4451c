"""OLMo 2: norms after attention and MLP instead of before them, and of queries and keys over all heads together."""

from __future__ import annotations

from dataclasses import replace

from megatron_adapt.families.llama import ATTENTION_BIAS, FAMILY as LLAMA, HF, MEGATRON, NAMES, NO_BIAS
from megatron_adapt.families.rules import Copy

FAMILY = replace(
    LLAMA,
    name="olmo2",
    architectures=("Olmo2ForCausalLM",),
    model_types=("olmo2",),
    names={**NAMES, **ATTENTION_BIAS},
    defaults={**NO_BIAS, "rms_norm_eps": 1e-5, "attention_bias": False},
    fixed={"hidden_act": "silu", "attention_dropout": 0.0},
    constants={"norm_place": "after", "qk_norm": "projection"},
    other_keys=("dtype", "torch_dtype", "use_cache", "transformers_version"),
    rules=(
        *(rule for rule in LLAMA.rules if not rule.megatron.endswith("layer_norm_weight")),
        Copy(MEGATRON + "self_attention.q_layernorm.weight", (HF + "self_attn.q_norm.weight",), ("query_size",), init="ones"),
        Copy(MEGATRON + "self_attention.k_layernorm.weight", (HF + "self_attn.k_norm.weight",), ("key_size",), init="ones"),
        Copy(
            MEGATRON + "post_self_attn_layernorm.weight",
            (HF + "post_attention_layernorm.weight",), ("hidden_size",), init="ones",
        ),
        Copy(
            MEGATRON + "post_mlp_layernorm.weight",
            (HF + "post_feedforward_layernorm.weight",), ("hidden_size",), init="ones",
        ),
    ),
)  # fmt: skip
