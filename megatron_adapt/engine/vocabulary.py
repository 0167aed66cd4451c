"""The vocabulary among tensor-parallel ranks: rows of the embedding and of the head, checkpoints, logits.

Of V rows each of n ranks has V // n, and the first V % n ranks one more, as ``torch.tensor_split`` cuts. So every row that
exists is a row of the model in any layout: nothing is padded, masked out of the softmax, kept from decay or left out of
norms and checkpoints. Megatron's layers only know equal shares; they are built for the larger one, and cut.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron_adapt.engine.chunks import Chunks, chunks
from megatron_adapt.families.rules import EMBEDDING, OUTPUT
from megatron_adapt.torch_dist.writer import CONTENT


def share(rows: int, rank: int, ranks: int) -> range:
    """Which of the rows are rank ``rank``'s; the first rank's share is the largest."""
    first = rank * (rows // ranks) + min(rank, rows % ranks)
    return range(first, first + rows // ranks + (rank < rows % ranks))


def mine(rows: int) -> range:
    """Which of the rows are this rank's."""
    group = parallel_state.get_tensor_model_parallel_group()
    return share(rows, group.rank(), group.size())


def most(rows: int) -> int:
    """How many of the rows the first rank has: no rank has more."""
    return len(share(rows, 0, parallel_state.get_tensor_model_parallel_group().size()))


def cut(model: GPTModel, rows: int) -> None:
    """Give a model that was built for the ``most`` rows on all ranks this rank's share."""
    own = mine(rows)
    model.vocab_size = rows
    if model.pre_process:
        embedding = model.embedding.word_embeddings
        embedding.num_embeddings, embedding.num_embeddings_per_partition = rows, len(own)
        embedding.vocab_start_index, embedding.vocab_end_index = own.start, own.stop
        _shorten(embedding.weight, len(own))
    if model.post_process:
        model.output_layer.output_size, model.output_layer.output_size_per_partition = rows, len(own)
        if model.output_layer.weight is not None:  # a tied head is the embedding's
            _shorten(model.output_layer.weight, len(own))


def _shorten(weight: torch.nn.Parameter, rows: int) -> None:
    if rows < len(weight):
        weight.data = weight.data[:rows].clone()  # the parameter stays the one that Megatron has marked


def sharded_state(model: GPTModel | Chunks) -> dict[str, Any]:
    """Megatron's ``sharded_state_dict`` of a model, in which the vocabulary has the rows it has."""
    state = model.sharded_state_dict(metadata=CONTENT)
    rows = chunks(model)[0].vocab_size
    for name, entry in state.items():
        if entry.key in (EMBEDDING, OUTPUT):
            state[name] = replace(
                entry,
                global_shape=(rows, entry.local_shape[1]),
                global_offset=(mine(rows).start, 0),
                axis_fragmentations=None,  # shares may differ
                allow_shape_mismatch=False,
            )
    return state


def gathered(part: Tensor, rows: int) -> Tensor:
    """This rank's part of logits ``[..., rows]`` -> the whole, on every tensor-parallel rank."""
    group = parallel_state.get_tensor_model_parallel_group()
    shares = [len(share(rows, rank, group.size())) for rank in range(group.size())]
    if len(shares) == 1:
        return part
    part = F.pad(part, (0, shares[0] - part.size(-1))).contiguous()
    parts = [torch.empty_like(part) for _ in shares]
    dist.all_gather(parts, part, group=group)
    return torch.cat([each[..., :count] for each, count in zip(parts, shares)], dim=-1)
