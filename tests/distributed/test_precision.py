"""Training with weights, gradients and moments in bf16: reproducible, the same on replicas, continued exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from worlds import (
    LAYOUTS, SEED, STEPS, Layout, Outcome, World, assert_identical, changed, interrupted_after, on_ranks, phase, stored,
    tensors,
)  # fmt: skip

from megatron_adapt.engine import backend, loop
from megatron_adapt.engine.model import named_parameters

ROUNDINGS = ("stochastic", "kahan", "nearest")


def settings(rounding: str, **changes: object) -> dict:
    return {"precision": "bf16-true", "optimizer": {"lr": 3e-3, "rounding": rounding, **changes}}


@pytest.mark.parametrize("layout, rounding, optimizer", [
    ("one", "stochastic", {}),
    ("TP2xPP2", "stochastic", {"type": "lionw", "lr": 3e-4}),
    ("PP2", "kahan", {}),
    ("DP2", "nearest", {"type": "lionw", "lr": 3e-4, "embedding_lr": 1e-3}),
    ("TP2", "kahan", {"type": "muon"}),
])  # fmt: skip
def test_resumed_is_uninterrupted(world: World, tmp_path: Path, layout, rounding, optimizer):
    options = settings(rounding, **optimizer) | STEPS
    reference = world.train(tmp_path / "reference", *LAYOUTS[layout], **options)
    folder = interrupted_after(4, reference, tmp_path / "run")
    assert_identical(world.train(folder, *LAYOUTS[layout], **options), reference)
    assert all(tensor.dtype == torch.bfloat16 for tensor in tensors(reference.folder).values())


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_layouts_agree_roughly(world: World, tmp_path: Path, rounding):
    runs = [
        world.train(tmp_path / name, *LAYOUTS[name], **settings(rounding)) for name in ("one", "TP2", "PP2", "DP2")
    ]
    for run in runs[1:]:
        assert run.losses == pytest.approx(runs[0].losses, rel=0.01)
        assert run.losses[-1] < run.losses[0] - 0.1


@pytest.mark.parametrize("layout, ranks", [(Layout(), 2), (Layout(pipeline=2), 2)], ids=["DP2", "PP2"])
def test_copies_of_a_weight_stay_equal(world: World, tmp_path: Path, layout, ranks):
    """Replicas of data parallelism, and the two copies of a tied matrix on the ends of a pipeline."""
    trained = phase(optimizer=settings("stochastic")["optimizer"])
    job = world.job(tmp_path, layout, trained, world.imported("short tied"), "bf16-true")

    def train() -> dict[str, torch.Tensor]:
        backend.start(layout, SEED)
        run = loop._Run(job, lambda line: None, lambda done, total: None)
        run.run()
        return {name: parameter.detach().clone() for name, parameter in named_parameters(run.bare)}

    first, second = on_ranks(ranks, train)
    shared = set(first) & set(second)
    assert shared == (set(first) if ranks == 2 and layout.pipeline == 1 else {"embedding.word_embeddings.weight"})
    assert all(torch.equal(first[name], second[name]) for name in shared)


@pytest.mark.parametrize("layout, rounding, optimizer", [
    ("DP2", "stochastic", {}),
    ("DP2", "kahan", {}),
    ("DP2", "nearest", {"type": "lionw", "lr": 3e-4, "embedding_lr": 1e-3}),
    ("PP2xDP2", "stochastic", {"type": "lionw", "lr": 3e-4}),
])  # fmt: skip
def test_shared_optimizer_state_is_the_same_bits(world: World, tmp_path: Path, layout, rounding, optimizer):
    """The distributed optimizer updates parts of the bf16 weights as they are updated whole; its checkpoints are the same."""
    plain, ranks = replace(LAYOUTS[f"{layout}+DO"][0], distributed_optimizer=False), LAYOUTS[f"{layout}+DO"][1]
    options = settings(rounding, **optimizer) | STEPS | {"start": "short tied"}
    copies = world.train(tmp_path / "copies", plain, ranks, **options)
    shared = world.train(tmp_path / "shared", *LAYOUTS[f"{layout}+DO"], **options)
    assert_same_but_norms(shared, copies)
    assert all(tensor.dtype == torch.bfloat16 for tensor in stored(shared.folder).values())
    if rounding != "kahan":
        return
    # On from the other's checkpoint: each reads what the other wrote.
    for source, other, arguments in ((copies, "to shared", LAYOUTS[f"{layout}+DO"]), (shared, "to copies", (plain, ranks))):
        folder = interrupted_after(4, source, tmp_path / other)
        assert_same_but_norms(world.train(folder, *arguments, **options), copies)


def assert_same_but_norms(run: Outcome, reference: Outcome) -> None:
    """The same bits, but for norms of gradients, which are summed up in parts."""
    for ours, theirs in zip(run.metrics, reference.metrics, strict=True):
        assert ours == {key: pytest.approx(value, rel=1e-5) if "norm" in key else value for key, value in theirs.items()}
    assert changed(stored(reference.folder), stored(run.folder)) == set()


def test_how_many_weights_changed_is_measured(world: World, tmp_path: Path):
    """At a learning rate of adaptation rounding to the nearest freezes most weights; what is frozen is not counted."""
    small = {"weight_decay": 0.0, "lr": 1e-5}
    constant = {"schedule": {"type": "constant"}}
    shares = {}
    for rounding in ROUNDINGS:
        run = world.train(tmp_path / rounding, **(settings(rounding, **small) | constant))
        shares[rounding] = [line["changed_weights"] for line in run.metrics]
        assert all(0 <= share <= 1 for share in shares[rounding])
    assert max(shares["nearest"]) < 0.05 and 2 * sum(shares["nearest"]) < sum(shares["stochastic"]), shares
    split = world.train(tmp_path / "split", Layout(tensor=2, pipeline=2), **(settings("nearest", **small) | constant))
    assert [line["changed_weights"] for line in split.metrics] == pytest.approx(shares["nearest"], abs=0.02)
    mixed = world.train(tmp_path / "mixed", precision="bf16-mixed")
    assert "changed_weights" not in mixed.metrics[0]


def test_an_embedding_phase_changes_nothing_else(world: World, tmp_path: Path):
    run = world.train(tmp_path, start="bf16", train="embedding", **settings("stochastic"))
    before = {name: tensor.to(torch.bfloat16) for name, tensor in tensors(world.imported("bf16")).items()}
    assert changed(before, tensors(run.folder)) == {"embedding.word_embeddings.weight"}
