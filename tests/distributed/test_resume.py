"""An interrupted run ends where an uninterrupted one does, bit for bit, whatever interrupted it."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from worlds import (
    LAYOUTS, STEPS, Layout, Outcome, World, assert_identical, hf_model, interrupted_after, on_ranks, phase, run_job,
    stored, tensors, without_checksums,
)  # fmt: skip

from megatron_adapt import launch
from megatron_adapt.engine import backend, checkpoint, loop, model as models, optimizer as optimizers
from megatron_adapt.families import find_family

RELATIVE = 1e-5  # of losses in another layout (float32; sums are taken in another order)


def model(*layouts: str) -> str:
    """Two layers, and four where each stage of a pipeline has two chunks of them."""
    return "untied" if any("VP2" in layout for layout in layouts) else "short"


# ------------------------------------------------------------------------------------------- the same layout: every bit


@pytest.mark.parametrize(
    "layout, precision, step",
    [
        ("one", "fp32", 2), ("one", "bf16-mixed", 4), ("TP2xPP2", "fp32", 2), ("DP2", "fp32", 4),
        ("DP2+DO", "fp32", 2), ("TP2xDP2+DO", "bf16-mixed", 4), ("PP2xVP2", "bf16-mixed", 2),
        ("CP2+DO", "bf16-mixed", 4),
    ],
)  # fmt: skip
def test_resumed_within_a_phase_is_uninterrupted(world: World, uninterrupted, tmp_path: Path, layout, precision, step):
    settings = {"precision": precision, "start": model(layout)}
    reference = uninterrupted(layout, **settings)
    folder = interrupted_after(step, reference, tmp_path / "run")
    assert_identical(world.train(folder, *LAYOUTS[layout], **settings, **STEPS), reference)


def test_a_checkpoint_from_before_context_parallelism(world: World, uninterrupted, tmp_path: Path):
    """Its ranks are those of now, so that they take their random numbers from it."""
    folder = interrupted_after(2, uninterrupted("one"), tmp_path / "run")
    sizes = json.loads((folder / "step_00000002" / checkpoint.MARK).read_text())["world"]
    without_checksums(folder / "step_00000002", world={key: size for key, size in sizes.items() if key != "context"})
    states = []

    def resume() -> int:
        backend.set_rng_state = states.append
        run_job(world.job(folder, Layout(), phase(**STEPS), world.imported("short")))
        return len(states)

    assert on_ranks(1, resume) == [1]


def test_resumed_with_a_distributed_momentum(world: World, tmp_path: Path):
    """LionW, which Megatron's distributed optimizer does not know."""
    settings = STEPS | {"optimizer": {"type": "lionw", "lr": 3e-4, "embedding_lr": 1e-3}}
    reference = world.train(tmp_path / "reference", *LAYOUTS["DP2+DO"], precision="bf16-mixed", **settings)
    plain = world.train(tmp_path / "plain", *LAYOUTS["DP2"], precision="bf16-mixed", **settings)
    assert plain.losses == pytest.approx(reference.losses, rel=RELATIVE)
    formats = [{name: (t.shape, t.dtype) for name, t in stored(run.folder).items()} for run in (plain, reference)]
    assert formats[0] == formats[1]
    folder = interrupted_after(4, reference, tmp_path / "run")
    assert_identical(world.train(folder, *LAYOUTS["DP2+DO"], precision="bf16-mixed", **settings), reference)


def test_muon_continues_in_another_layout(world: World, tmp_path: Path):
    settings = STEPS | {"optimizer": {"type": "muon", "lr": 3e-3}}
    reference = world.train(tmp_path / "reference", **settings)
    second = {name.removeprefix("optimizer.state.exp_avg_sq.") for name in stored(reference.folder) if "exp_avg_sq" in name}
    assert second == {name for name in tensors(reference.folder) if ".layers." not in name or "norm" in name}
    for layout in ("TP2xPP2", "DP2"):
        run = world.train(interrupted_after(2, reference, tmp_path / layout), *LAYOUTS[layout], **settings)
        assert run.losses == pytest.approx(reference.losses, rel=RELATIVE)
        assert run.norms == pytest.approx(reference.norms, rel=RELATIVE)


