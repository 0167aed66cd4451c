"""Checks of first_call.py of all families but Llama: each in small sizes of its own, through Transformer Engine's layers and torch's."""

from __future__ import annotations

import traceback
from functools import partial
from pathlib import Path
from typing import Any

LAYERS = {"num_hidden_layers": 6, "hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8}
GROUPED = {**LAYERS, "num_key_value_heads": 2}
WINDOWS = {"head_dim": 64, "query_pre_attn_scalar": 64, "sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"] * 3}
# Layers that Megatron Core has not among them: side by side with a part of each head rotated, ALiBi (of a number of heads that is no
# power of two) with norms that have no bias, norms behind the sublayers, capped scores, windows.
SIZES: dict[str, dict[str, Any]] = {
    "mistral": {**GROUPED, "sliding_window": 128},
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 64},
    "olmo2": GROUPED,
    "gemma2": {**GROUPED, **WINDOWS},
    "gemma3": {**GROUPED, **WINDOWS},
    "gpt2": {"n_layer": 6, "n_embd": 512, "n_head": 8, "n_positions": 4096},
    "gpt_neox": {**LAYERS, "intermediate_size": 2048},
    "mpt": {"n_layers": 6, "d_model": 768, "n_heads": 12, "max_seq_len": 4096},
}
TINY = {
    "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 176, "num_attention_heads": 4, "head_dim": 16, "query_pre_attn_scalar": 16,
    "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"], "n_layer": 2, "n_embd": 64, "n_head": 4,
    "n_layers": 2, "d_model": 96, "n_heads": 6,
}  # fmt: skip


def sizes_of(family: str, tiny: bool) -> dict[str, Any]:
    """Keys of config.json, without ``vocab_size``."""
    return {key: TINY.get(key, value) if tiny else value for key, value in SIZES[family].items()}


def family(tiny: bool, scratch: Path, family: str) -> dict:
    """All checks of one family; one that fails does not stop the next."""
    import sections
    from kernel_checks import gradients

    checks = {"parity_fp32": sections.parity_fp32, "parity_bf16": sections.parity_bf16, "gradients": gradients, "packing": sections.packing}
    if "te" in sections.specs():
        checks |= {"te_parameters": sections.te_parameters, "across_specs": sections.across_specs}
        checks["train_fp8"] = partial(sections.train_fp8, precision="fp8-current")
    found: dict[str, Any] = {}
    failed = {}
    for name, check in checks.items():
        try:
            result = check(tiny, scratch, family=family)
            found |= {f"{name} {key}": value for key, value in result.items() if isinstance(value, (int, float))}
        except Exception as error:
            traceback.print_exc()
            failed[name] = f"{type(error).__name__}: {error}"[:600]
    assert not failed, f"{failed}; else {found}"
    return found
