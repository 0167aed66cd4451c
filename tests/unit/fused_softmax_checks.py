"""What the Triton kernels of ``fused_softmax`` have to satisfy: on a GPU, or on a CPU with TRITON_INTERPRET=1.

    python tests/unit/fused_softmax_checks.py DEVICE
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from megatron_adapt.engine import backend, cross_entropy

POSITIONS, ROWS, HIDDEN, Z = 9, 4300, 8, 0.1
WAYS = ("kernels", "torch")


def choose(way: str) -> None:
    cross_entropy.is_fused = lambda tensor: way == "kernels"


def example(device: str, dtype: torch.dtype, *shape: int, seed: int = 0, factor: float = 1.0) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * factor).to(device, dtype)


def close(found: Tensor, expected: Tensor, relative: float) -> None:
    found, expected = found.double().cpu(), expected.double().cpu()
    assert found.isfinite().all() and (found - expected).norm() <= relative * expected.norm(), (found - expected).norm() / expected.norm()


def statistics(device: str) -> None:
    """Of two slices, the second shorter than a block, against float64; labels in either, and in neither."""
    for dtype in (torch.bfloat16, torch.float32):
        for cap in (None, 3.0):
            logits = example(device, dtype, POSITIONS, ROWS, factor=4.0)
            places = torch.tensor([0, 1, 2047, 2048, 4095, 4096, 4299, -5, ROWS + 7], device=device)
            choose("kernels")
            sums = cross_entropy._nothing_yet(logits)
            for begin, end in ((0, 4096), (4096, ROWS)):
                cross_entropy._add_statistics(logits[:, begin:end].contiguous(), places - begin, *sums, cap)
            exact = logits.double() if cap is None else cap * torch.tanh(logits.double() / cap)
            top, total, chosen = sums
            close(top, exact.amax(dim=1), 1e-6)
            close(total.log() + top, exact.logsumexp(dim=1), 1e-6)
            close(chosen[:7], exact.gather(1, places[:7, None])[:, 0], 1e-6)
            assert not chosen[7:].any()


def gradients(device: str) -> None:
    """In place, every element written; of large logits, too, whose exp alone would overflow."""
    for dtype, allowed in ((torch.bfloat16, 4e-3), (torch.float32, 1e-5)):
        for cap in (None, 30.0):
            logits = example(device, dtype, POSITIONS, ROWS, factor=4.0) + 100
            places = torch.arange(POSITIONS, device=device) * 500 - 3  # the first one is not here
            wide = logits.double() if cap is None else cap * torch.tanh(logits.double() / cap)
            log_total = wide.logsumexp(dim=1)
            factor, slope = (example(device, torch.float32, POSITIONS, seed=seed).abs() for seed in (1, 2))
            exact = torch.exp(wide - log_total[:, None]) * factor.double()[:, None]
            exact[torch.arange(1, POSITIONS), places[1:]] -= slope.double()[1:]
            exact *= 1 if cap is None else 1 - (wide / cap) ** 2
            choose("kernels")
            close(cross_entropy._gradient(logits, places, log_total.float(), factor, slope, cap), exact, allowed if cap is None else 2e-2)


def losses(device: str) -> None:
    """Both losses, with a z-loss, beside torch's operations: losses per token and gradients, of weighted sums and, as in training on
    every token, of plain ones, whose gradient is one number in memory."""
    backend.start(backend.Layout(), 0)
    cross_entropy.LOGITS_OF_A_SLICE = 1  # slices of 128 rows
    labels = torch.arange(POSITIONS, device=device) * 40 + 1
    weighted = example(device, torch.float32, POSITIONS, seed=5)
    for cap, z, upstream in ((None, 0.0, weighted), (3.0, Z, weighted), (None, Z, torch.full_like(weighted[0], 0.5).expand(POSITIONS))):
        found: dict[str, list[Any]] = {}
        for way in WAYS:
            choose(way)
            hidden, weight = example(device, torch.float32, POSITIONS, HIDDEN), example(device, torch.float32, 400, HIDDEN, seed=1)
            hidden.requires_grad_(), weight.requires_grad_()
            sliced = cross_entropy.LinearCrossEntropy.apply(hidden, weight, labels, 0, cap, z)
            sliced.backward(upstream)
            logits = example(device, torch.float32, POSITIONS, 1, 400, seed=2).requires_grad_()
            before = logits.detach().clone()
            whole = cross_entropy.CrossEntropy.apply(logits, labels[:, None], 0, z)
            whole.backward(upstream[:, None])
            assert torch.equal(logits.detach(), before)
            found[way] = [sliced, hidden.grad, weight.grad, whole, logits.grad]
        for ours, theirs in zip(*found.values()):
            close(ours.detach(), theirs.detach(), 1e-5)


if __name__ == "__main__":
    for check in (statistics, gradients, losses):
        check(sys.argv[1])
        print(check.__name__, flush=True)
