"""Matrix products in fp8: what Megatron is told, and where they cannot be computed.

Delayed scaling (Transformer Engine's DelayedScaling) brings a tensor into fp8's range by its largest numbers in the steps before.
This history is part of the checkpoints: of each layer what Transformer Engine calls its extra state.
"""

from __future__ import annotations

import contextlib
from typing import Any, Iterator

from torch import nn

from megatron.core.transformer.transformer_config import TransformerConfig
from megatron_adapt.config_phases import FP8_SINCE, bf16_of
from megatron_adapt.engine import backend
from megatron_adapt.errors import ConfigError

# Fields of Megatron's TransformerConfig by precision, without "-true": weights stay in bf16 (no ``fp8_param``), and Transformer
# Engine makes fp8 copies of them as it goes, with float32 main weights or without. "hybrid" has the wider range of e5m2 for gradients.
FP8_FIELDS: dict[str, dict[str, Any]] = {
    "fp8-current": {"fp8": "hybrid", "fp8_recipe": "tensorwise"},
    "fp8-delayed": {"fp8": "hybrid", "fp8_recipe": "delayed"},
    "fp8-blockwise": {"fp8": "e4m3", "fp8_recipe": "blockwise"},
    "fp8-mx": {"fp8": "e4m3", "fp8_recipe": "mxfp8"},
}


def precision_fields(precision: str) -> dict[str, Any]:
    """What fp8 adds to Megatron's TransformerConfig; ``ConfigError`` where it cannot be computed."""
    kind = precision.removesuffix("-true")
    if kind not in FP8_FIELDS:
        return {}
    since, named = FP8_SINCE[kind]
    reasons = [] if backend.uses_transformer_engine() else [backend.why_torch()]
    if backend.has_gpu() and backend.capability() < since:
        reasons.append(f"{backend.name()} has no such arithmetic, which came with {named}")
    if reasons:
        raise ConfigError(
            f"precision: {precision} needs a GPU and Transformer Engine's layers: {'; '.join(reasons)}. "
            f"Choose {bf16_of(precision)}."
        )
    return FP8_FIELDS[kind]


def set_history(config: TransformerConfig, length: int, choice: str) -> None:
    """What delayed scaling scales by: of the last ``length`` steps the largest number ("max") or the last ("most-recent")."""
    config.fp8_amax_history_len, config.fp8_amax_compute_algo = length, choice.replace("-", "_")


def has_history(config: TransformerConfig) -> bool:
    """Whether layers have a state that later steps depend on."""
    return config.fp8 is not None and config.fp8_recipe == "delayed"


@contextlib.contextmanager
def without_fp8(model: nn.Module) -> Iterator[None]:
    """Compute in the weights' precision inside: fp8 takes numbers of positions that are multiples of 32 only.

    Layers of Transformer Engine that did so last have, to themselves, no history, and a checkpoint made then would lack it: what
    they were doing before is put back.
    """
    config, layers = model.config, [part for part in model.modules() if hasattr(part, "fp8_meta")]
    before = [(layer.fp8, layer.fp8_meta["fp8_checkpoint"]) for layer in layers]
    chosen, config.fp8 = config.fp8, None
    try:
        yield
    finally:
        config.fp8 = chosen
        for layer, (computing, kept) in zip(layers, before):
            layer.fp8, layer.fp8_meta["fp8_checkpoint"] = computing, kept
