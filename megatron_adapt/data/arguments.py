"""What the command lines of corpora have in common: a parser that names a mistyped flag, and flags about files of which there are none."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from megatron_adapt.config_types import did_you_mean
from megatron_adapt.data.sources import Paths, idle_keys
from megatron_adapt.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """argparse's, which of ``--fliter x`` says alone that ``--filter`` is missing."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        known = [flag for flag in self._option_string_actions if flag.startswith("--")]
        for word in args or ():
            flag = word.partition("=")[0]
            if flag == "--":
                break
            if flag.startswith("--") and not any(each.startswith(flag) for each in known):
                self.error(f"{flag}: no such option.{did_you_mean(flag, known, 'There are')}")
        return super().parse_known_args(args, namespace)


def check_reading(paths: Paths, flags: dict[str, str], text_key: Any = None, text_documents: str = "blocks") -> None:
    """``flags``: what ``text_key`` and ``text_documents`` are called here; None, and blocks, are not given.

    Raises:
        ConfigError: a flag that is about files of which there are none.
    """
    given = [key for key, is_given in (("text_key", text_key is not None), ("text_documents", text_documents != "blocks")) if is_given]
    for key, why in idle_keys(paths, given):
        raise ConfigError(f"{flags[key]} {why}; leave it out")