def test_resumed_pipeline_whose_first_stage_trains_nothing(world: World, uninterrupted, tmp_path: Path):
    reference = uninterrupted("PP2", train="output")
    folder = interrupted_after(4, reference, tmp_path / "run")
    assert_identical(world.train(folder, *LAYOUTS["PP2"], train="output", **STEPS), reference)


def test_resumed_at_the_boundary_of_phases(world: World, tmp_path: Path):
    first = {"name": "first", "train": "embedding", "steps": 3}
    second = {"name": "second", "steps": 3, "data": {"second": 0.5, "first": 0.5}}
    jobs = [
        world.job(tmp_path / "a1", Layout(), phase(**first), world.imported("short")),
        world.job(tmp_path / "a2", Layout(), phase(**second), tmp_path / "a1"),
    ]
    launch.fork(1, lambda: [run_job(job) for job in jobs], threads=1)  # one process: nothing of a phase survives it

    one = world.train(tmp_path / "b1", **first)
    again = world.train(tmp_path / "b1", **first)  # complete already: nothing happens
    assert again.metrics == one.metrics == Outcome(tmp_path / "a1").metrics
    assert [path.name for path in one.folder.glob("step_*")] == ["step_00000003"]
    two = world.train(tmp_path / "b2", start=one.folder, **second)
    assert_identical(two, Outcome(tmp_path / "a2"))
    position = checkpoint.resolve(two.folder).position
    assert position.drawn == {"second": 12, "first": 12} and position.tokens == 3 * 8 * 32
    assert position.consumed == {"first@32": 12 + 17, "second@32": 12 + 7}  # 70 % and 30 % of 24 before


# ------------------------------------------------------------------------------------------------------ another layout


@pytest.mark.parametrize(
    "before, after, train",
    [
        ("one", "TP2xPP2", "all"),
        ("TP2xPP2", "DP2", "all"),
        ("PP2", "TP2+SP", "all"),
        ("TP2", "PP2", "all"),
        ("DP2", "one", "all"),
        ("DP2+DO", "one", "all"),
        ("one", "DP2+DO", "all"),
        ("TP2", "PP2xDP2+DO", "all"),
        ("PP2xDP2+DO", "DP2+DO", "output"),
        ("PP2xVP2", "TP2", "all"),
        ("CP2+DO", "one", "all"),
        ("one", "CP2", "all"),
        ("CP2", "TP2", "output"),
        ("DP2", "PP2xVP2xDP2+DO", "all"),
        ("PP2", "PP2xVP2", "output"),
        ("PP2", "TP2", "output"),
        ("TP2", "PP2", "output"),
    ],
)
def test_resumed_in_another_layout(world: World, uninterrupted, tmp_path: Path, before, after, train):
    start = model(before, after)
    reference = uninterrupted(before, train=train, start=start)
    folder = interrupted_after(4, reference, tmp_path / "run")
    run = world.train(folder, *LAYOUTS[after], start=start, train=train, **STEPS)
    assert run.losses == pytest.approx(reference.losses, rel=RELATIVE)
    assert run.norms == pytest.approx(reference.norms, rel=RELATIVE)
    ours, theirs = tensors(run.folder), tensors(reference.folder)
    assert max((ours[name] - theirs[name]).abs().max().item() for name in theirs) < 1e-4


@pytest.mark.parametrize("train", ["output", "embedding", "all"])
def test_adam_step_survives_on_every_rank(world: World, uninterrupted, train):
    """Megatron stores one step count, that of rank 0, whose stage trains nothing when only the head trains."""
    reference = uninterrupted("PP2", train=train)

    def steps() -> list[float]:
        layout = LAYOUTS["PP2"][0]
        backend.start(layout, 1)
        found = checkpoint.resolve(reference.folder / "step_00000004")
        model = models.build(find_family(found.config).read_config(found.config), layout, "fp32")
        models.freeze(model, [train])
        optimizer = optimizers.build(phase().optimizer, models.wrap(model, "fp32"), "fp32")
        checkpoint.load(found, model, optimizer)
        inner = [each.optimizer for each in getattr(optimizer, "chained_optimizers", [optimizer])]
        return [float(state["step"]) for each in inner if each is not None for state in each.state.values()]

    stages = on_ranks(2, steps)
    assert set(stages[0] + stages[1]) == {4.0}
    assert [bool(stage) for stage in stages] == [train != "output", train != "embedding"]


