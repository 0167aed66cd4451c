"""Values of a Hugging Face configuration, checked one by one; what several families say in the same words."""

from __future__ import annotations

from typing import Any, Mapping

from megatron_adapt.errors import ConfigError

# transformers' names -> ours. gelu_new and gelu_pytorch_tanh are one formula; gelu_fast is it with a rounded constant,
# which is the same number in float32.
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}
FLAGS = ("tied", "parallel_residual", "qkv_bias", "proj_bias", "mlp_bias")
FRACTIONS = ("norm_epsilon", "init_std")


def checked(name: str, key: str, config: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> Any:
    """The value of field ``name`` of ``ModelShape``; None where transformers derives it from others.

    Raises:
        ConfigError: absent without a default, or not the kind of value that the field is.
    """
    value = config.get(key)
    if value is None:
        if key not in defaults:
            raise ConfigError(f"{where} lacks {key}.")
        value = defaults[key]
        if value is None:
            return None
    if name in FLAGS:
        if not isinstance(value, bool):
            raise ConfigError(f"{where}: {key} = {value!r} is not true or false.")
        return value
    if name == "activation":
        if value not in ACTIVATIONS:
            raise ConfigError(f"{where}: {key} = {value!r} is not supported. Supported: {', '.join(ACTIVATIONS)}.")
        return ACTIVATIONS[value]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if name in FRACTIONS:
        if not number or not 0 <= value < 1:
            raise ConfigError(f"{where}: {key} = {value!r} is not a number between 0 and 1.")
        return float(value)
    if not isinstance(value, int) or not number or value < 1:
        raise ConfigError(f"{where}: {key} = {value!r} is not a positive whole number.")
    return value


def positive(key: str, settings: Mapping[str, Any], where: str) -> float | None:
    """A positive number, or None for null.

    Raises:
        ConfigError: anything else.
    """
    value = settings[key]
    if value is None:
        return None
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
        raise ConfigError(f"{where}: {key} = {value!r} is not a positive number.")
    return float(value)


def layer_windows(settings: Mapping[str, Any], sliding: list[bool], where: str) -> tuple[int | None, ...]:
    """``ModelShape.windows``: ``layer_types`` of the config, or else ``sliding_window`` where ``sliding`` says so.

    Raises:
        ConfigError: a window that is no positive number, or layer types that are unknown or of another count.
    """
    types = settings.get("layer_types")
    if types is not None:
        known = ("full_attention", "sliding_attention")
        if not isinstance(types, (list, tuple)) or len(types) != len(sliding) or any(kind not in known for kind in types):
            raise ConfigError(
                f"{where}: layer_types = {types!r} is not supported ({' or '.join(known)} for each of {len(sliding)} layers)."
            )
        sliding = [kind == "sliding_attention" for kind in types]
    window = settings["sliding_window"]
    if window is None or not any(sliding):
        return ()
    if not isinstance(window, int) or isinstance(window, bool) or window < 1:
        raise ConfigError(f"{where}: sliding_window = {window!r} is not a positive whole number.")
    return tuple(window if here else None for here in sliding)


def flatten(config: Mapping[str, Any], tables: tuple[str, ...], where: str) -> dict[str, Any]:
    """The config with the keys of the named tables also as ``table.key``.

    Raises:
        ConfigError: one of the tables is something else.
    """
    flat = dict(config)
    for table in tables:
        inner = config.get(table) or {}
        if not isinstance(inner, Mapping):
            raise ConfigError(f"{where}: {table} = {inner!r} is not a table of settings.")
        flat |= {f"{table}.{key}": value for key, value in inner.items()}
    return flat


def nest(config: Mapping[str, Any], tables: tuple[str, ...]) -> dict[str, Any]:
    """The reverse of :func:`flatten`."""
    prefixes = tuple(f"{table}." for table in tables)
    nested = {key: value for key, value in config.items() if not key.startswith(prefixes)} if tables else dict(config)
    for table in tables:
        nested[table] = {key[len(table) + 1 :]: value for key, value in config.items() if key.startswith(f"{table}.")}
    return nested
