"""Checkpoints written while training goes on, which of them are kept, and disks that are too small."""

from __future__ import annotations

import os
import re
import signal
import threading
from pathlib import Path
from typing import Callable

import pytest
from worlds import LAYOUTS, STEPS, Outcome, World, assert_identical, changed, phase, stored

from megatron_adapt import launch
from megatron_adapt.engine import backend, checkpoint, loop
from megatron_adapt.errors import CheckpointError

ASYNC = STEPS | {"async_save": True}


def train(world: World, folder: Path, layout: str, hook: Callable[[loop._Run], None], **settings: object) -> launch.Outcome:
    """Train; every rank calls ``hook`` after each step, before it is decided whether to save."""
    job = world.job(folder, LAYOUTS[layout][0], phase(**settings), world.imported("short"))

    def work() -> None:
        with backend.session(job.layout, job.seed):
            run = loop._Run(job, lambda line: None, lambda done, total: None)
            run.progress = lambda done, total: hook(run)
            run.run()

    return launch.fork(LAYOUTS[layout][1], work, threads=1)


@pytest.mark.parametrize("layout, precision", [("one", "bf16-mixed"), ("TP2", "fp32"), ("DP2+DO", "fp32")])
def test_every_checkpoint_is_the_one_written_in_the_foreground(world: World, uninterrupted, tmp_path: Path, layout, precision):
    """Later steps do not get into it, and a run continued from it is the same run."""
    reference = uninterrupted(layout, precision)
    run = world.train(tmp_path / "run", *LAYOUTS[layout], precision=precision, **ASYNC)
    assert_identical(run, reference)
    assert sorted(os.listdir(run.folder)) == sorted(os.listdir(reference.folder))
    again = tmp_path / "again"
    again.mkdir()
    (run.folder / "step_00000004").rename(again / "step_00000004")
    continued = world.train(again, *LAYOUTS[layout], precision=precision, **ASYNC)
    assert continued.metrics == reference.metrics[4:] and changed(stored(again), stored(reference.folder)) == set()


def names(folder: Path) -> list[str]:
    return sorted(re.sub(r"\.\d+\.", ".N.", name) for name in os.listdir(folder))


def slow(until: Callable[[], bool]) -> None:
    """Background threads of saving begin to write when ``until`` says so."""
    start = threading.Thread.start

    def waiting(thread: threading.Thread) -> None:
        if thread.name == "checkpoint":
            write = thread._target
            thread._target = lambda: (held(until), write())
        start(thread)

    threading.Thread.start = waiting


def held(until: Callable[[], bool]) -> None:
    while not until():
        threading.Event().wait(0.01)


def test_training_goes_on_while_a_checkpoint_is_written(world: World, uninterrupted, tmp_path: Path):

    def hook(run: loop._Run) -> None:
        if run.position.step == 1:
            slow(lambda: run.position.step >= 4)
        if run.position.step == 3:
            assert run.saving is not None and not run.saving.done
            assert names(tmp_path / "run") == ["metrics.jsonl", "step_00000002.N.tmp"]

    train(world, tmp_path / "run", "TP2", hook, **ASYNC)
    assert_identical(Outcome(tmp_path / "run"), uninterrupted("TP2"))


def test_killed_while_a_checkpoint_is_written(world: World, uninterrupted, tmp_path: Path):
    """The one before is taken."""

    def hook(run: loop._Run) -> None:
        if run.position.step == 3:
            held(lambda: run.saving is None or run.saving.done)
            slow(lambda: False)
        if run.position.step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(launch.StepFailed, match="SIGKILL"):
        train(world, tmp_path / "run", "one", hook, **ASYNC)
    assert names(tmp_path / "run") == ["metrics.jsonl", "step_00000002", "step_00000004.N.tmp"]
    assert_identical(world.train(tmp_path / "run", **ASYNC), uninterrupted())


def test_a_signal_waits_for_what_is_being_written(world: World, uninterrupted, tmp_path: Path):
    def hook(run: loop._Run) -> None:
        if run.position.step == 1:
            slow(lambda: run.saving is None)  # taken over by the step that waits for it
        if run.position.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    assert train(world, tmp_path / "run", "TP2", hook, **ASYNC).stopped
    assert [path.name for path in checkpoint.finished(tmp_path / "run")] == ["step_00000002", "step_00000003"]
    assert_identical(world.train(tmp_path / "run", *LAYOUTS["TP2"], **STEPS), uninterrupted("TP2"))


