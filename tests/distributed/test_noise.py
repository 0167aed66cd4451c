"""Dropout and NEFTune in training: whose random numbers are whose, in every layout; recomputed, interrupted, evaluated."""

from __future__ import annotations

import hashlib
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Callable

import pytest
import torch
import torch.nn.functional as F
from worlds import (
    LAYOUTS, STEPS, Layout, Outcome, World, assert_identical, hf_model, interrupted_after, on_ranks, phase,
)  # fmt: skip

from megatron_adapt.engine import backend, context, loop, noise
from megatron_adapt.engine.losses import positions
from megatron_adapt.engine.packing import Documents

RATES = {"hidden": 0.2, "attention": 0.1, "embedding": 0.3}
RELATIVE = 1e-5
LAYERS, STEPS_DRAWN, MICRO_BATCHES = 4, 2, 4
Draws = dict[str, list[str]]  # by what is drawn: the state of the random numbers each time


def watch() -> Draws:
    """From now on, where random numbers stand whenever some are drawn; the same state is the same mask."""
    found: Draws = {name: [] for name in RATES}
    names = {rate: name for name, rate in RATES.items()}

    def draw(name: str) -> None:
        found[name].append(hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest())

    def watched(function: Callable, argument: str) -> Callable:
        def call(*arguments, **options):
            rate = options.get(argument, arguments[1] if argument == "p" and len(arguments) > 1 else 0)
            training = argument != "p" or options.get("training", arguments[2] if len(arguments) > 2 else True)
            if rate and training:
                draw(names[rate])
            return function(*arguments, **options)

        return call

    F.dropout = watched(F.dropout, "p")
    F.scaled_dot_product_attention = watched(F.scaled_dot_product_attention, "dropout_p")
    return found


@pytest.fixture(scope="module")
def drawn(world: World, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Outcome, list[Draws]]]:
    """Two steps with dropout, and noise that must not disturb it: what they came to, and the draws of each rank."""

    @lru_cache
    def train(layout: str, recompute: str = "none") -> tuple[Outcome, list[Draws]]:
        folder = tmp_path_factory.mktemp("noise")
        settings = phase(steps=STEPS_DRAWN, dropout=RATES, recompute=recompute, neftune_alpha=5, neftune_per="sequence")
        job = world.job(folder, LAYOUTS[layout][0], settings, world.imported("untied"))

        def work() -> Draws:
            found = watch()
            backend.start(job.layout, job.seed)
            loop.train(job)
            return found

        return Outcome(folder), on_ranks(LAYOUTS[layout][1], work)

    return train


def whole(draws: list[Draws], name: str) -> set[str]:
    """All ranks', none of which are the same."""
    states = [state for rank in draws for state in rank[name]]
    assert len(set(states)) == len(states)
    return set(states)


def test_every_mask_is_another(drawn):
    outcome, (draws,) = drawn("one")
    times = STEPS_DRAWN * MICRO_BATCHES
    assert {name: len(states) for name, states in draws.items()} == {
        "hidden": times * LAYERS * 2, "attention": times * LAYERS, "embedding": times
    }  # fmt: skip
    states = [state for found in draws.values() for state in found]
    assert len(set(states)) == len(states)


def test_data_parallel_ranks_share_the_masks_of_one(drawn):
    (one, before), (two, after) = drawn("one"), drawn("DP2")
    for name in RATES:
        assert whole(after, name) == whole(before, name)
    assert two.losses == pytest.approx(one.losses, rel=RELATIVE) and two.norms == pytest.approx(one.norms, rel=RELATIVE)


def test_tensor_parallel_ranks_drop_their_own_heads_and_the_same_activations(drawn):
    first, second = drawn("TP2")[1]
    assert all(first[name] == second[name] for name in ("hidden", "embedding"))
    assert len(whole([first, second], "attention")) == 2 * STEPS_DRAWN * MICRO_BATCHES * LAYERS


