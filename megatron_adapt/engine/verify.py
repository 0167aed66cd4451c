"""Proof that a Hugging Face directory and a Megatron model are the same model: every tensor, every logit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

import torch
from torch import Tensor

from megatron.core.models.gpt import GPTModel
from megatron_adapt.engine import evaluate
from megatron_adapt.engine.convert import to_hf
from megatron_adapt.errors import CheckpointError
from megatron_adapt.families import find_family
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


@dataclass(frozen=True)
class Reference:
    """What transformers makes of some text: per window the tokens ``[1, s]`` and the logits ``[1, s, vocabulary]``."""

    where: Path
    windows: list[Tensor]
    logits: list[Tensor]

    def save(self, file: Path) -> None:
        torch.save({"windows": self.windows, "logits": self.logits}, file)

    @classmethod
    def load(cls, file: Path, where: Path) -> Reference:
        return cls(where, **torch.load(file, weights_only=True))


def reference(directory: HFDirectory, texts: Sequence[str] | None = None, length: int = 256) -> Reference:
    """transformers' logits of all positions, in float32 on the CPU; its model is gone when this returns."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = Tokenizer.load(directory.path)
    limit = find_family(directory.config).read_config(directory.config).max_position_embeddings
    text = evaluate.tokenize(list(texts or SAMPLES), tokenizer, min(length, limit) - 1)
    windows = [torch.from_numpy(window)[None] for window in text.windows]
    model = AutoModelForCausalLM.from_pretrained(directory.path, dtype=torch.float32).eval()
    with torch.no_grad():
        return Reference(directory.path, windows, [model(tokens).logits for tokens in windows])


def compare(model: GPTModel, expected: Reference, tolerance: float = TOLERANCE) -> dict[str, Any]:
    """Compare all positions' logits of a float32 model with transformers'; any tensor parallel size, all ranks call it.

    Returns ``{max_abs_difference, top1_agreement, positions}``. Raises ``CheckpointError`` where they differ by more than
    ``tolerance``, times the largest logit if that is more than 1: float32 has no more digits.
    """
    worst, largest, agreeing, positions = 0.0, 1.0, 0, 0
    for tokens, theirs in zip(expected.windows, expected.logits):
        ours = evaluate.logits(model, tokens)
        difference = (ours - theirs).abs().max().item()
        worst = difference if not difference <= worst else worst  # a NaN stays
        largest = max(largest, theirs.abs().max().item())
        agreeing += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        positions += tokens.numel()
    result = {"max_abs_difference": worst, "top1_agreement": agreeing / positions, "positions": positions}
    if not worst <= tolerance * largest:
        raise CheckpointError(
            f"{expected.where}: logits differ from Megatron's by up to {worst:.3g} (allowed {tolerance * largest:.3g}) over "
            f"{positions} positions, top-1 agreement {agreeing / positions:.1%}: the converted model is not the same model."
        )
    return result


def logits(
    model: GPTModel, directory: HFDirectory, texts: Sequence[str] | None = None, length: int = 256, tolerance: float = TOLERANCE
) -> dict[str, Any]:
    """``compare`` with the ``reference`` of a directory that holds the same weights."""
    return compare(model, reference(directory, texts, length), tolerance)
