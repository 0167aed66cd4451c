"""Moments in main memory: AdamW's numbers, and refused where there is no GPU. Here both memories are the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from worlds import LAYOUTS, STEPS, World, assert_identical, interrupted_after, stored

from megatron_adapt.engine import offload, updates
from megatron_adapt.errors import ConfigError

OPTIMIZER = {"lr": 3e-3, "embedding_lr": 5e-3, "offload": True}


def test_needs_a_gpu(world: World, tmp_path: Path):
    with pytest.raises(ConfigError, match="optimizer.offload: moments are kept in main memory .* there is no GPU; remove it"):
        world.train(tmp_path, optimizer=OPTIMIZER)


@pytest.mark.parametrize("layout, precision", [("one", "bf16-mixed"), ("DP2+DO", "fp32")])
def test_training_is_adamws(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout, precision):
    monkeypatch.setattr(offload, "require_gpu", lambda: None)
    monkeypatch.setattr(updates, "BLOCK", 1000)
    options = STEPS | {"optimizer": OPTIMIZER, "precision": precision}
    run = world.train(tmp_path / "run", *LAYOUTS[layout], **options)
    plain = world.train(tmp_path / "plain", *LAYOUTS[layout], **(options | {"optimizer": OPTIMIZER | {"offload": False}}))
    assert run.losses == pytest.approx(plain.losses, rel=1e-5) and run.norms == pytest.approx(plain.norms, rel=1e-5)
    formats = [{name: (t.shape, t.dtype) for name, t in stored(one.folder).items()} for one in (run, plain)]
    assert formats[0] == formats[1]
    folder = interrupted_after(4, run, tmp_path / "resumed")
    assert_identical(world.train(folder, *LAYOUTS[layout], **options), run)


def test_is_that_of_torch_and_counts_earlier_updates(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(updates, "BLOCK", 7)
    options = {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}
    start = torch.randn(50, generator=torch.Generator().manual_seed(1))
    ours, aged, theirs = (torch.nn.Parameter(start.clone()) for _ in range(3))
    mine = offload.AdamW([ours, aged], ages={aged: 100}, **options)
    reference = torch.optim.AdamW([theirs], **options)
    for number in range(6):
        for weights in (ours, aged, theirs):
            weights.grad = torch.randn(50, generator=torch.Generator().manual_seed(number))
        mine.step()
        reference.step()
    assert (ours - theirs).abs().max() < 1e-6 and (ours - start).abs().max() > 0.02
    assert (aged - ours).abs().max() > 1e-3  # without the correction of the first moments
    assert all(moment.device.type == "cpu" for state in mine.state.values() for moment in state.values())
