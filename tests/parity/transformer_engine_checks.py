"""Layers of Transformer Engine beside plain torch's; test_transformer_engine.py runs this with a stand-in for its kernels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from family_models import CONFIGS, import_models, make, tokens
from megatron.core import parallel_state
from worlds import (
    LAYOUTS, SEED, STEPS, Layout, World, assert_identical, hf_model, interrupted_after, on_ranks, phase, same_bits, tensors,
)  # fmt: skip

from megatron_adapt.engine import backend, checkpoint, convert, fp8, model as models, optimizer as optimizers
from megatron_adapt.engine.batches import Batch
from megatron_adapt.engine.losses import forward, micro_batches, positions
from megatron_adapt.errors import ConfigError
from megatron_adapt.families import families, find_family
from megatron_adapt.hf.directory import HFDirectory

import_models()
FUSED, PLAIN, ROW = "TELayerNormColumnParallelLinear", "TEColumnParallelLinear", "TERowParallelLinear"
USED = {
    ("gpt_neox", "parallel"): {FUSED, ROW, "TEDotProductAttention", "LayerNorm"},
    ("gpt_neox", "odd"): {FUSED, ROW, "LayerNorm"},
    ("mpt", "released"): {PLAIN, ROW},
    ("llama", "gqa"): {FUSED, ROW, "TEDotProductAttention", "RMSNorm", "rope"},
    ("mistral", "window"): {FUSED, ROW, "RMSNorm"},
    ("olmo2", "gqa"): {PLAIN, ROW},
    ("gemma2", "as released"): {PLAIN, ROW},
}


def made(folder: Path, family: str, config: str, **changes: int) -> Path:
    on_ranks(1, lambda: make(families()[family], {**CONFIGS[family][config], **changes}, folder))
    return folder


def logits(model: torch.nn.Module) -> torch.Tensor:
    """Of all ranks, ``[2, s, vocabulary]``."""
    rows = tokens()[:, :-1]
    with torch.no_grad():
        mine = model.eval()(rows, positions(rows), None)
    group = parallel_state.get_tensor_model_parallel_group()
    parts = [None] * group.size()
    torch.distributed.all_gather_object(parts, mine, group=group)
    return torch.cat(parts, dim=-1)


@pytest.mark.parametrize("family, config", USED)
def test_what_is_used(tmp_path: Path, transformer_engine, family, config):
    path = made(tmp_path / "hf", family, config)

    def run() -> tuple[set[str], set[str], str]:
        model, shape = hf_model(path)
        logits(model)
        theirs = set(transformer_engine.used)
        transformer_engine.used.clear()
        logits(hf_model(path, Layout(layers="torch"))[0])
        return theirs, set(transformer_engine.used), backend.layers(shape)

    ((theirs, ours, words),) = on_ranks(1, run)
    assert (theirs, ours) == (USED[family, config], set())
    assert words == "plain torch: backend: torch is chosen"


@pytest.mark.parametrize("family, config", [("gpt_neox", "parallel"), ("mpt", "six heads, clipped"), ("olmo2", "gqa")])
def test_a_checkpoint_of_either_loads_into_the_other(tmp_path: Path, family, config):
    """Written by two ranks, read by one: of the same names and bits, with the same logits."""
    path = made(tmp_path / "hf", family, config)

    def save() -> torch.Tensor:
        for layers in ("te", "torch"):
            model, _ = hf_model(path, Layout(tensor=2, sequence=layers == "te", layers=layers))
            checkpoint.save(tmp_path / layers, model, None, checkpoint.Position(), path)
        return logits(model)

    def load() -> dict[str, torch.Tensor]:
        found = {}
        for saved, layers in (("te", "torch"), ("torch", "te")):
            backend.start(Layout(layers=layers), SEED)
            config = HFDirectory.open(path).config
            model = models.build(find_family(config).read_config(config), Layout(layers=layers), "fp32")
            checkpoint.load(checkpoint.resolve(tmp_path / saved), model)
            found[layers] = logits(model)
        return found

    expected = on_ranks(2, save)[0]
    (found,) = on_ranks(1, load)
    assert all((found[layers] - expected).abs().max() < 1e-4 for layers in ("te", "torch"))
    of_te, of_torch = tensors(tmp_path / "te"), tensors(tmp_path / "torch")
    assert set(of_te) == set(of_torch) and all(same_bits(of_te[name], of_torch[name]) for name in of_te)


def test_context_parallel_ranks_attend_in_torch(tmp_path: Path, transformer_engine):
    """Its attention takes documents of some lengths only when their parts lie on several ranks; everything else stays its own."""
    path = made(tmp_path / "hf", "llama", "gqa")

    def run() -> tuple[set[str], str]:
        model, shape = hf_model(path, Layout(context=2))
        batch = Batch(tokens()[None, :, :25], torch.zeros(1, 2).long())
        forward(model, next(micro_batches(batch)))
        return set(transformer_engine.used), backend.layers(shape)

    for used, words in on_ranks(2, run):
        assert used == {FUSED, ROW, "RMSNorm"} and words == "Transformer Engine; attention in plain torch: context parallelism"


WIDE = {"intermediate_size": 48}  # fp8 takes multiples of 16


@pytest.mark.parametrize("family, config, changes", [("gpt_neox", "parallel", WIDE), ("mpt", "released", {})])
def test_all_linear_layers_compute_in_fp8(tmp_path: Path, transformer_engine, family, config, changes):
    """In the forward pass and where it is computed again, as Megatron's layers do it."""
    path = made(tmp_path / "hf", family, config, **changes)

    def run() -> dict[str, tuple[list[str], list[str], dict[str, torch.Tensor]]]:
        directory = HFDirectory.open(path)
        shape = find_family(directory.config).read_config(directory.config)
        found = {}
        for recompute in ("none", "selective", 1):
            backend.start(Layout(), SEED)
            model = models.build(shape, Layout(), "fp8-current", recompute)
            convert.load_hf(model, directory, shape)
            rows = tokens()[:, :16]  # fp8 does not take all of them
            transformer_engine.used.clear()
            loss = model.train()(rows, positions(rows), None).float().square().mean()
            forward = list(transformer_engine.used)
            transformer_engine.used.clear()
            loss.backward()
            gradients = {name: parameter.grad for name, parameter in models.named_parameters(model)}
            found[recompute] = forward, list(transformer_engine.used), gradients
        return found

    (found,) = on_ranks(1, run)
    forward, backward, gradients = found["none"]
    linear = [call for call in forward if call.endswith("Linear")]
    assert len(linear) == 8 and all(call.startswith("fp8 ") for call in linear) and backward == []
    forward, backward, again = found["selective"]
    column = FUSED if family == "gpt_neox" else PLAIN
    assert forward.count("fp8 checkpoint") == 2 and backward == [f"fp8 {column}", f"fp8 {ROW}"] * 2
    _, backward, first = found[1]
    assert sorted(call for call in backward if call.endswith("Linear")) == sorted(linear[:4])
    for other in (again, first):
        assert set(gradients) == set(other) and all(torch.equal(gradients[name], other[name]) for name in gradients)


