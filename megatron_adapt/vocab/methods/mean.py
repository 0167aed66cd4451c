"""mean: tokens that both vocabularies have keep their rows, every other row is the mean of the source's rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_adapt.vocab.matching import overlap
from megatron_adapt.vocab.token_map import TokenMap

if TYPE_CHECKING:
    from megatron_adapt.hf.tokenizer import Tokenizer


def build(target: Tokenizer, source: Tokenizer) -> TokenMap:
    return TokenMap.from_copies(overlap(target, source), source.vocab_size, spread=0.0)
