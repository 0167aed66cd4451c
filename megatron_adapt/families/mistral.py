"""Mistral 7B and its descendants: Llama with a sliding window in every layer, or none (sliding_window: null)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Mapping

from megatron_adapt.families.llama import FAMILY as LLAMA, NAMES, NO_BIAS
from megatron_adapt.families.values import layer_windows


def derive(settings: Mapping[str, Any], fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    return {"windows": layer_windows(settings, [True] * fields["num_layers"], where)}


FAMILY = replace(
    LLAMA,
    name="mistral",
    architectures=("MistralForCausalLM",),
    model_types=("mistral",),
    names=NAMES,
    defaults={**NO_BIAS, "num_key_value_heads": 8, "max_position_embeddings": 131072},
    # transformers builds this architecture without biases and with one kind of layer, whatever the config says.
    fixed={"hidden_act": "silu", "attention_dropout": 0.0, "layer_types": None},
    settings={"sliding_window": 4096},
    derive=derive,
    other_keys=("dtype", "torch_dtype", "use_cache", "transformers_version"),
)
