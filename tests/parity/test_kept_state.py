"""``init_state: keep``: as with one optimizer over all parameters, of which some are frozen at first."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
import transformers.models.llama.modeling_llama  # noqa: F401  once, here: the forked ranks need it
from worlds import LAYOUTS, SEED, Outcome, World, assert_identical, interrupted_after, on_ranks, phase, stored, tensors

from megatron_adapt.engine import checkpoint
from megatron_adapt.engine.batches import Batches
from megatron_adapt.hf.tokenizer import Tokenizer

# With a larger eps an element whose gradient is rounding alone hardly moves.
SHARED = {"optimizer": {"lr": 3e-3, "weight_decay": 0.1, "clip_grad": 1.5, "eps": 1e-5}, "schedule": {"type": "constant"}}
FIRST = {**SHARED, "name": "first", "train": ["embedding", "output"], "steps": 3}
SECOND = {**SHARED, "name": "second", "steps": 4, "init_state": "keep", "save_every": 2, "keep_last": 9}


def plain(world: World, name: str) -> list[tuple[float, float]]:
    """(loss, gradient norm) of both phases: torch's AdamW skips what has no gradient yet."""
    model = transformers.AutoModelForCausalLM.from_pretrained(world.model(name), dtype=torch.float32)
    settings = phase(**SHARED)
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    norms = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95), eps=1e-5)
    result: list[tuple[float, float]] = []
    consumed: dict[str, int] = {}
    for steps, all_train in ((3, False), (4, True)):
        batches = Batches(
            world.corpora, dict(settings.data), tokenizer_digest=Tokenizer.load(world.tokenizer).digest, sequence_length=32,
            batch_size=8, micro_batch_size=8, seed=SEED, consumed=consumed, drawn={},
        )  # fmt: skip
        for key, parameter in model.named_parameters():
            parameter.requires_grad_(all_train or "embed_tokens" in key or "lm_head" in key)
        for _ in range(steps):
            rows = batches.next().tokens[0]
            loss = torch.nn.functional.cross_entropy(model(rows[:, :-1]).logits.flatten(0, 1), rows[:, 1:].flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.5)
            optimizer.step()
            result.append((loss.item(), norm.item()))
    return result


@pytest.fixture(scope="module")
def first(world: World, tmp_path_factory: pytest.TempPathFactory):
    return {name: world.train(tmp_path_factory.mktemp(name), start=name, **FIRST) for name in ("short", "tied")}


@pytest.fixture(scope="module")
def second(world: World, first, tmp_path_factory: pytest.TempPathFactory):
    return {name: world.train(tmp_path_factory.mktemp(name), start=first[name].folder, **SECOND) for name in first}


@pytest.mark.parametrize("name", ["short", "tied"])
def test_equals_one_optimizer_over_all(world: World, first, second, name):
    reference = on_ranks(1, lambda: plain(world, name))[0]
    ours = first[name].metrics + second[name].metrics
    assert [line["loss"] for line in ours] == pytest.approx([loss for loss, _ in reference], rel=1e-5)
    assert [line["grad_norm"] for line in ours] == pytest.approx([norm for _, norm in reference], rel=1e-4)
    ages = checkpoint.resolve(second[name].folder).position.ages
    assert set(ages.values()) == {3} and len(ages) == (1 if name == "tied" else 2)


def test_a_phase_in_two_parts_is_the_phase(world: World, tmp_path: Path):
    """Under bf16-mixed main weights go on, not the bf16 ones that are rounded from them."""
    same = {"precision": "bf16-mixed", "data": {"first": 1.0}, "schedule": {"type": "constant"}, "optimizer": {"lr": 1e-4}}
    whole = world.train(tmp_path / "whole", steps=4, name="whole", **same)
    one = world.train(tmp_path / "one", steps=2, name="one", **same)
    two = world.train(tmp_path / "two", steps=2, name="two", start=one.folder, init_state="keep", **same)
    assert one.losses + two.losses == whole.losses and one.norms + two.norms == pytest.approx(whole.norms, rel=1e-6)
    parts, reference = stored(two.folder), stored(whole.folder)
    assert set(parts) == set(reference)
    for name in (name for name in reference if ".fp32_param." in name):
        assert torch.allclose(parts[name], reference[name], rtol=3e-7, atol=1e-9), name  # a rounded weight: 2e-3


def test_reset_is_something_else(world: World, first, second, tmp_path: Path):
    anew = world.train(tmp_path, start=first["short"].folder, **{**SECOND, "init_state": "reset"})
    assert anew.losses[0] == second["short"].losses[0] and abs(anew.losses[-1] / second["short"].losses[-1] - 1) > 1e-4


@pytest.mark.parametrize("layout", ["DP2", "TP2xPP2", "TP2+SP", "TP2xDP2+DO", "PP2xVP2"])
def test_every_layout_equals_one_rank(world: World, first, second, tmp_path: Path, layout):
    """What the first phase has frozen is synchronised in the second."""
    run = world.train(tmp_path, *LAYOUTS[layout], start=first["tied"].folder, **SECOND)
    assert run.losses == pytest.approx(second["tied"].losses, rel=1e-5)
    assert run.norms == pytest.approx(second["tied"].norms, rel=1e-5)
    ours, theirs = tensors(run.folder), tensors(second["tied"].folder)
    assert max((ours[name] - theirs[name]).abs().max().item() for name in theirs) < 1e-4


def test_resumed(world: World, first, second, tmp_path: Path):
    run = interrupted_after(2, second["short"], tmp_path / "run")
    assert_identical(world.train(run, start=first["short"].folder, **SECOND), second["short"])


@pytest.mark.parametrize("precision, kind", [("bf16-mixed", "adamw"), ("bf16-true", "adamw"), ("fp32", "lionw")])
def test_main_weights_and_moments_go_on(world: World, tmp_path: Path, precision, kind):
    optimizer = {"lr": 3e-3, "type": kind, "weight_decay": 0.0}
    settings = {**SHARED, "precision": precision, "optimizer": optimizer, "train": ["embedding", "layers[:1]"], "steps": 2}
    one = world.train(tmp_path / "one", **settings, name="one")
    still = {**settings, "optimizer": {**optimizer, "lr": 1e-30}, "steps": 1}
    kept = world.train(tmp_path / "two", start=one.folder, **still, name="two", init_state="keep")
    before, after = stored(one.folder), stored(kept.folder)
    anew = stored(world.train(tmp_path / "three", start=one.folder, **still, name="three").folder)
    for name in ("embedding.word_embeddings.weight", "decoder.layers.0.mlp.linear_fc1.weight"):
        compare(precision, name, before, after, anew)


def compare(precision: str, name: str, before: dict, after: dict, anew: dict) -> None:
    main = f"optimizer.state.fp32_param.{name}" if precision == "bf16-mixed" else name
    assert torch.equal(before[main], after[main]) and torch.equal(before[name], after[name])
    moment = f"optimizer.state.exp_avg.{name}"
    assert not torch.equal(after[moment], anew[moment])
    if precision == "bf16-mixed":
        assert not torch.equal(before[main], anew[main])  # a new phase begins with what bf16 keeps of them


def test_nothing_was_kept_before_the_first_phase(world: World, tmp_path: Path):
    """After an import, say: the same as without."""
    kept = world.train(tmp_path / "kept", steps=1, init_state="keep")
    assert checkpoint.resolve(kept.folder).position.ages == {}
    assert isinstance(kept, Outcome) and kept.losses == world.train(tmp_path / "anew", steps=1).losses
