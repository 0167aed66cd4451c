"""random: every row is drawn; the baseline that shows what the old embeddings are worth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatron_adapt.options import option
from megatron_adapt.vocab.material import Maps, Material
from megatron_adapt.vocab.token_map import DRAWS, TokenMap


@dataclass(frozen=True)
class Options:
    distribution: str = option("matched", "distribution of the rows", choices=DRAWS)
    std: float = option(0.02, "standard deviation of 'normal'", low=0)


def build(material: Material, options: Options) -> Maps:
    spread = {"normal": options.std, "wang": 1 / material.layers}.get(options.distribution, 1.0)
    nothing = np.full(material.target.vocab_size, -1)
    return Maps.same(TokenMap.from_copies(nothing, material.source.vocab_size, spread, options.distribution))
