"""Which tokens the optimizer sees at which step.

The order is a pure function of seed, corpora and integer counters: every rank computes the whole global batch's
samples and reads only its own, so the order does not depend on the data-parallel size and resume needs no iterator
state. A sample is ``sequence_length + 1`` consecutive tokens of a corpus whose documents are shuffled, or so many of whole chats, or of
windows of text of which a part is hidden.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from megatron_adapt.config import Denoising
from megatron_adapt.data.denoising import Ids
from megatron_adapt.data.mixing import Blend
from megatron_adapt.data.packing import PackedOrder
from megatron_adapt.data.preprocess import open_corpus
from megatron_adapt.data.sampling import Passes, Row, SampleOrder
from megatron_adapt.data.windows import DenoisedOrder
from megatron_adapt.errors import ConfigError


@dataclass
class Batch:
    """One data-parallel rank's part of a global batch, in micro-batches."""

    tokens: Tensor  # [micro_batches, micro_batch_size, sequence_length + 1] int64
    corpus: Tensor  # [micro_batches, micro_batch_size] index into Batches.names
    # Of documents kept apart: how long each is, for every micro-batch, of its samples one after the other
    lengths: list[tuple[int, ...]] | None = None
    # and float32 [micro_batches, micro_batch_size, sequence_length]: 0 where the next token begins another document, or is one
    # of a chat, or of a text of which a part is hidden, that is not learnt
    weights: Tensor | None = None
    # As lengths, where the first so many tokens of documents see one another in both directions
    prefixes: list[tuple[int, ...]] | None = None


