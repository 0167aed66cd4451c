"""z-loss and a smaller gradient of the embedding: the formulas, in every layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from worlds import LAYOUTS, SEED, Layout, World, hf_model, on_ranks, phase

from megatron_adapt.engine import backend, cross_entropy, losses, vocabulary
from megatron_adapt.engine.model import named_parameters

Z = 0.1


@pytest.mark.parametrize("ranks, rows", [(1, 12), (2, 12), (2, 13), (3, 4), (3, 3)])
@pytest.mark.parametrize("z", [0.0, Z])
def test_cross_entropy_is_that_of_torch(ranks, rows, z):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(5, 2, rows, generator=generator) * 4
    labels = torch.randint(rows, (5, 2), generator=generator)
    weights = torch.rand(5, 2, generator=generator)
    whole = logits.clone().requires_grad_()
    expected = F.cross_entropy(whole.permute(0, 2, 1), labels, reduction="none")
    ((expected + z * torch.logsumexp(whole, dim=-1) ** 2) * weights).sum().backward()

    def ours() -> tuple[torch.Tensor, torch.Tensor]:
        backend.start(Layout(tensor=ranks), SEED)
        mine = vocabulary.share(rows, parallel_state.get_tensor_model_parallel_rank(), ranks)
        part = logits[..., mine.start : mine.stop].clone().requires_grad_()
        found = cross_entropy.CrossEntropy.apply(part, labels, mine.start, z)
        (found * weights).sum().backward()
        return found.detach(), part.grad

    results = on_ranks(ranks, ours)
    for found, _ in results:
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    gradient = torch.cat([part for _, part in results], dim=-1)
    assert torch.allclose(gradient, whole.grad, rtol=1e-4, atol=1e-6)


def test_trained_in_every_layout(world: World, tmp_path: Path):
    settings = {"optimizer": {"lr": 3e-3, "z_loss": Z, "embedding_gradient": 0.2}, "start": "short tied"}
    one = world.train(tmp_path / "one", **settings)
    for name in ("TP2+SP", "PP2", "CP2"):
        run = world.train(tmp_path / name, *LAYOUTS[name], **settings)
        assert run.losses == pytest.approx(one.losses, rel=1e-5) and run.norms == pytest.approx(one.norms, rel=1e-5)
    plain = world.train(tmp_path / "plain", start="short tied")
    assert one.losses[0] == pytest.approx(plain.losses[0], rel=1e-6)  # what is shown is the cross-entropy
    assert one.norms[0] != pytest.approx(plain.norms[0], rel=1e-2) and one.losses[4] != plain.losses[4]


def test_the_embedding_gets_its_share(world: World):
    def gradients(share: float) -> dict[str, torch.Tensor]:
        model, _ = hf_model(world.model("untied"))
        losses.regularize(model, phase(optimizer={"lr": 1.0, "embedding_gradient": share}).optimizer)
        tokens = torch.arange(3, 15).view(2, 6)
        model(tokens, losses.positions(tokens), None, labels=tokens).mean().backward()
        found = {name: parameter.grad for name, parameter in named_parameters(model)}
        backend.stop()
        return found

    whole, shared = on_ranks(1, lambda: gradients(1.0))[0], on_ranks(1, lambda: gradients(0.25))[0]
    embedding = "embedding.word_embeddings.weight"
    assert torch.allclose(shared.pop(embedding), 0.25 * whole.pop(embedding))
    assert all(torch.equal(shared[name], whole[name]) for name in whole)
