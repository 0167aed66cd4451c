"""muP without multipliers is muP with them: transformers with queries and logits multiplied, and torch's AdamW."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import transformers.models.llama.modeling_llama  # noqa: F401  once, here: the forked ranks need it
from harness import ROOT
from worlds import (
    LAYOUTS, SEED, STEPS, World, assert_identical, interrupted_after, on_ranks, phase, tensors,
)  # fmt: skip

from megatron_adapt import schedule
from megatron_adapt.config import Optimizer
from megatron_adapt.engine import backend
from megatron_adapt.engine.backend import Layout
from megatron_adapt.engine.batches import Batches
from megatron_adapt.families import find_family
from megatron_adapt.families.rules import hf_to_megatron
from megatron_adapt.hf.directory import HFDirectory
from megatron_adapt.hf.tokenizer import Tokenizer

sys.path.insert(0, str(ROOT / "benchmarks"))

import coordinate_check

WIDER = 2  # the model "mha" (tied, heads of 8) is twice as wide as its base, and so is each of its heads
BASE = {"hidden_size": 16, "ffn_hidden_size": 24, "head_dim": 4}
QUERIES = 0.5**0.5
OPTIMIZER = {"lr": 1e-2, "embedding_lr": 2e-2, "weight_decay": 0.3, "eps": 1e-14, "clip_grad": 0.0}
SETTINGS = {"optimizer": OPTIMIZER, "steps": 6}


def with_multipliers(world: World, **changes) -> tuple[list[float], dict[str, torch.Tensor]]:
    """(losses, trained weights by Megatron's names) of table 8 of the paper: multipliers in the model, on one rank."""
    settings = phase(**SETTINGS | changes)
    source = HFDirectory.open(world.model("mha"))
    model = transformers.AutoModelForCausalLM.from_pretrained(source.path, dtype=torch.float32)
    folded = {model.model.norm: 1 / WIDER} | {layer.self_attn.q_proj: QUERIES for layer in model.model.layers}
    for module, factor in folded.items():
        module.weight.data /= factor
        outer = model.lm_head if module is model.model.norm else module
        outer.register_forward_hook(lambda module, inputs, output, factor=factor: output * factor)
    given, groups = settings.optimizer, []
    for name, parameter in model.named_parameters():
        hidden = parameter.dim() > 1 and "embed" not in name
        peak = given.embedding_lr if "embed" in name else given.lr / (WIDER if hidden else 1)
        decay = given.weight_decay * (parameter.dim() > 1) * (WIDER if hidden else 1)
        groups.append({"params": [parameter], "weight_decay": decay, "peak": peak})
    optimizer = torch.optim.AdamW(groups, betas=(given.beta1, given.beta2), eps=given.eps)
    batches = Batches(
        world.corpora, dict(settings.data), tokenizer_digest=Tokenizer.load(source.path).digest,
        sequence_length=settings.sequence_length, batch_size=8, micro_batch_size=8, seed=SEED, consumed={}, drawn={},
    )  # fmt: skip
    losses = []
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * schedule.factor(settings.schedule, step, settings.steps)
        rows = batches.next().tokens[0]
        loss = torch.nn.functional.cross_entropy(model(rows[:, :-1]).logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    for module, factor in folded.items():
        module.weight.data *= factor
    family = find_family(source.config)
    reader = coordinate_check.InMemory({name: parameter.data for name, parameter in model.named_parameters()})
    return losses, dict(hf_to_megatron(family, family.read_config(source.config), reader))


@pytest.fixture(scope="module")
def reference(world: World) -> tuple[list[float], dict[str, torch.Tensor]]:
    return on_ranks(1, lambda: with_multipliers(world))[0]


@pytest.mark.parametrize("layout", ["one", "TP2xPP2", "DP2+DO"])
def test_equals_a_model_with_multipliers(world: World, reference, tmp_path: Path, layout):
    losses, weights = reference
    run = world.train(tmp_path, *LAYOUTS[layout], start="mha", mup=BASE, **SETTINGS)
    assert run.losses == pytest.approx(losses, rel=2e-5) and losses[-1] < losses[0] - 0.1
    found = tensors(run.folder)
    # Adam tells no two tiny gradients apart: those that are rounding alone move weights either way.
    assert not [name for name in weights if (found[name] - weights[name]).abs().mean() > 2e-5]


@pytest.mark.parametrize("kind, precision", [("adamw", "bf16-true"), ("muon", "fp32")])
def test_resumed_is_uninterrupted(world: World, tmp_path: Path, kind, precision):
    options = STEPS | {"start": "mha", "mup": BASE, "precision": precision, "optimizer": {"type": kind, "lr": 1e-2}}
    whole = world.train(tmp_path / "whole", **options)
    assert_identical(world.train(interrupted_after(4, whole, tmp_path / "run"), **options), whole)
    apart = world.train(tmp_path / "TP2", *LAYOUTS["TP2"], **options)
    assert apart.losses == pytest.approx(whole.losses, rel=1e-2 if precision == "bf16-true" else 1e-5)


CHECKED = [("llama", "more", False, "adamw"), ("gpt2", "wider", True, "adamw"), ("qwen3", "wider", False, "muon")]


def test_activations_move_as_far_in_wide_models():
    """The coordinate check: under muP the change does not depend on the width, otherwise it grows with it."""

    def check() -> dict:
        with backend.session(Layout(), SEED):
            optimizers = {kind: Optimizer(type=kind, lr=1e-2, weight_decay=0) for kind in ("adamw", "muon")}
            return {
                case: coordinate_check.table(case[0], [32, 64, 128], *case[1:3], optimizers[case[3]], 4, 1) for case in CHECKED
            }

    for case, found in on_ranks(1, check)[0].items():
        growth = {kind: {key: rows[-1][key] / rows[0][key] for key in rows[0]} for kind, rows in found.items()}
        assert 0.75 < growth["muP"]["residual stream"] < 1.1 and 0.65 < growth["muP"]["logits"] < 1.1, case
        # At first scores are sums of random products, which go with the root of what 1 / head_dim is the inverse of.
        assert (0.75 if case[1] == "more" else 0.35) < growth["muP"]["scores"] < 1.1, case
        assert growth["as it is"]["logits"] > 2 and growth["as it is"]["residual stream"] > 2.5, case
