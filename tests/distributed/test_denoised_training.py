"""Phases that learn what is hidden of a text: any layout, interrupted or not, beside a corpus that is learnt as it stands."""

from __future__ import annotations

from pathlib import Path

import pytest
from worlds import LAYOUTS, STEPS, Outcome, World, assert_identical, interrupted_after

SETTINGS = {"start": "untied", "packing": "documents", "denoising": {"mixture": "ul2", "causal": 0.2, "corpora": ["first"]}, "schedule": {"type": "constant"}}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("denoising"), sentinels=12)


@pytest.fixture(scope="module")
def one_rank(world: World, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return world.train(tmp_path_factory.mktemp("one"), **SETTINGS, **STEPS)


@pytest.mark.parametrize("layout, micro", [("DP2", 1), ("PP2xVP2", 2), ("CP2", 2)])
def test_every_layout_equals_one_rank(world: World, one_rank, tmp_path: Path, layout, micro):
    run = world.train(tmp_path, *LAYOUTS[layout], **SETTINGS, steps=3, micro_batch_size=micro)
    for ours, theirs in zip(run.metrics, one_rank.metrics):
        for key in ("loss", "grad_norm", "bits_per_byte", "loss/first", "loss/second"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-5), key


def test_resumed(world: World, one_rank, tmp_path: Path):
    assert_identical(world.train(interrupted_after(4, one_rank, tmp_path / "run"), **SETTINGS, **STEPS), one_rank)


def test_it_learns(world: World, tmp_path: Path):
    run = world.train(tmp_path, packing="documents", denoising="ul2", data={"first": 1}, steps=40, optimizer={"lr": 1e-2})
    assert sum(run.losses[-5:]) < 0.75 * sum(run.losses[:5])


def test_prefixes_seen_in_both_directions(world: World, one_rank, tmp_path: Path):
    settings = {**SETTINGS, "denoising": {**SETTINGS["denoising"], "decoder": "prefix"}, "steps": 2}
    one = world.train(tmp_path / "one", **settings)
    run = world.train(tmp_path / "run", *LAYOUTS["TP2xPP2"], **settings)
    assert run.losses == pytest.approx(one.losses, rel=1e-5) and run.norms == pytest.approx(one.norms, rel=1e-5)
    assert one.losses[0] != pytest.approx(one_rank.losses[0], rel=1e-5)  # the same samples, seen otherwise
    assert one.metrics[0]["loss/second"] == pytest.approx(one_rank.metrics[0]["loss/second"], rel=1e-6)  # nothing is hidden there
