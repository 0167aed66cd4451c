"""Activations that are computed again in the backward pass: the same gradients, and they are not kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from worlds import LAYOUTS, SEED, Layout, Outcome, World, hf_model, on_ranks

from megatron_adapt.engine import backend, model as models
from megatron_adapt.engine.losses import positions

RELATIVE = 1e-5
MLPS = r"regex:layers\.\d+\.mlp"


@pytest.fixture(scope="module")
def kept(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """One rank that keeps everything, by what is trained."""
    return {train: world.train(tmp_path_factory.mktemp("kept"), start="untied", train=train) for train in ("all", MLPS)}


@pytest.mark.parametrize("layout, recompute, train", [
    ("one", "selective", "all"),
    ("one", "full", "all"),
    ("TP2+SP", "selective", "all"),
    ("TP2xPP2", "full", "all"),
    ("PP2xVP2", "selective", "all"),
    ("CP2", "full", "all"),
    # Under a frozen embedding no input has a gradient: what is computed again of it would give its weights none.
    ("one", "full", MLPS),
])  # fmt: skip
def test_training_is_the_same(world: World, kept, tmp_path: Path, layout, recompute, train):
    run = world.train(tmp_path, *LAYOUTS[layout], start="untied", train=train, recompute=recompute)
    assert run.losses == pytest.approx(kept[train].losses, rel=RELATIVE)
    assert run.norms == pytest.approx(kept[train].norms, rel=RELATIVE)


@pytest.mark.parametrize("changes", [
    {}, {"parallel_residual": True}, {"mlp_bias": True}, {"parallel_residual": True, "mlp_bias": True},
], ids=["Megatron's layer", "ours", "Megatron's with biases", "ours with biases"])  # fmt: skip
@pytest.mark.parametrize("recompute, mlps, attentions", [("none", 1, 1), ("selective", 2, 1), ("full", 2, 2)])
def test_what_is_computed_twice(world: World, changes, recompute, mlps, attentions):
    def count() -> tuple[int, int, float]:
        _, shape = hf_model(world.model("untied"))
        model = models.build(replace(shape, **changes), Layout(), "fp32", recompute).train()
        generator = torch.Generator().manual_seed(SEED)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
        calls = {"mlp": 0, "self_attention": 0}
        for layer in model.decoder.layers:
            for name in calls:
                part = getattr(layer, name)
                part.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
        tokens = torch.arange(12).view(2, 6)
        model(tokens, positions(tokens), None, labels=tokens).mean().backward()
        norm = sum(parameter.grad.double().square().sum().item() for parameter in model.parameters())
        backend.stop()
        return calls["mlp"] // shape.num_layers, calls["self_attention"] // shape.num_layers, norm

    ((found_mlps, found_attentions, norm),) = on_ranks(1, count)
    assert (found_mlps, found_attentions) == (mlps, attentions)
    assert norm == pytest.approx(NORMS.setdefault(str(changes), norm), rel=RELATIVE)


NORMS: dict[str, float] = {}  # of the gradients, by what differs in the model
