"""What training sends to Weights & Biases: with a stand-in for the library."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from stand_ins.weights_and_biases import Library
from worlds import World, phase, run_job

from megatron_adapt import launch
from megatron_adapt.analysis.wandb_run import Run
from megatron_adapt.engine.layout import Layout
from megatron_adapt.engine.metrics import Metrics


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    module = Library()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def a_run(folder: Path) -> Run:
    return Run("lab", None, "german", "german/adapted/full", folder)


def test_training_sends_the_steps_of_its_metrics(library: Library, world: World, tmp_path: Path) -> None:
    """On the first of two ranks alone; what is continued goes to the same run."""
    library.file = tmp_path / "calls"
    for steps in (2, 3):
        job = world.job(tmp_path / "out", Layout(tensor=2), phase(steps=steps), world.imported("short"))
        job.wandb = a_run(tmp_path / "out")
        launch.fork(2, lambda: run_job(job), threads=1)
    name = (tmp_path / "out" / "wandb_id").read_text().strip()
    calls = [line for line in library.file.read_text().splitlines() if line != "define_metric"]
    assert calls == [f"init {name}", "log 1", "log 2", "finish", f"init {name}", "log 3", "finish"]


def test_a_rollback_does_not_end_the_run(library: Library, tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, None, a_run(tmp_path), 0, print)
    for step in (1, 2):
        metrics.add(step, {"loss": 2.0}, show=False)
    metrics.rewind(1)
    metrics.add(2, {"loss": 1.0}, show=False)
    metrics.close()
    assert [values["step"] for values in library.named("log")] == [1, 2, 2]
    assert [name for name, _ in library.calls if name in ("init", "finish")] == ["init", "finish"]
