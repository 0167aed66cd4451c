"""Moments of 8 bits (bitsandbytes): trained like AdamW's, continued exactly, refused by name where they cannot be had."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from worlds import (
    LAYOUTS, SEED, STEPS, Layout, World, assert_identical, interrupted_after, on_ranks, phase, stored,
)  # fmt: skip

from megatron_adapt.engine import backend, eight_bit, loop, optimizer as optimizers
from megatron_adapt.errors import ConfigError

installed = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
OPTIMIZER = {"type": "adamw8bit", "lr": 3e-3, "embedding_lr": 5e-3}


def test_needs_bitsandbytes(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    eight_bit._kind.cache_clear()
    with pytest.raises(ConfigError, match=r"optimizer.type: adamw8bit needs bitsandbytes, which cannot be imported.*pip install"):
        world.train(tmp_path, optimizer=OPTIMIZER)


def test_paging_needs_a_gpu(world: World, tmp_path: Path):
    with pytest.raises(ConfigError, match="optimizer.paged: bitsandbytes moves memory between a GPU and main memory"):
        world.train(tmp_path, optimizer=OPTIMIZER | {"paged": True})


@installed
def test_trains_like_adamw(world: World, tmp_path: Path):
    eight = world.train(tmp_path / "8", precision="bf16-mixed", optimizer=OPTIMIZER)
    full = world.train(tmp_path / "32", precision="bf16-mixed", optimizer=OPTIMIZER | {"type": "adamw"})
    assert eight.losses == pytest.approx(full.losses, rel=0.01) and eight.losses[-1] < eight.losses[0] - 0.1
    assert eight.losses[1:] != full.losses[1:]
    formats = [{name: (t.shape, t.dtype) for name, t in stored(run.folder).items()} for run in (eight, full)]
    assert formats[0] == formats[1]  # of which any optimizer's state could go on, and any layout


@installed
@pytest.mark.parametrize("layout, precision", [("one", "bf16-mixed"), ("DP2+DO", "fp32")])
def test_resumed_is_uninterrupted(world: World, tmp_path: Path, layout, precision):
    options = STEPS | {"optimizer": OPTIMIZER, "precision": precision}
    reference = world.train(tmp_path / "reference", *LAYOUTS[layout], **options)
    folder = interrupted_after(4, reference, tmp_path / "run")
    assert_identical(world.train(folder, *LAYOUTS[layout], **options), reference)
    if layout == "one":
        other = world.train(interrupted_after(4, reference, tmp_path / "TP2"), *LAYOUTS["TP2"], **options)
        assert other.losses == pytest.approx(reference.losses, rel=1e-2)


@installed
def test_large_parameters_have_bytes(world: World, tmp_path: Path):
    job = world.job(tmp_path, Layout(), phase(optimizer=OPTIMIZER, steps=1), world.imported("short"))

    def kinds() -> dict[torch.dtype, int]:
        backend.start(Layout(), SEED)
        run = loop._Run(job, lambda line: None, lambda done, total: None)
        run.run()
        optimizer = optimizers.base(run.optimizer).optimizer
        assert all(state["step"] == 1 for state in optimizer.state.values())
        return {parameter.numel(): state["state1"].dtype for parameter, state in optimizer.state.items()}

    ((found),) = on_ranks(1, kinds)
    assert {size >= 4096 for size in found} == {True, False}
    assert all(dtype == (torch.uint8 if size >= 4096 else torch.float32) for size, dtype in found.items())


@installed
@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq"])
def test_moments_go_through_a_checkpoint(name):
    """With their scales to the same bits; without, as near as 8 bits are."""
    weights = torch.nn.Parameter(torch.zeros(5000))
    optimizer = eight_bit.build([{"params": [weights]}], False, {}, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for step in range(3):
        weights.grad = torch.randn(5000, generator=torch.Generator().manual_seed(step))
        optimizer.step()
    place = {"exp_avg": "state1", "exp_avg_sq": "state2"}[name]
    bits, value, scales = optimizer.state[weights][place].clone(), optimizer.moment(weights, name), optimizer.scales(weights, name)
    assert value.std() > 0.01
    scales = scales.clone()
    optimizer.set_moment(weights, name, torch.ones(5000), None)
    assert not torch.equal(optimizer.state[weights][place], bits)
    optimizer.set_moment(weights, name, value, None)
    assert (optimizer.moment(weights, name) - value).abs().max() < 0.02 * value.abs().max()
    optimizer.set_moment(weights, name, value, scales)
    assert torch.equal(optimizer.state[weights][place], bits) and torch.equal(optimizer.moment(weights, name), value)
