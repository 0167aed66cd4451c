"""Every family, in every layout: transformers' logits and gradients, and the weights back bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from family_models import CONFIGS, GPT2, import_models, make, tokens
from megatron.core import parallel_state
from megatron.core.distributed import finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from worlds import Layout, hf_model, on_ranks, phase, tensors

from megatron_adapt.analysis import estimate
from megatron_adapt.config import Parallel
from megatron_adapt.engine import backend, checkpoint, convert, model as models, optimizer as optimizers
from megatron_adapt.engine.batches import Batch
from megatron_adapt.engine.losses import language_model_loss, micro_batches, positions
from megatron_adapt.families import families, find_family, initial_tensors
from megatron_adapt.families.rules import OUTPUT, hf_to_megatron
from megatron_adapt.hf.directory import HFDirectory
from megatron_adapt.hf.weights import WeightWriter

import_models()
LAYOUTS = {
    "one": Layout(),
    "TP2": Layout(tensor=2),
    "TP2+SP": Layout(tensor=2, sequence=True),
    "PP2": Layout(pipeline=2),
}
FAMILIES = pytest.mark.parametrize("name", families())


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory):
    """A function: the models of a family by name of their configuration, made on first use."""

    @lru_cache
    def made(name: str) -> dict[str, Path]:
        folder = tmp_path_factory.mktemp(name)
        paths = {key: folder / str(number) for number, key in enumerate(CONFIGS[name])}
        on_ranks(1, lambda: [make(families()[name], CONFIGS[name][key], path) for key, path in paths.items()])
        return paths

    return made


class Gradients:
    """transformers' gradients as a weight file: the rules are linear, so they convert gradients, too."""

    def __init__(self, tensors: dict[str, torch.Tensor], head: str) -> None:
        # transformers 5 calls the head of GPT-NeoX otherwise in memory than in its files.
        self.tensors = {head if name == "lm_head.weight" else name: tensor for name, tensor in tensors.items()}

    def names(self) -> list[str]:
        return list(self.tensors)

    def info(self, name: str) -> tuple:
        return tuple(self.tensors[name].shape), "float32"

    def get(self, name: str) -> torch.Tensor:
        return self.tensors[name]


def logits_difference(model: torch.nn.Module, reference: torch.Tensor) -> torch.Tensor:
    """Of all positions and this rank's part of the vocabulary; a zero before the last stage."""

    def forward(batches, model):
        return model(*next(batches), None), lambda logits: (logits.new_zeros(()), logits)

    rows = tokens()[:, :-1]
    with torch.no_grad():
        outputs = get_forward_backward_func()(
            forward_step_func=forward, data_iterator=iter([(rows, positions(rows))]), model=[model], num_microbatches=1,
            seq_length=rows.size(1), micro_batch_size=rows.size(0), forward_only=True,
        )  # fmt: skip
    if not outputs:
        return torch.zeros(1)
    group = parallel_state.get_tensor_model_parallel_group()
    return outputs[0] - reference.tensor_split(group.size(), dim=-1)[group.rank()]


def gradient_differences(model: torch.nn.Module, expected: dict[str, torch.Tensor], gated: bool) -> dict[str, float]:
    """Of each parameter of this rank, after one whole backward pass: largest difference over largest gradient.

    And of the gradient norm, which counts every parameter of the model once.
    """
    wrapped = models.wrap(model, "fp32")
    model.config.finalize_model_grads_func = finalize_model_grads
    rows = tokens()
    get_forward_backward_func()(
        forward_step_func=language_model_loss(1), data_iterator=micro_batches(Batch(rows[None], torch.zeros(1, 2).long())),
        model=[wrapped], num_microbatches=1, seq_length=rows.size(1) - 1, micro_batch_size=2, forward_only=False,
    )  # fmt: skip
    group = parallel_state.get_tensor_model_parallel_group()
    differences = {}
    for name, parameter in models.named_parameters(model):
        mine = convert.tensor_parallel_slice(name, expected[name], parameter.shape, group.rank(), group.size(), gated)
        differences[name] = ((parameter.main_grad - mine).abs().max() / expected[name].abs().max()).item()
    optimizer = optimizers.build(phase().optimizer, wrapped, "fp32")
    optimizers.prepare(optimizer)
    norm = optimizers.clip(optimizer, 0.0)
    whole = torch.stack([tensor.norm() for tensor in expected.values()]).norm().item()
    return differences | {"gradient norm": abs(norm / whole - 1)}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@FAMILIES
