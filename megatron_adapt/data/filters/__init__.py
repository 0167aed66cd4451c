"""Filters of a corpus: one file each, found by file name. See README.md."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from megatron_adapt import options
from megatron_adapt.config_filters import Kind
from megatron_adapt.config_types import did_you_mean
from megatron_adapt.data.texts import Outcome, Texts, behind
from megatron_adapt.errors import ConfigError


def names() -> list[str]:
    """All filters, sorted; nothing is imported."""
    return sorted(file.stem for file in Path(__file__).parent.glob("*.py") if not file.stem.startswith("_"))


def read_options(name: str, given: Mapping[str, Any] | None = None) -> Any:
    """The options of a filter as its dataclass, defaults filled in.

    Raises:
        ConfigError: no such filter (with the nearest name), or options that are unknown, out of range or go together badly.
    """
    module = _module(name)
    try:
        chosen = options.parse(module.Options, given or {})
    except ConfigError as error:
        raise ConfigError("\n".join(f"filter {name}: {line}" for line in str(error).split("\n"))) from None
    check = getattr(module, "check", None)
    if check is not None:
        check(chosen)
    return chosen


def kinds() -> dict[str, Kind]:
    """For every filter what a recipe has to know of it; nothing is imported before that is asked for."""
    return {name: Kind(partial(_problems, name), partial(compares, name)) for name in names()}


def _problems(name: str, given: Mapping[str, Any]) -> list[tuple[str, str]]:
    module = _module(name)
    found = options.problems(module.Options, given)
    if not found and hasattr(module, "check"):
        try:
            module.check(options.parse(module.Options, given))
        except ConfigError as error:
            found = [("", line.removeprefix(f"filter {name}: ")) for line in str(error).split("\n")]
    return found


def compares(name: str) -> bool:
    """Whether a filter compares documents with one another, and so can with those of other corpora."""
    return "known" in inspect.signature(_module(name).run).parameters


def missing(name: str) -> str | None:
    """What a filter needs and is not installed."""
    ask = getattr(_module(name), "missing", None)
    return None if ask is None else ask()


def run(name: str, texts: Texts, chosen: Any, threads: int, known: int = 0) -> Outcome:
    """What a filter says about documents; never depends on ``threads``.

    ``known``: so many documents at the begin always stay; those behind are compared with them, too, by a filter that compares.

    Raises:
        ConfigError, DataError: something that the filter needs is missing or damaged.
    """
    if not known:
        return _module(name).run(texts, chosen, threads)
    if compares(name):
        return _module(name).run(texts, chosen, threads, known)
    return behind(known, _module(name).run(texts.part(known), chosen, threads))


def describe() -> Iterator[str]:
    """Lines about all filters and their options, for people."""
    for name in names():
        module = _module(name)
        yield f"{name}: {(module.__doc__ or '').split(chr(10))[0].partition(': ')[2]}"
        for field in dataclasses.fields(module.Options):
            value = "needed" if field.default is dataclasses.MISSING else _spelled(field.default)
            yield f"    {field.name}={value}  {field.metadata['description']}"


def _spelled(value: Any) -> str:
    return {True: "true", False: "false", None: "none"}.get(value, str(value)) if isinstance(value, (bool, type(None))) else str(value)


def _module(name: str) -> Any:
    if name not in names():
        raise ConfigError(f"no filter {name!r}.{did_you_mean(name, names(), 'There are')}")
    return importlib.import_module(f"{__name__}.{name}")
