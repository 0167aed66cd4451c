"""Context parallelism: each rank of a group has a part of every sequence, and the keys and values of all of it.

The positions of a sample are cut into 2 n equal chunks for n ranks, of which rank r takes r and 2 n - 1 - r, as Megatron does:
what causal attention costs grows with the position, and the sum is the same for all. Queries stay where they are. Keys and values,
of which grouped-query attention has few, are gathered from all ranks before attention, and their gradients summed and scattered
after it (Llama 3 Team 2024, section 3.3.2). Everything else in a model looks at one position at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron.core import parallel_state
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region


def place() -> tuple[int, int]:
    """(number of this rank in its group, ranks of the group)."""
    size = parallel_state.get_context_parallel_world_size()  # 0 before ranks are arranged
    return (parallel_state.get_context_parallel_rank(), size) if size > 1 else (0, 1)


def chunks(length: int) -> list[range]:
    """The positions of a sample that this rank has, in its order."""
    rank, size = place()
    if size == 1:
        return [range(length)]
    chunk = length // (2 * size)
    return [range(number * chunk, (number + 1) * chunk) for number in (rank, 2 * size - 1 - rank)]


def mine(samples: Tensor) -> Tensor:
    """``[b, s]`` -> ``[b, s / n]``, what this rank has of each sample."""
    parts = [samples[:, chunk.start : chunk.stop] for chunk in chunks(samples.size(1))]
    return torch.cat(parts, dim=1) if len(parts) > 1 else samples


def rows(places: Tensor, length: int, samples: int) -> Tensor:
    """Where positions of a whole micro-batch are, counted from sample to sample, once ``gathered``: int64 as ``places``."""
    _, size = place()
    chunk = length // (2 * size)
    sample, within = places // length, places % length
    number = within // chunk
    owner = torch.minimum(number, 2 * size - 1 - number)
    local = sample * 2 * chunk + torch.where(number < size, 0, chunk) + within % chunk
    return owner * samples * 2 * chunk + local


def gathered(k: Tensor, v: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values ``[1, groups, t, d]`` of this rank -> those of the ``chosen`` ``rows`` of all ranks."""
    both = torch.stack([k[0], v[0]], dim=1).permute(2, 1, 0, 3).contiguous()  # [t, 2, groups, d]
    both = gather_from_sequence_parallel_region(both, group=parallel_state.get_context_parallel_group())
    k, v = both.index_select(0, chosen).permute(1, 2, 0, 3)
    return k[None], v[None]
