"""Optimizer state shared by the data-parallel ranks: the same training as with copies, and as on one rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from worlds import LAYOUTS, Outcome, World

RELATIVE = 1e-5  # float32; sums are taken in another order
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "packed": {"packing": "documents"},
    "lionw": {"optimizer": {"type": "lionw", "lr": 3e-4}},
}


@pytest.fixture(scope="module")
def one_rank(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    return {name: world.train(tmp_path_factory.mktemp(name), **changes) for name, changes in VARIANTS.items()}


@pytest.mark.parametrize("layout, variant, more", [
    ("DP2+DO", "plain", {}),
    ("TP2xDP2+DO", "plain", {}),
    ("DP2+DO", "packed", {}),
    ("PP2xDP2+DO", "packed", {"recompute": "full"}),
    ("TP2xDP2+DO", "plain", {"recompute": "selective"}),
    ("DP2+DO", "lionw", {}),
    ("TP2xDP2+DO", "lionw", {}),
])  # fmt: skip
def test_training_equals_one_rank(world: World, one_rank, tmp_path: Path, layout, variant, more):
    run, reference = world.train(tmp_path, *LAYOUTS[layout], **VARIANTS[variant], **more), one_rank[variant]
    assert len(reference.losses) == 5 and reference.losses[-1] < reference.losses[0]
    assert run.losses == pytest.approx(reference.losses, rel=RELATIVE)
    assert run.norms == pytest.approx(reference.norms, rel=RELATIVE)


def test_a_stage_without_state_to_keep(world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """It reads with the others, which is collective; and nothing is said about the insides of Megatron and torch."""
    first = world.train(tmp_path / "first", *LAYOUTS["PP2xDP2+DO"], name="first", train="embedding", steps=1)
    world.train(tmp_path / "second", *LAYOUTS["PP2xDP2+DO"], start=first.folder, init_state="keep", steps=1)
    assert capfd.readouterr().err == ""
