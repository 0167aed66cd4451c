"""Activations that are computed again in the backward pass: the same gradients, and they are not kept."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from family_models import CONFIGS
from worlds import LAYOUTS, SEED, STEPS, Layout, Outcome, World, assert_identical, hf_model, interrupted_after, on_ranks, phase

from megatron_adapt.analysis import estimate, recomputation
from megatron_adapt.config import Dropout, Parallel, Phase
from megatron_adapt.engine import backend, loop, memory, model as models
from megatron_adapt.engine.losses import positions
from megatron_adapt.errors import ConfigError
from megatron_adapt.families import families, family_named, find_family
from megatron_adapt.families.family import ModelShape
from megatron_adapt.hf.directory import read_json

RELATIVE = 1e-5
MLPS = r"regex:layers\.\d+\.mlp"


@pytest.fixture(scope="module")
def kept(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """One rank that keeps everything, by what is trained."""
    return {train: world.train(tmp_path_factory.mktemp("kept"), start="untied", train=train) for train in ("all", MLPS)}


@pytest.mark.parametrize("layout, recompute, train", [
    ("one", "selective", "all"),
    ("one", "full", "all"),
    ("TP2+SP", "selective", "all"),
    ("TP2xPP2", "full", "all"),
    ("PP2xVP2", "selective", "all"),
    ("CP2", "full", "all"),
    # Under a frozen embedding no input has a gradient: what is computed again of it would give its weights none.
    ("one", "full", MLPS),
    # So many layers of each rank: of 4, of 2, of 2 in stages of 1.
    ("one", 3, MLPS),
    ("TP2xPP2", 1, "all"),
    ("PP2xVP2", 2, "all"),
])  # fmt: skip
def test_training_is_the_same(world: World, kept, tmp_path: Path, layout, recompute, train):
    run = world.train(tmp_path, *LAYOUTS[layout], start="untied", train=train, recompute=recompute)
    assert run.losses == pytest.approx(kept[train].losses, rel=RELATIVE)
    assert run.norms == pytest.approx(kept[train].norms, rel=RELATIVE)


@pytest.mark.parametrize("changes", [
    {}, {"parallel_residual": True}, {"mlp_bias": True}, {"parallel_residual": True, "mlp_bias": True},
], ids=["Megatron's layer", "ours", "Megatron's with biases", "ours with biases"])  # fmt: skip
@pytest.mark.parametrize("recompute, mlps, attentions", [
    ("none", [1, 1, 1, 1], [1, 1, 1, 1]), ("selective", [2, 2, 2, 2], [1, 1, 1, 1]), ("full", [2, 2, 2, 2], [2, 2, 2, 2]),
    (3, [2, 2, 2, 1], [2, 2, 2, 1]),
])  # fmt: skip
def test_what_is_computed_twice(world: World, changes, recompute, mlps, attentions):
    def count() -> tuple[list[int], list[int], float]:
        _, shape = hf_model(world.model("untied"))
        model = drawn(replace(shape, **changes), recompute)
        calls = {name: [0] * shape.num_layers for name in ("mlp", "self_attention")}
        for number, layer in enumerate(model.decoder.layers):
            for name, counts in calls.items():
                part = getattr(layer, name)
                part.register_forward_hook(lambda *_, counts=counts, number=number: counts.__setitem__(number, counts[number] + 1))
        norm = gradient_norm(model)
        return calls["mlp"], calls["self_attention"], norm

    ((found_mlps, found_attentions, norm),) = on_ranks(1, count)
    assert (found_mlps, found_attentions) == (mlps, attentions)
    assert norm == pytest.approx(NORMS.setdefault(str(changes), norm), rel=RELATIVE)


NORMS: dict[str, float] = {}  # of the gradients, by what differs in the model


def drawn(shape: ModelShape, recompute: str | int, dropout: Dropout = Dropout()) -> torch.nn.Module:
    """A model with random weights, in training, in a backend that has just been started."""
    model = models.build(shape, Layout(), "fp32", recompute, dropout=dropout).train()
    generator = torch.Generator().manual_seed(SEED)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return model


def gradient_norm(model: torch.nn.Module) -> float:
    tokens = torch.arange(12).view(2, 6)
    model(tokens, positions(tokens), None, labels=tokens).mean().backward()
    norm = sum(parameter.grad.double().square().sum().item() for parameter in model.parameters())
    backend.stop()
    return norm


def tiny_shape(name: str, **changes: int) -> ModelShape:
    """Of the first of a family's ``CONFIGS``; ``changes``: of what it has."""
    family, (sizes, *_) = family_named(name), CONFIGS[name].values()
    given = {key: changes.get(key, value) for key, value in sizes.items() if key not in ("vocab_size", "bos_token_id", "eos_token_id")}
    return family.read_config(family.complete_config({**given, "architectures": family.architectures[:1]}, 51, None, None))


