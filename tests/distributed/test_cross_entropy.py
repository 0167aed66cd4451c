"""Loss and gradients from slices of the vocabulary: those of whole logits, without a tensor of their size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from worlds import LAYOUTS, SEED, VOCABULARY, Layout, Outcome, World, hf_model, on_ranks

from megatron_adapt.engine import backend, cross_entropy, losses, model as models, vocabulary
from megatron_adapt.engine.cross_entropy import LinearCrossEntropy
from megatron_adapt.engine.model import named_parameters

Z, CAP = 0.1, 3.0
POSITIONS, HIDDEN, ROWS = 7, 24, 300


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of 128 rows: three of them for 300 rows, two for half of them."""
    monkeypatch.setattr(cross_entropy, "LOGITS_OF_A_SLICE", 1)


def example(dtype: torch.dtype = torch.float32, positions: int = POSITIONS, rows: int = ROWS) -> tuple[Tensor, ...]:
    """(hidden, weight, labels, upstream gradient)"""
    draw = torch.Generator().manual_seed(3)
    hidden = torch.randn(positions, HIDDEN, generator=draw, dtype=dtype)
    weight = torch.randn(rows, HIDDEN, generator=draw, dtype=dtype)
    return hidden, weight, torch.randint(rows, (positions,), generator=draw), torch.rand(positions, generator=draw, dtype=dtype)


def close(found: Tensor, expected: Tensor, relative: float = 1e-6) -> bool:
    """Within ``relative`` of the largest, which cancellation leaves of the small ones."""
    return (found - expected).abs().max().item() <= relative * expected.abs().max().item()


@pytest.mark.parametrize("ranks, rows", [(1, ROWS), (2, ROWS), (2, ROWS + 1), (3, 4)])
@pytest.mark.parametrize("z, cap", [(0.0, None), (Z, CAP)])
def test_it_is_torchs_cross_entropy(ranks: int, rows: int, z: float, cap: float | None):
    hidden, weight, labels, upstream = example(torch.float64, rows=rows)
    hidden.requires_grad_(), weight.requires_grad_()
    logits = hidden @ weight.t()
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    expected = F.cross_entropy(logits, labels, reduction="none")
    ((expected + z * torch.logsumexp(logits, dim=1) ** 2) * upstream).sum().backward()

    def ours() -> tuple[Tensor, Tensor, Tensor]:
        backend.start(Layout(tensor=ranks), SEED)
        rank = parallel_state.get_tensor_model_parallel_rank()
        first = vocabulary.share(rows, rank, ranks).start
        mine = weight.detach().float().tensor_split(ranks)[rank].clone().requires_grad_()
        entire = hidden.detach().float().requires_grad_()
        found = LinearCrossEntropy.apply(entire, mine, labels, first, cap, z)
        (found * upstream.float()).sum().backward()
        return found.detach(), entire.grad, mine.grad

    results = on_ranks(ranks, ours)
    for found, _, _ in results:
        assert close(found, expected)
    assert close(sum(part for _, part, _ in results), hidden.grad)
    assert close(torch.cat([part for _, _, part in results]), weight.grad)


def test_the_gradient_is_that_of_differences():
    def check() -> bool:
        backend.start(Layout(), SEED)
        hidden, weight, labels, _ = example(torch.float64, positions=3, rows=130)
        hidden, weight = hidden[:, :2].clone().requires_grad_(), weight[:, :2].clone().requires_grad_()
        # What is differentiated is the loss itself: z_loss changes gradients alone.
        return torch.autograd.gradcheck(lambda a, b: LinearCrossEntropy.apply(a, b, labels, 0, CAP, 0.0), (hidden, weight))

    assert on_ranks(1, check) == [True]


