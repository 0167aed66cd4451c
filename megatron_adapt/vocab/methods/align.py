"""align: a new token is the mean of the old tokens that stand in its place when the same text is cut both ways.

The contextual form of subwords (Yamaguchi et al. 2024, "align"): every occurrence counts, so that a token is cut as the
old vocabulary really cuts it between its neighbours. Bytes are the common measure: old tokens that reach into
a new one count by the bytes they share with it. Tokens that the text does not show are composed of their pieces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from megatron_adapt.options import option
from megatron_adapt.vocab.material import Maps, Material
from megatron_adapt.vocab.methods.subwords import compose
from megatron_adapt.vocab.token_map import NORMS
from megatron_adapt.vocab.weighting import WEIGHTINGS, Triples, concatenated, piece_weights, summed

if TYPE_CHECKING:
    from megatron_adapt.vocab.matching import TokenKeys


@dataclass(frozen=True)
class Options:
    VARIANTS: ClassVar[dict] = {"original": {"input": "uniform", "output": "uniform", "norm": "none"}}
    variant: str = option("default", "published settings", choices=("default", *VARIANTS))
    input: str = option("back", "which pieces count in the input embedding", choices=WEIGHTINGS)
    output: str = option("front", "which pieces count in the output matrix", choices=WEIGHTINGS)
    alpha: float = option(0.7, "how fast front and back fall off", low=0, high=50)
    norm: str = option("none", "length of composed rows", choices=NORMS)
    max_bytes: int = option(20_000_000, "text to read", low=1)
    least: int = option(3, "occurrences below which a token is composed of its pieces instead", low=1)


def reads_text(options: Options) -> bool:
    return True


def build(material: Material, options: Options) -> Maps:
    tied = material.tied and options.input != options.output
    size, source_size = material.target.vocab_size, material.source.vocab_size
    sides = ["uniform" if tied else side for side in (options.input, options.output)]
    totals: dict[str, Triples] = {}
    seen = np.zeros(size, dtype=np.int64)
    new = np.zeros(size, dtype=bool)
    new[material.new()] = True
    lost = documents = 0
    old, young = byte_lengths(material.source_keys), byte_lengths(material.target_keys)
    batches: dict[str, list[Triples]] = {side: [] for side in set(sides)}
    for text in material.documents("align", options.max_bytes):
        documents += 1
        (source_ids,), (target_ids,) = material.source.encode([text]), material.target.encode([text])
        pairs = overlaps(ends(source_ids, old, text), ends(target_ids, young, text))
        if pairs is None:  # a normalizer changes the text: its bytes are not those of the other side
            lost += 1
            continue
        token, piece, shared = pairs
        wanted = new[target_ids[token]]
        token, piece, shared = token[wanted], piece[wanted], shared[wanted]
        seen += np.bincount(target_ids[np.unique(token)], minlength=size)
        for side in batches:
            batches[side].append((target_ids[token], source_ids[piece], piece_weights(side, token, shared, options.alpha)))
            if len(batches[side]) >= 64:
                batches[side] = [summed(batches[side], source_size)]
    for side, parts in batches.items():
        rows, ids, weights = summed(parts, source_size)
        often = seen[rows] >= options.least
        rows, ids, weights = rows[often], ids[often], weights[often]
        totals[side] = rows, ids, weights / np.bincount(rows, weights, minlength=size)[rows]
    rare = compose(material, np.flatnonzero(new & (seen < options.least)))
    maps = [
        material.token_map(concatenated(totals[side], rare.weighted(side, options.alpha)), norm=options.norm) for side in sides
    ]
    found = int((new & (seen >= options.least)).sum())
    report = {"aligned_tokens": found, "composed_tokens": len(rare.tokens), "documents": documents, "not_aligned": lost}
    warnings = []
    if tied:
        warnings.append("input and output embedding are one matrix: all pieces of a token count the same in it")
    if lost:
        warnings.append(f"{lost} of {documents} documents are normalised by one tokenizer only and were not used")
    if found < new.sum() / 10:
        warnings.append(f"the text shows only {found} of {int(new.sum())} new tokens often enough; is it in the target language?")
    return Maps(*maps, report, warnings)


def byte_lengths(keys: TokenKeys) -> np.ndarray:
    """Bytes of every token, int64 [size]; special ones, which are not in text, have none."""
    return np.array([len(key) if isinstance(key, bytes) else 0 for key in keys.keys], dtype=np.int64)


def ends(ids: np.ndarray, lengths: np.ndarray, text: str) -> np.ndarray | None:
    """Where each token of a text ends, in bytes of the text; None where the tokens do not make up its bytes.

    The space that sentencepiece puts in front of a text belongs to the first token and is not counted.
    """
    found = np.cumsum(lengths[ids])
    total = len(text.encode())
    if not len(found) or found[-1] - total not in (0, 1):
        return None
    return np.maximum(found - (found[-1] - total), 0)


def overlaps(source_ends: np.ndarray | None, target_ends: np.ndarray | None) -> tuple[np.ndarray, ...] | None:
    """(position of the target token, position of the source token, bytes shared) of all that share a byte."""
    if source_ends is None or target_ends is None:
        return None
    cuts = np.unique(np.concatenate([source_ends, target_ends]))
    cuts = cuts[cuts > 0]
    starts = np.concatenate([[0], cuts[:-1]])
    return np.searchsorted(target_ends, starts, "right"), np.searchsorted(source_ends, starts, "right"), cuts - starts
