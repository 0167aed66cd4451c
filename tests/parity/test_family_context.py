"""Every family on two context-parallel ranks: losses and gradients of one rank, and documents that see none but themselves."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from family_models import CONFIGS, VOCABULARY, import_models, make
from test_packing import batch, varlen_by_mask
from worlds import Layout, hf_model, on_ranks

from megatron_adapt.engine import attention, context
from megatron_adapt.engine.batches import Batch
from megatron_adapt.engine.losses import forward, micro_batches
from megatron_adapt.engine.packing import Documents
from megatron_adapt.families import families

import_models()
LENGTH = 24
LARGEST = {"losses": 4e-6, "gradients": 1e-5}  # of weights that other versions of transformers draw, too


def losses(model: torch.nn.Module, made: Batch, restart: bool) -> torch.Tensor:
    """``[b, s]``, or this rank's part of it, of one micro-batch."""
    (micro,) = micro_batches(made, 1.0, restart)
    found = forward(model, micro).view(len(made.tokens[0]), -1)
    return found if micro.weights is None else found * micro.weights


def measured(path: Path, layout: Layout, made: dict[str, tuple[Batch, bool]]) -> dict[str, tuple]:
    """Of each batch the losses, and the gradients of their sum that this rank has."""
    model, _ = hf_model(path, layout)
    results = {}
    for name, (one, restart) in made.items():
        model.zero_grad()
        found = losses(model, one, restart)
        found.sum().backward()
        results[name] = found.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    return results


def compare(path: Path) -> dict[str, dict[str, float]]:
    rows = torch.randint(0, VOCABULARY, (2, LENGTH + 1), generator=torch.Generator().manual_seed(3))
    other = rows.clone()
    other[0, :9] = (other[0, :9] + 1) % VOCABULARY  # the first document
    made = {
        "whole samples": (Batch(rows[None], torch.zeros(1, 2).long()), True),
        "documents": (batch(rows), True),
        "documents, counted once": (batch(rows), False),
        "another first document": (batch(other), True),
    }
    alone = measured(path, Layout(), made)  # two ranks of data parallelism do the same without a word to one another
    shared = measured(path, Layout(context=2), made)
    found = {}
    for name, (expected, theirs) in alone.items():
        ours, gradients = shared[name]
        for gradient in gradients.values():
            dist.all_reduce(gradient)
        largest = max(gradient.abs().max() for gradient in theirs.values())
        found[name] = {
            "losses": (ours - context.mine(expected)).abs().max().item(),
            "gradients": (max((gradients[key] - theirs[key]).abs().max() for key in theirs) / largest).item(),
        }
    places = context.mine(torch.arange(2 * LENGTH).view(2, LENGTH))
    moved = (shared["another first document"][0] - shared["documents"][0]).abs()
    found["moved"] = {"others": moved[places >= 9].max().item(), "itself": moved[places < 8].max().item()}
    return found


@pytest.mark.parametrize("name", families())
def test_two_ranks_compute_what_one_does(tmp_path: Path, name):
    config = next(iter(CONFIGS[name].values()))  # of each kind of positions, windows and caps there is one
    on_ranks(1, lambda: make(families()[name], {**config, "vocab_size": VOCABULARY}, tmp_path / "hf"))
    for found in on_ranks(2, lambda: compare(tmp_path / "hf")):
        moved = found.pop("moved")
        for kind, values in found.items():
            assert all(values[what] <= most for what, most in LARGEST.items()), (kind, values)
        assert moved["others"] == 0 and moved["itself"] > 1e-2  # not one bit


def test_all_runs_in_one_kernel(tmp_path: Path, monkeypatch):
    """What a GPU is asked for: queries beside more keys, grouped, with a window."""
    calls = []

    def counted(*args, **options):
        calls.append(len(args[1]) - len(args[0]))
        return varlen_by_mask(*args, **options)

    counted.__signature__ = inspect.signature(varlen_by_mask)
    monkeypatch.setattr(attention, "varlen_attention", lambda: counted)
    monkeypatch.setattr(attention.SelfAttention, "_suits_varlen", lambda self, q: self.config.context_parallel_size > 1)
    config = {**CONFIGS["mistral"]["window"], "vocab_size": VOCABULARY}
    on_ranks(1, lambda: make(families()["mistral"], config, tmp_path / "hf"))
    for found, more in on_ranks(2, lambda: (compare(tmp_path / "hf"), max(calls))):
        assert more > 0
        for values in (found["whole samples"], found["documents"]):
            assert all(values[what] <= most for what, most in LARGEST.items()), values


def test_parts_of_a_row(monkeypatch):
    """Two samples of 16 positions on 4 ranks: chunks of 2, of which each rank has one from the front and one from the back."""
    lengths, whole = (5, 11, 16), torch.arange(32).view(2, 16)
    owned = []
    for rank in range(4):
        monkeypatch.setattr(context, "place", lambda rank=rank: (rank, 4))
        owned.append(context.mine(whole).flatten())
    assert [part.tolist() for part in owned[:2]] == [[0, 1, 14, 15, 16, 17, 30, 31], [2, 3, 12, 13, 18, 19, 28, 29]]
    begins = torch.tensor([0, 5, 16])
    for rank in range(4):
        monkeypatch.setattr(context, "place", lambda rank=rank: (rank, 4))
        documents = Documents.of(lengths, 16, torch.device("cpu"))
        places = owned[rank]  # of the queries, in the whole row
        first = begins[torch.searchsorted(begins, places, right=True) - 1]
        assert torch.equal(documents.within, places - first)
        assert torch.equal(documents.sizes, torch.tensor(lengths)[torch.searchsorted(begins, places, right=True) - 1])
        keys = torch.cat(owned)[documents.keys].split(documents.seen)
        for queries, seen in zip(places.split(documents.lengths), keys, strict=True):
            document = int(torch.searchsorted(begins, queries[0], right=True)) - 1
            assert seen.tolist() == list(range(int(begins[document]), int(queries[-1]) + 1))
        assert documents.cu_seqlens_q[-1] == 8 and documents.cu_seqlens_kv[-1] == len(documents.keys)
        assert documents.max_seqlen_q == 2 >= max(documents.lengths) and documents.max_seqlen_kv == 16 >= max(documents.seen)
