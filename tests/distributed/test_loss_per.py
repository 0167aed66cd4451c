"""The mean that a step's loss is: over tokens, sequences or documents, whatever ranks and micro-batches it is spread over."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from worlds import LAYOUTS, World

from megatron_adapt.engine import losses
from megatron_adapt.engine.batches import Batch

RANKS, MICRO_BATCHES, ROWS, LENGTH = 2, 3, 2, 12
LENGTHS = ((5, 1, 6), (12,), (2, 10), (4, 4, 4))  # of the documents of a sample, by turns


def made(rank: int) -> Batch:
    """One rank's batch, in which some documents, and a whole sequence, have nothing to learn."""
    draw = torch.Generator().manual_seed(rank)
    tokens = torch.randint(50, (MICRO_BATCHES, ROWS, LENGTH + 1), generator=draw)
    weights = (torch.rand(MICRO_BATCHES, ROWS, LENGTH, generator=draw) < 0.4).float()
    weights[1, 0] = 0
    lengths = [LENGTHS[(rank + number) % 4] + LENGTHS[(rank + number + 1) % 4] for number in range(MICRO_BATCHES)]
    return Batch(tokens, torch.zeros(MICRO_BATCHES, ROWS, dtype=torch.int64), lengths, weights)


def expected(batches: list[Batch], table: torch.Tensor, per: str) -> torch.Tensor:
    """Position by position."""
    groups: list[list[torch.Tensor]] = []
    for batch in batches:
        for rows, weights, lengths in zip(batch.tokens[..., 1:].flatten(1), batch.weights.flatten(1), batch.lengths):
            sizes = {"token": [1] * ROWS * LENGTH, "sequence": [LENGTH] * ROWS, "document": lengths}[per]
            for labels, mask in zip(rows.split(list(sizes)), weights.split(list(sizes))):
                groups.append([table[label] for label, weight in zip(labels, mask) if weight])
    return torch.stack([torch.stack(group).mean() for group in groups if group]).mean()


@pytest.mark.parametrize("per", ["token", "sequence", "document"])
def test_as_computed_one_by_one(per):
    table = torch.rand(50, generator=torch.Generator().manual_seed(9)).requires_grad_()
    batches = [made(rank) for rank in range(RANKS)]
    counted = [losses.shares(batch, per) for batch in batches]
    total = sum((batch.weights if shares is None else shares).sum() for batch, shares in zip(batches, counted))
    step, found, targets = losses.language_model_loss(1), 0.0, 0.0
    for batch, shares in zip(batches, counted):
        parts = losses.micro_batches(batch, MICRO_BATCHES * RANKS / float(total), shares=shares)
        for _ in range(MICRO_BATCHES):
            output, loss = step(parts, lambda inputs, positions, mask, labels, packed_seq_params: table[labels])
            value, sums = loss(output)
            found, targets = found + value / MICRO_BATCHES / RANKS, targets + sums[1].item()  # as the schedule, and as ranks average
    reference = expected(batches, table, per)
    assert found.item() == pytest.approx(reference.item(), rel=1e-5)
    assert targets == sum(batch.weights.sum().item() for batch in batches)  # what is reported stays as it is
    ours, theirs = (torch.autograd.grad(loss, table)[0] for loss in (found, reference))
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("per, layout", [("sequence", "DP2"), ("document", "CP2")])
def test_any_ranks_and_micro_batches_train_alike(world: World, tmp_path: Path, per, layout):
    settings = {"start": "untied", "packing": "documents", "steps": 2}
    one = world.train(tmp_path / "one", **settings, loss_per=per, micro_batch_size=8)
    run = world.train(tmp_path / layout, *LAYOUTS[layout], **settings, loss_per=per)
    assert run.losses == pytest.approx(one.losses, rel=1e-5) and run.norms == pytest.approx(one.norms, rel=1e-5)
    token = world.train(tmp_path / "token", **settings, micro_batch_size=8)
    assert one.losses[0] == token.losses[0]  # what is shown is the mean over tokens
    assert one.norms[0] != pytest.approx(token.norms[0], rel=1e-4)
