"""Rotary position embeddings: both spellings of config.json, and frequencies equal to transformers' bit for bit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Mapping

from megatron_adapt.errors import ConfigError

if TYPE_CHECKING:
    import torch

DEFAULT_THETA = 10000.0

# What each type needs beside rope_theta, and what it may have.
NUMBERS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}
OPTIONAL = {"yarn": ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")}


def read_rope(
    hf_config: Mapping[str, Any], supported: tuple[str, ...], where: str, theta_key: str = "rope_theta",
    theta: float = DEFAULT_THETA, fraction_key: str | None = None, fraction: float = 1.0,
) -> dict[str, Any]:
    """The rotary settings as ``{"rope_type", "rope_theta", ...}`` with exactly the numbers that the type uses.

    transformers 4 writes ``rope_theta`` and ``rope_scaling`` (with ``type`` or ``rope_type``), transformers 5
    ``rope_parameters``; where a file has both, ``rope_scaling`` counts, as in transformers. Of parameters given per kind
    of layer (Gemma 3) those of ``full_attention`` are taken.

    Args:
        theta_key, theta: the family's name for the base, and its default.
        fraction_key, fraction: the same for the part of each head that is rotated; None: all of it, always.
    Raises:
        ConfigError: an unsupported type, unsupported partial rotary embeddings, a missing or impossible number.
    """
    key = "rope_scaling" if hf_config.get("rope_scaling") else "rope_parameters"
    given = hf_config.get(key) or {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where}: {key} = {given!r} is not a table of settings.")
    if "full_attention" in given:
        given = given["full_attention"] or {}
    types = {given[name] for name in ("rope_type", "type") if given.get(name) is not None}
    if len(types) > 1:
        raise ConfigError(f"{where}: {key} names two types, {given['rope_type']!r} and {given['type']!r}.")
    rope_type = types.pop() if types else "default"
    if rope_type not in supported:
        raise ConfigError(f"{where}: rope type {rope_type!r} is not supported. Supported: {', '.join(supported)}.")
    values = {"rope_theta": hf_config.get(theta_key) or theta, **given}
    if "original_max_position_embeddings" in NUMBERS[rope_type]:  # transformers' rule
        outer = hf_config.get("original_max_position_embeddings")
        values["original_max_position_embeddings"] = (
            outer or given.get("original_max_position_embeddings") or hf_config.get("max_position_embeddings")
        )
    rope: dict[str, Any] = {"rope_type": rope_type}
    optional = [name for name in OPTIONAL.get(rope_type, ()) if values.get(name)]
    for name in ("rope_theta", *NUMBERS[rope_type], *optional):
        value = values.get(name)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0 or math.isinf(value):
            raise ConfigError(f"{where}: rope type {rope_type!r} needs a positive number {name}, found {value!r}.")
        rope[name] = value
    rope["rope_theta"] = float(rope["rope_theta"])
    if rope_type == "llama3" and rope["high_freq_factor"] <= rope["low_freq_factor"]:
        raise ConfigError(f"{where}: high_freq_factor must be greater than low_freq_factor.")
    if rope_type == "yarn" and values.get("truncate") is False:
        rope["truncate"] = False
    return rope | _fraction(hf_config, given, where, fraction_key, fraction)


def _fraction(
    hf_config: Mapping[str, Any], given: Mapping[str, Any], where: str, key: str | None, default: float
) -> dict[str, float]:
    """``{"partial_rotary_factor": part of each head that is rotated}``; empty: all of it."""
    name = key or "partial_rotary_factor"
    value = given.get("partial_rotary_factor", hf_config.get(name))
    value = default if value is None else value
    if key is None and value != 1:
        raise ConfigError(f"{where}: partial_rotary_factor = {value!r} is not supported (1 only).")
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value <= 1:
        raise ConfigError(f"{where}: {name} = {value!r} is not a number above 0, up to 1.")
    return {} if value == 1 else {"partial_rotary_factor": float(value)}


def attention_factor(rope: Mapping[str, Any]) -> float:
    """What sines and cosines are multiplied by: 1 except for ``yarn`` (Peng et al. 2023, section 3.4).

    The square of it multiplies every attention score.
    """
    if rope.get("rope_type") != "yarn":
        return 1.0
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])

    def stretch(weight: float) -> float:
        return 0.1 * weight * math.log(rope["factor"]) + 1.0 if rope["factor"] > 1 else 1.0

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return stretch(rope["mscale"]) / stretch(rope["mscale_all_dim"])
    return stretch(1.0)


def inverse_frequencies(rope: Mapping[str, Any], dim: int) -> torch.Tensor:
    """Frequencies in float32 [dim / 2] on the CPU; the order of operations is transformers', so the bits are too.

    ``llama3``: wavelengths above ``original / low_freq_factor`` are stretched by ``factor``, those below
    ``original / high_freq_factor`` are kept, and between the two the frequency is interpolated. ``yarn``: the same by
    dimension, with a ramp between those that turn ``beta_fast`` and ``beta_slow`` times over the original length.
    """
    import torch

    exponents = torch.arange(0, dim, 2, dtype=torch.int64, device="cpu").to(torch.float32) / dim
    frequencies = 1.0 / (rope["rope_theta"] ** exponents)
    if rope["rope_type"] == "default":
        return frequencies
    if rope["rope_type"] == "linear":
        return frequencies / rope["factor"]
    if rope["rope_type"] == "yarn":
        return _yarn(rope, rope["rope_theta"] ** exponents)
    assert rope["rope_type"] == "llama3", rope
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    original = rope["original_max_position_embeddings"]
    wavelengths = 2 * math.pi / frequencies
    stretched = torch.where(wavelengths > original / low, frequencies / factor, frequencies)
    smooth = (original / wavelengths - low) / (high - low)
    interpolated = (1 - smooth) * stretched / factor + smooth * stretched
    between = (wavelengths >= original / high) & (wavelengths <= original / low)
    return torch.where(between, interpolated, stretched)


def _yarn(rope: Mapping[str, Any], wavelengths: torch.Tensor) -> torch.Tensor:
    """``wavelengths [dim / 2]`` (over 2 pi, of the unscaled embedding) -> frequencies (Peng et al. 2023, section 3.2)."""
    import torch

    dim, theta, length = 2 * len(wavelengths), rope["rope_theta"], rope["original_max_position_embeddings"]

    def turning(times: float) -> float:
        """The dimension that turns so many times over the original length."""
        return (dim * math.log(length / (times * 2 * math.pi))) / (2 * math.log(theta))

    low, high = turning(rope.get("beta_fast", 32)), turning(rope.get("beta_slow", 1))
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = (torch.arange(len(wavelengths), dtype=torch.float32, device="cpu") - low) / (high - low)
    kept = 1 - ramp.clamp(0, 1)
    return 1.0 / (rope["factor"] * wavelengths) * (1 - kept) + 1.0 / wavelengths * kept
