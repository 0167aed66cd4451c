"""Muon against torch's own, and the matrices that Megatron keeps in one parameter."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from megatron_adapt.engine import muon
from megatron_adapt.engine.muon import Matrices, Muon, orthogonalized

CONFIG = SimpleNamespace(num_attention_heads=4, num_query_groups=2, kv_channels=3, gated_linear_unit=True)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon.parallel_state, "get_tensor_model_parallel_world_size", lambda: 1)
    monkeypatch.setattr(muon.parallel_state, "get_tensor_model_parallel_rank", lambda: 0)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")
@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_is_that_of_torch(shape):
    options = {"lr": 0.01, "weight_decay": 0.1}
    start, norm = random(*shape, seed=9), random(shape[0], seed=8)
    ours, theirs = [[torch.nn.Parameter(tensor.clone()) for tensor in (start, norm)] for _ in range(2)]
    mine = Muon(
        ours, matrices={ours[0]: Matrices((shape[0],), 1)}, momentum=0.9, products=torch.bfloat16, betas=(0.9, 0.95), eps=1e-8,
        **options,
    )  # fmt: skip
    references = [
        torch.optim.Muon(theirs[:1], momentum=0.9, adjust_lr_fn="match_rms_adamw", **options),
        torch.optim.AdamW(theirs[1:], betas=(0.9, 0.95), eps=1e-8, **options),
    ]
    for step in range(8):
        for a, b in zip(ours, theirs):
            a.grad = random(*a.shape, seed=step)
            b.grad = a.grad.clone()
        for optimizer in (mine, *references):
            optimizer.step()
    assert (ours[0] - theirs[0]).abs().max() < 1e-5 and (ours[1] - theirs[1]).abs().max() < 1e-6
    assert (ours[0] - start).abs().max() > 0.02
    assert list(mine.state[ours[0]]) == ["exp_avg"] and list(mine.state[ours[1]]) == ["exp_avg", "exp_avg_sq"]


def test_singular_values_come_near_one():
    matrix = random(30, 20)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalized(matrix, torch.float32)
    inside = u.T @ found @ v.T
    assert (inside - torch.diag(inside.diagonal())).abs().max() < 1e-4  # the same singular vectors
    assert 0.6 < inside.diagonal().min() and inside.diagonal().max() < 1.3 and s.max() / s.min() > 5


def test_parameters_fall_into_the_models_matrices():
    def find(name: str, *shape: int) -> Matrices | None:
        return Matrices.of(name, torch.empty(shape), CONFIG)

    assert find("decoder.layers.0.self_attention.linear_qkv.weight", 24, 8) == Matrices((6, 3, 3), 0)
    assert find("decoder.layers.0.mlp.linear_fc1.weight", 20, 8) == Matrices((10, 10), 0)
    assert find("decoder.layers.0.mlp.linear_fc2.weight", 8, 10) == Matrices((8,), 1)
    for name, shape in (
        ("embedding.word_embeddings.weight", (50, 8)), ("output_layer.weight", (50, 8)),
        ("decoder.layers.0.self_attention.linear_qkv.bias", (24,)), ("decoder.final_layernorm.weight", (8,)),
    ):  # fmt: skip
        assert find(name, *shape) is None
    fused, within = random(24, 8), Matrices((6, 3, 3), 0)  # two groups of two query heads, a key and a value
    query, key, value = within.apart(fused)
    assert torch.equal(query, torch.cat([fused[:6], fused[12:18]])) and torch.equal(key, torch.cat([fused[6:9], fused[18:21]]))
    assert torch.equal(value, torch.cat([fused[9:12], fused[21:]])) and torch.equal(within.together([query, key, value]), fused)


@pytest.mark.parametrize("rounding", ["stochastic", "kahan"])
def test_bf16_weights_follow_float32_ones(rounding):
    start, runs = random(16, 16, seed=1).to(torch.bfloat16), []
    for dtype in (torch.float32, torch.bfloat16):
        weights = torch.nn.Parameter(start.clone().to(dtype))
        options = {"matrices": {weights: Matrices((16,), 1)}, "names": {weights: "w"}, "rounding": rounding}
        optimizer = Muon(
            [weights], momentum=0.9, products=torch.float32, lr=1e-3, weight_decay=0.0, betas=(0.9, 0.95), eps=1e-8,
            **(options if dtype == torch.bfloat16 else options | {"rounding": "nearest"}),
        )  # fmt: skip
        for step in range(200):
            weights.grad = (random(16, 16, seed=2) + 0.1 * random(16, 16, seed=step)).to(torch.bfloat16).to(dtype)
            optimizer.step()
        runs.append((weights.detach().float() - start.float()).flatten())
    assert runs[0].norm() > 0.3 and torch.nn.functional.cosine_similarity(*runs, dim=0) > 0.85