def test_a_full_disk_in_the_background(world: World, uninterrupted, tmp_path: Path):
    def hook(run: loop._Run) -> None:
        import resource

        if run.position.step == 3:
            held(lambda: run.saving is None or run.saving.done)
        if run.position.step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    with pytest.raises(CheckpointError, match=r"could not save .*step_00000004 .*Earlier checkpoints are intact"):
        train(world, tmp_path / "run", "one", hook, **ASYNC)
    assert sorted(os.listdir(tmp_path / "run")) == ["metrics.jsonl", "step_00000002"]
    assert_identical(world.train(tmp_path / "run", **ASYNC), uninterrupted())


def test_checkpoints_of_multiples_are_kept(world: World, tmp_path: Path):
    run = world.train(tmp_path, steps=5, save_every=1, keep_last=1, keep_every=2)
    assert sorted(os.listdir(run.folder)) == ["metrics.jsonl", "step_00000002", "step_00000004", "step_00000005"]


# ------------------------------------------------------------------------------------------------- a disk that is too small


def with_free(world: World, folder: Path, layout: str, share: float, at: int, **settings: object) -> None:
    """From step ``at`` on the disk has room for so many checkpoints."""

    def limit(run: loop._Run) -> None:
        if run.position.step == at:
            free = int(share * checkpoint.size(run.bare, run.optimizer))
            checkpoint._free = lambda path: free

    job = world.job(folder, LAYOUTS[layout][0], phase(**settings), world.imported("short"))

    def work() -> None:
        with backend.session(job.layout, job.seed):
            run = loop._Run(job, lambda line: None, lambda done, total: None)
            run.progress = lambda done, total: limit(run)
            limit(run)
            run.run()

    launch.fork(LAYOUTS[layout][1], work, threads=1)


@pytest.mark.parametrize("layout, settings, count", [
    ("TP2", {"keep_last": 1}, "2 checkpoints"),
    ("one", {"keep_last": 2}, "3 checkpoints"),
    ("one", {"keep_last": 1, "keep_every": 2}, "5 checkpoints"),
    ("one", {"save_every": None}, "a checkpoint"),
])  # fmt: skip
def test_a_phase_whose_checkpoints_will_not_fit_is_not_begun(world: World, tmp_path: Path, layout, settings, count):
    settings = STEPS | settings
    room = {"2": 1.9, "3": 2.9, "5": 4.9, "a": 0.9}[count[0]]
    with pytest.raises(CheckpointError, match=rf"{count} of \S+ GB will not fit on the disk of .*run, where \S+ GB are free"):
        with_free(world, tmp_path / "run", layout, room, 0, **settings)
    assert not list((tmp_path / "run").glob("step_*")) and not (tmp_path / "run" / "metrics.jsonl").read_text()


def test_a_save_that_will_not_fit_is_not_begun(world: World, uninterrupted, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"step_00000004 is not saved: a checkpoint of .*Earlier checkpoints are intact"):
        with_free(world, tmp_path / "run", "TP2", 0.9, 3, **STEPS)
    assert sorted(os.listdir(tmp_path / "run")) == ["metrics.jsonl", "step_00000002"]
    assert_identical(world.train(tmp_path / "run", *LAYOUTS["TP2"], **STEPS), uninterrupted("TP2"))


def test_the_size_of_a_checkpoint_is_that_of_its_files(world: World, tmp_path: Path):
    def hook(run: loop._Run) -> None:
        (tmp_path / f"size{backend.rank()}").write_text(str(checkpoint.size(run.bare, run.optimizer)))

    train(world, tmp_path / "run", "TP2xDP2+DO", hook, steps=1)
    sizes = {(tmp_path / f"size{rank}").read_text() for rank in range(4)}
    written = sum(path.stat().st_size for path in (tmp_path / "run" / "step_00000001").glob("*.distcp"))
    (size,) = map(int, sizes)
    assert size < written < 1.5 * size  # small tensors have large headers
