"""What a step sends to its device: never from memory that a GPU has to be waited for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_adapt.engine import backend
from megatron_adapt.engine.batches import Batch
from megatron_adapt.engine.losses import micro_batches, shares

META = torch.device("meta")  # in the place of a GPU


class Copies(TorchDispatchMode):
    """Counts copies from the CPU to ``META`` that do not wait, and finds those that do."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[torch.Size] = []
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: tuple = (), named: dict | None = None) -> Any:
        named = named or {}
        if named.get("device") == META and isinstance(arguments[0], torch.Tensor) and arguments[0].device.type == "cpu":
            self.count += 1
            if not named.get("non_blocking"):
                self.waiting.append(arguments[0].shape)
        return function(*arguments, **named)


@pytest.mark.parametrize("packed", [False, True])
def test_a_batch_is_sent_from_pinned_memory(monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    pinned: list[int] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor.numel()) or tensor)
    monkeypatch.setattr(backend, "device", lambda: META)
    batch = Batch(torch.zeros(2, 2, 9, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.int64))
    if packed:
        batch.lengths, batch.weights = [(5, 3, 8), (8, 8)], torch.ones(2, 2, 8)
    with Copies() as copies:
        sent = list(micro_batches(batch, 1.0 if packed else None, shares=shares(batch, "document")))
    assert copies.waiting == [] and copies.count == len(pinned) == (16 if packed else 4)
    tensors = [value for micro in sent for value in vars(micro).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == (12 if packed else 8) and {tensor.device for tensor in tensors} == {META}


def test_on_a_cpu_nothing_is_copied() -> None:
    tensor = torch.arange(3)
    assert backend.send(tensor, torch.device("cpu")) is tensor
