"""The program around the verbs: its name, its signals, its exit codes."""

from __future__ import annotations

import os
import signal
import sys

import typer

from megatron_adapt.errors import AdaptError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Teach a pretrained language model a new language on Megatron Core: raw corpora in, a Hugging Face checkpoint out.",
)


class Interrupted(BaseException):
    """SIGINT or SIGTERM while no step's ranks are there to answer it."""


def main() -> None:
    """Entry point: user errors become one message and exit code 2."""
    from megatron_adapt.launch import SIGNALS, STOPPED, StepFailed, note_error, under_torchrun

    prefix = f"[rank {os.environ['RANK']}] " if under_torchrun() else ""
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    try:
        app()
    except (AdaptError, StepFailed) as error:
        print(f"{prefix}error: {error}", file=sys.stderr)
        note_error(str(error))
        sys.exit(2 if isinstance(error, AdaptError) else 1)
    except Interrupted:
        print(f"{prefix}stopped; the same command continues", file=sys.stderr)
        sys.exit(STOPPED)
    except Exception as error:
        note_error(f"{type(error).__name__}: {error}")
        raise


def _interrupt(number: int, frame: object) -> None:
    raise Interrupted
