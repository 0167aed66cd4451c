"""Verbs on plain paths: directories in, one directory out, whole or not at all."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Callable, List

import typer

from megatron_adapt.errors import ConfigError


def alone(work: Callable[[Any], Any]) -> None:
    """Run work on plain paths in a process of its own, so that Ctrl-C and errors end it like a step."""
    from megatron_adapt import launch, pipeline
    from megatron_adapt.steps.reporter import PipeReporter

    view = pipeline.View()
    outcome = launch.fork(1, lambda: work(PipeReporter(int(os.environ["MEGATRON_ADAPT_MESSAGES"]))), receive=view.message)
    if outcome.stopped:
        sys.exit(launch.STOPPED)


def count(value: str) -> int:
    """An option that is a number from 1 on, written as in a recipe (300, 32K); the parser says which one is none."""
    from megatron_adapt.config_types import integer

    return _positive(integer, value)


def byte_count(value: str) -> int:
    """The same of bytes (20000, 5MB)."""
    from megatron_adapt.config_types import byte_count as read

    return _positive(read, value)


def _positive(read: Callable[[str], int], value: str) -> int:
    try:
        found = read(value)
    except ValueError as error:
        raise typer.BadParameter(f"{error}.") from None
    if found < 1:
        raise typer.BadParameter(f"must be at least 1, got {value}.")
    return found


def paths(words: List[str], names: str) -> List[Path]:
    if len(words) != len(names.split()):
        raise ConfigError(f"expected a recipe (.yaml), or the paths {names}; got {' '.join(words)}.")
    return [Path(word) for word in words]


def _fresh(output: Path) -> None:
    if output.exists():
        raise ConfigError(f"{output} exists already; choose another output or remove it.")


def produce(output: Path, work: Callable[[Path, Any], Any], keeps_parts: bool = False) -> None:
    """Let work fill a hidden directory and give it its name when it is whole."""
    from megatron_adapt.steps.receipt import Step, perform

    _fresh(output)
    settings = {"arguments": sys.argv[2:]}
    step = Step(output.name, verb=sys.argv[1], output=output, action=work, settings=settings, keeps_parts=keeps_parts)
    alone(lambda reporter: perform(step, reporter))
    print(f"wrote {output}")
