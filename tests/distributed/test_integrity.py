"""A changed byte anywhere in a checkpoint is noticed before it is loaded, by whichever rank, and what is intact is taken instead."""

from __future__ import annotations

import os
import random
import re
import zlib
from pathlib import Path
from typing import Any

import pytest
from worlds import LAYOUTS, STEPS, World, assert_identical, flip, interrupted_after, on_ranks, phase

from megatron_adapt import launch
from megatron_adapt.engine import backend, carry, checkpoint, integrity, loop, model as models, optimizer as optimizers
from megatron_adapt.errors import CheckpointError
from megatron_adapt.families import find_family
from megatron_adapt.steps import evaluate
from megatron_adapt.streams import checksums as streams
from megatron_adapt.torch_dist import checksums, directory
from megatron_adapt.torch_dist.pickles import read_table

DAMAGED = r"step_0000000\d: damaged checkpoint: {}: bytes 0 to [\d,]+ of the file changed since it was written. Use an earlier one"


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def train(world: World, folder: Path, layout: str, during: Any = lambda done: None, **changes: Any) -> list[str]:
    """Continue ``STEPS``; what rank 0 logs."""
    job = world.job(folder, LAYOUTS[layout][0], phase(**STEPS | changes), world.imported("short"))
    log = folder.with_name("log")

    def work() -> None:
        with backend.session(job.layout, job.seed), open(log, "a") as file:
            loop.train(job, log=lambda line: print(line, file=file, flush=True), progress=lambda done, total: during(done))

    launch.fork(LAYOUTS[layout][1], work, threads=1)
    return log.read_text().splitlines()


@pytest.mark.parametrize("layout", ["one", "TP2"])
def test_checksums_are_those_of_the_files(uninterrupted, layout: str):
    folder = uninterrupted(layout).folder / "step_00000006"
    found = checksums.read(folder)
    long = {str(path.relative_to(folder)) for path in files(folder) if path.suffix == ".distcp" or path.parent.name == "rng"}
    assert found.keys() == long and len(long) >= 2 * LAYOUTS[layout][1]
    for name, blocks in found.items():
        assert [zlib.crc32((folder / name).read_bytes())] == list(blocks)


def opened(folder: Path) -> directory.Checkpoint | None:
    """What is loaded from a folder with one checkpoint; None: nothing, it is damaged."""
    try:
        found = directory.open_checkpoint(folder)
    except CheckpointError as error:
        assert folder.name in str(error) and "\n" not in str(error)
        return None
    return None if checksums.damage(folder) else found


def test_any_changed_byte_of_any_file_is_noticed(uninterrupted, tmp_path: Path):
    """But for changes of white space in the mark, which say the same."""
    folder = interrupted_after(2, uninterrupted("TP2"), tmp_path / "run") / "step_00000002"
    intact = opened(folder)
    assert intact is not None
    draw = random.Random(1)
    for file in files(folder):
        size = file.stat().st_size
        for at in {0, size - 1, *(draw.randrange(size) for _ in range(100 if file.name == directory.MARK else 8))}:
            bits = 1 << draw.randrange(8)
            flip(file, at, bits)
            found = opened(folder)
            assert found is None or (file.name == directory.MARK and found == intact), (file, at, bits)
            flip(file, at, bits)
    assert opened(folder) == intact


@pytest.mark.parametrize("layout, file", [("one", "__0_0.distcp"), ("TP2", "__1_0.distcp"), ("DP2", "rng/rank_00001.pt")])
def test_the_checkpoint_before_is_taken_and_said(world: World, uninterrupted, tmp_path: Path, layout, file):
    """It stays until there is a new one, whatever is to be kept."""
    reference = uninterrupted(layout)
    folder = interrupted_after(4, reference, tmp_path / "run")
    damaged = folder / "step_00000004" / file
    flip(damaged, random.Random(layout).randrange(damaged.stat().st_size))

    def during(done: int) -> None:
        assert done != 3 or [path.name for path in checkpoint.finished(folder)] == ["step_00000002", "step_00000004"]

    lines = train(world, folder, layout, during, keep_last=1)
    (said,) = [line for line in lines if "damaged" in line]
    assert f"step_00000004: damaged checkpoint: {file}: bytes 0 to " in said
    assert said.endswith("Continuing from step_00000002, the newest that is intact.")
    assert_identical(type(reference)(folder), reference)
    assert os.listdir(folder.parent / "run") and [path.name for path in checkpoint.finished(folder)] == ["step_00000006"]


