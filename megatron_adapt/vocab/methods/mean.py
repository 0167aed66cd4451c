"""mean: tokens that both vocabularies have keep their rows, every other row is the mean of the source's rows.

With ``keep_overlap: false`` and ``spread`` > 0 it is what transformers does for added tokens (Hewitt 2021), with a
covariance that is diagonal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatron_adapt.options import option
from megatron_adapt.vocab.material import Maps, Material
from megatron_adapt.vocab.token_map import TokenMap


@dataclass(frozen=True)
class Options:
    keep_overlap: bool = option(True, "tokens that both vocabularies have keep their rows")
    spread: float = option(0.0, "noise around the mean, as a share of the source's standard deviation", low=0)


def build(material: Material, options: Options) -> Maps:
    ids = material.matching.source_ids if options.keep_overlap else np.full(material.target.vocab_size, -1)
    return Maps.same(TokenMap.from_copies(ids, material.source.vocab_size, options.spread))
