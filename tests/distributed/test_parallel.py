"""Every layout trains the same model: losses and gradient norms of one rank, to rounding."""

from __future__ import annotations

import json
import shutil
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from megatron.core.distributed import param_and_grad_buffer
from worlds import SEED, Layout, Outcome, World, changed, hf_model, on_ranks, phase, tensors

from megatron_adapt.engine import backend, evaluate, loop
from megatron_adapt.hf.tokenizer import Tokenizer

RELATIVE = 1e-5  # float32; sums are taken in another order
LAYOUTS = {  # layout, ranks, micro_batch_size: every rank has at least two micro-batches a step
    "TP2": (Layout(tensor=2), 2, 4),
    "PP2": (Layout(pipeline=2), 2, 4),
    "TP2xPP2": (Layout(tensor=2, pipeline=2), 4, 4),
    "DP2": (Layout(), 2, 2),
    "TP2+SP": (Layout(tensor=2, sequence=True), 2, 4),
    "PP4": (Layout(pipeline=4), 4, 4),
    "PP2xDP2+DO": (Layout(pipeline=2, distributed_optimizer=True), 4, 2),
    "PP2xVP2": (Layout(pipeline=2, virtual_pipeline=2), 2, 1),
}
ALL = pytest.mark.parametrize("layout, ranks, micro", LAYOUTS.values(), ids=LAYOUTS)
# Two layers untied, four tied; four of both where a pipeline has as many parts.
BOTH = pytest.mark.parametrize(
    "model, layout, ranks, micro",
    [
        pytest.param(model, *given, id=f"{model}-{name}")
        for name, given in LAYOUTS.items()
        for model in ("untied" if given[0].pipeline * given[0].virtual_pipeline > 2 else "short", "tied")
    ],
)


@pytest.fixture(scope="module")
def one_rank(world: World, tmp_path_factory: pytest.TempPathFactory):
    """A function that trains on one rank; repeated settings are trained once."""

    @lru_cache
    def train(model: str, train: str) -> Outcome:
        return world.train(tmp_path_factory.mktemp("one"), start=model, train=train, evaluate_every=5)

    return train


def assert_same(run: Outcome, reference: Outcome) -> None:
    assert len(reference.losses) == 5 and min(reference.losses[1:]) < reference.losses[0]
    assert run.losses == pytest.approx(reference.losses, rel=RELATIVE)
    assert run.norms == pytest.approx(reference.norms, rel=RELATIVE)
    assert [line.keys() for line in run.metrics] == [line.keys() for line in reference.metrics]
    groups = {key: value for key, value in reference.metrics[-1].items() if key.startswith("grad_norm/")}
    assert {key: run.metrics[-1][key] for key in groups} == pytest.approx(groups, rel=RELATIVE)
    assert sum(value**2 for value in groups.values()) == pytest.approx(reference.norms[-1] ** 2, rel=RELATIVE)
    for kind in ("held_out", "held_out_loss", "held_out_document_loss"):
        assert run.metrics[-1][f"{kind}/text"] == pytest.approx(reference.metrics[-1][f"{kind}/text"], rel=RELATIVE)
    assert run.metrics[-1]["bits_per_byte"] == pytest.approx(reference.metrics[-1]["bits_per_byte"], rel=RELATIVE)


@BOTH
def test_full_training_equals_one_rank(world: World, one_rank, tmp_path: Path, model, layout, ranks, micro):
    run = world.train(tmp_path, layout, ranks, start=model, evaluate_every=5, micro_batch_size=micro)
    reference = one_rank(model, "all")
    assert_same(run, reference)
    ours, theirs = tensors(run.folder), tensors(reference.folder)
    assert max((ours[name] - theirs[name]).abs().max().item() for name in theirs) < 1e-4


@BOTH
def test_embedding_phase_equals_one_rank(world: World, one_rank, tmp_path: Path, model, layout, ranks, micro):
    settings = {"train": "embedding", "evaluate_every": 5, "micro_batch_size": micro}
    run = world.train(tmp_path, layout, ranks, start=model, **settings)
    assert_same(run, one_rank(model, "embedding"))
    assert changed(world.initial(model), tensors(run.folder)) == {"embedding.word_embeddings.weight"}


