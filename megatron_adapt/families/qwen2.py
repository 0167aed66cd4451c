"""Qwen 2 and 2.5: Llama with biases of queries, keys and values; the upper layers may have a sliding window."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Mapping

from megatron_adapt.families.llama import FAMILY as LLAMA, NAMES, NO_BIAS
from megatron_adapt.families.values import layer_windows

WINDOWS = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "layer_types": None}


def derive(settings: Mapping[str, Any], fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not settings["use_sliding_window"]:  # sliding_window means nothing then
        return {}
    sliding = [layer >= settings["max_window_layers"] for layer in range(fields["num_layers"])]
    return {"windows": layer_windows(settings, sliding, where)}


FAMILY = replace(
    LLAMA,
    name="qwen2",
    architectures=("Qwen2ForCausalLM",),
    model_types=("qwen2",),
    names=NAMES,
    defaults={**NO_BIAS, "num_key_value_heads": 32, "max_position_embeddings": 32768},
    fixed={"hidden_act": "silu", "attention_dropout": 0.0},
    constants={"qkv_bias": True},
    settings=WINDOWS,
    derive=derive,
    other_keys=("dtype", "torch_dtype", "use_cache", "transformers_version"),
)
