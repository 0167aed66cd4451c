"""focus: a new token is a convex combination of kept tokens that keep similar company in target text.

FOCUS (Dobler & de Melo 2023): vectors of all target tokens are learned from text cut by the target tokenizer; the
weights of a new token are the sparsemax of its cosine similarities to the kept tokens ("anchors"), and the same weights
serve both matrices. Tokens without a vector are drawn from N(mean, std²) there; here they are composed of their pieces.

``original`` takes vectors from a file (fastText's .vec, words are the raw tokens; the paper: CBOW, 3 epochs, dimension
100 to 300, at least 10 occurrences). Without a file the vectors are learned here, see ``word_vectors``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from megatron_adapt.errors import ConfigError
from megatron_adapt.options import option
from megatron_adapt.vocab import similarity, word_vectors
from megatron_adapt.vocab.material import Maps, Material
from megatron_adapt.vocab.methods.subwords import compose
from megatron_adapt.vocab.token_map import NORMS
from megatron_adapt.vocab.weighting import concatenated, empty


@dataclass(frozen=True)
class Options:
    VARIANTS: ClassVar[dict] = {"original": {"rare": "draw", "norm": "none", "centre": False}}
    variant: str = option("default", "published settings", choices=("default", *VARIANTS))
    vectors: Path | None = option(None, "vectors of the target's tokens as a .vec file; else learned from text")
    dim: int = option(200, "dimensions of learned vectors", low=2)
    window: int = option(5, "tokens to each side that learned vectors look at", low=1)
    min_count: int = option(5, "occurrences a token needs for a learned vector", low=1)
    max_bytes: int = option(20_000_000, "text to learn vectors from", low=1)
    weights: str = option("sparsemax", "weights over anchors", choices=similarity.WEIGHTS)
    k: int = option(10, "nearest anchors of softmax and clip", low=1)
    temperature: float = option(0.1, "of softmax", low=1e-3)
    centre: bool = option(False, "take the mean of the anchors' vectors off first")
    norm: str = option("none", "length of composed rows", choices=NORMS)
    rare: str = option("subwords", "tokens without a vector", choices=("subwords", "draw"))


def reads_text(options: Options) -> bool:
    return options.vectors is None


def build(material: Material, options: Options) -> Maps:
    if options.variant == "original" and options.vectors is None:
        raise ConfigError(
            "focus: variant original is defined by fastText vectors of the target's tokens: give them as vectors=FILE.vec, "
            "or leave the variant out to learn vectors from the corpus here."
        )
    vectors, report = _vectors(material, options)
    return from_vectors(material, options, vectors, report)


def from_vectors(material: Material, options: Options, vectors: np.ndarray, report: dict[str, Any] | None = None) -> Maps:
    """:func:`build` with the vectors of the target's tokens given, float32 [vocab_size, h]; zero where there is none."""
    report = report or {}
    known = np.abs(vectors).sum(1) > 0
    rows, ids = material.anchors("focus")
    anchored = known[rows]
    rows, ids = rows[anchored], ids[anchored]
    if not len(rows):
        raise ConfigError("focus: none of the tokens that both vocabularies have has a vector; give more text in the target language.")
    new = material.new()
    similar, rare = new[known[new]], new[~known[new]]
    queries, anchors = vectors[similar], vectors[rows]
    if options.centre:
        queries, anchors = similarity.centred(queries, anchors)
    query, anchor, weights = similarity.weights_over(queries, anchors, options.weights, options.k, options.temperature)
    triples = similar[query], ids[anchor], weights
    composed = compose(material, rare) if options.rare == "subwords" else None
    maps = [
        material.token_map(
            concatenated(triples, composed.weighted(side, 0.7) if composed else empty()), norm=options.norm
        )
        for side in (("uniform", "uniform") if material.tied else ("back", "front"))
    ]
    report = report | {
        "anchors": len(rows), "similar_tokens": len(similar), "rare_tokens": len(rare),
        "anchors_per_token": round(len(query) / max(1, len(similar)), 2),
    }  # fmt: skip
    warnings = []
    if len(rare) > len(new) / 2:
        warnings.append(f"{len(rare)} of {len(new)} new tokens are too rare for a vector; is the text in the target language?")
    return Maps(*maps, report, warnings)


def _vectors(material: Material, options: Options) -> tuple[np.ndarray, dict]:
    size = material.target.vocab_size
    if options.vectors is None:
        documents = list(material.ids_of_texts(material.target, "focus", options.max_bytes))
        vectors, counts = word_vectors.from_corpus(
            documents, size, options.dim, options.window, options.min_count, material.seed
        )
        return vectors, {"tokens_read": int(counts.sum())}
    index = {token: number for number, token in enumerate(material.target_keys.tokens) if token is not None}
    words, found = word_vectors.read_vectors(options.vectors, index)
    vectors = np.zeros((size, found.shape[1]), dtype=np.float32)
    vectors[[index[word] for word in words]] = found
    return vectors, {"vectors_read": len(words)}
