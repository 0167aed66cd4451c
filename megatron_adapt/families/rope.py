"""Rotary position embeddings: both spellings of config.json, and frequencies equal to transformers' bit for bit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Mapping

from megatron_adapt.errors import ConfigError

if TYPE_CHECKING:
    import torch

DEFAULT_THETA = 10000.0

# What each type needs beside rope_theta.
NUMBERS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def read_rope(hf_config: Mapping[str, Any], supported: tuple[str, ...], where: str) -> dict[str, Any]:
    """The rotary settings as ``{"rope_type", "rope_theta", ...}`` with exactly the numbers that the type uses.

    transformers 4 writes ``rope_theta`` and ``rope_scaling`` (with ``type`` or ``rope_type``), transformers 5
    ``rope_parameters``; where a file has both, ``rope_scaling`` counts, as in transformers.

    Raises:
        ConfigError: an unsupported type, partial rotary embeddings, or a missing or impossible number.
    """
    key = "rope_scaling" if hf_config.get("rope_scaling") else "rope_parameters"
    given = hf_config.get(key) or {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where}: {key} = {given!r} is not a table of settings.")
    types = {given[name] for name in ("rope_type", "type") if given.get(name) is not None}
    if len(types) > 1:
        raise ConfigError(f"{where}: {key} names two types, {given['rope_type']!r} and {given['type']!r}.")
    rope_type = types.pop() if types else "default"
    if rope_type not in supported:
        raise ConfigError(f"{where}: rope type {rope_type!r} is not supported. Supported: {', '.join(supported)}.")
    partial = given.get("partial_rotary_factor", hf_config.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise ConfigError(f"{where}: partial_rotary_factor = {partial!r} is not supported (1 only).")
    values = {"rope_theta": hf_config.get("rope_theta") or DEFAULT_THETA, **given}
    if rope_type == "llama3":  # transformers' rule for the original length
        outer = hf_config.get("original_max_position_embeddings")
        values["original_max_position_embeddings"] = (
            outer or given.get("original_max_position_embeddings") or hf_config.get("max_position_embeddings")
        )
    rope: dict[str, Any] = {"rope_type": rope_type}
    for name in ("rope_theta", *NUMBERS[rope_type]):
        value = values.get(name)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0 or math.isinf(value):
            raise ConfigError(f"{where}: rope type {rope_type!r} needs a positive number {name}, found {value!r}.")
        rope[name] = value
    rope["rope_theta"] = float(rope["rope_theta"])
    if rope_type == "llama3" and rope["high_freq_factor"] <= rope["low_freq_factor"]:
        raise ConfigError(f"{where}: high_freq_factor must be greater than low_freq_factor.")
    return rope


def inverse_frequencies(rope: Mapping[str, Any], head_dim: int) -> torch.Tensor:
    """Frequencies in float32 [head_dim / 2] on the CPU; the order of operations is transformers', so the bits are too.

    ``llama3``: wavelengths above ``original / low_freq_factor`` are stretched by ``factor``, those below
    ``original / high_freq_factor`` are kept, and between the two the frequency is interpolated.
    """
    import torch

    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64, device="cpu").to(torch.float32) / head_dim
    frequencies = 1.0 / (rope["rope_theta"] ** exponents)
    if rope["rope_type"] == "default":
        return frequencies
    if rope["rope_type"] == "linear":
        return frequencies / rope["factor"]
    assert rope["rope_type"] == "llama3", rope
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    original = rope["original_max_position_embeddings"]
    wavelengths = 2 * math.pi / frequencies
    stretched = torch.where(wavelengths > original / low, frequencies / factor, frequencies)
    smooth = (original / wavelengths - low) / (high - low)
    interpolated = (1 - smooth) * stretched / factor + smooth * stretched
    between = (wavelengths >= original / high) & (wavelengths <= original / low)
    return torch.where(between, interpolated, stretched)
