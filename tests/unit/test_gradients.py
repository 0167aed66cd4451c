"""Norms and clipping of float32 gradients by a few kernels: bit for bit Megatron's loops, and in their place alone."""

from __future__ import annotations

import pytest
import torch

from megatron.core.optimizer import clip_grads
from megatron.core.utils import local_multi_tensor_applier, local_multi_tensor_l2_norm, local_multi_tensor_scale
from megatron_adapt.engine import backend, gradients

NAMES = ("multi_tensor_applier", "l2_norm_impl", "multi_tensor_scale_impl")


def example() -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = [(300, 7), (1,), (64, 65), (5000,)]
    return [torch.randn(shape, generator=draw) * 10.0**power for power, shape in enumerate(shapes, -2)]


def test_the_numbers_of_megatrons_loops() -> None:
    tensors, scaled = example(), example()
    found, _ = local_multi_tensor_applier(gradients._l2_norm, torch.zeros(1), [tensors], False)
    assert torch.equal(found, torch.norm(torch.tensor([[torch.norm(tensor) for tensor in tensors]]))[None])
    local_multi_tensor_scale(0, torch.zeros(1), [scaled, scaled], 0.3)
    local_multi_tensor_applier(gradients._scale, torch.zeros(1), [tensors, tensors], 0.3)
    assert all(torch.equal(a, b) for a, b in zip(tensors, scaled)) and not torch.equal(tensors[0], example()[0])


OTHERS = [(False, print, True), (True, local_multi_tensor_l2_norm, True), (True, print, False)]


@pytest.mark.parametrize(("gpu", "theirs", "replaced"), OTHERS)
def test_kernels_of_other_libraries_stay_where_they_run(gpu, theirs, replaced, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setattr(clip_grads, name, theirs)
    monkeypatch.setattr(backend, "has_gpu", lambda: gpu)
    gradients.choose_kernels()
    assert (clip_grads.l2_norm_impl is gradients._l2_norm) == replaced
    assert (clip_grads.multi_tensor_scale_impl is gradients._scale) == replaced
    assert (clip_grads.multi_tensor_applier is local_multi_tensor_applier) == replaced
