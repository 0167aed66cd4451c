"""Noise in training, off unless a phase asks for it: dropout (Srivastava et al. 2014) and NEFTune (Jain et al. 2023).

Each rank has two streams of random numbers, Megatron's: one for what tensor-parallel ranks hold copies of, the same on
all of them, and one that is its own, for its heads and, under sequence parallelism, its positions. Both begin anew with
each micro-batch at each stage of the pipeline, by the seed, the phase, the step and the micro-batch's number in the
global batch; context-parallel ranks, which have other positions, add their number. So a run that is resumed draws what
it would have drawn, with nothing saved; the number of data-parallel ranks changes nothing; and what the backward pass
computes again finds the streams as they were, which Megatron keeps.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron.core import parallel_state
from megatron.core.utils import get_attr_wrapped_model
from megatron_adapt.config import Dropout, Phase
from megatron_adapt.engine import backend, context
from megatron_adapt.engine.chunks import chunks
from megatron_adapt.engine.packing import Documents


def seeds(phase: Phase, seed: int, step: int) -> Callable[[int], int | None]:
    """The seeds of a step's micro-batches, by their number on this data-parallel rank; None: the phase has no noise."""
    if phase.dropout == Dropout() and not phase.neftune_alpha:
        return lambda number: None
    rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    return lambda number: _hash(seed, phase.name, step, number * size + rank)


def begin(model: nn.Module, seed: int) -> None:
    """Begin this rank's streams for a micro-batch that goes through ``model`` next, a wrapped stage."""
    chunk = get_attr_wrapped_model(model, "vp_stage", allow_none=True) or 0
    stage = chunk * parallel_state.get_pipeline_model_parallel_world_size() + parallel_state.get_pipeline_model_parallel_rank()
    backend.begin_random_numbers(_hash(seed, stage, context.place()[0]))


def add(model: nn.Module, phase: Phase) -> None:
    """Give the model of a phase what comes behind its embedding; layers have their dropout from ``model.build``."""
    for chunk in chunks(model):
        if chunk.pre_process:
            chunk.embedding.embedding_dropout.p = 0.0  # Megatron's, which has no rate of its own
            if phase.dropout.embedding or phase.neftune_alpha:
                disturbance = _Disturbance(phase, chunk.config.sequence_parallel)
                chunk.register_forward_pre_hook(disturbance.begin, with_kwargs=True)
                chunk.embedding.register_forward_hook(disturbance)


class _Disturbance:
    """What comes behind the embedding, whose rows a family may have scaled: where transformers adds the noise, too."""

    def __init__(self, phase: Phase, parted: bool) -> None:
        self.phase, self.parted = phase, parted  # among tensor-parallel ranks: under sequence parallelism
        self.documents: Documents | None = None

    def begin(self, module: nn.Module, inputs: tuple, options: dict[str, Any]) -> None:
        self.documents = options.get("packed_seq_params")

    def __call__(self, module: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
        """``output [s, b, h]`` of the positions that this rank has."""
        if not module.training:
            return None
        with backend.own_random_numbers(self.parted):
            if self.phase.neftune_alpha:
                noise = torch.empty_like(output, dtype=torch.float32).uniform_(-1, 1)
                output = output + noise.mul_(self._bound(output)).to(output.dtype)
            return F.dropout(output, self.phase.dropout.embedding)

    def _bound(self, output: Tensor) -> Tensor | float:
        """alpha / sqrt(L h) (Jain et al. 2023, algorithm 1): of all positions, or ``[s, 1, 1]`` of each by its document's L."""
        phase, width = self.phase, output.size(-1)
        if phase.neftune_per == "sequence":
            return phase.neftune_alpha / math.sqrt(phase.sequence_length * width)
        first = parallel_state.get_tensor_model_parallel_rank() * len(output) if self.parted else 0
        sizes = self.documents.sizes[first : first + len(output)]
        return (phase.neftune_alpha / torch.sqrt(sizes.float() * width))[:, None, None]


def _hash(*key: object) -> int:
    """Of 2^62, so that Megatron can count on from it for each rank."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big") >> 2
