"""Methods that initialise the embeddings of a new vocabulary: one file each, found by file name. See README.md."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_adapt.errors import ConfigError

if TYPE_CHECKING:
    from megatron_adapt.hf.tokenizer import Tokenizer
    from megatron_adapt.vocab.token_map import TokenMap


def names() -> list[str]:
    """All methods, sorted; nothing is imported."""
    return sorted(file.stem for file in Path(__file__).parent.glob("*.py") if not file.stem.startswith("_"))


def check(method: str) -> None:
    """Raise ConfigError (with the nearest name) unless the method exists."""
    if method not in names():
        near = difflib.get_close_matches(method, names(), 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"no vocabulary method {method!r}; there are: {', '.join(names())}.{hint}")


def build(method: str, target: Tokenizer, source: Tokenizer) -> TokenMap:
    """The map of a method from the source's rows to the target's.

    Raises:
        ConfigError: no such method.
    """
    check(method)
    return importlib.import_module(f"{__name__}.{method}").build(target, source)
