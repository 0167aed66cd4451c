"""What the Triton kernel of ``fused_update`` has to satisfy: on a GPU, or on a CPU with TRITON_INTERPRET=1.

    python tests/unit/fused_update_checks.py DEVICE
"""

from __future__ import annotations

import sys
from typing import Callable

import numpy as np
import torch
from torch import Tensor

from megatron_adapt.engine import fused_update, updates
from megatron_adapt.engine.fused_update import Part
from megatron_adapt.engine.rates import RowRates
from megatron_adapt.engine.updates import AdamW, LionW

COUNT = 3000  # three programs, the last one not full
SEED = 0x1234_5678_9ABC_DEF
GROUP = {"lr": 3e-3, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8, "step": 3}
KINDS = {AdamW: 2, LionW: 1}


def example(moments: int, device: str, seed: int = 0) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(weights, gradient, moments) in bf16"""
    draw = torch.Generator().manual_seed(seed)
    weights, gradient, first = (torch.randn(COUNT, generator=draw) for _ in range(3))
    second = torch.rand(COUNT, generator=draw)
    return *(x.to(device, torch.bfloat16) for x in (weights, gradient)), [x.to(device, torch.bfloat16) for x in (first, second)][:moments]


def exact(kind: type, weights: Tensor, gradient: Tensor, moments: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """What is to be rounded: the torch path's float32 numbers."""
    wide = [moment.float() for moment in moments]
    optimizer = kind([torch.nn.Parameter(torch.zeros(1))], **{key: GROUP[key] for key in ("lr", "weight_decay", "betas")})
    return optimizer._new_weights(weights.float(), gradient.float() * 0.5, wide, GROUP), wide


def run(weights: Tensor, gradient: Tensor, moments: list[Tensor], rounding: str, first: int = 0, compensation: Tensor | None = None) -> int:
    part = Part(weights, gradient, moments, compensation, GROUP, SEED, first)
    return int(fused_update.update([part], rounding=rounding, gradient_scale=0.5))


class Launches(list[int]):
    """Programs of every launch while it stands in for the kernel."""

    kernel = fused_update._update

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        self.append(*grid)
        return self.kernel[grid]


