"""A phase whose data, batch, schedule or length is changed while it is begun goes on from its last checkpoint."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from worlds import Layout, Outcome, World, assert_identical, phase

from megatron_adapt import launch
from megatron_adapt.config import Phase
from megatron_adapt.engine import checkpoint, loop, stretches
from megatron_adapt.engine.backend import session
from megatron_adapt.engine.checkpoint import Position
from megatron_adapt.errors import ConfigError

CONSTANT = {"schedule": {"type": "constant"}, "save_every": 2, "keep_last": 9}
FIRST, SECOND, BOTH = {"first": 1}, {"second": 1}, {"first": 0.5, "second": 0.5}


def stop_after(world: World, folder: Path, after: int, **settings) -> None:
    """Train as a run does that is asked to stop."""
    job = world.job(folder, Layout(), phase(**{**CONSTANT, **settings}), world.imported("short"))

    def work() -> None:
        def progress(done: int, total: int) -> None:
            if done == after:
                os.kill(os.getpid(), signal.SIGTERM)

        with session(job.layout, job.seed):
            loop.train(job, progress=progress)

    assert launch.fork(1, work, threads=1).stopped


def test_each_corpus_goes_on_where_it_stopped(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """first, second, first again: what was drawn of each, and the history of it in the checkpoint."""
    folder = tmp_path / "run"
    stop_after(world, folder, 2, steps=6, data=FIRST)
    stop_after(world, folder, 4, steps=6, data=SECOND)
    run = world.train(folder, **{**CONSTANT, "steps": 6, "data": FIRST})
    assert "from step 3 on: data was {'first': 1.0}, is now {'second': 1.0}" in capfd.readouterr().out
    position = checkpoint.resolve(folder).position
    assert position.consumed == {"first@32": 32, "second@32": 16}
    told = [(part["steps"], part["tokens"], part["samples"], part["settings"]["data"]) for part in position.trained]
    assert told == [
        ([0, 2], [0, 512], {"first": 16}, FIRST), ([2, 4], [512, 1024], {"second": 16}, SECOND),
        ([4, 6], [1024, 1536], {"first": 16}, FIRST),
    ]  # fmt: skip
    assert [line["step"] for line in run.metrics] == [1, 2, 3, 4, 5, 6]
    # The same tokens as three phases one after the other that keep the optimizer's state; as one in the first two steps.
    one = world.train(tmp_path / "one", **{**CONSTANT, "steps": 6, "data": FIRST})
    assert run.metrics[:2] == one.metrics[:2] and run.losses[2] != one.losses[2]
    parts, start = [], "short"
    for number, data in enumerate((FIRST, SECOND, FIRST)):
        settings = {**CONSTANT, "name": f"part{number}", "steps": 2, "data": data, "init_state": "keep"}
        parts.append(world.train(tmp_path / f"part{number}", start=start, **settings))
        start = parts[-1].folder
    assert run.losses == pytest.approx([loss for part in parts for loss in part.losses], rel=1e-5)


def test_a_changed_phase_is_resumed_exactly(world: World, tmp_path: Path):
    changed = {**CONSTANT, "steps": 8, "data": BOTH, "batch_size": 4, "schedule": {"type": "linear"}}
    outcomes = []
    for name in ("calm", "stopped"):
        folder = tmp_path / name
        stop_after(world, folder, 2, steps=4, data=FIRST)
        if name == "stopped":
            stop_after(world, folder, 5, **changed)
        outcomes.append(world.train(folder, **changed))
    assert_identical(outcomes[1], outcomes[0])
    assert [line["tokens"] for line in outcomes[0].metrics] == [256, 512, 640, 768, 896, 1024, 1152, 1280]
    assert outcomes[0].metrics[2]["lr"] == pytest.approx(3e-3 * (1 - 2 / 8))
    position = checkpoint.resolve(outcomes[0].folder).position
    assert position.consumed == {"first@32": 16 + 12, "second@32": 12}


def test_a_length_in_tokens_stays_what_it_is(world: World, tmp_path: Path):
    """Of 2,048 tokens two steps have trained 512; the rest are steps of half the size. A schedule over the run counts them all."""
    length = {"steps": None, "tokens": 2048, "schedule": {"type": "linear", "over": "run"}}
    folder = tmp_path / "run"

    def job(**settings) -> loop.Job:
        made: Phase = phase(**{**CONSTANT, **length, **settings})
        found = world.job(folder, Layout(), made, world.imported("short"))
        found.steps, found.tokens, found.run = made.known_steps, made.tokens, (0, made.known_steps + 8)
        return found

    def train(job: loop.Job, stop: int | None = None) -> None:
        def progress(done: int, total: int) -> None:
            if done == stop:
                raise KeyboardInterrupt

        with session(job.layout, job.seed):
            loop.train(job, progress=progress)

    assert launch.fork(1, lambda: train(job(), 3), threads=1).stopped
    launch.fork(1, lambda: train(job(batch_size=4)), threads=1)
    run = Outcome(folder)
    assert [line["tokens"] for line in run.metrics][-1] == 2048 and len(run.metrics) == 2 + 12
    rates = [line["lr"] / 3e-3 for line in run.metrics]
    assert rates == pytest.approx([1 - step / 16 for step in range(2)] + [1 - step / (14 + 8) for step in range(2, 14)], rel=1e-6)
    history = checkpoint.resolve(folder).position.trained
    for phase_name, planned, more, expected in (("full", (0, 24), -2, (0, 22)), ("next", (16, 24), 0, (14, 22)), ("next", (16, 24), 3, (14, 25))):
        assert stretches.spanned(Position(phase_name, trained=history), planned, more) == expected
    assert stretches.spanned(Position("next"), (16, 24), 3) == (16, 27)
    with pytest.raises(ConfigError, match="phase 'full' has trained 14 steps already, more than 10"):
        launch.fork(1, lambda: train(job(batch_size=4, tokens=1536)), threads=1)


def test_ramp_up(world: World, tmp_path: Path):
    """Small batches first: the same samples in the same order, in every layout."""
    ramp = {"steps": 5, "micro_batch_size": 1, "ramp_up": {"start": 2, "by": 2, "over": 3}, "schedule": {"type": "constant"}}
    run = world.train(tmp_path / "one", **ramp)
    assert [line["tokens"] for line in run.metrics] == [64, 192, 384, 640, 896]
    two = world.train(tmp_path / "two", Layout(), 2, **ramp)
    assert two.losses == pytest.approx(run.losses, rel=1e-5) and two.norms == pytest.approx(run.norms, rel=1e-4)
    position = checkpoint.resolve(run.folder).position
    assert sum(position.drawn.values()) == 2 + 4 + 6 + 8 + 8
    assert json.loads((run.folder / "step_00000005" / "checkpoint.json").read_text())["position"]["trained"] == position.trained


def test_a_rollback_keeps_the_history():
    """What was drawn of the data is told, and no step twice."""
    ahead = Position("full", 7, 70, drawn={"b": 9}, trained=[
        {"phase": "full", "steps": [0, 4], "tokens": [0, 40], "before": {}, "samples": {"a": 4}, "settings": {}},
        {"phase": "full", "steps": [4, 7], "tokens": [40, 70], "before": {"b": 2}, "samples": {"b": 3}, "settings": {}},
    ])  # fmt: skip
    position = Position("full", 3, 30, drawn=ahead.drawn)
    stretches.rewind(position, ahead)
    assert [part["steps"] for part in position.trained] == [[0, 3], [3, 3]]
    assert [part["tokens"] for part in position.trained] == [[0, 30], [30, 30]]
    position.step, position.tokens = 4, 40
    stretches.advance(position)
    told = stretches.of_phase(position)
    assert told[1] == {"phase": "full", "steps": [3, 4], "tokens": [30, 40], "samples": {"b": 7}, "settings": {}}