@pytest.fixture(scope="module")
def whole(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """One rank with whole logits, by how it is trained."""
    return {name: world.train(tmp_path_factory.mktemp(name), logits="whole", steps=3, **changes) for name, changes in TRAINED.items()}


TRAINED: dict[str, dict[str, Any]] = {
    "tied": {"start": "short tied", "optimizer": {"lr": 3e-3, "z_loss": Z}},
    "packed": {"packing": "documents"},
    "frozen head": {"start": "untied", "train": "layers[0:2]"},
    "head alone": {"train": "output"},
}


@pytest.mark.parametrize("layout, trained", [
    ("one", "packed"), ("one", "head alone"), ("TP2", "frozen head"), ("TP2+SP", "tied"), ("TP2xPP2", "tied"), ("DP2+DO", "packed"),
])  # fmt: skip
def test_training_is_the_same(world: World, whole: dict[str, Outcome], tmp_path: Path, layout: str, trained: str):
    run = world.train(tmp_path, *LAYOUTS[layout], logits="sliced", steps=3, **TRAINED[trained])
    assert run.losses == pytest.approx(whole[trained].losses, rel=1e-6 if layout == "one" else 1e-5)
    assert run.norms == pytest.approx(whole[trained].norms, rel=1e-5)


class Sizes(TorchDispatchMode):
    """How many elements the largest tensor has that anything makes."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = [one for one in (result if isinstance(result, (tuple, list)) else [result]) if isinstance(one, Tensor)]
        self.largest = max([self.largest, *(one.numel() for one in made)])
        return result


@pytest.mark.parametrize("softcap", [None, CAP])
def test_no_tensor_has_the_size_of_the_logits(world: World, softcap: float | None):
    tokens = torch.arange(1, 257).view(2, 128)

    def run(logits: str, training: bool) -> tuple[int, float, dict[str, Tensor]]:
        model, shape = hf_model(world.model("tied"))
        model = models.build(replace(shape, logit_softcap=softcap), Layout(), "fp32", logits=logits)
        generator = torch.Generator().manual_seed(SEED)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
        with Sizes() as sizes, torch.set_grad_enabled(training):
            loss = model(tokens, losses.positions(tokens), None, labels=tokens).mean()
            if training:
                loss.backward()
        gradients = {name: parameter.grad for name, parameter in named_parameters(model) if training}
        backend.stop()
        return sizes.largest, loss.item(), gradients

    (largest, loss, gradients), (_, evaluated, _) = on_ranks(1, lambda: (run("sliced", True), run("sliced", False)))[0]
    most, expected, all_gradients = on_ranks(1, lambda: run("whole", True))[0]
    count = tokens.numel() * VOCABULARY
    assert most >= count > 2 * largest  # 128 rows at a time
    assert loss == pytest.approx(expected, rel=1e-6) and evaluated == pytest.approx(loss, rel=1e-6)
    assert all(close(gradients[name], all_gradients[name], 1e-5) for name in all_gradients)


def test_bf16_loses_no_more_than_whole_logits(world: World):
    """Gradients that Megatron sums in float32, against those of a float32 model with the same, rounded weights."""
    tokens = torch.arange(1, 257).view(2, 128)

    def gradients(precision: str, logits: str) -> dict[str, Tensor]:
        model, shape = hf_model(world.model("bf16"))
        bare = models.build(shape, Layout(), precision, logits=logits)
        bare.load_state_dict(model.state_dict())
        wrapped = models.wrap(bare, precision)
        wrapped.zero_grad_buffer()
        for _ in range(2):  # micro-batches
            wrapped(tokens, losses.positions(tokens), None, labels=tokens).mean().backward()
        found = {name: parameter.main_grad.float().clone() for name, parameter in named_parameters(bare)}
        backend.stop()
        return found

    exact, whole, sliced = on_ranks(1, lambda: [gradients(*case) for case in (("fp32", "whole"), ("bf16-mixed", "whole"), ("bf16-mixed", "sliced"))])[0]
    for name in ("output_layer.weight", "decoder.final_layernorm.weight", "embedding.word_embeddings.weight"):
        errors = [(found[name] - exact[name]).norm().item() for found in (whole, sliced)]
        assert errors[1] <= 1.05 * errors[0], (name, errors)
        assert exact[name].norm().item() > 20 * errors[1]


def test_auto_slices_what_is_large(world: World, monkeypatch: pytest.MonkeyPatch):
    calls = []
    original = LinearCrossEntropy.forward
    monkeypatch.setattr(LinearCrossEntropy, "forward", lambda ctx, *args: calls.append(args[0].shape) or original(ctx, *args))

    def count(logits: str, many: bool) -> int:
        calls.clear()
        model, shape = hf_model(world.model("untied"))
        bare = models.build(shape, Layout(), "fp32", logits=logits)
        bare.load_state_dict(model.state_dict())
        monkeypatch.setattr(cross_entropy, "slices_logits", lambda choice, logits: slices(choice, logits << (28 if many else 0)))
        tokens = torch.arange(12).view(2, 6)
        bare(tokens, losses.positions(tokens), None, labels=tokens)
        assert bare(tokens, losses.positions(tokens), None).shape == (2, 6, VOCABULARY)  # without labels logits are asked for
        backend.stop()
        return len(calls)

    slices = cross_entropy.slices_logits
    cases = [("auto", False), ("auto", True), ("whole", True), ("sliced", False)]
    assert on_ranks(1, lambda: [count(*case) for case in cases]) == [[0, 1, 0, 1]]
