"""Norms of gradients, and their clipping where Megatron takes a loop over parameters: a few kernels for all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron.core.optimizer import clip_grads
from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
from megatron.core.transformer.module import param_is_not_shared
from megatron.core.utils import local_multi_tensor_applier, local_multi_tensor_l2_norm
from megatron_adapt.engine import backend, optimizer_state

# By which norms are reported, and what a parameter's canonical name says if it belongs there; the first counts.
GROUPS = {
    "embedding": r"^embedding\.",
    "output": r"^output_layer\.",
    "norms": r"norm[._](weight|bias)$",
    "attention": r"\.self_attention\.",
    "mlp": r"\.mlp\.",
}


def choose_kernels() -> None:
    """Norms of float32 gradients and clipping by torch on a CPU, and where there is neither Transformer Engine nor Apex.

    Megatron takes the kernels of these wherever they can be imported, on a CPU as well, where they do not run; and
    without them its own loops, which wait for the GPU at each parameter.
    """
    if not backend.has_gpu() or clip_grads.l2_norm_impl is local_multi_tensor_l2_norm:
        for name in vars(clip_grads).keys() & _BY_TORCH.keys():
            setattr(clip_grads, name, _BY_TORCH[name])


def _l2_norm(chunk_size: int, overflow: Tensor, lists: Sequence[list[Tensor]], per_tensor: bool) -> tuple[Tensor, None]:
    """Of all tensors of a list together, ``[1]``; a stand-in for ``amp_C.multi_tensor_l2norm``."""
    (tensors,) = lists
    return torch.stack(torch._foreach_norm(tensors)).norm().view(1), None


def _scale(chunk_size: int, overflow: Tensor, lists: Sequence[list[Tensor]], factor: float) -> None:
    """In place; a stand-in for ``amp_C.multi_tensor_scale``, which may also write elsewhere."""
    source, target = lists
    assert source is target
    torch._foreach_mul_(target, factor)


_BY_TORCH = {
    "multi_tensor_applier": local_multi_tensor_applier,
    "l2_norm_impl": _l2_norm,
    "multi_tensor_scale_impl": _scale,
    "multi_tensor_scale_tensor_impl": None,  # of 0.19
}


def norm(single: Any) -> float:
    """L2 norm of bf16 gradients over all model-parallel ranks; in float64, it does not depend on who holds what."""
    name = "get_main_grads_for_grad_norm"  # as 0.16 calls it
    gradients = getattr(single, name)() if hasattr(single, name) else single.get_grads_for_grad_norm()
    total = _squares(gradients, torch.float64)
    dist.all_reduce(total, group=single.get_grad_stats_parallel_group())
    return float(total.sqrt())


def group_norms(single: Any, names: Mapping[int, str]) -> dict[str, float]:
    """Norm of the gradients of each of ``GROUPS`` that trains. Collective.

    Args:
        names: id of a parameter -> canonical name.
    """
    counts, members = [0] * len(GROUPS), [[] for _ in GROUPS]
    for slot in optimizer_state.slots(single):
        if slot.updated is None or slot.updated.grad is None:
            continue
        name = names[id(slot.parameter)]
        number = next(number for number, pattern in enumerate(GROUPS.values()) if re.search(pattern, name))
        counts[number] += 1
        if param_is_not_shared(slot.updated) and param_is_not_tensor_parallel_duplicate(slot.updated):
            members[number].append(slot.updated.grad)
    found = backend.send(torch.tensor(counts, dtype=torch.float64), backend.device())
    sums = torch.stack([torch.cat([_squares(each, torch.float32) for each in members]), found])
    dist.all_reduce(sums, group=single.get_grad_stats_parallel_group())
    squares, counts = sums.tolist()
    return {group: square**0.5 for group, square, count in zip(GROUPS, squares, counts) if count}


def _squares(gradients: Iterable[Tensor], dtype: torch.dtype) -> Tensor:
    """Sum of the squares of norms that are computed in ``dtype``, float64 ``[1]``."""
    gradients = list(gradients)
    if not gradients:
        return torch.zeros(1, dtype=torch.float64, device=backend.device())
    return torch.stack(torch._foreach_norm(gradients, 2, dtype=dtype)).double().square().cumsum(0)[-1:]