@pytest.mark.parametrize("part, clip_grad", [("output", 1.0), ("output", 0.0), ("embedding", 0.0)])
def test_pipeline_with_a_stage_that_trains_nothing(world: World, tmp_path: Path, part, clip_grad):
    settings = {"train": part, "optimizer": {"lr": 3e-3, "clip_grad": clip_grad}, "evaluate_every": 5}
    run = world.train(tmp_path / "PP2", Layout(pipeline=2), **settings)
    assert_same(run, world.train(tmp_path / "one", **settings))


@pytest.mark.parametrize("layout", [Layout(), Layout(distributed_optimizer=True)], ids=["all-reduce", "reduce-scatter"])
def test_gradients_are_summed_over_ranks_once_a_step(world: World, tmp_path: Path, layout):
    """However many micro-batches a step has."""

    def summed(micro: int) -> int:
        job = world.job(tmp_path / str(micro), layout, phase(micro_batch_size=micro), world.imported("untied"))
        elements = [0]

        def counting(function):
            def call(tensor, *rest, **named):
                elements[0] += tensor.numel()
                return function(tensor, *rest, **named)

            return call

        backend.start(layout, SEED)
        run = loop._Run(job, lambda line: None, lambda done, total: None)
        for module, name in ((torch.distributed, "all_reduce"), (param_and_grad_buffer, "dist_reduce_scatter_func")):
            setattr(module, name, counting(getattr(module, name)))
        run._step()
        return elements[0]

    counts = [on_ranks(2, lambda micro=micro: summed(micro))[0] for micro in (1, 4)]
    weights = sum(tensor.numel() for tensor in world.initial("untied").values())
    assert counts[0] == counts[1] and counts[0] < 1.1 * weights, (counts, weights)


@ALL
def test_bits_per_byte_is_the_same_in_every_layout(world: World, layout, ranks, micro):
    def measure(layout: Layout) -> dict:
        model, _ = hf_model(world.model("untied"), layout)
        texts = evaluate.read_texts(world.held_out)
        text = evaluate.tokenize(texts, Tokenizer.load(world.tokenizer), 48)
        return evaluate.bits_per_byte(model, text, layout)

    (reference,) = on_ranks(1, lambda: measure(Layout()))
    assert reference["documents"] == 20
    assert abs(reference["document_loss"] / reference["token_loss"] - 1) > 1e-3  # short documents count as much as long ones
    for result in on_ranks(ranks, lambda: measure(layout)):
        assert result == pytest.approx(reference, rel=1e-6)


def test_the_loss_per_document_is_the_mean_of_each_ones_own(world: World):
    def measure() -> list[float]:
        model, _ = hf_model(world.model("untied"))
        texts, tokenizer = evaluate.read_texts(world.held_out), Tokenizer.load(world.tokenizer)
        every, *each = (
            evaluate.bits_per_byte(model, evaluate.tokenize(part, tokenizer, 24), Layout()) for part in [texts, *([text] for text in texts)]
        )
        assert every["tokens"] == sum(one["tokens"] for one in each) and max(one["tokens"] for one in each) > 2 * 24
        return [every["document_loss"], sum(one["token_loss"] for one in each) / len(texts)]

    ((found, expected),) = on_ranks(1, measure)
    assert found == pytest.approx(expected, rel=1e-6)


def test_the_begin_of_a_document_is_not_an_unknown_token(world: World, tmp_path: Path):
    """GPT-2's tokenizer has one token for both, and would be said to have as many unknown tokens as documents."""
    shutil.copy(world.tokenizer / "tokenizer.json", tmp_path)
    for unknown, expected in (("</s>", 0), ("e", 3)):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "</s>", "eos_token": "</s>", "unk_token": unknown}))
        text = evaluate.tokenize(["e", "ee", ""], Tokenizer.load(tmp_path), 4)
        assert (text.documents, text.tokens, text.unknown) == (3, 3, expected)


def test_bf16_layouts_agree_roughly(world: World, tmp_path: Path):
    one = world.train(tmp_path / "one", precision="bf16-mixed")
    two = world.train(tmp_path / "two", Layout(tensor=2), precision="bf16-mixed")
    assert two.losses == pytest.approx(one.losses, rel=5e-3)
