"""Noise in training, off unless a phase asks for it: dropout (Srivastava et al. 2014) and NEFTune (Jain et al. 2023).

For dropout each rank has two streams of random numbers, Megatron's: one for what tensor-parallel ranks hold copies of, the
same on all of them, and one that is its own, for its heads and, under sequence parallelism, its positions. Both begin anew
with each micro-batch at each stage of the pipeline, by the seed, the phase, the step and the micro-batch's number in the
global batch; context-parallel ranks, which have other positions, add their number. So a run that is resumed draws what
it would have drawn, with nothing saved; the number of data-parallel ranks changes nothing; and what the backward pass
computes again finds the streams as they were, which Megatron keeps.

NEFTune's noise has a stream of its own for each thousand positions of a sample, by the seed, the phase, the step and the
sample's number in the global batch, of which each rank takes what it has: it is the same in every layout.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
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


BLOCK = 1024  # positions of a sample that share a stream: bounds what a rank draws for others


@dataclass(frozen=True)
class Seeds:
    """Of a micro-batch: ``streams`` of its dropout, and of the noise of each of its ``samples``."""

    streams: int
    samples: tuple[int, ...]


def seeds(phase: Phase, seed: int, step: int) -> Callable[[int], Seeds | None]:
    """The seeds of a step's micro-batches, by their number on this data-parallel rank; None: the phase has no noise."""
    if phase.dropout == Dropout() and not phase.neftune_alpha:
        return lambda number: None
    rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()

    def of(number: int) -> Seeds:
        place, count = number * size + rank, phase.micro_batch_size
        samples = tuple(_hash(seed, phase.name, step, "sample", place * count + row) for row in range(count))
        return Seeds(_hash(seed, phase.name, step, place), samples)

    return of


def begin(model: nn.Module, seeds: Seeds) -> None:
    """Begin this rank's streams for a micro-batch that goes through ``model`` next, a wrapped stage."""
    chunk = get_attr_wrapped_model(model, "pre_process", return_model_obj=True)
    stage = (chunk.vp_stage or 0) * parallel_state.get_pipeline_model_parallel_world_size() + parallel_state.get_pipeline_model_parallel_rank()
    backend.begin_random_numbers(_hash(seeds.streams, stage, context.place()[0]))
    if (disturbance := getattr(chunk, "disturbance", None)) is not None:
        disturbance.samples = seeds.samples


def add(model: nn.Module, phase: Phase) -> None:
    """Give the model of a phase what comes behind its embedding; layers have their dropout from ``model.build``."""
    for chunk in chunks(model):
        if chunk.pre_process:
            chunk.embedding.embedding_dropout.p = 0.0  # Megatron's, which has no rate of its own
            if phase.dropout.embedding or phase.neftune_alpha:
                disturbance = chunk.disturbance = _Disturbance(phase, chunk.config.sequence_parallel)
                chunk.register_forward_pre_hook(disturbance.begin, with_kwargs=True)
                chunk.embedding.register_forward_hook(disturbance)


class _Disturbance:
    """What comes behind the embedding, whose rows a family may have scaled: where transformers adds the noise, too."""

    def __init__(self, phase: Phase, parted: bool) -> None:
        self.phase, self.parted = phase, parted  # among tensor-parallel ranks: under sequence parallelism
        self.documents: Documents | None = None
        self.samples: tuple[int, ...] = ()  # seeds

    def begin(self, module: nn.Module, inputs: tuple, options: dict[str, Any]) -> None:
        self.documents = options.get("packed_seq_params")

    def __call__(self, module: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
        """``output [s, b, h]`` of the positions that this rank has."""
        if not module.training:
            return None
        if self.phase.neftune_alpha:
            output = output + self._noise(output)
        with backend.own_random_numbers(self.parted):
            return F.dropout(output, self.phase.dropout.embedding)

    def _noise(self, output: Tensor) -> Tensor:
        """As ``output``: of each position of each sample that this rank has, uniform within its bound."""
        assert self.samples, "the forward step begins each micro-batch"
        noise, width = torch.empty_like(output), output.size(-1)
        bound = self._bound(output)
        for column, begin, sample, places in self._runs(output):
            for block in range(places.start // BLOCK, -(-places.stop // BLOCK)):
                first, last = block * BLOCK, min((block + 1) * BLOCK, self.phase.sequence_length)
                generator = torch.Generator(output.device).manual_seed(block_seed(self.samples[sample], block))
                drawn = torch.empty(last - first, width, device=output.device).uniform_(-1, 1, generator=generator)
                low, high = max(first, places.start), min(last, places.stop)
                rows = slice(begin + low - places.start, begin + high - places.start)
                noise[rows, column] = drawn[low - first : high - first].mul_(bound if isinstance(bound, float) else bound[rows]).to(noise.dtype)
        return noise

    def _runs(self, output: Tensor) -> Iterator[tuple[int, int, int, range]]:
        """(column and first row of ``output``, number of a sample, positions of it) of what this rank has."""
        length, (count, columns) = self.phase.sequence_length, output.shape[:2]
        first = parallel_state.get_tensor_model_parallel_rank() * count if self.parted else 0
        begin = 0  # in a column before tensor-parallel ranks have parts of it
        for sample in range(len(self.samples)):
            begin = 0 if columns > 1 else begin
            for places in context.chunks(length):
                low, high = max(first, begin), min(first + count, begin + len(places))
                if low < high:
                    yield sample if columns > 1 else 0, low - first, sample, places[low - begin : high - begin]
                begin += len(places)

    def _bound(self, output: Tensor) -> Tensor | float:
        """alpha / sqrt(L h) (Jain et al. 2023, algorithm 1): of all positions, or ``[s, 1]`` of each by its document's L."""
        phase, width = self.phase, output.size(-1)
        if phase.neftune_per == "sequence":
            return phase.neftune_alpha / math.sqrt(phase.sequence_length * width)
        first = parallel_state.get_tensor_model_parallel_rank() * len(output) if self.parted else 0
        sizes = self.documents.sizes[first : first + len(output)]
        return (phase.neftune_alpha / torch.sqrt(sizes.float() * width))[:, None]


def block_seed(sample: int, block: int) -> int:
    """Of the noise of the ``block``-th ``BLOCK`` positions of a sample, by the sample's seed."""
    return _hash(sample, "block", block)


def _hash(*key: object) -> int:
    """Of 2^62, so that Megatron can count on from it for each rank."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big") >> 2