@pytest.mark.parametrize("before, after, same", [("TP2", "TP2", True), ("TP2", "PP2", False)])
def test_random_states_continue_in_the_same_layout(world: World, tmp_path: Path, before, after, same):
    def draws(folder: Path | None, layout: str) -> list:
        model, _ = hf_model(world.model("untied"), LAYOUTS[layout][0])
        optimizer = optimizers.build(phase().optimizer, models.wrap(model, "fp32"), "fp32")
        optimizer.step()  # without gradients: makes Adam's state
        torch.rand(3), np.random.rand(3), random.random()
        if folder is None:
            with get_cuda_rng_tracker().fork():
                torch.rand(3)
            checkpoint.save(tmp_path, model, optimizer, checkpoint.Position(step=1), world.model("untied"))
        else:
            checkpoint.load(checkpoint.resolve(folder), model, optimizer)
        with get_cuda_rng_tracker().fork():
            inside = torch.rand(2).tolist()
        return [inside, torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()]

    reference = on_ranks(2, lambda: draws(None, before))
    assert reference[0][0] != reference[1][0]  # each tensor-parallel rank has a stream of its own
    assert (on_ranks(2, lambda: draws(tmp_path, after)) == reference) is same


# ----------------------------------------------------------------------------------------------- signals and dead ranks


def stopped_at(world: World, folder: Path, layout: str, rank: int, number: int, step: int = 2) -> launch.Outcome:
    """Train ``STEPS`` but let one rank receive a signal in the middle of a step."""
    job = world.job(folder, LAYOUTS[layout][0], phase(**STEPS), world.imported("short"))

    def progress(done: int, total: int) -> None:
        if done == step and backend.rank() == rank:
            os.kill(os.getpid(), number)

    def work() -> None:
        with backend.session(job.layout, job.seed):
            loop.train(job, progress=progress)

    return launch.fork(LAYOUTS[layout][1], work, threads=1)


@pytest.mark.parametrize("layout, number", [("TP2", signal.SIGTERM), ("one", signal.SIGINT)])
def test_a_signal_saves_and_stops_all_ranks(world: World, uninterrupted, tmp_path: Path, layout, number):
    ranks = LAYOUTS[layout][1]
    assert stopped_at(world, tmp_path / "run", layout, rank=ranks - 1, number=number, step=3).stopped
    assert checkpoint.resolve(tmp_path / "run").position.step == 3
    assert_identical(world.train(tmp_path / "run", *LAYOUTS[layout], **STEPS), uninterrupted(layout))


def test_the_launcher_forwards_a_signal(world: World, uninterrupted, tmp_path: Path):
    job = world.job(tmp_path / "run", Layout(), phase(**STEPS), world.imported("short"))
    asked = tmp_path / "asked"

    def progress(done: int, total: int) -> None:
        if done == 2:
            os.kill(os.getppid(), signal.SIGTERM)
            while not asked.exists():
                time.sleep(0.01)

    def work() -> None:
        with backend.session(job.layout, job.seed):
            original = loop.StopRequest._remember
            loop.StopRequest._remember = lambda *arguments: (original(*arguments), asked.touch())
            loop.train(job, progress=progress)

    pid = os.fork()
    if pid == 0:
        os._exit(75 if launch.fork(1, work, threads=1).stopped else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 75
    assert checkpoint.resolve(tmp_path / "run").position.step == 2
    assert_identical(world.train(tmp_path / "run", **STEPS), uninterrupted())


def test_a_killed_rank_ends_the_run_which_then_continues(world: World, uninterrupted, tmp_path: Path):
    began = time.monotonic()
    killed = r"rank 1 was killed by signal 9 \(SIGKILL\).*run the same command again"
    with pytest.raises(launch.StepFailed, match=killed):
        stopped_at(world, tmp_path / "run", "TP2", rank=1, number=signal.SIGKILL, step=5)
    assert time.monotonic() - began < 30
    assert checkpoint.resolve(tmp_path / "run").position.step == 4
    assert_identical(world.train(tmp_path / "run", *LAYOUTS["TP2"], **STEPS), uninterrupted("TP2"))
    assert not list((tmp_path / "run").glob("*.tmp"))
