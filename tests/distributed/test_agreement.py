"""Ranks of several nodes that were given different recipes, or see different checkpoints."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from worlds import LAYOUTS, STEPS, World, assert_identical, interrupted_after, phase, run_job

from megatron_adapt import launch
from megatron_adapt.engine import agreement
from megatron_adapt.errors import CheckpointError, ConfigError
from megatron_adapt.torch_dist import directory


def train(world: World, folder: Path, layout: str, there: dict, hidden: tuple[str, ...] = ()) -> None:
    """``STEPS``, where the second rank has the settings ``there`` and does not see the folders ``hidden`` in listings."""
    start = world.imported("short")

    def work() -> None:
        second = os.environ["RANK"] == "1"
        if second:
            listed = directory.finished
            directory.finished = lambda place: [path for path in listed(place) if path.name not in hidden]
        run_job(world.job(folder, LAYOUTS[layout][0], phase(**(STEPS | (there if second else {}))), start))

    launch.fork(2, work, threads=1)


def test_another_recipe_on_another_node(world: World, tmp_path: Path):
    there = {"optimizer": {"lr": 1e-3}, "log_every": 7, "data": {"first": 1}}
    told = (
        r"rank 1 was started with other settings: data.first is 1.0 there and 0.7 on rank 0; data.second is absent there and 0.3 on "
        r"rank 0; log_every is 7 there and 100 on rank 0; optimizer.lr is 0.001 there and 0.003 on rank 0. Give every node the same"
    )
    with pytest.raises(ConfigError, match=told):
        train(world, tmp_path / "run", "DP2", there)
    assert not (tmp_path / "run").exists()


def test_a_node_that_does_not_see_the_newest_checkpoint_yet(world: World, uninterrupted, tmp_path: Path):
    reference = uninterrupted("DP2")
    folder = interrupted_after(4, reference, tmp_path / "run")
    train(world, folder, "DP2", {}, hidden=("step_00000004",))
    assert_identical(type(reference)(folder), reference)


def test_a_node_that_never_sees_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(agreement, "LAG", 0.1)
    with pytest.raises(CheckpointError, match="step_9: no finished checkpoint here"):
        agreement._seen(tmp_path / "step_9")