def test_layers_of_every_family(world: World) -> None:
    """To the last bit, with dropout, whose random numbers are drawn again."""

    def norms() -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for name in CONFIGS:
            shape = tiny_shape(name)
            for recompute in ("none", 1, "full"):
                backend.start(Layout(), SEED)
                found.setdefault(name, []).append(gradient_norm(drawn(shape, recompute, Dropout(hidden=0.1, attention=0.1))))
        return found

    (found,) = on_ranks(1, norms)
    assert set(found) == set(families())
    for name, (kept, one, full) in found.items():
        assert kept == one == full and kept > 0, name


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
def test_what_layers_keep_is_what_the_estimate_counts(name: str) -> None:
    """Of models whose kernels on a CPU keep what those of a GPU do; of layers that are computed again their inputs alone."""
    shape = replace(tiny_shape(name, n_embd=128, hidden_size=128), num_layers=4)

    def kept() -> list[int]:
        """Bytes for the backward pass, by how many layers are computed again."""
        sums = []
        for recompute in ("none", 1, 3):
            backend.start(Layout(), SEED)
            model, found = drawn(shape, recompute), {}
            weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

            def keep(tensor: torch.Tensor) -> torch.Tensor:
                found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
                return tensor

            tokens = torch.arange(64).view(2, 32) % 51
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = model(tokens, positions(tokens), None, labels=tokens).mean()
            sums.append(sum(storage.nbytes() for place, storage in found.items() if place not in weights))
            del loss
            backend.stop()
        return sums

    ((none, one, three),) = on_ranks(1, kept)
    whole, _, entry = (2 * 64 * size for size in estimate.layer_bytes(shape, Parallel(), phase()))
    assert (one - three) / 2 == pytest.approx(whole - entry, rel=0.1)
    assert none - one == pytest.approx(whole - entry, rel=0.1)


def test_more_layers_than_a_rank_has_are_refused(world: World) -> None:
    def refused() -> list[str]:
        backend.start(Layout(), SEED)
        shape = shape_of(world, "untied")
        return [str(recomputation.problem(count, shape, *ranks)) for count, ranks in ((5, (1, 1)), (3, (2, 1)), (1, (2, 2)))] + [
            str(pytest.raises(ConfigError, models.build, shape, Layout(), "fp32", 5).value)
        ]

    (found,) = on_ranks(1, refused)
    assert found == [
        "recompute: 5 is more than a rank has, the model's 4 layers; for all of them use 'full'",
        "recompute: 3 is more than a rank has, 2 of the model's 4 layers; for all of them use 'full'",
        "recompute: 1 is no multiple of parallel.virtual_pipeline=2: a rank's stages share it equally",
        "recompute: 5 is more than a rank has, the model's 4 layers; for all of them use 'full'.",
    ]


# ------------------------------------------------------------------------------------------------ what the memory allows


def shape_of(world: World, model: str) -> ModelShape:
    config = read_json(world.model(model) / "config.json")
    return find_family(config).read_config(config)


def fitting(count: int | str, settings: Phase, parallel: Parallel, shape: ModelShape) -> float:
    """Bytes of a GPU on which just so many layers have to be computed again."""
    return recomputation.needs(count, shape, parallel, settings, "fp32") / recomputation.USABLE + 1


def test_auto_is_the_least_that_fits_on_the_smallest_gpu(world: World) -> None:
    settings, layout = phase(recompute="auto", micro_batch_size=4), Layout(distributed_optimizer=True)

    def choose() -> list[tuple[str | int, list[str]]]:
        backend.start(layout, SEED)
        shape, found, without = shape_of(world, "untied"), [], memory.of_gpu
        parallel = Parallel(data=2, distributed_optimizer=True)
        for least in (2, "full", None):
            sizes = [fitting(least, settings, parallel, shape), fitting("none", settings, parallel, shape)] if least else [1, 1]
            memory.of_gpu = lambda: sizes[backend.rank()]
            lines: list[str] = []
            found.append((memory.recompute(settings, shape, layout, "fp32", lines.append), lines))
        memory.of_gpu = without
        return [*found, (memory.recompute(settings, shape, layout, "fp32", lines.append), lines[1:])]

    first, second = on_ranks(2, choose)
    assert first == second and [chosen for chosen, _ in first] == [2, 3, "full", "none"]
    assert re.fullmatch(r"recompute: auto: 2 of 4 layers are computed again; ~0.00 of 0 GB a rank", first[0][1][0])
    assert first[2][1][0].startswith("recompute: auto: all layers are computed again; ~") and first[3][1] == [
        "recompute: auto: nothing is computed again; ~0.00 GB a rank"
    ]


def test_auto_may_choose_otherwise_when_a_run_goes_on(world: World, uninterrupted, tmp_path: Path) -> None:
    reference = uninterrupted("one")
    folder, settings = interrupted_after(2, reference, tmp_path / "run"), phase(**STEPS, recompute="auto")
    size = fitting(1, settings, Parallel(), shape_of(world, "short"))

    def resume() -> list[str]:
        memory.of_gpu = lambda: size
        lines: list[str] = []
        with backend.session(Layout(), SEED):
            loop.train(world.job(folder, Layout(), settings, world.imported("short")), lines.append)
        return lines

    ((line, *_),) = on_ranks(1, resume)
    assert line.startswith("recompute: auto: 1 of 2 layers are computed again")
    assert_identical(Outcome(folder), reference)
