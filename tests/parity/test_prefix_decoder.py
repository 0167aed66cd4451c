"""Samples whose prefix is seen in both directions (`denoising.decoder: prefix`): as transformers computes them with a mask of its own."""

from __future__ import annotations

import torch
import transformers
from worlds import VOCABULARY, World, hf_model, on_ranks

from megatron_adapt.engine.batches import Batch
from megatron_adapt.engine.losses import forward, micro_batches

LENGTHS, PREFIXES = (9, 1, 14, 8), (5, 1, 0, 8)  # the last one's only target lies behind the row's end


def losses(model: torch.nn.Module, row: torch.Tensor, prefixes: tuple[int, ...] | None) -> torch.Tensor:
    weights = torch.ones(1, 1, row.size(0) - 1)
    batch = Batch(row[None, None], torch.zeros(1, 1).long(), [LENGTHS], weights, None if prefixes is None else [prefixes])
    (micro,) = micro_batches(batch, 1.0)
    return forward(model, micro)[0]


def reference(model: torch.nn.Module, row: torch.Tensor) -> torch.Tensor:
    """Each document alone, by a mask of 0 and -inf."""
    found, begin = [], 0
    for length, prefix in zip(LENGTHS, PREFIXES):
        seen = torch.ones(length, length).tril().bool()
        seen[:prefix, :prefix] = True
        mask = torch.zeros(length, length).masked_fill(~seen, torch.finfo(torch.float32).min)
        logits = model(row[None, begin : begin + length], attention_mask=mask[None, None]).logits[0]
        found.append(torch.nn.functional.cross_entropy(logits, row[begin + 1 : begin + length + 1], reduction="none"))
        begin += length
    return torch.cat(found)


def test_as_transformers_with_a_mask(world: World):
    def work() -> dict[str, float]:
        row = torch.randint(0, VOCABULARY, (sum(LENGTHS) + 1,), generator=torch.Generator().manual_seed(3))
        model, _ = hf_model(world.model("untied"))
        theirs = transformers.AutoModelForCausalLM.from_pretrained(world.model("untied"), dtype=torch.float32, attn_implementation="eager")
        ours, expected = losses(model, row, PREFIXES), reference(theirs, row)
        ours.sum().backward()
        expected.sum().backward()
        gradient = theirs.model.embed_tokens.weight.grad
        other = row.clone()
        other[7] = (other[7] + 1) % VOCABULARY  # a target of the first document, which its prefix does not see
        late = losses(model, other, PREFIXES) - ours
        other = row.clone()
        other[4] = (other[4] + 1) % VOCABULARY  # the last token of that prefix, which its first does
        early = losses(model, other, PREFIXES) - ours
        return {
            "losses": (ours - expected).abs().max().item(),
            "gradients": ((model.embedding.word_embeddings.weight.grad - gradient).abs().max() / gradient.abs().max()).item(),
            "causal": (losses(model, row, None) - ours)[:5].abs().max().item(),
            "without": (losses(model, row, (0, 0, 0, 0)) - losses(model, row, None)).abs().max().item(),
            "late": late[:6].abs().max().item() + late[9:].abs().max().item(),
            "early": early[0].abs().item(),
            "others": early[9:].abs().max().item(),
        }

    found = on_ranks(1, work)[0]
    assert found["losses"] <= 4e-6 and found["gradients"] <= 4e-6 and found["without"] == 0
    assert found["late"] == 0 and found["others"] == 0
    assert found["causal"] > 1e-3 and found["early"] > 1e-3
