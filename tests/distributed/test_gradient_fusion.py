"""Layers that add weight gradients to the wrapper's sums themselves, as Transformer Engine's do: asked to, and believed."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from torch import Tensor, nn
from worlds import LAYOUTS, World, hf_model, on_ranks

from megatron_adapt.engine import model as models


class Product(torch.autograd.Function):
    """What a layer of Transformer Engine does in place of returning a weight's gradient: it leaves garbage there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, layer: nn.Module) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.layer = layer
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        found = None
        if ctx.needs_input_grad[1]:
            found = gradient.flatten(0, -2).t() @ x.flatten(0, -2)
            if ctx.layer.fuse_wgrad_accumulation:
                weight.main_grad.add_(found)
                weight.grad_added_to_main_grad = True
                found = torch.full_like(weight, torch.nan)
        return gradient @ weight, found, None


def forward(layer: nn.Module, x: Tensor, *_: object, **__: object) -> tuple[Tensor, None]:
    return Product.apply(x, layer.weight, layer), None


@pytest.fixture
def layers_that_add(monkeypatch):
    build = models.build

    def changed(*args: object, **kwargs: object) -> nn.Module:
        model = build(*args, **kwargs)
        for layer in model.decoder.modules():
            if isinstance(layer, (ColumnParallelLinear, RowParallelLinear)):
                layer.fuse_wgrad_accumulation = False
                layer.forward = types.MethodType(forward, layer)
        return model

    monkeypatch.setattr(models, "build", changed)


def asked(model: nn.Module) -> list[bool]:
    return [part.fuse_wgrad_accumulation for part in model.modules() if hasattr(part, "fuse_wgrad_accumulation")]


def test_layers_are_asked_when_there_are_sums_to_add_to(world: World, layers_that_add):
    def work() -> tuple[list[bool], list[bool], list[bool]]:
        model, _ = hf_model(world.model("untied"))
        before = asked(model)
        megatrons = [part.gradient_accumulation_fusion for part in model.modules() if isinstance(part, ColumnParallelLinear)]
        models.wrap(model, "fp32")
        return before, asked(model), megatrons

    ((before, after, megatrons),) = on_ranks(1, work)
    assert before == [False] * 16 and after == [True] * 16  # of four matrices in four layers
    assert megatrons and not any(megatrons)


@pytest.mark.parametrize("layout, options", [
    ("one", {}), ("PP2", {}), ("DP2+DO", {}), ("one", {"recompute": "full"}), ("one", {"train": ["embedding", "norms"]}),
    ("one", {"precision": "bf16-true"}),
])  # fmt: skip
def test_their_gradients_are_those_of_others(world: World, tmp_path: Path, request, layout, options):
    expected = world.train(tmp_path / "returned", *LAYOUTS[layout], **options)
    request.getfixturevalue("layers_that_add")
    found = world.train(tmp_path / "added", *LAYOUTS[layout], **options)
    assert found.losses == pytest.approx(expected.losses, rel=1e-6 if "precision" not in options else 2e-3)
    assert found.norms == pytest.approx(expected.norms, rel=1e-5 if "precision" not in options else 2e-2)