class Batches:
    """Global batches of a phase.

    ``passes``: how much of a corpus is read how often, where that is not all of it, again and again. ``apart``: batches
    say where documents end, by their stored lengths. ``denoising``: how text is hidden, with the ids for it; None: it is learnt as it is.

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
        apart: bool = False,
        denoising: tuple[Denoising, Ids] | None = None,
        data_rank: int = 0,
        data_size: int = 1,
    ) -> None:
        self.names = list(weights)
        self.keys = {name: f"{name}@{sequence_length}" for name in self.names}
        self.blend = Blend(weights)
        self.length = sequence_length
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.apart = apart
        self.both_ways = denoising is not None and denoising[0].decoder == "prefix"
        self.consumed, self.drawn = consumed, drawn
        self.rank, self.size = data_rank, data_size
        if batch_size % (micro_batch_size * data_size):
            raise ConfigError(
                f"batch_size {batch_size} is not divisible by micro_batch_size x data-parallel ranks = "
                f"{micro_batch_size} x {data_size}."
            )
        self.order: dict[str, SampleOrder | PackedOrder | DenoisedOrder] = {}
        self.bytes_per_token: dict[str, float] = {}  # of chats and of text that is hidden: of those that are learnt
        for name in self.names:
            reader, stats = open_corpus(prefixes[name], tokenizer_digest)
            if "loss_mask" in stats:
                if not apart:
                    raise ConfigError(f"the corpus {name} is of chats, which must not see one another: set packing to documents")
                self.order[name] = PackedOrder(reader, sequence_length, seed, name)
                self.bytes_per_token[name] = stats["trained_bytes"] / max(stats["trained_tokens"], 1)
                continue
            read, self.bytes_per_token[name] = (passes or {}).get(name, Passes()), stats["bytes"] / stats["tokens"]
            if denoising is None or not denoising[0].applies(name):
                self.order[name] = SampleOrder(reader, sequence_length, seed, name, read)
                continue
            assert apart, "the recipe is checked"
            order = self.order[name] = DenoisedOrder(reader, stats, *denoising, sequence_length, seed, name, read)
            self.bytes_per_token[name] *= order.text_share
            self.keys[name] += f"/{denoising[0].digest}"  # its samples are others
        self.begin = {name: consumed.get(key, 0) - drawn.get(name, 0) for name, key in self.keys.items()}

    def next(self, batch_size: int | None = None) -> Batch:
        """The next global batch's part of this data-parallel rank; ``batch_size``: of a batch smaller than the others."""
        batch_size = batch_size or self.batch_size
        samples, counters = self.blend.next(self.drawn or self.blend.first(), batch_size)
        self.drawn.update(counters)
        for name in self.names:
            self.consumed[self.keys[name]] = self.begin[name] + counters[name]
        # Micro-batch m of all data-parallel ranks together is a consecutive run of the global batch.
        chosen = np.arange(batch_size).reshape(-1, self.size, self.micro_batch_size)[:, self.rank]
        windows = np.empty((chosen.size, self.length + 1), dtype=np.int64)
        corpus = np.empty(chosen.size, dtype=np.int64)
        weights = np.ones((chosen.size, self.length), dtype=np.float32)
        lengths: list[list[int]] = []
        prefixes: list[list[int]] = []
        for row, index in enumerate(chosen.reshape(-1)):
            name, number = samples[index]
            sample = self.order[name].row(self.begin[name] + number)
            windows[row] = sample.ids
            corpus[row] = self.names.index(name)
            lengths.append(input_lengths(sample.lengths))
            prefixes.append((sample.prefixes or [0] * len(sample.lengths))[: len(lengths[-1])])
            if sample.learnt is not None:
                weights[row] = sample.learnt[1:]
            weights[row, np.cumsum(sample.lengths[:-1], dtype=np.int64) - 1] = 0
        shape = chosen.shape
        batch = Batch(torch.from_numpy(windows).view(*shape, -1), torch.from_numpy(corpus).view(shape))
        if self.apart:
            micro = range(0, chosen.size, self.micro_batch_size)
            batch.lengths, joined = (
                [tuple(itertools.chain(*kind[begin : begin + self.micro_batch_size])) for begin in micro] for kind in (lengths, prefixes)
            )
            batch.prefixes = joined if self.both_ways else None
            batch.weights = torch.from_numpy(weights).view(*shape, -1)
        return batch

    def sample(self, number: int) -> tuple[str, Row, np.ndarray]:
        """(corpus, the sample, bool [tokens]: which are to be predicted) of a number that counts from the phase's begin; nothing advances."""
        samples, _ = self.blend.next(self.blend.first(), number + 1)
        name, index = samples[-1]
        row = self.order[name].row(self.begin[name] + index)
        targets = np.ones(len(row.ids), dtype=bool) if row.learnt is None else row.learnt.astype(bool)
        targets[0] = False
        if self.apart:
            targets[np.cumsum(row.lengths[:-1], dtype=np.int64)] = False
        return name, row, targets

    @property
    def read_otherwise(self) -> list[str]:
        """Corpora that the run has read before in samples of another kind only, so that their text may come again."""
        before = [key.split("@")[0] for key in self.consumed]
        return [name for name, key in self.keys.items() if name in before and key not in self.consumed]

    def notes(self) -> Iterator[str]:
        """What of the corpora is worth knowing before the first step."""
        for name, order in self.order.items():
            if isinstance(order, PackedOrder):
                yield f"{name}: an epoch has {order.samples:,} sequences of whole chats, which leave {order.free:.1%} of them empty"
                if order.left_out:
                    yield f"{name}: {order.left_out:,} of {order.chats:,} chats are longer than sequence_length {self.length} and left out"
        for name in self.read_otherwise:
            yield f"{name}: begins anew in other samples than the phases before had; what they have read may come again"

    @property
    def learns_all(self) -> bool:
        """Whether all is learnt but the first tokens of documents: neither chats nor hidden text."""
        return all(isinstance(order, SampleOrder) for order in self.order.values())

    def size_of(self, positions: Mapping[str, float], targets: Mapping[str, float]) -> float:
        """Bytes of text behind so many positions of each corpus, of chats and hidden text behind so many targets."""
        counts = {name: positions if isinstance(order, SampleOrder) else targets for name, order in self.order.items()}
        return sum(counts[name][name] * self.bytes_per_token[name] for name in self.names)


def input_lengths(lengths: Sequence[int]) -> list[int]:
    """Of the documents in a sample without its last token, which is a label only."""
    *before, last = lengths
    return [*before, last - 1] if last > 1 else before
