"""What a phase reports, in Weights & Biases: one run for each phase, which an interrupted phase continues.

Nothing of training depends on it: the library sends from a process of its own, and what it could not send lies in
OUTPUT/wandb for `wandb sync`.
"""

from __future__ import annotations

import importlib.util
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_adapt.errors import ConfigError

_ID = "wandb_id"  # file in the phase's folder
_PATIENCE = 60.0  # seconds that the end of a phase waits for what has not been sent


@dataclass(frozen=True)
class Run:
    """Where a phase's numbers go; ``folder`` gets the library's files, ``settings`` are shown as the run's config."""

    project: str
    entity: str | None
    group: str
    name: str
    folder: Path
    settings: Mapping[str, Any] = field(default_factory=dict)


def problems() -> Iterator[str]:
    """What is known without the library."""
    if importlib.util.find_spec("wandb") is None:
        yield "wandb: Weights & Biases is not installed: pip install 'megatron_adapt[wandb]'"


class Writer:
    """Sends the values of steps. ``phase``: its folder, which keeps the run's id.

    A step that is trained again after an interruption or a rollback is sent again: curves are over ``step``, not over what
    the library counts, which only grows.

    Raises:
        ConfigError: the library is not installed, or Weights & Biases cannot be reached or does not know the user.
    """

    def __init__(self, run: Run, phase: Path) -> None:
        if found := list(problems()):
            raise ConfigError(f"{found[0]}.")
        import wandb

        run.folder.mkdir(parents=True, exist_ok=True)
        settings: dict[str, Any] = {"silent": True}
        if "finish_timeout" in wandb.Settings.model_fields:  # versions before wait for ever
            settings["finish_timeout"] = _PATIENCE
        try:
            self._run = wandb.init(
                project=run.project, entity=run.entity, group=run.group, name=run.name, id=_id(phase), resume="allow",
                dir=str(run.folder), config=dict(run.settings), settings=wandb.Settings(**settings),
            )  # fmt: skip
        except wandb.errors.Error as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"Weights & Biases cannot be used ({reason}): run `wandb login`, or set WANDB_MODE=offline and send "
                f"{run.folder}/wandb later with `wandb sync`."
            ) from None
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.log({**values, "step": step})

    def close(self) -> None:
        self._run.finish()


def _id(phase: Path) -> str:
    """One for as long as the phase's folder is there."""
    phase.mkdir(parents=True, exist_ok=True)
    file = phase / _ID
    if not file.exists():
        partial = file.with_suffix(".tmp")
        partial.write_text(uuid.uuid4().hex[:16] + "\n")
        os.replace(partial, file)
    return file.read_text().strip()