def test_logits_and_gradients_equal_transformers(directory, name, layout):
    paths = directory(name)

    def compare(path: Path) -> tuple[float, dict[str, float], int, int]:
        model, shape = hf_model(path, layout)
        reference = torch.load(path / "reference.pt")
        family = families()[name]
        (head,) = (rule.hf[0] for rule in family.rules if rule.megatron == OUTPUT)
        expected = dict(hf_to_megatron(family, shape, Gradients(reference["gradients"], head)))
        logits = logits_difference(model.eval(), reference["logits"]).abs().max().item()
        gradients = gradient_differences(model.train(), expected, shape.gated)
        estimated = estimate.parameters_per_rank(shape, Parallel(tensor=layout.tensor, pipeline=layout.pipeline))
        return logits, gradients, sum(parameter.numel() for parameter in model.parameters()), estimated

    ranks = on_ranks(layout.model_ranks, lambda: {key: compare(path) for key, path in paths.items()})
    for key in paths:
        for logits, gradients, _, _ in (rank[key] for rank in ranks):
            assert logits <= 1e-4, key
            assert {parameter: value for parameter, value in gradients.items() if not value <= 1e-4} == {}, key
        assert max(rank[key][2] for rank in ranks) == ranks[0][key][3], key


@FAMILIES
def test_weights_come_back_bit_for_bit(directory, tmp_path, name):
    """Through a checkpoint that four ranks wrote: what lies there is what the rules say, and what one rank exports."""
    paths = directory(name)

    def save() -> None:
        for number, path in enumerate(paths.values()):
            model, _ = hf_model(path, Layout(tensor=2, pipeline=2))
            checkpoint.save(tmp_path / str(number), model, None, checkpoint.Position(), path)

    def differing(number: int, path: Path) -> list[str]:
        model, shape = hf_model(path)
        opened = HFDirectory.open(path)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        checkpoint.load(checkpoint.resolve(tmp_path / str(number)), model)
        back, stored = dict(convert.to_hf(model, shape, opened.config)), tensors(tmp_path / str(number))
        with opened.weights() as reader:
            assert set(back) == set(reader.names())
            assert shape.num_parameters() == sum(tensor.numel() for tensor in back.values())
            expected = dict(hf_to_megatron(families()[name], shape, reader))
            assert {key: tuple(tensor.shape) for key, tensor in stored.items()} == shape.parameter_shapes()
            wrong = [key for key, tensor in stored.items() if not tensor.equal(expected[key])]
            return wrong + [key for key, tensor in back.items() if not tensor.equal(reader.get(key))]

    on_ranks(4, save)
    assert on_ranks(1, lambda: [differing(*each) for each in enumerate(paths.values())]) == [[[]] * len(paths)]


