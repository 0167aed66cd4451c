"""A run that is killed again and again, at random moments and at the worst ones, ends with the bits of one that never was."""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Callable

import pytest
from worlds import Layout, Outcome, World, assert_identical, phase

from megatron_adapt import launch
from megatron_adapt.engine import backend, checkpoint, loop
from megatron_adapt.torch_dist import directory

SMALL = {"sequence_length": 16, "batch_size": 4, "micro_batch_size": 4, "save_every": 2, "keep_last": 2}
PHASES = [SMALL | {"name": "first", "train": "embedding", "steps": 5}, SMALL | {"name": "second", "steps": 8, "async_save": True}]
KILLS = 20  # beside 14 at the moments below


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def attempt(world: World, folder: Path, arrange: Callable[[], None]) -> bool:
    """Run or continue both phases, the second from the first; whether they came to their end."""

    def work() -> None:
        arrange()
        start = world.imported("short tied")
        for settings in PHASES:
            job = world.job(folder / settings["name"], Layout(), phase(**settings), start, "bf16-mixed")
            with backend.session(job.layout, job.seed):
                loop.train(job, log=lambda line: None)
            start = job.output

    try:
        return not launch.fork(1, work, threads=1).stopped
    except launch.StepFailed as error:
        assert "SIGKILL" in str(error)
        return False


def after(seconds: float) -> Callable[[], None]:
    def arrange() -> None:
        timer = threading.Timer(seconds, die)
        timer.daemon = True
        timer.start()

    return arrange


def before(owner: object, name: str, count: int = 1) -> Callable[[], None]:
    """Dies in the place of the call number ``count`` of a function."""

    def arrange() -> None:
        original, calls = getattr(owner, name), [0]

        def call(*arguments: object, **named: object) -> object:
            calls[0] += 1
            if calls[0] == count:
                die()
            return original(*arguments, **named)

        setattr(owner, name, call)

    return arrange


@pytest.fixture(scope="module")
def reference(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    assert attempt(world, folder, lambda: None)
    return folder


def assert_same(folder: Path, reference: Path) -> None:
    for settings in PHASES:
        assert_identical(Outcome(folder / settings["name"]), Outcome(reference / settings["name"]))
        assert not list((folder / settings["name"]).glob("*.tmp"))


def test_killed_at_random_moments(world: World, reference: Path, tmp_path: Path):
    draw = random.Random(4)
    began = time.monotonic()
    assert attempt(world, tmp_path / "timed", lambda: None)
    whole = time.monotonic() - began
    folder, kills, ends = tmp_path / "run", 0, 0
    while kills < KILLS:
        if attempt(world, folder, after(draw.uniform(0.1, 0.7) * whole)):
            assert_same(folder, reference)
            shutil.rmtree(folder)
            ends += 1
        else:
            kills += 1
    while not attempt(world, folder, lambda: None):
        pass
    assert_same(folder, reference)


MOMENTS = {  # where a process is killed, each of them twice in a row
    "while a save begins": before(checkpoint.dist_checkpointing, "save"),
    "before the mark is written": before(checkpoint, "seal", 2),
    "before a checkpoint gets its name": before(directory.os, "replace", 3),
    "before old ones are removed": before(checkpoint, "_prune", 2),
    "in the middle of removing": before(checkpoint.shutil, "rmtree"),
    "at the boundary of the phases": before(backend, "start", 2),
    "at the start of an update": before(loop.optimizers, "update", 3),
}


def test_killed_twice_at_the_worst_moments(world: World, reference: Path, tmp_path: Path):
    folder = tmp_path / "run"
    for what, arrange in MOMENTS.items():
        for _ in range(2):
            if attempt(world, folder, arrange):  # it was past that moment
                assert_same(folder, reference)
                shutil.rmtree(folder)
                assert not attempt(world, folder, arrange), what
    assert attempt(world, folder, lambda: None)
    assert_same(folder, reference)
