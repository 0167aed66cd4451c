"""What a phase of training is given."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_adapt.analysis import wandb_run
from megatron_adapt.config import Phase
from megatron_adapt.data.sampling import Passes
from megatron_adapt.engine.backend import Layout
from megatron_adapt.engine.checkpoint import Learnt


@dataclass
class Job:
    """Everything a phase needs; paths of inputs and outputs, no recipe."""

    phase: Phase
    steps: int
    layout: Layout
    precision: str
    seed: int
    start: Path  # checkpoint (or folder of them) to begin from
    output: Path  # folder for this phase's checkpoints and metrics.jsonl
    corpora: dict[str, Path]  # name -> prefix of .bin/.idx
    passes: dict[str, Passes] = field(default_factory=dict)  # of corpora that are not simply read as a whole
    held_out: dict[str, Path] = field(default_factory=dict)
    evaluation_length: int | None = None
    evaluation_bytes: int | None = None
    tensorboard: Path | None = None
    wandb: wandb_run.Run | None = None
    # (steps of all phases before, steps of all phases): what a schedule `over: run` spans
    run: tuple[int, int] = (0, 0)
    tokens: int | None = None  # the phase's length, unless it is one in steps
    mup: dict[str, Any] = field(default_factory=dict)  # of muP: the base's fields of ``ModelShape``
    learns: Learnt = Learnt()  # what it teaches the model beside its weights

    def settings(self) -> dict[str, Any]:
        """All but the places of files."""
        keys = ("steps", "precision", "seed", "evaluation_length", "evaluation_bytes", "run", "tokens", "layout", "passes")
        return self.phase.model_dump() | {key: getattr(self, key) for key in keys} | {"held_out": list(self.held_out)}
