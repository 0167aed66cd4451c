"""A short training of nothing but the vocabulary's rows: what a start is worth shows after a few steps, not at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from megatron_adapt.engine import backend, model as models
from megatron_adapt.engine.losses import positions

BATCH = 8  # windows a step
RATE = 1e-3
WARMUP = 20  # steps


def train(model: nn.Module, windows: Tensor, steps: int, seed: int) -> list[float]:
    """AdamW on the input and output rows, everything else frozen; one process holds the whole model.

    Args:
        model: of ``engine.model.build``, float32, one rank.
        windows: int64 [n, length + 1]; taken in an order that ``seed`` decides, again from the front when they run out.
    Returns:
        The loss of every step, nats a token.
    """
    models.freeze(model, ["embedding", "output"])
    rows = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(rows, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    order = torch.randperm(len(windows), generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    losses = []
    for step in range(steps):
        chosen = order[torch.arange(step * BATCH, (step + 1) * BATCH, device="cpu") % len(order)]
        batch = windows[chosen].to(backend.device())
        inputs = batch[:, :-1].contiguous()
        loss = model(inputs, positions(inputs), None, labels=batch[:, 1:].contiguous()).float().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(rows, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / WARMUP)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses
