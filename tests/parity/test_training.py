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


def plain_loop(world: World, name: str, output: Path) -> dict[str, list[float]]:
    """The reference: the same batches, each as a whole. Writes the trained weights to ``output``."""
    settings = phase(**SETTINGS)
    source = HFDirectory.open(world.model(name))
    model = transformers.AutoModelForCausalLM.from_pretrained(source.path, dtype=torch.float32)
    matrices, norms = ([p for p in model.parameters() if (p.dim() > 1) is big] for big in (True, False))
    given = settings.optimizer
    groups = [{"params": matrices, "weight_decay": given.weight_decay}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=given.lr, betas=(given.beta1, given.beta2), eps=given.eps)
    batches = Batches(
        world.corpora, dict(settings.data), tokenizer_digest=Tokenizer.load(source.path).digest,
        sequence_length=settings.sequence_length, batch_size=8, micro_batch_size=8, seed=SEED, consumed={}, drawn={},
    )  # fmt: skip
    result: dict[str, list[float]] = {"loss": [], "grad_norm": [], "lr": []}
    for step in range(settings.steps):
        lr = given.lr * schedule.factor(settings.schedule, step, settings.steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        rows = batches.next().tokens[0]
        logits = model(rows[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), given.clip_grad)
        optimizer.step()
        for key, value in zip(result, (loss.item(), norm.item(), lr)):
            result[key].append(value)
    source.copy_metadata(output)
    with WeightWriter(output) as writer:
        for name, parameter in model.named_parameters():
            writer.add(name, parameter)
    return result


@pytest.mark.parametrize("name", ["untied", "tied"])
@pytest.mark.parametrize("layout", [Layout(), Layout(tensor=2, pipeline=2)], ids=["one", "TP2xPP2"])
def test_training_equals_a_plain_loop(world: World, tmp_path: Path, name, layout):
    (expected,) = on_ranks(1, lambda: plain_loop(world, name, tmp_path / "plain"))
    run = world.train(tmp_path / "run", layout, start=name, **SETTINGS)
    for key, values in expected.items():
        assert [line[key] for line in run.metrics] == pytest.approx(values, rel=1e-5), key
    assert max(expected["grad_norm"]) > 1.5  # clipping matters
    plain = HFDirectory.open(tmp_path / "plain")
    family, ours = find_family(plain.config), tensors(run.folder)
    with plain.weights() as reader:
        theirs = dict(hf_to_megatron(family, family.read_config(plain.config), reader))
    assert set(ours) == set(theirs)
    assert max((ours[key] - theirs[key]).abs().max().item() for key in theirs) < 1e-4  # of 0.1; Adam magnifies rounding
