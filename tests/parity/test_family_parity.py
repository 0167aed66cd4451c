"""Every family, in every layout: transformers' logits and gradients, and the weights back bit for bit."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from family_models import CONFIGS, make, tokens
from megatron.core import parallel_state
from megatron.core.distributed import finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from worlds import Layout, hf_model, on_ranks

from megatron_adapt.analysis import estimate
from megatron_adapt.config import Parallel
from megatron_adapt.engine import convert, model as models
from megatron_adapt.engine.losses import language_model_loss, positions
from megatron_adapt.families import families, find_family
from megatron_adapt.families.rules import OUTPUT, hf_to_megatron
from megatron_adapt.hf.directory import HFDirectory

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


def logits_difference(model: torch.nn.Module, reference: torch.Tensor) -> float:
    """Largest difference over all positions and this rank's part of the vocabulary; 0 before the last stage."""

    def forward(batches, model):
        return model(*next(batches), None), lambda logits: (logits.new_zeros(()), logits)

    rows = tokens()[:, :-1]
    with torch.no_grad():
        outputs = get_forward_backward_func()(
            forward_step_func=forward, data_iterator=iter([(rows, positions(rows))]), model=[model], num_microbatches=1,
            seq_length=rows.size(1), micro_batch_size=rows.size(0), forward_only=True,
        )  # fmt: skip
    if not outputs:
        return 0.0
    group = parallel_state.get_tensor_model_parallel_group()
    return (outputs[0] - reference.chunk(group.size(), dim=-1)[group.rank()]).abs().max().item()


def gradient_differences(model: torch.nn.Module, expected: dict[str, torch.Tensor], gated: bool) -> dict[str, float]:
    """Of each parameter of this rank, after one whole backward pass: largest difference over largest gradient."""
    wrapped = models.wrap(model)
    model.config.finalize_model_grads_func = finalize_model_grads
    rows = tokens()
    get_forward_backward_func()(
        forward_step_func=language_model_loss(1), data_iterator=iter([(rows, torch.zeros(2, dtype=torch.int64))]),
        model=[wrapped], num_microbatches=1, seq_length=rows.size(1) - 1, micro_batch_size=2, forward_only=False,
    )  # fmt: skip
    group = parallel_state.get_tensor_model_parallel_group()
    differences = {}
    for name, parameter in models.named_parameters(model):
        mine = convert.tensor_parallel_slice(name, expected[name], parameter.shape, group.rank(), group.size(), gated)
        differences[name] = ((parameter.main_grad - mine).abs().max() / expected[name].abs().max()).item()
    return differences


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
        logits = logits_difference(model.eval(), reference["logits"])
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
def test_weights_come_back_bit_for_bit(directory, name):
    def differing(path: Path) -> list[str]:
        model, shape = hf_model(path)
        opened = HFDirectory.open(path)
        back = dict(convert.to_hf(model, shape, opened.config))
        with opened.weights() as reader:
            assert set(back) == set(reader.names())
            assert shape.num_parameters() == sum(tensor.numel() for tensor in back.values())
            return [key for key, tensor in back.items() if not tensor.equal(reader.get(key))]

    assert on_ranks(1, lambda: [differing(path) for path in directory(name).values()]) == [[[]] * len(CONFIGS[name])]


@FAMILIES
def test_a_vocabulary_that_cannot_be_cut_is_refused(directory, name):
    for path in directory(name).values():
        config = HFDirectory.open(path).config
        shape = find_family(config).read_config(config)
        assert find_family(config) is families()[name] and shape.layout_problems(2, 2) == []
        (problem,) = replace(shape, vocab_size=51).layout_problems(2, 1)
        assert "51 vocabulary rows cannot be divided by parallel.tensor=2" in problem
