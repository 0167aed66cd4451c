"""Training is what a plain transformers loop with torch's AdamW does: losses, gradient norms, weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers.models.llama.modeling_llama  # noqa: F401  once, here: the forked ranks need it
from worlds import SEED, Layout, World, on_ranks, phase, tensors

from megatron_adapt import schedule
from megatron_adapt.engine.batches import Batches
from megatron_adapt.families import find_family
from megatron_adapt.families.rules import hf_to_megatron
from megatron_adapt.hf.directory import HFDirectory
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.hf.weights import WeightWriter

SETTINGS = {
    "steps": 6,
    "optimizer": {"lr": 3e-3, "weight_decay": 0.3, "beta1": 0.8, "beta2": 0.9, "eps": 1e-7, "clip_grad": 1.5},
    "schedule": {"type": "linear", "warmup": 2},
}


class PlainLionW(torch.optim.Optimizer):
    """Chen et al. 2023, algorithm 2, or with a decay that follows the schedule alone, line by line."""

    def __init__(self, groups, betas, peak: float | None) -> None:
        super().__init__(groups, {"betas": betas, "lr": 0.0})
        self.peak = peak

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                decay = group["weight_decay"] * (group["lr"] if self.peak is None else group["lr"] / group["peak"])
                p.copy_(p * (1 - decay) - group["lr"] * torch.sign(beta1 * m + (1 - beta1) * p.grad))
                m.copy_(beta2 * m + (1 - beta2) * p.grad)


class PlainMuon(torch.optim.AdamW):
    """torch's Muon (EMA momentum, Nesterov, the scale that matches AdamW) in float32, line by line; AdamW for other groups."""

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"] if group["momentum"] else ():
                m, grad = self.state[p].setdefault("m", torch.zeros_like(p)), p.grad
                p.grad = None  # for AdamW's step
                m.lerp_(grad, 1 - group["momentum"])
                x = grad.lerp(m, group["momentum"])
                x = x / x.norm()
                for _ in range(5):
                    x = 3.4445 * x - 4.7750 * (x @ x.T) @ x + 2.0315 * (x @ x.T) @ (x @ x.T) @ x
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(0.2 * max(p.shape) ** 0.5 * group["lr"] * x)
        super().step()


def plain_optimizer(model, given) -> torch.optim.Optimizer:
    """Matrices decay, norms do not; embedding and output rows may have a peak of their own, or no decay."""
    groups = []
    for name, parameter in model.named_parameters():
        rows = "embed_tokens" in name or "lm_head" in name
        decays = parameter.dim() > 1 and (given.decay_embeddings or not rows)
        peak = given.embedding_lr if rows and given.embedding_lr else given.lr
        groups.append({"params": [parameter], "weight_decay": given.weight_decay * decays, "peak": peak})
        groups[-1]["momentum"] = given.momentum * (parameter.dim() > 1 and not rows)  # of Muon
    betas = (given.beta1, given.beta2)
    if given.type == "lionw":
        return PlainLionW(groups, betas, given.lr if given.decay_by == "schedule" else None)
    for group in groups if given.decay_by == "schedule" else ():
        group["weight_decay"] /= group["peak"]  # torch multiplies by the learning rate
    kind = PlainMuon if given.type == "muon" else torch.optim.AdamW
    return kind(groups, lr=given.lr, betas=betas, eps=given.eps)


def plain_loop(world: World, name: str, output: Path, **changes) -> dict[str, list[float]]:
    """The reference: the same batches, each as a whole. Writes the trained weights to ``output``."""
    settings = phase(**(SETTINGS | changes))
    source = HFDirectory.open(world.model(name))
    model = transformers.AutoModelForCausalLM.from_pretrained(source.path, dtype=torch.float32)
    given = settings.optimizer
    optimizer = plain_optimizer(model, given)
    batches = Batches(
        world.corpora, dict(settings.data), tokenizer_digest=Tokenizer.load(source.path).digest,
        sequence_length=settings.sequence_length, batch_size=8, micro_batch_size=8, seed=SEED, consumed={}, drawn={},
    )  # fmt: skip
    result: dict[str, list[float]] = {"loss": [], "grad_norm": [], "lr": []}
    for step in range(settings.steps):
        factor = schedule.factor(settings.schedule, step, settings.steps)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        rows = batches.next().tokens[0]
        logits = model(rows[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), given.clip_grad)
        optimizer.step()
        for key, value in zip(result, (loss.item(), norm.item(), given.lr * factor)):
            result[key].append(value)
    source.copy_metadata(output)
    with WeightWriter(output) as writer:
        for name, parameter in model.named_parameters():
            writer.add(name, parameter)
    return result


@pytest.mark.parametrize("name", ["untied", "tied"])
@pytest.mark.parametrize("layout", [Layout(), Layout(tensor=2, pipeline=2)], ids=["one", "TP2xPP2"])
def test_training_equals_a_plain_loop(world: World, tmp_path: Path, name, layout):
    assert_equals_plain(world, tmp_path, name, layout)


LION = {"type": "lionw", "lr": 3e-4, "beta1": 0.9, "beta2": 0.95, "clip_grad": 1.5}


MUON = {"type": "muon", "lr": 3e-3, "weight_decay": 0.3, "momentum": 0.9, "clip_grad": 1.5}


@pytest.mark.parametrize("name, layout, optimizer", [
    ("short", Layout(tensor=2), LION | {"weight_decay": 20.0}),
    ("short tied", Layout(pipeline=2), LION | {"weight_decay": 0.01, "decay_by": "schedule"}),
    (
        "short", Layout(),
        SETTINGS["optimizer"] | {"decay_by": "schedule", "weight_decay": 0.01, "decay_embeddings": False},
    ),
    ("short", Layout(tensor=2, pipeline=2), SETTINGS["optimizer"] | {"embedding_lr": 1e-2}),
    ("short tied", Layout(tensor=2), LION | {"embedding_lr": 1e-3, "decay_embeddings": False, "weight_decay": 20.0}),
    ("short", Layout(), MUON),
    ("short tied", Layout(tensor=2, pipeline=2), MUON | {"embedding_lr": 1e-2}),
], ids=["lionw", "lionw-by-schedule", "adamw-by-schedule", "embedding-lr", "lionw-embeddings", "muon", "muon-TP2xPP2"])  # fmt: skip
def test_other_optimizers_equal_a_plain_loop(world: World, tmp_path: Path, name, layout, optimizer):
    assert_equals_plain(world, tmp_path, name, layout, optimizer=optimizer)


def assert_equals_plain(world: World, tmp_path: Path, name: str, layout: Layout, **changes) -> None:
    (expected,) = on_ranks(1, lambda: plain_loop(world, name, tmp_path / "plain", **changes))
    run = world.train(tmp_path / "run", layout, start=name, **(SETTINGS | changes))
    for key, values in expected.items():
        assert [line[key] for line in run.metrics] == pytest.approx(values, rel=1e-5), key
    assert max(expected["grad_norm"]) > 1.5  # clipping matters
    plain = HFDirectory.open(tmp_path / "plain")
    family, ours = find_family(plain.config), tensors(run.folder)
    with plain.weights() as reader:
        theirs = dict(hf_to_megatron(family, family.read_config(plain.config), reader))
    assert set(ours) == set(theirs)
    assert max((ours[key] - theirs[key]).abs().max().item() for key in theirs) < 1e-4  # of 0.1; Adam magnifies rounding
