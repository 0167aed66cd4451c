"""wechsel: a target token is the sum of source tokens that mean the same, by aligned word vectors of both languages.

WECHSEL (Minixhofer et al. 2022): word vectors of the two languages (fastText's .vec files) are brought into one
space by the rotation W that minimises |S W - T| over the pairs of a dictionary; a token's vector is the mean, weighted
by frequency, of the words in whose tokens it occurs; a target token is the softmax(cos / temperature) mean of its k nearest
source tokens. Files hold no frequencies but are sorted by them: 1 / rank stands in (Zipf). ``original`` rebuilds
tokens that both vocabularies have, too, except special ones, and draws those without a vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from megatron_adapt.errors import ConfigError
from megatron_adapt.options import option
from megatron_adapt.vocab import similarity
from megatron_adapt.vocab.dictionary import read_dictionary, with_cases
from megatron_adapt.vocab.material import Maps, Material
from megatron_adapt.vocab.methods.subwords import compose
from megatron_adapt.vocab.token_map import NORMS, TokenMap
from megatron_adapt.vocab.weighting import concatenated, empty
from megatron_adapt.vocab.word_vectors import read_vectors

if TYPE_CHECKING:
    from megatron_adapt.hf.tokenizer import Tokenizer


@dataclass(frozen=True)
class Options:
    VARIANTS: ClassVar[dict] = {"original": {"keep_overlap": False, "rare": "draw", "norm": "none"}}
    source_vectors: Path = option(..., "word vectors of the source language, a .vec file")
    target_vectors: Path = option(..., "word vectors of the target language, a .vec file")
    file: Path = option(..., "word list, one pair a line: source word, tab, target word")
    variant: str = option("default", "published settings", choices=("default", *VARIANTS))
    k: int = option(10, "nearest source tokens", low=1)
    temperature: float = option(0.1, "of the softmax", low=1e-3)
    keep_overlap: bool = option(True, "tokens that both vocabularies have keep their rows; else special tokens only")
    rare: str = option("subwords", "tokens without a vector", choices=("subwords", "draw"))
    norm: str = option("none", "length of composed rows", choices=NORMS)


def build(material: Material, options: Options) -> Maps:
    source_words, source_vectors = read_vectors(options.source_vectors)
    target_words, target_vectors = read_vectors(options.target_vectors)
    if source_vectors.shape[1] != target_vectors.shape[1]:
        raise ConfigError(
            f"wechsel: {options.source_vectors} has {source_vectors.shape[1]} dimensions, {options.target_vectors} "
            f"{target_vectors.shape[1]}; take vectors of the same dimension."
        )
    rotation, pairs = _rotation(options.file, source_words, source_vectors, target_words, target_vectors)
    old = _of_tokens(material.source, source_words, similarity.unit(source_vectors) @ rotation)
    young = _of_tokens(material.target, target_words, similarity.unit(target_vectors))
    kept, ids = material.kept()
    if not options.keep_overlap:
        special = np.array([isinstance(material.target_keys.keys[row], str) for row in kept], dtype=bool)
        kept, ids = kept[special], ids[special]
    new = np.ones(material.target.vocab_size, dtype=bool)
    new[kept] = False
    new &= np.array([key is not None for key in material.target_keys.keys], dtype=bool)
    known = np.abs(young).sum(1) > 0
    anchors = np.flatnonzero(np.abs(old).sum(1) > 0)
    if not len(anchors):
        raise ConfigError(f"wechsel: no word of {options.source_vectors} consists of tokens of {material.source.path}.")
    similar, rare = np.flatnonzero(new & known), np.flatnonzero(new & ~known)
    query, anchor, weights = similarity.weights_over(young[similar], old[anchors], "softmax", options.k, options.temperature)
    composed = compose(material, rare) if options.rare == "subwords" else None
    sizes = material.target.vocab_size, material.source.vocab_size
    maps = []
    for side in ("uniform", "uniform") if material.tied else ("back", "front"):
        others = composed.weighted(side, 0.7) if composed else empty()
        triples = concatenated((kept, ids, np.ones(len(kept))), (similar[query], anchors[anchor], weights), others)
        maps.append(TokenMap.from_entries(*triples, *sizes, norm=options.norm))
    return Maps(*maps, {"pairs_used": pairs, "similar_tokens": len(similar), "rare_tokens": len(rare)})


def _rotation(
    path: Path, source_words: list[str], source: np.ndarray, target_words: list[str], target: np.ndarray
) -> tuple[np.ndarray, int]:
    """W = U V' of the singular vectors of S' T (orthogonal Procrustes, Schönemann 1966), and the pairs it rests on."""
    left = {word: index for index, word in enumerate(source_words)}
    right = {word: index for index, word in enumerate(target_words)}
    pairs = [(left[a], right[b]) for a, b in with_cases(read_dictionary(path)) if a in left and b in right]
    if not pairs:
        raise ConfigError(f"wechsel: no pair of {path} has both words among the vectors. Is the order source, tab, target?")
    first, second = np.array(pairs).T
    product = similarity.unit(source[first]).T.astype(np.float64) @ similarity.unit(target[second])
    left_vectors, _, right_vectors = np.linalg.svd(product)
    return (left_vectors @ right_vectors).astype(np.float32), len(pairs)


def _of_tokens(tokenizer: Tokenizer, words: list[str], vectors: np.ndarray) -> np.ndarray:
    """Mean vector of the words in which a token occurs, each word alone and after a space: float32 [vocab_size, h]."""
    totals = np.zeros((tokenizer.vocab_size, vectors.shape[1]))
    for spelled in (words, [" " + word for word in words]):
        encoded = tokenizer.encode(spelled)
        tokens = np.concatenate(encoded)
        word = np.repeat(np.arange(len(words)), [len(ids) for ids in encoded])
        for begin in range(0, len(tokens), 2**18):
            part = slice(begin, begin + 2**18)
            np.add.at(totals, tokens[part], vectors[word[part]] / (1 + word[part])[:, None])
    return totals.astype(np.float32)  # its length does not matter: only cosines are taken
