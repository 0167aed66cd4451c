"""copy: tokens that both vocabularies have keep their rows, the others are drawn."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_adapt.options import option
from megatron_adapt.vocab.material import Maps, Material
from megatron_adapt.vocab.token_map import TokenMap


@dataclass(frozen=True)
class Options:
    others: str = option("matched", "distribution of the other rows", choices=("matched", "small_init", "xavier"))


def build(material: Material, options: Options) -> Maps:
    ids = material.matching.source_ids
    return Maps.same(TokenMap.from_copies(ids, material.source.vocab_size, draw=options.others))
