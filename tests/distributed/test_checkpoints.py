"""Checkpoints that are old, unfinished, damaged, or could not be written."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Callable

import pytest
from worlds import LAYOUTS, STEPS, World, assert_identical, interrupted_after, phase, tensors, without_checksums

from megatron_adapt import launch
from megatron_adapt.engine import backend, checkpoint, loop
from megatron_adapt.errors import CheckpointError


def test_only_the_last_checkpoints_are_kept(world: World, tmp_path: Path):
    run = world.train(tmp_path, steps=5, save_every=1, keep_last=2)
    assert sorted(os.listdir(run.folder)) == ["metrics.jsonl", "step_00000004", "step_00000005"]


def test_resumed_where_saving_removes_what_it_was_resumed_from(world: World, uninterrupted, tmp_path: Path):
    reference = uninterrupted()
    folder = interrupted_after(2, reference, tmp_path / "run")
    assert_identical(world.train(folder, **{**STEPS, "keep_last": 1}), reference)
    assert sorted(os.listdir(folder)) == ["metrics.jsonl", "step_00000006"]


def test_a_directory_without_its_mark_is_never_loaded(world: World, uninterrupted, tmp_path: Path):
    reference = uninterrupted()
    folder = interrupted_after(4, reference, tmp_path / "run")
    (folder / "step_00000004" / checkpoint.MARK).unlink()
    shutil.copytree(folder / "step_00000002", folder / "step_00000005.tmp")
    assert checkpoint.resolve(folder).position.step == 2
    assert_identical(world.train(folder, **STEPS), reference)
    assert sorted(os.listdir(folder)) == ["metrics.jsonl", "step_00000002", "step_00000004", "step_00000006"]
    for unfinished in (tmp_path, shutil.copytree(reference.folder / "step_00000006", tmp_path / "step_00000006.tmp")):
        with pytest.raises(CheckpointError, match="no finished checkpoint here"):
            checkpoint.open_checkpoint(unfinished)
    with pytest.raises(CheckpointError, match="neither a checkpoint nor a folder with finished checkpoints"):
        checkpoint.resolve(tmp_path)
    with pytest.raises(CheckpointError, match="none does not exist.$"):
        checkpoint.resolve(tmp_path / "none")


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda path: os.truncate(path, path.stat().st_size - 1), r"__0_0.distcp has \d+ bytes instead of \d+"),
        (Path.unlink, "__0_0.distcp is missing"),
        (lambda path: (path.parent / "hf" / "config.json").unlink(), "hf/config.json is missing"),
        (lambda path: (path.parent / checkpoint.MARK).write_text("{"), "not JSON"),
        (lambda path: (path.parent / checkpoint.MARK).write_text('{"format": 2}'), '"format": 1; another version'),
        (lambda path: without_checksums(path.parent, world=None), "damaged checkpoint: checkpoint.json does not say world"),
        (lambda path: without_checksums(path.parent, position={"age": 3}), "checkpoint.json says more than this version .* 'age'"),
    ],
    ids=["truncated", "missing", "no config", "torn mark", "another format", "no world", "newer"],
)
def test_a_damaged_checkpoint_is_refused(world: World, uninterrupted, tmp_path: Path, damage, message):
    folder = interrupted_after(2, uninterrupted(), tmp_path / "run")
    damage(folder / "step_00000002" / "__0_0.distcp")
    with pytest.raises(CheckpointError, match=message) as caught:
        world.train(folder, **STEPS)
    assert "step_00000002" in str(caught.value) and "\n" not in str(caught.value)


BESIDE = "Where there is an earlier checkpoint beside it, move this one away"


@pytest.mark.parametrize(
    "file, message, is_old",
    [
        (".metadata", r"step_00000002: damaged checkpoint: .metadata changed since it was written", False),
        ("hf/config.json", r"step_00000002: damaged checkpoint: hf/config.json changed since it was written", False),
        ("checksums.json", r"step_00000002: damaged checkpoint: checksums.json changed since it was written", False),
        ("__0_0.distcp", r"damaged checkpoint: __0_0.distcp: bytes 0 to [\d,]+ of the file changed since it was written. Use", False),
        ("rng/rank_00000.pt", r"damaged checkpoint: rng/rank_00000.pt: bytes 0 to [\d,]+ of the file changed since it was wr", False),
        ("__0_0.distcp", rf"step_00000002: cannot be read \(.*\). {BESIDE}", True),
        ("rng/rank_00000.pt", rf"rank_00000.pt: cannot be read \(.*\). {BESIDE}", True),
    ],
)
def test_damage_that_keeps_the_size_is_refused(world: World, uninterrupted, tmp_path: Path, file, message, is_old):
    """As after a power cut; all is known before anything is loaded, but for checkpoints that are older than checksums."""
    folder = interrupted_after(2, uninterrupted(), tmp_path / "run")
    if is_old:
        without_checksums(folder / "step_00000002")
    damaged = folder / "step_00000002" / file
    damaged.write_bytes(bytes(damaged.stat().st_size))
    with pytest.raises(CheckpointError, match=message):
        world.train(folder, **STEPS)


def test_a_checkpoint_from_before_digests(world: World, uninterrupted, tmp_path: Path):
    folder = interrupted_after(2, uninterrupted(), tmp_path / "run") / "step_00000002"
    digests = json.loads((folder / checkpoint.MARK).read_text())["digests"]
    assert {"hf/config.json", ".metadata", "metadata.json", "checksums.json"} <= digests.keys()
    without_checksums(folder, digests=None)
    assert checkpoint.open_checkpoint(folder).position.step == 2
    (folder / "hf" / "config.json").write_bytes(bytes((folder / "hf" / "config.json").stat().st_size))
    with pytest.raises(CheckpointError, match="damaged checkpoint: hf/config.json is not JSON .*Use an earlier one"):
        checkpoint.open_checkpoint(folder)


def test_a_checkpoint_from_before_checksums(world: World, uninterrupted, tmp_path: Path):
    folder = interrupted_after(2, uninterrupted(), tmp_path / "run")
    without_checksums(folder / "step_00000002")
    assert_identical(world.train(folder, **STEPS), uninterrupted())


def test_a_checkpoint_of_another_phase_is_refused(world: World, uninterrupted, tmp_path: Path):
    folder = interrupted_after(2, uninterrupted(), tmp_path / "run")
    with pytest.raises(CheckpointError, match="run holds checkpoints of phase 'full', not of 'other'"):
        world.train(folder, name="other", **STEPS)


def test_a_diverged_phase_stops_with_the_last_checkpoint_intact(world: World, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"phase 'full' diverged at step \d: loss .*Lower optimizer.lr") as caught:
        world.train(tmp_path, steps=6, save_every=1, optimizer={"lr": 1e30}, schedule={"type": "constant"})
    last = checkpoint.resolve(tmp_path).position.step
    assert last > 0 and f"at step {last + 1}:" in str(caught.value)
    assert all(tensor.isfinite().all() for tensor in tensors(tmp_path).values())


# ---------------------------------------------------------------------------------------------------------- a full disk


def train_with(world: World, folder: Path, layout: str, hook: Callable[[], None]) -> None:
    """Train ``STEPS``; after step 3 every rank calls ``hook``."""
    job = world.job(folder, LAYOUTS[layout][0], phase(**STEPS), world.imported("short"))

    def work() -> None:
        with backend.session(job.layout, job.seed):
            loop.train(job, progress=lambda done, total: hook() if done == 3 else None)

    launch.fork(LAYOUTS[layout][1], work, threads=1)


FULL = r"could not save .*step_00000004 \(\S+ GB are free there\): .* Earlier checkpoints are intact"


@pytest.mark.parametrize("layout, full", [("one", (0,)), ("TP2", (0, 1)), ("TP2", (1,))], ids=str)
def test_disk_full_while_saving(world: World, uninterrupted, tmp_path: Path, layout, full):
    """Ranks in ``full`` cannot write more than 8 kB to a file."""

    def limit() -> None:
        import resource

        if backend.rank() in full:
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    with pytest.raises(CheckpointError, match=FULL):
        train_with(world, tmp_path / "run", layout, limit)
    assert [path.name for path in checkpoint.finished(tmp_path / "run")] == ["step_00000002"]
    assert_identical(world.train(tmp_path / "run", *LAYOUTS[layout], **STEPS), uninterrupted(layout))


def test_disk_full_in_the_last_moment(world: World, uninterrupted, tmp_path: Path):
    def fail() -> None:
        def no_space(self: object, target: Path) -> None:
            raise OSError(28, "No space left on device", str(target))

        checkpoint.HFDirectory.copy_metadata = no_space

    with pytest.raises(CheckpointError, match="could not save .*No space left on device.*are intact"):
        train_with(world, tmp_path / "run", "TP2", fail)
    assert sorted(os.listdir(tmp_path / "run")) == ["metrics.jsonl", "step_00000002"]
    assert_identical(world.train(tmp_path / "run", *LAYOUTS["TP2"], **STEPS), uninterrupted("TP2"))


def test_metrics_survive_a_torn_line(world: World, uninterrupted, tmp_path: Path):
    folder = interrupted_after(2, uninterrupted(), tmp_path / "run")
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss"')
    steps = [line["step"] for line in world.train(folder, **STEPS).metrics]
    assert steps == [3, 4, 5, 6] and json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