@pytest.mark.parametrize(
    "layout, embeddings, layers, parts", [("TP2+SP", 2, 8, 1), ("PP2", 1, 4, 1), ("PP2xVP2", 1, 4, 1), ("CP2", 2, 8, 4)]
)
def test_ranks_with_other_positions_or_layers_draw_their_own(drawn, layout, embeddings, layers, parts):
    """``parts``: of a micro-batch that attention takes one by one."""
    times, draws = STEPS_DRAWN * MICRO_BATCHES, drawn(layout)[1]
    counts = {name: len(whole(draws, name)) for name in RATES}
    assert counts == {
        "hidden": times * layers * 2, "attention": times * layers * parts, "embedding": times * embeddings
    }  # fmt: skip


@pytest.mark.parametrize("layout", ["TP2+SP", "PP2"])
def test_what_is_computed_again_is_dropped_again(drawn, layout):
    (kept, once), (recomputed, twice) = drawn(layout), drawn(layout, "full")
    for before, after in zip(once, twice):
        assert after["embedding"] == before["embedding"]
        for name in ("hidden", "attention"):
            assert Counter(after[name]) == {state: 2 for state in before[name]}
    assert recomputed.losses == pytest.approx(kept.losses, rel=RELATIVE)
    assert recomputed.norms == pytest.approx(kept.norms, rel=RELATIVE)


def test_an_interrupted_run_draws_what_it_would_have(world: World, uninterrupted, tmp_path: Path, monkeypatch):
    layout = "TP2+SP"
    settings = STEPS | {"steps": 4, "dropout": 0.1, "neftune_alpha": 5, "packing": "documents"}
    reference = world.train(tmp_path / "reference", *LAYOUTS[layout], **settings)
    assert reference.losses != pytest.approx(uninterrupted().losses[:4], rel=1e-3)
    folder = interrupted_after(2, reference, tmp_path / "run")
    monkeypatch.setattr(backend, "set_rng_state", lambda state: None)  # saved or not, it does not matter
    assert_identical(world.train(folder, *LAYOUTS[layout], **settings), reference)


def test_evaluation_drops_nothing(world: World, tmp_path: Path):
    settings = {"dropout": 0.3, "neftune_alpha": 50, "neftune_per": "sequence", "steps": 2, "optimizer": {"lr": 1e-30}}
    measured = world.train(tmp_path / "measured", **settings, evaluate_every=1)
    without = world.train(tmp_path / "without", **{**settings, "dropout": 0, "neftune_alpha": 0}, evaluate_every=1)
    assert measured.losses != without.losses
    numbers = [[line["held_out/text"] for line in run.metrics] for run in (measured, without)]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-12)


@pytest.mark.parametrize("layout, micro, packed", [
    ("TP2+SP", 4, True), ("CP2", 2, True), ("DP2", 2, True), ("TP2+SP", 2, False),
])  # fmt: skip
def test_the_noise_on_embeddings_is_the_same_in_every_layout(one_with_noise, world: World, tmp_path: Path, monkeypatch, layout, micro, packed):
    """Of samples, and of micro-batches of any size; and so are the losses."""
    monkeypatch.setattr(noise, "BLOCK", 5)  # which no rank's part begins or ends with
    run = world.train(tmp_path / "run", *LAYOUTS[layout], **one_with_noise.settings(packed), micro_batch_size=micro)
    one = one_with_noise(packed)
    assert run.losses == pytest.approx(one.losses, rel=RELATIVE) and run.norms == pytest.approx(one.norms, rel=RELATIVE)


@pytest.fixture(scope="module")
def one_with_noise(world: World, tmp_path_factory: pytest.TempPathFactory):
    """Runs of one rank and micro-batches of one sample, by whether documents are packed; ``settings``: of the phase."""

    def settings(packed: bool) -> dict:
        documents = {"packing": "documents"} if packed else {"neftune_per": "sequence"}
        return {"steps": 2, "neftune_alpha": 20, **documents}

    @lru_cache
    def train(packed: bool) -> Outcome:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(noise, "BLOCK", 5)
            run = world.train(tmp_path_factory.mktemp("one"), **settings(packed), micro_batch_size=1)
            quiet = world.train(tmp_path_factory.mktemp("quiet"), **settings(packed) | {"neftune_alpha": 0}, micro_batch_size=1)
        assert run.losses != pytest.approx(quiet.losses, rel=1e-3)
        return run

    train.settings = settings
    return train


