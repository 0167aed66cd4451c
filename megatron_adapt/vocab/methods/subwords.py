"""subwords: a new token is the weighted sum of the pieces into which the old vocabulary cuts its bytes.

FVT (Gee et al. 2022) takes the mean for both matrices. A prefix of the text is behind the last piece when a token is
read, and before the first when it is predicted, so the default lets the last pieces count more in the input embedding
and the first in the output matrix (AdaptiVocab, Nakash et al. 2025). A tied matrix is both: it gets the mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from megatron_adapt.options import option
from megatron_adapt.vocab.material import Maps, Material
from megatron_adapt.vocab.pieces import Pieces
from megatron_adapt.vocab.token_map import NORMS
from megatron_adapt.vocab.weighting import WEIGHTINGS, Triples, piece_weights, summed


@dataclass(frozen=True)
class Options:
    VARIANTS: ClassVar[dict] = {
        "original": {"input": "uniform", "output": "uniform", "norm": "none"},
        "adaptivocab": {"input": "back", "output": "front", "alpha": 2.0, "norm": "none"},
        "weighted": {"input": "length", "output": "length", "norm": "none"},
    }
    variant: str = option("default", "published settings", choices=("default", *VARIANTS))
    input: str = option("back", "which pieces count in the input embedding", choices=WEIGHTINGS)
    output: str = option("front", "which pieces count in the output matrix", choices=WEIGHTINGS)
    alpha: float = option(0.7, "how fast front and back fall off", low=0, high=50)
    norm: str = option("none", "length of composed rows", choices=NORMS)


def build(material: Material, options: Options) -> Maps:
    tied = material.tied and options.input != options.output
    entries = compose(material, material.new())
    sides = ["uniform" if tied else side for side in (options.input, options.output)]
    maps = [material.token_map(entries.weighted(side, options.alpha), norm=options.norm) for side in sides]
    report = {"composed_tokens": len(entries.tokens), "pieces_per_token": round(entries.mean_pieces(), 3)}
    warnings = []
    if tied:
        warnings.append("input and output embedding are one matrix: all pieces of a token count the same in it")
    return Maps(*maps, report, warnings)


@dataclass(frozen=True)
class Composition:
    """Target ids and, for each, its pieces in the old vocabulary and their lengths in bytes."""

    tokens: list[int]
    pieces: list[list[int]]
    lengths: list[list[int]]
    source_size: int

    def weighted(self, weighting: str, alpha: float) -> Triples:
        """(target row, source id, weight)."""
        counts = [len(ids) for ids in self.pieces]
        pieces, lengths = (np.array([value for values in lists for value in values], dtype=np.int64) for lists in (self.pieces, self.lengths))
        weights = piece_weights(weighting, np.repeat(np.arange(len(counts)), counts), lengths, alpha)
        return summed([(np.repeat(np.array(self.tokens, dtype=np.int64), counts), pieces, weights)], self.source_size)

    def mean_pieces(self) -> float:
        return sum(map(len, self.pieces)) / max(1, len(self.pieces))


def compose(material: Material, tokens: np.ndarray) -> Composition:
    """The pieces of ordinary target tokens; special tokens and bytes that the old vocabulary lacks are left out."""
    pieces = Pieces(material.source, material.source_keys)
    found = Composition([], [], [], material.source.vocab_size)
    for token in tokens:
        key = material.target_keys.keys[token]
        if isinstance(key, bytes) and (ids := pieces.of(key)):
            found.tokens.append(int(token))
            found.pieces.append(ids)
            found.lengths.append([len(pieces.bytes_of(index)) for index in ids])
    return found
