"""Optimizer state from one phase to the next (``init_state: keep``).

What both phases train goes on with its moments, its main weights where they are kept apart, and its own count of
updates; what is new starts with none. So Adam's bias correction is each parameter's own, as with one optimizer over all
parameters of which some were frozen at first.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch.distributed.checkpoint import FileSystemReader, TensorStorageMetadata

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer.optimizer import MegatronOptimizer
from megatron_adapt.engine import integrity, optimizer as optimizers, optimizer_state, vocabulary
from megatron_adapt.engine.chunks import Chunks
from megatron_adapt.torch_dist.directory import Checkpoint

_STATE = "optimizer.state."
_FIRST = f"{_STATE}exp_avg."  # every optimizer has this moment


def ages(source: Checkpoint) -> dict[str, int]:
    """Parameters with optimizer state in a checkpoint, by canonical name: updates that they have had in the run."""
    position = source.position
    return {
        key.removeprefix(_FIRST): position.ages.get(key.removeprefix(_FIRST), 0) + position.updates
        for key in _stored(source)
        if key.startswith(_FIRST)
    }


def load(source: Checkpoint, model: GPTModel | Chunks, optimizer: MegatronOptimizer) -> None:
    """Fill the state of every trained parameter that has some in ``source``; all ranks call this."""
    integrity.require(source, lambda name: name.startswith(_STATE))
    stored, single = _stored(source), optimizers.base(optimizer)
    wanted = optimizer_state.sharded_state(single, vocabulary.sharded_state(model), loading=True)
    empty = {key: _empty(entry, stored[entry.key]) for key, entry in wanted.items() if entry.key in stored}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Megatron about torch
        # Ranks that have nothing to fill read with the others: it is collective.
        found = dist_checkpointing.load({"state": empty}, str(source.path)).get("state", {})
    optimizer_state.fill(single, found)


def _empty(entry: ShardedTensor | ShardedTensorFactory, dtype: torch.dtype) -> ShardedTensor | ShardedTensorFactory:
    """The same place with memory of its own, of the type that is stored; of gated MLPs a factory makes two of it."""
    data = torch.empty_like(entry.data, dtype=dtype)
    return replace(entry, data=data, dtype=dtype) if isinstance(entry, ShardedTensor) else replace(entry, data=data)


def _stored(source: Checkpoint) -> dict[str, torch.dtype]:
    entries = FileSystemReader(source.path).read_metadata().state_dict_metadata.items()
    return {
        key: entry.properties.dtype
        for key, entry in entries
        if isinstance(entry, TensorStorageMetadata) and key.startswith(_STATE)
    }
