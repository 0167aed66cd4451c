"""The forward step that Megatron's schedules call: tokens in, mean loss per token out, sums per corpus on the side."""

from __future__ import annotations

from functools import partial
from typing import Callable, Iterator

import torch
from torch import Tensor, nn

from megatron_adapt.engine import backend


def micro_batches(tokens: Tensor, corpus: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """``[m, b, s + 1]`` and ``[m, b]`` -> one (tokens ``[b, s + 1]``, corpus ``[b]``) after the other, on the device."""
    where = backend.device()
    for rows, kinds in zip(tokens, corpus):
        yield rows.to(where, non_blocking=True), kinds.to(where, non_blocking=True)


def positions(tokens: Tensor) -> Tensor:
    return torch.arange(tokens.size(1), device=tokens.device).expand_as(tokens)


def language_model_loss(num_corpora: int) -> Callable:
    """A ``forward_step_func`` for Megatron's schedules: next-token cross-entropy, natural logarithm."""

    def forward_step(batches: Iterator[tuple[Tensor, Tensor]], model: nn.Module) -> tuple[Tensor, Callable]:
        rows, corpus = next(batches)
        inputs, labels = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
        losses = model(inputs, positions(inputs), None, labels=labels)
        return losses, partial(_mean, corpus, num_corpora)

    return forward_step


def _mean(corpus: Tensor, num_corpora: int, losses: Tensor) -> tuple[Tensor, Tensor]:
    """``losses [b, s]`` -> (mean, per corpus [loss sum, tokens] as ``[2, num_corpora]`` float64)."""
    per_sample = losses.detach().double().sum(dim=1)
    sums = torch.zeros(2, num_corpora, dtype=torch.float64, device=losses.device)
    sums[0].index_add_(0, corpus, per_sample)
    sums[1].index_add_(0, corpus, torch.full_like(per_sample, losses.size(1)))
    # The schedule divides what is returned first in place by the number of micro-batches: `sums` must not share memory.
    return losses.float().mean(), sums
