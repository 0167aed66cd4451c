"""Options of self-discovered files (vocabulary methods, filters): a frozen dataclass for each, read from a recipe or from `key=value` text."""

from __future__ import annotations

import dataclasses
import types
from pathlib import Path
from typing import Any, Iterable, Mapping, TypeVar, Union, get_args, get_origin, get_type_hints

from megatron_adapt.config_types import did_you_mean, got
from megatron_adapt.errors import ConfigError

Options = TypeVar("Options")
WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def option(
    default: Any, description: str, low: float | None = None, high: float | None = None, choices: Iterable[str] = ()
) -> Any:
    """A field of an options dataclass. Its annotation is bool, int, float, str, Path or Path | None; a Path without
    default (``...``) has to be given."""
    metadata = {"description": description, "low": low, "high": high, "choices": tuple(choices)}
    if default is ...:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def from_words(words: Iterable[str]) -> dict[str, str]:
    """``["key=value", ...]`` of a command line as a mapping.

    Raises:
        ConfigError: a word without ``=``, or a key given twice.
    """
    given: dict[str, str] = {}
    for word in words:
        key, separator, value = word.partition("=")
        if not separator or not key:
            raise ConfigError(f"--option {word}: expected key=value.")
        if key in given:
            raise ConfigError(f"--option {word}: {key} is given twice.")
        given[key] = value
    return given


def parse(kind: type[Options], given: Mapping[str, Any]) -> Options:
    """Options with defaults, then the settings of the ``variant`` (``kind.VARIANTS``), then what is given itself.

    Raises:
        ConfigError: all problems, one a line.
    """
    values, problems = _read(kind, given)
    if problems:
        raise ConfigError("\n".join(f"option {key}: {text}" for key, text in problems))
    return kind(**values)


def problems(kind: type, given: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(key, what is wrong) of every option that is unknown, misspelt, out of range or missing."""
    return _read(kind, given)[1]


def _read(kind: type, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    found: list[tuple[str, str]] = []
    for key, value in given.items():
        if key not in fields:
            found.append((key, f"unknown option.{did_you_mean(key, fields, 'Options')}"))
            continue
        try:
            values[key] = _value(fields[key], hints[key], value)
        except ValueError as error:
            found.append((key, str(error)))
    variants: Mapping[str, Mapping[str, Any]] = getattr(kind, "VARIANTS", {})
    values = {**variants.get(values.get("variant", ""), {}), **values}
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and name not in given:
            found.append((name, f"missing; {field.metadata['description']}"))
    return values, found


def _value(field: dataclasses.Field, hint: Any, value: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        if value is None:
            return None
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    meta = field.metadata
    if hint is bool:
        value = WORDS.get(value.lower(), value) if isinstance(value, str) else value
        if not isinstance(value, bool):
            raise ValueError(f"expected true or false, got {got(value)}")
        return value
    if hint in (int, float):
        return _number(hint, meta, value)
    if not isinstance(value, (str, Path)) or not str(value):
        raise ValueError(f"expected text, got {got(value)}")
    if meta["choices"] and value not in meta["choices"]:
        raise ValueError(f"expected {' or '.join(meta['choices'])}, got {got(value)}")
    return Path(value) if hint is Path else value


def _number(hint: type, meta: Mapping[str, Any], value: Any) -> Any:
    wanted = "a whole number" if hint is int else "a number"
    try:
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise ValueError
        number = hint(value)
        if number != float(value):
            raise ValueError
    except ValueError:
        raise ValueError(f"expected {wanted}, got {got(value)}") from None
    low, high = meta["low"], meta["high"]
    if (low is not None and number < low) or (high is not None and number > high):
        limits = [f"{word} {bound:g}" for word, bound in (("at least", low), ("at most", high)) if bound is not None]
        raise ValueError(f"must be {' and '.join(limits)}, got {number:g}")
    return number


def paths(options: Any) -> dict[str, Path]:
    """The files and directories that options name, by key."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    return {key: value for key, value in values.items() if isinstance(value, Path)}


def settings(options: Any) -> dict[str, Any]:
    """Everything else that options say, defaults filled in."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    return {key: value for key, value in values.items() if not isinstance(value, Path)}
