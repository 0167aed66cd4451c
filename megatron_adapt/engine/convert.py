"""Weights between a Hugging Face directory and a Megatron model in memory.

A family's rules are pure tensor math on unsharded tensors; here each rank takes its slice. The source is read tensor
by tensor, so a rank holds its own part of the model plus one tensor.
"""

from __future__ import annotations

from typing import Iterator

import torch
from torch import Tensor

from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron_adapt.engine.model import named_parameters
from megatron_adapt.families import find_family
from megatron_adapt.families.family import ModelShape
from megatron_adapt.families.rules import hf_to_megatron, megatron_to_hf
from megatron_adapt.hf.directory import HFDirectory
from megatron_adapt.hf.weights import WeightReader


def tensor_parallel_slice(name: str, full: Tensor, shape: torch.Size, rank: int, size: int, gated: bool = True) -> Tensor:
    """Rank ``rank`` of ``size``'s part (of ``shape``) of an unsharded Megatron tensor; ``gated``: of a gated MLP.

    The one dimension that is longer in ``full`` is the one that is cut; a tensor of the same shape is replicated. The rows of
    the vocabulary need not be a multiple of ``size`` (``vocabulary.py``).
    """
    cut = [dim for dim in range(full.dim()) if full.size(dim) != shape[dim]]
    if not cut:
        return full
    if gated and name.endswith(("mlp.linear_fc1.weight", "mlp.linear_fc1.bias")):
        # [gate; up]: each rank holds its part of both halves.
        part = torch.cat([half.tensor_split(size, dim=cut[0])[rank] for half in full.chunk(2, dim=cut[0])])
    else:
        part = full.tensor_split(size, dim=cut[0])[rank]
    assert part.shape == shape, (name, full.shape, shape)
    return part


@torch.no_grad()
def load_hf(model: GPTModel, directory: HFDirectory, shape: ModelShape) -> None:
    """Fill this rank's model from a Hugging Face directory, cast to the model's dtype.

    Raises ``CheckpointError`` when tensors are missing, left over, truncated or of another shape.
    """
    targets: dict[str, list[torch.nn.Parameter]] = {}
    for name, parameter in named_parameters(model):
        targets.setdefault(name, []).append(parameter)
    rank = parallel_state.get_tensor_model_parallel_rank()
    size = parallel_state.get_tensor_model_parallel_world_size()
    with WeightReader(directory.path) as reader:
        for name, full in hf_to_megatron(find_family(directory.config), shape, reader):
            for parameter in targets.get(name, []):
                parameter.copy_(tensor_parallel_slice(name, full, parameter.shape, rank, size, shape.gated))


def to_hf(model: GPTModel, shape: ModelShape, config: dict, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
    """(Hugging Face name, tensor) of an unsharded model (tensor = pipeline = 1), cast to ``dtype`` when given."""
    assert parallel_state.get_tensor_model_parallel_world_size() == 1
    assert parallel_state.get_pipeline_model_parallel_world_size() == 1
    items = ((name, parameter.detach()) for name, parameter in named_parameters(model))
    for name, tensor in megatron_to_hf(find_family(config), shape, items):
        yield name, (tensor if dtype is None else tensor.to(dtype)).contiguous().cpu()
