"""Methods that initialise the embeddings of a new vocabulary: one file each, found by file name. See README.md."""

from __future__ import annotations

import difflib
import importlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Mapping

from megatron_adapt import options
from megatron_adapt.errors import ConfigError

if TYPE_CHECKING:
    from megatron_adapt.vocab.material import Maps, Material

Check = Callable[[Mapping[str, Any]], "list[tuple[str, str]]"]


def names() -> list[str]:
    """All methods, sorted; nothing is imported."""
    return sorted(file.stem for file in Path(__file__).parent.glob("*.py") if not file.stem.startswith("_"))


def checks() -> dict[str, Check]:
    """For every method, what gives the problems of some options as (key, text)."""
    return {name: partial(_problems, name) for name in names()}


def _problems(method: str, given: Mapping[str, Any]) -> list[tuple[str, str]]:
    return options.problems(_module(method).Options, given)


def _module(method: str) -> Any:
    if method not in names():
        near = difflib.get_close_matches(method, names(), 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"no vocabulary method {method!r}; there are: {', '.join(names())}.{hint}")
    return importlib.import_module(f"{__name__}.{method}")


def read_options(method: str, given: Mapping[str, Any] | None = None) -> Any:
    """The options of a method as its dataclass, defaults filled in.

    Raises:
        ConfigError: no such method (with the nearest name), or options that are unknown, missing or out of range.
    """
    try:
        return options.parse(_module(method).Options, given or {})
    except ConfigError as error:
        raise ConfigError("\n".join(f"{method}: {line}" if line.startswith("option ") else line for line in str(error).split("\n"))) from None


def reads_text(method: str, chosen: Any) -> bool:
    """Whether a method looks at text in the target language."""
    question = getattr(_module(method), "reads_text", None)
    return question is not None and question(chosen)


def build(method: str, material: Material, given: Mapping[str, Any] | None = None) -> Maps:
    """The maps of a method from the source's rows to the target's; ``given``: options, as a mapping.

    Raises:
        ConfigError: no such method, wrong options, or something missing that the method needs.
    """
    chosen = read_options(method, given)
    return _module(method).build(material, chosen)
