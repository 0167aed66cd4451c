"""random: every row is drawn like the source's rows; the baseline that shows what the old embeddings are worth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megatron_adapt.vocab.token_map import TokenMap

if TYPE_CHECKING:
    from megatron_adapt.hf.tokenizer import Tokenizer


def build(target: Tokenizer, source: Tokenizer) -> TokenMap:
    return TokenMap.from_copies(np.full(target.vocab_size, -1), source.vocab_size)