def test_nothing_intact_is_refused_with_all_names(world: World, uninterrupted, tmp_path: Path):
    folder = interrupted_after(6, uninterrupted("TP2"), tmp_path / "run")
    flip(folder / "step_00000006" / "__0_0.distcp", 1000)
    os.truncate(folder / "step_00000004" / "__1_0.distcp", 1000)
    flip(folder / "step_00000002" / "__1_0.distcp", 1000)
    told = (
        "step_00000006: damaged checkpoint: __0_0.distcp: .*step_00000004: damaged checkpoint: __1_0.distcp has 1000 bytes .*"
        "step_00000002: damaged checkpoint: __1_0.distcp: .*No checkpoint in .*run is intact; remove it to train the phase anew"
    )
    with pytest.raises(CheckpointError, match=told):
        train(world, folder, "TP2")
    assert len(checkpoint.finished(folder)) == 3


def place(folder: Path, prefix: str) -> tuple[Path, int]:
    """(file, byte in the middle) of the largest tensor whose name begins so."""
    entries = read_table(folder / ".metadata").storage_data.items()
    found = max((entry for index, entry in entries if index.fqn.startswith(prefix)), key=lambda entry: entry.length)
    return folder / found.relative_path, found.offset + found.length // 2


@pytest.mark.parametrize("damaged, refused", [("decoder.", (True, False, True)), ("optimizer.state.exp_avg.", (False, True, True))])
def test_what_begins_from_a_checkpoint_compares_what_it_reads(uninterrupted, tmp_path: Path, monkeypatch, damaged, refused):
    """A model, its optimizer's state, or all there is; every rank alike, whichever reads the damage."""
    folder = interrupted_after(2, uninterrupted("DP2"), tmp_path / "run") / "step_00000002"
    source, names = directory.open_checkpoint(folder), checksums.read(folder).keys()
    for module in (checksums, streams):
        monkeypatch.setattr(module, "BLOCK", 256)
    monkeypatch.setitem(checksums._HEADER, "block_bytes", 256)
    checksums.write(folder, {name: streams.of((folder / name).read_bytes()) for name in names})
    flip(*place(folder, damaged))

    def load() -> list[str]:
        told = []
        with backend.session(LAYOUTS["DP2"][0], 1):
            model = models.build(find_family(source.config).read_config(source.config), LAYOUTS["DP2"][0], "fp32")
            wrapped = models.wrap(model, "fp32", False)
            optimizer = optimizers.build(phase().optimizer, wrapped, "fp32", 1, {}, {})
            for begin in (checkpoint.load, carry.load, checkpoint.load):
                arguments = (source, model) if not told else (source, model, optimizer)
                try:
                    begin(*arguments)
                    told.append("")
                except CheckpointError as error:
                    told.append(str(error))
        return told

    first, second = on_ranks(2, load)
    assert first == second and tuple(map(bool, first)) == refused
    assert all(re.search(DAMAGED.format(r"__\d_\d.distcp").replace("0 to", r"[\d,]+ to"), each) for each in first if each)


def test_evaluation_is_refused_by_the_name_of_the_file(world: World, tmp_path: Path, uninterrupted):
    folder = interrupted_after(2, uninterrupted(), tmp_path / "run") / "step_00000002"
    file, at = place(folder, "decoder.")
    flip(file, at)
    with pytest.raises(CheckpointError, match=DAMAGED.format(file.name)):
        launch.fork(1, lambda: evaluate.run(folder, {"text": world.held_out}, None), threads=1)


def test_findings_of_all_ranks_are_one_for_each_file(uninterrupted, tmp_path: Path):
    folder = interrupted_after(2, uninterrupted("DP2"), tmp_path / "run") / "step_00000002"
    names = sorted(checksums.read(folder))
    for name in names:
        flip(folder / name, 5)

    def find() -> list[str]:
        with backend.session(LAYOUTS["DP2"][0], 1):
            return [each.file for each in integrity.damage(folder)]

    assert on_ranks(2, find) == [names, names]