def test_widths_that_fp8_takes_are_computed_and_others_refused_by_name(tmp_path: Path):
    """The layers themselves, which end in an assertion, are never asked for the others."""
    path = made(tmp_path / "hf", "llama", "gqa", intermediate_size=64)

    def run() -> list[str]:
        said = []
        directory = HFDirectory.open(path)
        shape = find_family(directory.config).read_config(directory.config)
        for width in (64, 80):
            backend.start(Layout(tensor=2), SEED)
            try:
                model = models.build(replace(shape, ffn_hidden_size=width), Layout(tensor=2), "fp8-current")
            except ConfigError as error:
                said.append(str(error))
            else:
                rows = tokens()[:, :16]
                model.train()(rows, positions(rows), None).float().sum().backward()
        return said

    refused = (
        "precision fp8-current takes widths that are multiples of 16, not 40 feed-forward units, which are a rank's under "
        "parallel.tensor=2; choose parallel.tensor=1 or precision bf16-mixed."
    )
    assert on_ranks(2, run) == [[refused]] * 2


def gradient_sums(path: Path, layers: str, train: list[str]) -> dict[str, torch.Tensor]:
    """Of all that trains, over two micro-batches."""
    backend.start(Layout(layers=layers), SEED)
    directory = HFDirectory.open(path)
    shape = find_family(directory.config).read_config(directory.config)
    bare = models.build(shape, Layout(layers=layers), "fp32")
    models.freeze(bare, train)
    convert.load_hf(bare, directory, shape)
    model = models.wrap(bare, "fp32").train()
    model.zero_grad_buffer()
    model.set_is_first_microbatch()  # as Megatron's schedules do
    for rows in tokens().chunk(2):
        inputs = rows[:, :-1].contiguous()
        model(inputs, positions(inputs), None, labels=rows[:, 1:].contiguous()).mean().backward()
    return {name: parameter.main_grad.clone() for name, parameter in models.named_parameters(bare) if parameter.requires_grad}