def test_a_frozen_embedding(world: World, tmp_path: Path):
    settings = {"dropout": 0.1, "neftune_alpha": 5, "packing": "documents", "recompute": "full"}
    run = world.train(tmp_path, start="untied", train="layers[1:3]", **settings)
    assert run.norms[-1] > 0 and run.losses[-1] < run.losses[0]


def test_without_noise_no_random_number_is_drawn(world: World, tmp_path: Path):
    job = world.job(tmp_path, Layout(), phase(steps=1), world.imported("untied"))

    def work() -> bool:
        backend.start(job.layout, job.seed)
        before = torch.get_rng_state()
        loop.train(job)
        return torch.equal(before, torch.get_rng_state())

    assert on_ranks(1, work) == [True]


def test_a_tenth_is_dropped_and_the_rest_makes_up_for_it(world: World):
    def work() -> tuple[float, float, float, bool]:
        model, _ = hf_model(world.model("untied"))
        noise.add(model, phase(dropout={"embedding": 0.1}))
        tokens = torch.randint(300, (16, 128))
        whole = model.eval().embedding(tokens, positions(tokens))
        thinned = model.train().embedding(tokens, positions(tokens))
        again = model.train().embedding(tokens, positions(tokens))
        kept = thinned != 0
        ratio = (thinned[kept] / whole[kept]).double()
        return 1 - kept.double().mean().item(), ratio.min().item(), ratio.max().item(), thinned.equal(again)

    ((share, low, high, same),) = on_ranks(1, work)
    assert share == pytest.approx(0.1, abs=4 * (0.1 * 0.9 / (16 * 128 * 32)) ** 0.5) and not same  # four standard deviations
    assert low == pytest.approx(1 / 0.9) and high == pytest.approx(1 / 0.9)


LENGTHS = (20, 1, 11)


@pytest.mark.parametrize("layout, precision, per", [
    ("TP2+SP", "fp32", "document"), ("CP2", "fp32", "document"), ("TP2", "bf16-mixed", "document"), ("one", "fp32", "sequence"),
])  # fmt: skip
def test_noise_is_uniform_within_the_bound_of_its_document(world: World, layout, precision, per):
    """alpha / sqrt(L d): L is the document's length, or the sequence's whatever is packed into it."""
    alpha, rows = 7.0, 16
    layout, ranks = LAYOUTS[layout]

    def work() -> tuple[torch.Tensor, torch.Tensor]:
        model, _ = hf_model(world.model("untied"), layout, precision)
        mine = context.mine(torch.arange(32)[None])[0]
        if layout.sequence:
            mine = mine.chunk(2)[backend.rank()]
        seen = []
        model.embedding.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
        noise.add(model, phase(neftune_alpha=alpha, neftune_per=per, packing="documents"))
        model.embedding.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
        found = []
        for number in range(rows):
            tokens = torch.randint(300, (1, 32), generator=torch.Generator().manual_seed(number))
            documents = Documents.of(LENGTHS, 32, backend.device())
            noise.begin(model, noise.Seeds(number, (number,)))
            for mode in (model.train, model.eval):
                inputs = context.mine(tokens)
                mode()(inputs, documents.within[None], None, labels=inputs, packed_seq_params=documents)
            assert seen[2].equal(seen[3])  # evaluated
            found.append(seen[1].float() - seen[0].float())
            seen.clear()
        return mine, torch.stack(found)[:, :, 0]  # [rows, positions of this rank, d]

    parts = on_ranks(ranks, work)
    assert layout.tensor == 1 or layout.sequence or parts[0][1].equal(parts[1][1])
    drawn = torch.empty(rows, 32, parts[0][1].size(-1))
    for places, part in parts:
        drawn[:, places] = part
    assert drawn.unique().numel() > 0.9 * drawn.numel() or precision != "fp32"  # none is drawn twice
    for length, part in zip(LENGTHS, drawn.split(LENGTHS, dim=1)):
        bound = alpha / ((length if per == "document" else 32) * part.size(-1)) ** 0.5
        inside = 1 + (1e-3 if precision == "fp32" else 2e-2)  # rounded with the embedding
        assert 0.97 * bound < part.abs().max() < bound * inside
        assert part.std().item() == pytest.approx(bound / 3**0.5, rel=0.05) and abs(part.mean()) < 0.1 * bound
