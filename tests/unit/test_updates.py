"""LionW, and the arithmetic of optimizers whose weights exist in bf16 only."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_adapt.engine import updates
from megatron_adapt.engine.updates import AdamW, LionW, Noise, round_stochastically

LR = 1e-3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def parameter(values: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.nn.Parameter:
    return torch.nn.Parameter(values.detach().clone().to(dtype))


def noise(count: int, seed: int = 0) -> torch.Tensor:
    return Noise(generator(seed), slice(0, count), count).draw(torch.device("cpu"))


def gradients(count: int, shape: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.randn(shape, generator=generator(number)) for number in range(count)]


# --------------------------------------------------------------------------------------------------- stochastic rounding


@settings(deadline=None)
@given(st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False), st.integers(0, 2**31))
def test_rounds_to_a_neighbour(value, seed):
    x = torch.full((16,), value)
    down, rounded = x.to(torch.bfloat16), round_stochastically(x, noise(16, seed))
    spacing = torch.maximum(down.float().abs() * 2**-7, torch.tensor(2.0**-133))
    assert bool(((rounded.float() - x).abs() < spacing).all())
    if down.float()[0] == value:
        assert torch.equal(rounded, down)  # what bf16 can say stays


def test_rounding_is_right_on_average():
    for value in (1 + 2**-9, -(1 + 2**-9), 3.1415927, 1e-20):
        x = torch.full((200_000,), value)
        rounded = round_stochastically(x, noise(len(x))).double()
        low, high = rounded.min().item(), rounded.max().item()
        assert low < value < high
        deviation = math.sqrt((value - low) * (high - value) / len(x))
        assert abs(rounded.mean().item() - value) < 5 * deviation


def test_infinity_stays():
    for value in (math.inf, -math.inf):
        assert round_stochastically(torch.full((1000,), value), noise(1000)).unique().tolist() == [value]


# ------------------------------------------------------------------------------------------------------------ algorithms


def test_adamw_is_that_of_torch():
    options = {"lr": LR, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}
    start = torch.randn(40, 30, generator=generator(99))
    ours, theirs = parameter(start), parameter(start)
    mine, reference = AdamW([ours], **options), torch.optim.AdamW([theirs], **options)
    for gradient in gradients(20, start.shape):
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        reference.step()
    assert (ours - theirs).abs().max() < 1e-6 and (ours - start).abs().max() > 0.01


@pytest.mark.parametrize("kind, moments", [(AdamW, 2), (LionW, 1)])
def test_bf16_weights_in_blocks_are_the_same_numbers(kind, moments, monkeypatch):
    """With rounding to the nearest the update of bf16 weights is the float32 one, rounded, whatever the block."""
    extra = {"eps": 1e-8} if kind is AdamW else {}
    start = torch.randn(33, 7, generator=generator(1)).to(torch.bfloat16)
    results = []
    for block in (1 << 22, 10):
        monkeypatch.setattr(updates, "BLOCK", block)
        weights = parameter(start, torch.bfloat16)
        optimizer = kind([weights], lr=0.05, weight_decay=0.1, betas=(0.9, 0.95), **extra)
        for gradient in gradients(3, start.shape):
            weights.grad = gradient.to(torch.bfloat16)
            optimizer.step()
        results.append(weights.detach().clone())
        assert len(optimizer.state[weights]) == moments
        assert all(moment.dtype == torch.bfloat16 for moment in optimizer.state[weights].values())
    assert torch.equal(*results)
    exact = parameter(start.float())
    reference = kind([exact], lr=0.05, weight_decay=0.1, betas=(0.9, 0.95), **extra)
    exact.grad = gradients(1, start.shape)[0].to(torch.bfloat16).float()
    reference.step()
    weights = parameter(start, torch.bfloat16)
    optimizer = kind([weights], lr=0.05, weight_decay=0.1, betas=(0.9, 0.95), **extra)
    weights.grad = exact.grad.to(torch.bfloat16)
    optimizer.step()
    assert torch.equal(weights, exact.to(torch.bfloat16))


def test_lionw_is_the_formula():
    start = torch.randn(20, generator=generator(5))
    weights = parameter(start)
    optimizer = LionW([weights], lr=LR, weight_decay=0.3, betas=(0.9, 0.99))
    w, m = start.double(), torch.zeros(20, dtype=torch.float64)
    for gradient in gradients(12, (20,)):
        weights.grad = gradient.clone()
        optimizer.step()
        w = w * (1 - LR * 0.3) - LR * torch.sign(0.9 * m + 0.1 * gradient.double())
        m = 0.99 * m + 0.01 * gradient.double()
    assert (weights.double() - w).abs().max() < 1e-6
    assert list(optimizer.state[weights]) == ["exp_avg"]


def test_gradients_are_scaled():
    for kind, extra in ((LionW, {}), (AdamW, {"eps": 1.0})):
        pair = []
        for scale, factor in ((1.0, 0.25), (0.25, 1.0)):
            for dtype in (torch.float32, torch.bfloat16):
                weights = parameter(torch.ones(8), dtype)
                optimizer = kind([weights], lr=0.5, weight_decay=0.0, betas=(0.5, 0.5), **extra)
                optimizer.gradient_scale = scale
                weights.grad = torch.full((8,), factor, dtype=dtype)
                optimizer.step()
                pair.append(weights.detach().float())
        assert torch.equal(pair[0], pair[2]) and torch.equal(pair[1], pair[3])


# ------------------------------------------------------------------------------------------------------------- rounding


@pytest.mark.parametrize("kind, extra", [(AdamW, {"eps": 1e-12}), (LionW, {})])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "kahan"])
def test_small_updates_of_large_weights(kind, extra, rounding):
    """Weights of 1 and 400 updates of 1e-5: nearest never moves them, the others move them by 0.004."""
    weights = parameter(torch.ones(4096), torch.bfloat16)
    names = {weights: "w"}
    optimizer = kind([weights], lr=1e-5, weight_decay=0.0, betas=(0.9, 0.95), rounding=rounding, names=names, **extra)
    optimizer.count_changes = True
    changes = 0
    for _ in range(400):
        weights.grad = torch.ones(4096, dtype=torch.bfloat16)
        optimizer.step()
        changes += optimizer.changed
    moved = (1 - weights.double()).mean().item()
    if rounding == "nearest":
        assert moved == 0 and changes == 0
    else:
        assert moved == pytest.approx(0.004, rel=0.05 if rounding == "stochastic" else 0.3)  # one step of bf16 is 0.0039
        assert changes > 4000
    assert ("compensation" in optimizer.state[weights]) is (rounding == "kahan")


def test_random_numbers_depend_on_seed_step_name_and_shard_of_what_is_split():
    def run(seed: int = 1, name: str = "a", shard: int = 0, split: bool = False, skip: int = 0) -> torch.Tensor:
        weights = parameter(torch.ones(512), torch.bfloat16)
        weights.tensor_model_parallel = split
        options = {"lr": 1e-3, "weight_decay": 0.0, "betas": (0.9, 0.95)}
        optimizer = LionW([weights], rounding="stochastic", seed=seed, names={weights: name}, shard=shard, **options)
        optimizer.param_groups[0]["step"] = skip
        weights.grad = torch.ones(512, dtype=torch.bfloat16)
        optimizer.step()
        return weights.detach()

    same = run()
    assert torch.equal(run(), same) and torch.equal(run(shard=1), same)
    others = [run(seed=2), run(name="b"), run(skip=1), run(shard=1, split=True)]
    assert not any(torch.equal(other, same) for other in others)


@pytest.mark.parametrize("kind, extra", [(AdamW, {"eps": 1e-8}), (LionW, {})])
def test_parts_of_a_parameter_round_as_the_whole(kind, extra, monkeypatch):
    """However it is cut, and wherever blocks of random numbers end."""
    monkeypatch.setattr(updates, "BLOCK", 64)
    start = torch.randn(300, generator=generator(3)).to(torch.bfloat16)

    def train(cuts: list[int]) -> torch.Tensor:
        parts = [parameter(part, torch.bfloat16) for part in start.tensor_split(cuts)]
        places = dict(zip(parts, [(begin, 300) for begin in (0, *cuts)]))
        options = {"lr": LR, "weight_decay": 0.1, "betas": (0.9, 0.95), "rounding": "stochastic"} | extra
        optimizer = kind(parts, names=dict.fromkeys(parts, "w"), parts=places, **options)
        for gradient in gradients(4, (300,)):
            for part, piece in zip(parts, gradient.to(torch.bfloat16).tensor_split(cuts)):
                part.grad = piece.contiguous()
            optimizer.step()
        state = [torch.cat([optimizer.state[part][name] for part in parts]) for name in optimizer.kept]
        return torch.stack([torch.cat([part.detach() for part in parts]), *state])

    whole = train([])
    assert torch.equal(train([150]), whole) and torch.equal(train([10, 64, 129, 290]), whole)
    assert not torch.equal(whole[0], start)


def test_parameters_without_a_gradient_stay():
    weights, frozen = parameter(torch.ones(4)), parameter(torch.ones(4))
    optimizer = LionW([weights, frozen], lr=LR, weight_decay=0.5, betas=(0.9, 0.99))
    weights.grad = torch.ones(4)
    optimizer.step()
    assert torch.equal(frozen, torch.ones(4)) and not torch.equal(weights, torch.ones(4))