@pytest.mark.parametrize("family, config, train", [
    ("gpt_neox", "parallel", "all"), ("gpt_neox", "parallel", "norms"), ("gpt_neox", "parallel", r"regex:linear_\w+\.bias$"),
    ("mpt", "released", "all"), ("llama", "mha, tied, yarn, all biases", r"regex:linear_\w+\.bias$"),
    ("mistral", "window", "all"), ("qwen2", "gqa", "all"), ("qwen3", "gqa", "all"), ("gemma3", "one of two sliding", "all"), ("gpt2", "released", "all"),
])  # fmt: skip
def test_gradients_are_summed_by_the_layers_themselves(tmp_path: Path, family, config, train):
    """And those of biases and norms alone, whose layers' weights are frozen, are what they are in training everything."""
    path = made(tmp_path / "hf", family, config)

    def run() -> list[dict[str, torch.Tensor]]:
        return [gradient_sums(path, layers, [what]) for layers, what in (("torch", "all"), ("torch", train), ("te", train))]

    ((expected, *both),) = on_ranks(1, run)
    assert set(both[0]) == set(both[1]) and all(expected[name].abs().max() > 0 for name in both[0])
    for found in both:
        for name, gradient in found.items():
            assert torch.allclose(gradient, expected[name], rtol=1e-3, atol=1e-6), name


def test_fp8_history_outlives_an_evaluation(tmp_path: Path):
    """Which is not in fp8; what is saved behind it is what training left, and goes on from there."""
    path = made(tmp_path / "hf", "gpt_neox", "parallel", **WIDE)

    def run() -> list[dict[str, list[int]]]:
        backend.start(Layout(), SEED)
        directory = HFDirectory.open(path)
        shape = find_family(directory.config).read_config(directory.config)
        first, second = (models.build(shape, Layout(), "fp8-delayed") for _ in range(2))
        convert.load_hf(first, directory, shape)
        rows = tokens()[:, :16]
        first.train()(rows, positions(rows), None)
        found = [histories(first)]
        with fp8.without_fp8(first):
            logits(first)
        checkpoint.save(tmp_path / "saved", first, None, checkpoint.Position(), path)
        checkpoint.load(checkpoint.resolve(tmp_path / "saved"), second)
        return [*found, histories(first), histories(second)]

    ((trained, evaluated, loaded),) = on_ranks(1, run)
    assert len(trained) == 8 and all(trained.values()) and trained == evaluated == loaded


def histories(model: torch.nn.Module) -> dict[str, list[int]]:
    states = model.state_dict()
    return {name: state.tolist() for name, state in states.items() if "linear" in name and name.endswith("_extra_state")}


def test_slopes_are_cut_over_ranks(tmp_path: Path):
    path = made(tmp_path / "hf", "mpt", "six heads, clipped")

    def slopes(layout: Layout) -> list[float]:
        model, _ = hf_model(path, replace(layout, layers="te"))
        return list(model.decoder.layers[1].self_attention.slopes)

    (whole,) = on_ranks(1, lambda: slopes(Layout()))
    assert len(set(whole)) == 6 and sum(on_ranks(2, lambda: slopes(Layout(tensor=2))), []) == whole


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def test_adamw_belongs_to_the_layers(world: World, monkeypatch):
    """Transformer Engine's where its layers are; torch's where the recipe asks for torch's, and where there is no GPU to run it on."""

    def run() -> list[str]:
        found = []
        for layers, precision in (("auto", "bf16-mixed"), ("torch", "bf16-mixed"), ("auto", "fp32"), ("auto", "bf16-true")):
            model, _ = hf_model(world.model("untied"), Layout(layers=layers), precision)
            optimizer = optimizers.build(phase().optimizer, models.wrap(model, precision), precision)
            found.append(type(optimizers.base(optimizer).optimizer).__module__.partition(".")[0])
        return found

    assert on_ranks(1, run) == [["transformer_engine", "torch", "transformer_engine", "megatron_adapt"]]
    monkeypatch.setattr(backend, "transformer_engine_problem", lambda: "there is no GPU")
    assert on_ranks(1, run) == [["torch", "torch", "torch", "megatron_adapt"]]


@pytest.mark.parametrize("layout", ["one", "DP2+DO"])
def test_adamw_of_transformer_engine_continues_exactly(world: World, tmp_path: Path, layout):
    """And as torch's from there, and to the same losses as torch's from the beginning, but for rounding."""
    arranged, ranks = LAYOUTS[layout]
    both = {name: (replace(arranged, layers=name), ranks) for name in ("te", "torch")}
    whole = {name: world.train(tmp_path / name, *both[name], **STEPS) for name in both}
    assert whole["te"].losses == pytest.approx(whole["torch"].losses, rel=1e-5)
    for name in both:
        continued = world.train(interrupted_after(2, whole["te"], tmp_path / f"continued_{name}"), *both[name], **STEPS)
        if name == "te":
            assert_identical(continued, whole["te"])
        assert continued.losses == pytest.approx(whole["te"].losses, rel=1e-5)
