"""Proof that a Hugging Face directory and a Megatron model are the same model: every tensor, every logit."""

from __future__ import annotations

from typing import Any, Sequence

import torch

from megatron.core.models.gpt import GPTModel
from megatron_adapt.engine import evaluate
from megatron_adapt.engine.convert import to_hf
from megatron_adapt.errors import CheckpointError
from megatron_adapt.families.family import ModelShape
from megatron_adapt.hf.directory import HFDirectory
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.hf.weights import WeightReader

TOLERANCE = 1e-4
# Used when the caller has no text of its own: several scripts, digits, quotes, a line break.
SAMPLES = (
    "Once upon a time there was a small village by the sea, and in it lived 12 fishermen.\nOne of them could read.",
    "Am Morgen, als der Nebel über den Wiesen lag, öffnete die Müllerin das Fenster und rief: »Guten Tag!«",
    "Dne 3. května přišel dopis; čekali na něj celé léto. مرحبا بالعالم",
)


def weights(model: GPTModel, shape: ModelShape, directory: HFDirectory) -> int:
    """Compare every tensor of ``directory`` bit for bit with the model's, cast to the stored dtype.

    Returns the number of tensors; raises ``CheckpointError`` with the names of those that differ.
    """
    different, count = [], 0
    with WeightReader(directory.path) as reader:
        for name, tensor in to_hf(model, shape, directory.config):
            stored = reader.get(name)
            count += 1
            if stored.shape != tensor.shape or not torch.equal(tensor.to(stored.dtype), stored):
                different.append(name)
    if different:
        raise CheckpointError(
            f"{directory.path}: {len(different)} of {count} tensors differ from Megatron's after conversion, "
            f"first {different[0]}."
        )
    return count


def logits(
    model: GPTModel, directory: HFDirectory, texts: Sequence[str] | None = None, length: int = 256, tolerance: float = TOLERANCE
) -> dict[str, Any]:
    """Compare all positions' logits of a float32 model with transformers' on the same weights.

    Returns ``{max_abs_difference, top1_agreement, positions}``; raises ``CheckpointError`` beyond ``tolerance``.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = Tokenizer.load(directory.path)
    limit = directory.config.get("max_position_embeddings", length)
    text = evaluate.tokenize(list(texts or SAMPLES), tokenizer, min(length, limit) - 1)
    reference = AutoModelForCausalLM.from_pretrained(directory.path, dtype=torch.float32).eval()
    worst, agreeing, positions = 0.0, 0, 0
    for window in text.windows:
        tokens = torch.from_numpy(window)[None]
        ours = evaluate.logits(model, tokens)
        with torch.no_grad():
            theirs = reference(tokens).logits
        difference = (ours - theirs).abs().max().item()
        worst = difference if not difference <= worst else worst  # a NaN stays
        agreeing += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        positions += tokens.numel()
    result = {"max_abs_difference": worst, "top1_agreement": agreeing / positions, "positions": positions}
    if not worst <= tolerance:
        raise CheckpointError(
            f"{directory.path}: logits differ from Megatron's by up to {worst:.3g} (allowed {tolerance:g}) over "
            f"{positions} positions, top-1 agreement {agreeing / positions:.1%}: the converted model is not the same model."
        )
    return result
