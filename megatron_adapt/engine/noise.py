"""Noise in training, off unless a phase asks for it: dropout (Srivastava et al. 2014), whose random numbers follow from counters.

Each rank has two streams of random numbers, Megatron's: one for what tensor-parallel ranks hold copies of, the same on all of them,
and one that is its own, for its heads and, under sequence parallelism, its positions. Both begin anew with each micro-batch at each
stage of the pipeline, by the seed, the phase, the step and the micro-batch's number in the global batch. So a run that is resumed
draws what it would have drawn, with nothing saved; the number of data-parallel ranks changes nothing; and what the backward pass
computes again finds the streams as they were, which Megatron keeps for it.
"""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from megatron.core import parallel_state
from megatron.core.utils import get_attr_wrapped_model
from megatron_adapt.config import Dropout, Phase
from megatron_adapt.engine import backend
from megatron_adapt.engine.chunks import chunks


def seeds(phase: Phase, seed: int, step: int) -> Callable[[int], int | None]:
    """The seeds of a step's micro-batches, by their number on this data-parallel rank; None: the phase has no noise."""
    if phase.dropout == Dropout():
        return lambda number: None
    rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    return lambda number: _hash(seed, phase.name, step, number * size + rank)


def begin(model: nn.Module, seed: int) -> None:
    """Begin this rank's streams for a micro-batch that goes through ``model`` next, a wrapped stage."""
    chunk = get_attr_wrapped_model(model, "vp_stage", allow_none=True) or 0
    stage = chunk * parallel_state.get_pipeline_model_parallel_world_size() + parallel_state.get_pipeline_model_parallel_rank()
    backend.begin_random_numbers(_hash(seed, stage))


def add(model: nn.Module, phase: Phase) -> None:
    """Give the model of a phase what comes behind its embedding; layers have their dropout from ``model.build``."""
    for chunk in chunks(model):
        if chunk.pre_process:
            chunk.embedding.embedding_dropout.p = 0.0  # Megatron's, which has no rate of its own
            if phase.dropout.embedding:
                chunk.embedding.register_forward_hook(partial(_disturb, phase))


def _disturb(phase: Phase, module: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
    """``[s, b, h]``, or this rank's positions of it."""
    if not module.training:
        return None
    with backend.own_random_numbers(module.config.sequence_parallel):
        return F.dropout(output, phase.dropout.embedding)


def _hash(*key: object) -> int:
    """Of 2^62, so that Megatron can count on from it for each rank."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big") >> 2
