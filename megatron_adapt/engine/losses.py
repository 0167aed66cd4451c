"""The forward step that Megatron's schedules call: tokens in, mean loss per target out, sums per corpus on the side."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Callable, Iterator

import torch
from torch import Tensor, nn

from megatron_adapt.config import Optimizer
from megatron_adapt.engine import backend, context, noise
from megatron_adapt.engine.batches import Batch
from megatron_adapt.engine.chunks import Chunks, chunks
from megatron_adapt.engine.cross_entropy import LanguageModel
from megatron_adapt.engine.packing import Documents


@dataclass
class MicroBatch:
    """What one forward pass reads, on the device: ``b`` samples of ``s`` positions, one below the other or in one row."""

    inputs: Tensor  # [b, s]; with documents [1, b * s], of which context-parallel ranks have a part each
    labels: Tensor  # as inputs
    positions: Tensor  # as inputs
    corpus: Tensor  # [b] which corpus each sample is of
    scale: float  # times the sum of the losses: what the schedule averages to the mean over the global batch
    weights: Tensor | None = None  # of each sample's positions: 1 for what is to be predicted, 0 at the last token of a document
    documents: Documents | None = None
    seeds: noise.Seeds | None = None  # of its random numbers, where a phase has noise
    shares: Tensor | None = None  # as weights: what each counts in that mean, where it is not one over targets


def micro_batches(
    batch: Batch, scale: float | None = None, restart: bool = True, seeds: Callable[[int], noise.Seeds | None] = lambda number: None,
    shares: Tensor | None = None,
) -> Iterator[MicroBatch]:
    """The micro-batches of a batch.

    Args:
        scale: micro-batches x data-parallel ranks / targets of the global batch; None: every position is one. With ``shares``
            of the batch the sum of these takes the targets' place.
        restart: positions count from 0 in each document, not in each sample.
        seeds: ``MicroBatch.seeds`` by number.
    """
    where = backend.device()
    for number, (rows, kinds) in enumerate(zip(batch.tokens, batch.corpus)):
        rows, corpus = backend.send(rows, where), backend.send(kinds, where)
        count, length = kinds.numel(), rows.size(1) - 1
        inputs, labels = context.mine(rows[:, :-1]).contiguous(), context.mine(rows[:, 1:]).contiguous()
        places = context.mine(positions(rows[:, :-1]))
        weights = None if batch.weights is None else backend.send(context.mine(batch.weights[number]), where)
        share = 1 / (count * length) if scale is None else scale
        if not in_one_row(batch):
            yield MicroBatch(inputs, labels, places, corpus, share, weights, seeds=seeds(number))
            continue
        lengths = (length,) * count if batch.lengths is None else batch.lengths[number]
        documents = Documents.of(lengths, length, where, None if batch.prefixes is None else batch.prefixes[number])
        places = documents.within if restart else places
        inputs, labels, places = (tensor.reshape(1, -1) for tensor in (inputs, labels, places))
        counts = None if shares is None else backend.send(context.mine(shares[number]), where)
        yield MicroBatch(inputs, labels, places, corpus, share, weights, documents, seeds(number), counts)


def shares(batch: Batch, per: str) -> Tensor | None:
    """What each position counts, float32 ``[micro-batches, b, s]``: the targets of a sequence, or of a document as far as it lies in
    one, count one together. None: every target does (``per`` token), or all positions are targets."""
    if batch.weights is None or per == "token":
        return None
    weights = batch.weights
    if per == "sequence":
        return weights / weights.sum(dim=-1, keepdim=True).clamp(min=1)
    found = torch.empty_like(weights)
    for into, row, lengths in zip(found.flatten(1), weights.flatten(1), batch.lengths):
        owner = torch.repeat_interleave(torch.tensor(lengths))
        targets = torch.zeros(len(lengths)).index_add_(0, owner, row)
        into.copy_(row / targets.clamp(min=1)[owner])
    return found


def in_one_row(batch: Batch) -> bool:
    """Whether samples lie one behind the other: where documents are kept apart, and under context parallelism."""
    return batch.lengths is not None or context.place()[1] > 1


def row_shape(batch: Batch) -> tuple[int, int]:
    """(length, rows) of the micro-batches' activations, before Megatron divides the length among ranks."""
    _, rows, length = batch.tokens[..., 1:].shape
    return (rows * length, 1) if in_one_row(batch) else (length, rows)


def forward(model: nn.Module, micro: MicroBatch) -> Tensor:
    """Losses of each position, shaped as the inputs; of a stage before the last what it hands on."""
    packed = {} if micro.documents is None else {"packed_seq_params": micro.documents}
    return model(micro.inputs, micro.positions, None, labels=micro.labels, **packed)


def positions(tokens: Tensor) -> Tensor:
    return torch.arange(tokens.size(1), device=tokens.device).expand_as(tokens)


def language_model_loss(num_corpora: int) -> Callable:
    """A ``forward_step_func`` for Megatron's schedules: next-token cross-entropy, natural logarithm."""

    def forward_step(batches: Iterator[MicroBatch], model: nn.Module) -> tuple[Tensor, Callable]:
        micro = next(batches)
        if micro.seeds is not None:
            noise.begin(model, micro.seeds)
        return forward(model, micro), partial(_mean, micro, num_corpora)

    return forward_step


def _mean(micro: MicroBatch, num_corpora: int, losses: Tensor) -> tuple[Tensor, Tensor]:
    """``losses``, shaped as the inputs -> (scaled sum, per corpus [loss sum, targets, positions] ``[3, num_corpora]`` float64)."""
    losses = losses.float().view(micro.corpus.numel(), -1)
    targets = torch.ones_like(losses) if micro.weights is None else micro.weights.view_as(losses)
    if micro.weights is not None:
        losses = losses * targets
    rows = [losses.detach().double().sum(dim=1), targets.double().sum(dim=1)]
    sums = torch.zeros(3, num_corpora, dtype=torch.float64, device=losses.device)
    for total, row in zip(sums, [*rows, torch.full_like(rows[0], losses.size(1))]):
        total.index_add_(0, micro.corpus, row)
    # The schedule divides what is returned first in place by the number of micro-batches: `sums` must not share memory.
    counted = losses if micro.shares is None else losses * micro.shares.view_as(losses)
    return counted.sum() * micro.scale, sums


# -------------------------------------------------------------------------------------- what a phase adds to the gradient


def regularize(model: LanguageModel | Chunks, settings: Optimizer) -> None:
    """Give the model of a phase ``settings.z_loss`` and ``settings.embedding_gradient``; losses that are reported stay as they
    are, only gradients change."""
    for chunk in chunks(model):
        _regularize(chunk, settings)


def _regularize(model: LanguageModel, settings: Optimizer) -> None:
    model.z_loss = settings.z_loss
    if settings.embedding_gradient < 1 and model.pre_process:

        def shrink(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            """e = a e + (1 - a) stop_gradient(e) (Zeng et al. 2023, GLM-130B), without rounding e."""
            if output.requires_grad:
                output.register_hook(lambda gradient: gradient * settings.embedding_gradient)

        model.embedding.register_forward_hook(shrink)