def philox(seed: int, places: np.ndarray, rounds: int = 7) -> list[np.ndarray]:
    """Philox 4x32 (Salmon et al. 2011, section 3.3) of the counters (place, 0) under the key ``seed``."""
    low = np.uint64(0xFFFFFFFF)
    c = [places & low, places >> np.uint64(32), np.zeros_like(places), np.zeros_like(places)]
    keys = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(rounds):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [(b >> np.uint64(32)) ^ c[1] ^ np.uint64(keys[0]), b & low, (a >> np.uint64(32)) ^ c[3] ^ np.uint64(keys[1]), a & low]
        keys = [(keys[0] + 0x9E3779B9) & 0xFFFFFFFF, (keys[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def rounded(x: Tensor, random: np.ndarray) -> Tensor:
    bits = x.cpu().numpy().view(np.int32) + (random & np.uint64(0xFFFF)).astype(np.int32)
    return torch.from_numpy((bits & np.int32(-65536)).view(np.float32)).to(torch.bfloat16)


def equal(found: Tensor, expected: Tensor, exceptions: int) -> None:
    """A GPU may fuse a product and a sum: another last bit of float32, and in rare cases another bf16 neighbour."""
    different = int((found.cpu() != expected.cpu()).sum())
    assert different <= exceptions, f"{different} of {found.numel()} differ"
    assert torch.allclose(found.cpu().float(), expected.cpu().float(), rtol=2**-7, atol=1e-6)


def nearest(device: str) -> None:
    for kind, count in KINDS.items():
        weights, gradient, moments = example(count, device)
        before = weights.clone()
        new, wide = exact(kind, weights, gradient, moments)
        changed = run(weights, gradient, moments, "nearest")
        equal(weights, new.to(torch.bfloat16), 3)
        for found, expected in zip(moments, wide):
            equal(found, expected.to(torch.bfloat16), 3)
        assert changed == int((weights != before).sum()) and 0 < changed < COUNT


def kahan(device: str) -> None:
    weights, gradient, moments = example(2, device)
    compensation = (torch.randn(COUNT, generator=torch.Generator().manual_seed(1)) * 1e-3).to(device, torch.bfloat16)
    start = weights.float() + compensation.float()
    new, _ = exact(AdamW, start, gradient, moments)
    run(weights, gradient, moments, "kahan", compensation=compensation)
    equal(weights, new.to(torch.bfloat16), 3)
    # Weight and compensation together are the exact number, to 16 bits.
    assert ((weights.double() + compensation.double() - new.double()).abs() <= new.double().abs() * 2**-15 + 1e-7).all()


def stochastic(device: str) -> None:
    for kind, count in KINDS.items():
        weights, gradient, moments = example(count, device)
        new, wide = exact(kind, weights, gradient, moments)
        run(weights, gradient, moments, "stochastic", first=2**32 - 1000)
        random = philox(SEED, np.arange(2**32 - 1000, 2**32 - 1000 + COUNT, dtype=np.uint64))
        for found, expected, noise in zip([weights, *moments], [new, *wide], random):
            equal(found, rounded(expected, noise), 5)
            assert not torch.equal(found.cpu(), expected.cpu().to(torch.bfloat16))  # they are not simply the nearest
    counts = np.histogram(philox(SEED, np.arange(1 << 16, dtype=np.uint64))[0] & np.uint64(0xFFFF), bins=16)[0]
    assert abs(counts - 4096).max() < 5 * 4096**0.5


def parts(device: str) -> None:
    """A parameter in two parts gets what it gets as a whole."""
    whole, gradient, moments = example(2, device)
    pieces = [tensor.clone() for tensor in (whole, gradient, *moments)]
    run(whole, gradient, moments, "stochastic")
    for begin, end in ((0, 1500), (1500, COUNT)):
        weights, slope, *rest = (tensor[begin:end] for tensor in pieces)
        run(weights, slope, rest, "stochastic", first=begin)
    assert torch.equal(pieces[0], whole) and all(torch.equal(a, b) for a, b in zip(pieces[2:], moments))


def together(device: str) -> None:
    """Parameters of any size, group, seed and type in one call: each gets the bits that it gets alone, and one launch takes what moves
    alike. One of 4,096 lies a number behind what 16 divides."""
    sizes = (1, 0, 16, 1024, 1040, 3000, 4096, 5)
    groups = [{**GROUP, "lr": 3e-3 / (number + 1), "step": number + 1, "weight_decay": 0.1 * (number % 3)} for number in range(len(sizes))]
    for kind, rounding in ((2, "stochastic"), (2, "kahan"), (1, "stochastic"), (1, "nearest")):
        for dtype in (torch.bfloat16, torch.float32):

            def made() -> list[Part]:
                draw, parts = torch.Generator().manual_seed(4), []
                for number, (size, group) in enumerate(zip(sizes, groups)):
                    whole = [torch.rand(size + 1, generator=draw).to(device, dtype) for _ in range(5)]
                    weights, gradient, first, second, lost = (each[size == 4096 :][:size] for each in whole)
                    kept = lost if rounding == "kahan" else None
                    parts.append(Part(weights, gradient, [first, second][:kind], kept, group, SEED + number, 2**32 - 700 * number))
                return parts

            at_once, alone = made(), made()
            fused_update._update, fused_update.TOGETHER = (launches := Launches()), 3 if rounding == "nearest" else 16
            changed = int(fused_update.update(at_once, rounding=rounding, gradient_scale=0.5))
            fused_update._update = Launches.kernel
            assert sorted(launches) == ([1, 1, 4 + 1, 1 + 2 + 3] if rounding == "nearest" else [1 + 1 + 4, 1 + 1 + 2 + 3])
            assert changed == sum(int(fused_update.update([part], rounding=rounding, gradient_scale=0.5)) for part in alone)
            assert (changed > 0) == (dtype == torch.bfloat16)
            for ours, theirs, before in zip(at_once, alone, made()):
                assert torch.equal(ours.weights, theirs.weights) and not (ours.weights.numel() and torch.equal(ours.moments[0], before.moments[0]))
                assert all(torch.equal(a, b) for a, b in zip(ours.moments, theirs.moments))
                assert ours.compensation is None or torch.equal(ours.compensation, theirs.compensation)


def rows(device: str) -> None:
    """Learning rates of rows, whole and in parts that begin within a row, as the torch path has them; float32 weights to the last bits."""
    rates, columns = RowRates((2, 1, 3), (0.25, 1.0, 2.0), 30), 30
    for dtype in (torch.float32, torch.bfloat16):
        start = example(2, device)[0].to(dtype)
        for kind in KINDS:

            def trained(fused: bool, *ranges: slice) -> Tensor:
                updates.is_fused = lambda parameter: fused
                pieces = {torch.nn.Parameter(start[part].clone()): part for part in ranges}
                options = {key: GROUP[key] for key in ("lr", "weight_decay", "betas", *(("eps",) if kind is AdamW else ()))}
                parts = {piece: (part.start, COUNT) for piece, part in pieces.items()}
                ours = kind(list(pieces), parts=parts, row_rates=dict.fromkeys(pieces, rates), **options)
                for number in range(3):
                    for piece, part in pieces.items():
                        piece.grad = example(2, device, number)[1][part].to(dtype)
                    ours.step()
                return torch.cat([piece.detach() for piece in pieces])

            whole = trained(True, slice(0, COUNT))
            assert torch.equal(trained(True, slice(0, 1111), slice(1111, COUNT)), whole)
            expected = trained(False, slice(0, COUNT))
            off = (whole.float() - expected.float()).abs() > (1e-6 if dtype == torch.float32 else 0)
            assert off.sum() <= 12  # LionW's sign of a sum near 0, and bf16 as in ``equal``
            moved = (expected.float() - start.float()).abs().view(-1, columns)
            assert moved[1].mean() < 0.5 * moved[2].mean() < 0.5 * moved[3].mean()


def optimizer(device: str) -> None:
    """``updates.AdamW`` with the kernel: the same again, near the torch path, 6 bytes a parameter beside the gradient."""
    updates.is_fused = lambda parameter: True

    def trained(rounding: str) -> Tensor:
        weights = torch.nn.Parameter(example(2, device)[0].view(60, 50).clone())
        ours = AdamW([weights], rounding=rounding, seed=5, names={weights: "w"}, **{key: GROUP[key] for key in ("lr", "weight_decay", "betas", "eps")})
        ours.count_changes = True
        for number in range(4):
            weights.grad = example(2, device, number)[1].view(60, 50)
            ours.step()
            assert 0 < ours.changed <= COUNT
        assert all(state.dtype == torch.bfloat16 for state in ours.state[weights].values()) and len(ours.state[weights]) == 2
        return weights.detach()

    once, again = trained("stochastic"), trained("stochastic")
    assert torch.equal(once, again)
    fused = trained("nearest")
    updates.is_fused = lambda parameter: False
    equal(fused, trained("nearest"), 10)
    assert (once.float() - trained("stochastic").float()).abs().max() < 0.05


def optimizer_of_parts(device: str) -> None:
    """``updates.AdamW`` on two parts of a parameter, as the distributed optimizer gives them to two ranks: the bits of the whole."""
    updates.is_fused = lambda parameter: True
    start = example(2, device)[0]

    def trained(*ranges: slice) -> Tensor:
        pieces = {torch.nn.Parameter(start[part].clone()): part for part in ranges}
        options = {key: GROUP[key] for key in ("lr", "weight_decay", "betas", "eps")}
        names, parts = {piece: "w" for piece in pieces}, {piece: (part.start, COUNT) for piece, part in pieces.items()}
        ours = AdamW(list(pieces), rounding="stochastic", seed=5, names=names, parts=parts, **options)
        for number in range(3):
            for piece, part in pieces.items():
                piece.grad = example(2, device, number)[1][part]
            ours.step()
        return torch.cat([piece.detach() for piece in pieces])

    assert torch.equal(trained(slice(0, 1100), slice(1100, COUNT)), trained(slice(0, COUNT)))


if __name__ == "__main__":
    for check in (nearest, kahan, stochastic, parts, together, rows, optimizer, optimizer_of_parts):
        check(sys.argv[1])
        print(check.__name__, flush=True)
