"""Dropout is where transformers has it, in every family, and so is its NEFTune: with the same random numbers losses and
gradients are the same."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from family_models import CONFIGS, LENGTH, VOCABULARY, import_models, make
from megatron.core.tensor_parallel.random import CudaRNGStatesTracker
from worlds import SEED, Layout, on_ranks, phase

from megatron_adapt.config import Dropout
from megatron_adapt.engine import backend, convert, model as models, noise
from megatron_adapt.engine.losses import positions
from megatron_adapt.families import families
from megatron_adapt.hf.directory import HFDirectory

try:
    from transformers.integrations.neftune import neftune_post_forward_hook
except ImportError:  # transformers 4
    from transformers.trainer_utils import neftune_post_forward_hook

import_models()
# config.json's own keys; other families' models drop nothing but attention weights.
KEYS = {
    "gpt2": ({"resid_pdrop": 0.2, "attn_pdrop": 0.1, "embd_pdrop": 0.3}, Dropout(hidden=0.2, attention=0.1, embedding=0.3)),
    "gpt_neox": ({"hidden_dropout": 0.2, "attention_dropout": 0.1}, Dropout(hidden=0.2, attention=0.1, embedding=0.2)),
    "mpt": ({}, Dropout(hidden=0.2, attention=0.1)),  # transformers' config takes none but whole numbers
}
OTHERS = ({"attention_dropout": 0.1}, Dropout(attention=0.1))


def both(family: str, keys: dict, rates: Dropout, path: Path, alpha: float = 0.0) -> list[list[float]]:
    """[loss, norm of the gradient] in training: transformers' without noise and with it, and ours. One sample: the order of
    its positions is then the same in memory."""
    from transformers import AutoModelForCausalLM

    tokens = torch.randint(VOCABULARY, (1, LENGTH + 1), generator=torch.Generator().manual_seed(3))
    inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def measured(model: torch.nn.Module, loss: torch.Tensor) -> list[float]:
        loss.backward()
        return [loss.item(), sum(parameter.grad.double().square().sum().item() for parameter in model.parameters())]

    found = []
    for changes in ({}, keys):
        model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager", **changes).float().train()
        for block in model.transformer.blocks if family == "mpt" and found else ():
            block.attn.attn_dropout_p = rates.attention
            block.resid_attn_dropout.p = block.ffn.hidden_dropout = rates.hidden
        if alpha and found:
            model.get_input_embeddings().neftune_noise_alpha = alpha
            model.get_input_embeddings().register_forward_hook(neftune_post_forward_hook)
        torch.manual_seed(noise.block_seed(SEED, 0))
        found.append(measured(model, F.cross_entropy(model(inputs).logits[0], labels[0])))
    CudaRNGStatesTracker.fork = lambda self, name="": contextlib.nullcontext()  # transformers has one stream of random numbers
    backend.start(Layout(), SEED)
    directory = HFDirectory.open(path)
    shape = families()[family].read_config(directory.config)
    model = models.build(shape, Layout(), "fp32", dropout=rates).train()
    convert.load_hf(model, directory, shape)
    noise.add(model, phase(dropout=rates, neftune_alpha=alpha, neftune_per="sequence", sequence_length=LENGTH))
    noise.begin(model, noise.Seeds(SEED, (SEED,)))
    torch.manual_seed(noise.block_seed(SEED, 0))
    if alpha:  # transformers draws it first from its one stream, and goes on there
        torch.empty(1, LENGTH, model.config.hidden_size).uniform_()
    return [*found, measured(model, model(inputs, positions(inputs), None, labels=labels).mean())]


@pytest.mark.parametrize("family, config", [
    *((family, next(iter(CONFIGS[family]))) for family in CONFIGS), ("gpt_neox", "sequential, tied"),
])  # fmt: skip
def test_the_same_is_dropped(tmp_path: Path, family, config):
    keys, rates = KEYS.get(family, OTHERS)

    def work() -> list[list[float]]:
        make(families()[family], CONFIGS[family][config], tmp_path)
        return both(family, keys, rates, tmp_path)

    ((without, theirs, ours),) = on_ranks(1, work)
    assert abs(theirs[0] - without[0]) > 1e-4
    assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])  # the second adds positions and drops out, the third scales
def test_the_same_noise_is_added(tmp_path: Path, family):
    keys, rates = KEYS.get(family, ({}, Dropout()))

    def work() -> list[list[float]]:
        make(families()[family], next(iter(CONFIGS[family].values())), tmp_path)
        return both(family, keys, rates, tmp_path, alpha=15.0)

    ((without, theirs, ours),) = on_ranks(1, work)
    assert abs(theirs[0] - without[0]) > 1e-3
    assert ours == pytest.approx(theirs, rel=1e-5)
