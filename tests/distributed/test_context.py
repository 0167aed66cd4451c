"""Context parallelism: ranks that have a part of every sequence each train what one rank does."""

from __future__ import annotations

import os
import warnings
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from worlds import SEED, Layout, Outcome, World, hf_model, on_ranks, tensors

from megatron_adapt.engine import backend
from megatron_adapt.engine.batches import Batch
from megatron_adapt.engine.losses import forward, micro_batches
from megatron_adapt.errors import ConfigError

RELATIVE = 1e-5  # float32; sums are taken in another order
BOTH = ("chunks", "documents")
LAYOUTS = {  # layout, ranks, micro_batch_size, packings
    "CP2": (Layout(context=2), 2, 4, BOTH),
    "CP2xTP2": (Layout(context=2, tensor=2), 4, 4, BOTH[:1]),
    "CP2xTP2+SP": (Layout(context=2, tensor=2, sequence=True), 4, 4, BOTH[1:]),
    "CP2xPP2": (Layout(context=2, pipeline=2), 4, 2, BOTH[1:]),
    "CP2xPP2xVP2": (Layout(context=2, pipeline=2, virtual_pipeline=2), 4, 2, BOTH[:1]),
    "CP2xDP2+DO": (Layout(context=2, distributed_optimizer=True), 4, 2, BOTH[1:]),
    "CP4": (Layout(context=4), 4, 8, BOTH),
}
RUNS = [pytest.param(*rest, packing, id=f"{name}-{packing}") for name, (*rest, packings) in LAYOUTS.items() for packing in packings]


@pytest.fixture(scope="module")
def one_rank(world: World, tmp_path_factory: pytest.TempPathFactory):
    """A function that trains on one rank; repeated settings are trained once."""

    @lru_cache
    def train(model: str, **settings: str) -> Outcome:
        return world.train(tmp_path_factory.mktemp("one"), start=model, evaluate_every=5, **settings)

    return train


def assert_same(run: Outcome, reference: Outcome) -> None:
    assert len(reference.losses) == 5 and min(reference.losses[1:]) < reference.losses[0]
    assert [line.keys() for line in run.metrics] == [line.keys() for line in reference.metrics]
    for ours, theirs in zip(run.metrics, reference.metrics):
        assert ours == pytest.approx(theirs, rel=RELATIVE), theirs["step"]
    ours, theirs = tensors(run.folder), tensors(reference.folder)
    assert max((ours[name] - theirs[name]).abs().max().item() for name in theirs) < 1e-4


@pytest.mark.parametrize("layout, ranks, micro, packing", RUNS)
def test_every_layout_equals_one_rank(world: World, one_rank, tmp_path: Path, layout, ranks, micro, packing):
    model = "short" if layout.pipeline == 1 else "tied" if layout.virtual_pipeline > 1 else "short tied"
    run = world.train(tmp_path, layout, ranks, start=model, evaluate_every=5, micro_batch_size=micro, packing=packing)
    assert_same(run, one_rank(model, packing=packing))


def test_nothing_is_said_about_names_of_collectives(world: World):
    def said() -> list[str]:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            model, _ = hf_model(world.model("untied"), Layout(context=2))
            batch = Batch(torch.arange(18).view(1, 2, 9), torch.zeros(1, 2).long())
            forward(model, next(micro_batches(batch))).sum().backward()  # gathers, reduces and scatters
        return [str(one.message) for one in found if "torch.distributed" in str(one.message)]

    assert on_ranks(2, said) == [[], []]


def test_ranks_that_cannot_be_arranged():
    def refused() -> str:
        os.environ["WORLD_SIZE"] = "6"
        with pytest.raises(ConfigError) as error:
            backend.start(Layout(tensor=2, context=2), SEED)
        return str(error.value)

    assert on_ranks(1, refused) == [
        "6 processes cannot be split into tensor x context x pipeline = 2 x 2 x 1 = 4 model ranks: start a multiple of 4 processes."
    ]
