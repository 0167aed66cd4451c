"""Steps whose loss jumps: noted, left out or rolled back, the same on every rank and in a run that is continued."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from worlds import LAYOUTS, STEPS, Outcome, World, assert_identical, changed, interrupted_after, phase, tensors

from megatron_adapt import launch
from megatron_adapt.engine import backend, checkpoint, loop
from megatron_adapt.errors import CheckpointError

BATCH = 8


def train(
    world: World, folder: Path, layout: str, action: str, bad: set[int], value: float = 50.0, precision: str = "fp32",
    stop: int | None = None, **changes: Any,
) -> Outcome:
    """Six steps in which the batches of these numbers (from 1) have this loss; asked to ``stop`` after a step."""
    settings = phase(**(STEPS | {"on_spike": {"action": action, "window": 2}} | changes))
    job = world.job(folder, LAYOUTS[layout][0], settings, world.imported("short"), precision)

    def work() -> None:
        original = loop._Run._losses

        def losses(run: loop._Run, outputs: list) -> dict[str, float]:
            number = sum(run.position.drawn.values()) // BATCH
            return original(run, outputs) | ({"loss": value} if number in bad else {})

        loop._Run._losses = losses
        with backend.session(job.layout, job.seed):
            loop.train(job, progress=lambda done, total: os.kill(os.getpid(), signal.SIGTERM) if done == stop else None)

    launch.fork(LAYOUTS[layout][1], work, threads=1)
    return Outcome(folder)


def at(run: Outcome, step: int) -> checkpoint.Checkpoint:
    return checkpoint.resolve(run.folder / f"step_{step:08d}")


@pytest.mark.parametrize("layout, value", [("TP2", 50.0), ("one", math.nan)])
def test_an_update_is_left_out(world: World, tmp_path: Path, layout, value):
    run = train(world, tmp_path / "run", layout, "skip", {4}, value)
    position = at(run, 6).position
    assert position.history.skipped == 1 and position.updates == 5
    assert [event["step"] for event in position.history.events] == [4]
    assert sum(position.drawn.values()) == 6 * BATCH and position.tokens == 6 * BATCH * 32
    assert len(run.metrics) == 6 and (run.metrics[3]["loss"] == value or math.isnan(run.metrics[3]["loss"]))
    assert all(torch.isfinite(tensor).all() for tensor in tensors(run.folder).values())
    # The same steps without the fourth: Adam, too, has seen five.
    folder = interrupted_after(4, run, tmp_path / "again")
    assert_identical(train(world, folder, layout, "skip", {4}, value), run)


def test_a_step_left_out_changes_no_weight(world: World, tmp_path: Path):
    run = train(world, tmp_path / "run", "one", "skip", {3, 4}, precision="bf16-true")
    before, after = (tensors(run.folder / f"step_{step:08d}") for step in (2, 4))
    assert changed(before, after) == set()
    assert [line["changed_weights"] > 0 for line in run.metrics] == [True, True, False, False, True, True]


def test_a_stop_does_not_change_where_a_spike_goes_back_to(world: World, tmp_path: Path):
    """To the last checkpoint that is due, not to the one of the stop; and it is there, however few are kept."""
    reference = train(world, tmp_path / "calm", "one", "rollback", {4})
    train(world, tmp_path / "stopped", "one", "rollback", {4}, stop=3, keep_last=1)
    assert [path.name for path in checkpoint.finished(tmp_path / "stopped")] == ["step_00000002", "step_00000003"]
    assert_identical(train(world, tmp_path / "stopped", "one", "rollback", {4}), reference)


@pytest.mark.parametrize("layout", ["one", "TP2xPP2"])
def test_rolled_back_to_a_checkpoint_and_past_the_data(world: World, uninterrupted, tmp_path: Path, layout):
    run = train(world, tmp_path / "run", layout, "rollback", {4})
    position = at(run, 6).position
    assert position.step == position.updates == 6 and position.tokens == 6 * BATCH * 32
    assert sum(position.drawn.values()) == 8 * BATCH  # the third and fourth batch are left out
    assert [(event["step"], event["action"]) for event in position.history.events] == [(4, "rollback")]
    reference = uninterrupted(layout)
    assert [line["step"] for line in run.metrics] == [1, 2, 3, 4, 5, 6]
    assert [line["lr"] for line in run.metrics] == [line["lr"] for line in reference.metrics]
    assert run.losses[:2] == reference.losses[:2] and run.losses[2] != reference.losses[2]
    folder = interrupted_after(4, run, tmp_path / "again")
    assert_identical(train(world, folder, layout, "rollback", {4}), run)


def test_rolled_back_to_the_start(world: World, tmp_path: Path):
    """Before the first checkpoint of its own a phase goes back to its beginning; a loss without a number is a spike at once."""
    for layout, precision in (("one", "fp32"), ("DP2+DO", "bf16-mixed"), ("one", "bf16-true")):
        run = train(world, tmp_path / precision, layout, "rollback", {2}, math.nan, precision)
        assert len(run.metrics) == 6 and sum(at(run, 6).position.drawn.values()) == 8 * BATCH
        assert at(run, 6).position.updates == 6
        late = train(world, tmp_path / f"{precision}-late", layout, "rollback", {1, 2}, math.nan, precision)
        assert late.losses == run.losses and changed(tensors(late.folder), tensors(run.folder)) == set()


def test_noted_only(world: World, uninterrupted, tmp_path: Path):
    run = train(world, tmp_path / "run", "one", "log", {4})
    assert changed(tensors(run.folder), tensors(uninterrupted("one").folder)) == set()
    assert [event["action"] for event in at(run, 6).position.history.events] == ["log"]


@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_spikes_without_end(world: World, tmp_path: Path, action):
    with pytest.raises(CheckpointError, match="phase 'full' diverged: 5 spikes in a row"):
        train(world, tmp_path / "run", "one", action, set(range(1, 99)), math.inf)


# -------------------------------------------------------------------------------------------------- damaged checkpoints


def test_a_damaged_checkpoint_is_passed_over(world: World, uninterrupted, tmp_path: Path, capfd):
    reference = uninterrupted("TP2")
    folder = interrupted_after(4, reference, tmp_path / "run")
    data = next((folder / "step_00000004").glob("*.distcp"))
    data.write_bytes(data.read_bytes()[:-10])
    assert_identical(world.train(folder, *LAYOUTS["TP2"], **STEPS), reference)
    shown = capfd.readouterr().out
    assert "step_00000004: damaged checkpoint" in shown and "Continuing from step_00000002, the newest that is intact." in shown
    assert shown.count("Continuing from") == 1


def test_nothing_but_damaged_checkpoints(world: World, uninterrupted, tmp_path: Path):
    folder = interrupted_after(4, uninterrupted("one"), tmp_path / "run")
    for step in (2, 4):
        (folder / f"step_{step:08d}" / "hf" / "config.json").unlink()
    with pytest.raises(CheckpointError, match="No checkpoint in .*run is intact; remove it to train the phase anew"):
        world.train(folder, **STEPS)


def test_what_is_passed_over_is_not_kept_nor_gone_back_to(world: World, uninterrupted, tmp_path: Path):
    """A damaged checkpoint of a later step neither takes the place of a new one nor that of the one before a spike."""
    reference = uninterrupted("one")
    folders = [interrupted_after(4, reference, tmp_path / name) for name in ("stopped", "back")]
    for folder in folders:
        (folder / "step_00000004" / "hf" / "config.json").unlink()
    job = world.job(folders[0], LAYOUTS["one"][0], phase(**{**STEPS, "keep_last": 1}), world.imported("short"))

    def work() -> None:
        with backend.session(job.layout, job.seed):
            loop.train(job, progress=lambda done, total: os.kill(os.getpid(), signal.SIGTERM) if done == 3 else None)

    assert launch.fork(1, work, threads=1).stopped
    assert [path.name for path in checkpoint.finished(folders[0])] == ["step_00000003"]
    assert_identical(world.train(folders[0], **STEPS), reference)
    run = train(world, folders[1], "one", "rollback", {3})
    assert [line["step"] for line in run.metrics] == [1, 2, 3, 4, 5, 6] and run.metrics[:2] == reference.metrics[:2]
    assert sum(at(run, 6).position.drawn.values()) == 7 * BATCH
