"""Which tokens the optimizer sees at which step.

The order is a pure function of seed, corpora and integer counters: every rank computes the whole global batch's
samples and reads only its own, so the order does not depend on the data-parallel size and resume needs no iterator
state. A sample is ``sequence_length + 1`` consecutive tokens of a corpus whose documents are shuffled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from megatron_adapt.data.mixing import Blend
from megatron_adapt.data.preprocess import open_corpus
from megatron_adapt.data.sampling import Passes, SampleOrder
from megatron_adapt.errors import ConfigError


@dataclass
class Batch:
    """One data-parallel rank's part of a global batch, in micro-batches."""

    tokens: Tensor  # [micro_batches, micro_batch_size, sequence_length + 1] int64
    corpus: Tensor  # [micro_batches, micro_batch_size] index into Batches.names


class Batches:
    """Global batches of a phase.

    ``passes``: how much of a corpus is read how often, where that is not all of it, again and again.

    Both counters are updated in place by ``next`` and are all there is to save: ``drawn`` (name -> samples of this
    phase) drives the blend, ``consumed`` (name@length -> samples of the whole run) the place in each corpus, so that a
    later phase goes on where an earlier one stopped instead of repeating it.
    """

    def __init__(
        self,
        prefixes: dict[str, Path],
        weights: dict[str, float],
        *,
        tokenizer_digest: str,
        sequence_length: int,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        consumed: dict[str, int],
        drawn: dict[str, int],
        passes: Mapping[str, Passes] | None = None,
        data_rank: int = 0,
        data_size: int = 1,
    ) -> None:
        self.names = list(weights)
        self.keys = {name: f"{name}@{sequence_length}" for name in self.names}
        self.blend = Blend(weights)
        self.length = sequence_length
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.consumed, self.drawn = consumed, drawn
        self.begin = {name: consumed.get(key, 0) - drawn.get(name, 0) for name, key in self.keys.items()}
        self.rank, self.size = data_rank, data_size
        if batch_size % (micro_batch_size * data_size):
            raise ConfigError(
                f"batch_size {batch_size} is not divisible by micro_batch_size x data-parallel ranks = "
                f"{micro_batch_size} x {data_size}."
            )
        self.order: dict[str, SampleOrder] = {}
        self.bytes_per_token: dict[str, float] = {}
        for name in self.names:
            reader, stats = open_corpus(prefixes[name], tokenizer_digest)
            self.order[name] = SampleOrder(reader, sequence_length, seed, name, (passes or {}).get(name, Passes()))
            self.bytes_per_token[name] = stats["bytes"] / stats["tokens"]

    def next(self) -> Batch:
        """The next global batch's part of this data-parallel rank."""
        samples, counters = self.blend.next(self.drawn or self.blend.first(), self.batch_size)
        self.drawn.update(counters)
        for name in self.names:
            self.consumed[self.keys[name]] = self.begin[name] + counters[name]
        # Micro-batch m of all data-parallel ranks together is a consecutive run of the global batch.
        chosen = np.arange(self.batch_size).reshape(-1, self.size, self.micro_batch_size)[:, self.rank]
        windows = np.empty((chosen.size, self.length + 1), dtype=np.int64)
        corpus = np.empty(chosen.size, dtype=np.int64)
        for row, index in enumerate(chosen.reshape(-1)):
            name, number = samples[index]
            windows[row] = self.order[name].tokens(self.begin[name] + number)
            corpus[row] = self.names.index(name)
        shape = chosen.shape
        return Batch(torch.from_numpy(windows).view(*shape, -1), torch.from_numpy(corpus).view(shape))
