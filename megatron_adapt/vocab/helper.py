"""The embeddings of a helper: a model that already has the target tokenizer, of any size and architecture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megatron_adapt.errors import ConfigError
from megatron_adapt.hf.directory import HFDirectory

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_adapt.hf.tokenizer import Tokenizer

# The last parts of tensor names in transformers' models; a helper need not be of a family that can be trained here.
INPUTS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight", "tok_embeddings.weight")
OUTPUTS = ("lm_head.weight", "embed_out.weight", "output.weight")


@dataclass(frozen=True)
class Helper:
    """Rows of the target's ids, float32 [vocab_size, h]; ``output`` is ``input`` itself where the helper is tied."""

    input: np.ndarray
    output: np.ndarray

    @classmethod
    def load(cls, path: Path, target: Tokenizer) -> Helper:
        """Read a helper's matrices.

        Raises:
            ConfigError: no model there, no embedding found, or its tokenizer is not the target's.
            CheckpointError: broken weights.
        """
        from megatron_adapt.hf.tokenizer import Tokenizer

        directory = HFDirectory.open(path)
        own = Tokenizer.load(path)
        _same_vocabulary(path, own, target)
        with directory.weights() as reader:
            names = reader.names()
            inputs = [name for name in names if name.endswith(INPUTS)]
            outputs = [name for name in names if name.endswith(OUTPUTS) and name not in inputs]
            if len(inputs) != 1 or len(outputs) > 1:
                raise ConfigError(
                    f"{path}: cannot tell the helper's embedding: found {', '.join([*inputs, *outputs]) or 'none'} where one "
                    f"tensor named ...{', ...'.join(INPUTS)} is expected, and at most one head ...{', ...'.join(OUTPUTS)}."
                )
            tied = not outputs or directory.config.get("tie_word_embeddings") is True
            first = _rows(path, reader.get(inputs[0]), target)
            return cls(first, first if tied else _rows(path, reader.get(outputs[0]), target))

    @property
    def tied(self) -> bool:
        return self.output is self.input


def _rows(path: Path, matrix: Tensor, target: Tokenizer) -> np.ndarray:
    if matrix.shape[0] < target.vocab_size:
        raise ConfigError(f"{path}: the helper has {matrix.shape[0]} rows for {target.vocab_size} ids of its tokenizer.")
    rows = matrix[: target.vocab_size].float().numpy()
    if not np.isfinite(rows).all():
        raise ConfigError(f"{path}: the helper's embedding holds values that are not finite.")
    return rows


def _same_vocabulary(path: Path, own: Tokenizer, target: Tokenizer) -> None:
    mine, wanted = own.tokens(), target.tokens()
    if mine == wanted:
        return
    different = sum(a != b for a, b in zip(mine, wanted)) + abs(len(mine) - len(wanted))
    index = next((i for i, (a, b) in enumerate(zip(mine, wanted)) if a != b), min(len(mine), len(wanted)))
    shown = [repr(tokens[index]) if index < len(tokens) else "nothing" for tokens in (mine, wanted)]
    raise ConfigError(
        f"{path}: the helper must have the target's tokenizer {target.path}, and {different} ids differ; first id {index}: "
        f"{shown[0]} in the helper, {shown[1]} in the target. Take the helper's tokenizer as target, or another helper."
    )