@FAMILIES
def test_models_from_scratch_load_in_transformers(tmp_path, name):
    family = families()[name]

    def problems(number: int, config: dict) -> list:
        from transformers import AutoModelForCausalLM

        path = tmp_path / str(number)
        given = {key: value for key, value in config.items() if not key.endswith("token_id")}
        full = family.complete_config(given, given["vocab_size"], 0, 1)
        path.mkdir()
        (path / "config.json").write_text(json.dumps(full))
        with WeightWriter(path) as writer:
            for key, tensor in initial_tensors(family, family.read_config(full), 3):
                writer.add(key, tensor)
        model, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
        vectors = {key: parameter for key, parameter in model.named_parameters() if parameter.dim() == 1}
        rms_plus_one = families()[name].constants.get("norm") == "rms_plus_one"
        wrong = [  # norms are neutral, biases 0
            key for key, vector in vectors.items() if (vector != float(key.endswith("weight") and not rms_plus_one)).any()
        ]
        return [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"], *wrong]

    configs = CONFIGS[name].values()
    assert on_ranks(1, lambda: [problems(*each) for each in enumerate(configs)]) == [[[]] * len(configs)]


@FAMILIES
def test_only_a_vocabulary_smaller_than_the_ranks_is_refused(directory, name):
    for path in directory(name).values():
        config = HFDirectory.open(path).config
        shape = find_family(config).read_config(config)
        assert find_family(config) is families()[name] and shape.layout_problems(2, 2) == []
        (problem,) = replace(shape, vocab_size=1).layout_problems(2, 1)
        assert problem == "1 vocabulary rows are fewer than parallel.tensor=2"


NORMS = "after the layers' parts"
FUSED = {
    "llama": [{}, {"attention": ["biases of some projections only"]}, {}],
    "mistral": [{"attention": ["windows"]}, {}],
    "qwen2": [{}, {"attention": ["windows"]}],
    "qwen3": [{}, {"attention": ["windows", "biases of some projections only"]}],
    "olmo2": [
        {"attention": ["norms over whole projections"], "norms": [NORMS]},
        {"attention": ["norms over whole projections", "biases of some projections only"], "norms": [NORMS]},
    ],
    "gpt2": [{}, {}],
    "gpt_neox": [{}, {}, {"attention": ["biases of some projections only"]}],
    "mpt": [
        {"attention": ["ALiBi"], "norms": ["layernorm no bias"]},
        {"attention": ["ALiBi", "clipped queries, keys and values"], "norms": ["layernorm no bias"]},
    ],
}


@pytest.mark.parametrize("name", families())
def test_which_parts_are_of_transformer_engine(directory, name):
    """Its linear layers for all; its attention and norms for those of which they compute exactly this."""
    configs = [HFDirectory.open(path).config for path in directory(name).values()]
    found = [backend.torch_parts(find_family(config).read_config(config)) for config in configs]
    if name.startswith("gemma"):
        assert all("windows" in parts["attention"] and "rms plus one" in parts["norms"] for parts in found)
    else:
        assert [{part: why for part, why in parts.items() if why} for parts in found] == FUSED[name]


@FAMILIES
def test_half_precision_stays_close(directory, name):
    def relative(path: Path) -> float:
        model, shape = hf_model(path, Layout(tensor=2, sequence=True), "bf16-mixed")
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}  # learned positions, too
        reference = torch.load(path / "reference.pt")
        difference = logits_difference(models.wrap(model, "bf16-mixed").eval(), reference["logits"])
        return (difference.float().std() / reference["logits"].std()).item()

    for differences in on_ranks(2, lambda: {key: relative(path) for key, path in directory(name).items()}):
        assert all(0 < value < 0.05 for value in differences.values()), differences


def test_gpt2_files_without_prefix_and_with_buffers(tmp_path: Path):
    """As the hub has them: `h.0.attn.c_attn.weight`, and masks beside the weights."""

    def work() -> tuple[list[str], float]:
        family = families()["gpt2"]
        make(family, GPT2, tmp_path / "model")
        opened = HFDirectory.open(tmp_path / "model")
        with opened.weights() as reader:
            weights = {name: reader.get(name).clone() for name in reader.names()}
        opened.copy_metadata(tmp_path / "hub")
        with WeightWriter(tmp_path / "hub") as writer:
            for name, tensor in weights.items():
                writer.add(name.removeprefix("transformer."), tensor)
            for layer in range(2):
                writer.add(f"h.{layer}.attn.bias", torch.ones(64, 64).tril()[None, None].bool())
                writer.add(f"h.{layer}.attn.masked_bias", torch.tensor(-1e4))
        model, shape = hf_model(tmp_path / "hub")
        back = dict(convert.to_hf(model, shape, opened.config))
        assert set(back) == set(weights)
        reference = torch.load(tmp_path / "model" / "reference.pt")["logits"]
        worst = logits_difference(model.eval(), reference).abs().max().item()
        return [name for name in back if not back[name].equal(weights[name])], worst

    ((wrong, logits),) = on_ranks(1, work)
    assert wrong == [] and logits <= 1e-4
