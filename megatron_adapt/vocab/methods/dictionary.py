"""dictionary: a target token that is a word starts as its translation, by a bilingual word list.

CSMPT and Czech-GPT-2 (BUT-FIT 2024) copied about a thousand English rows to their Czech translations and drew the rest;
``original`` does that: one token on either side, the first translation counts, no rows kept but those of special
tokens. The default keeps what both vocabularies have, tries each pair with and without capitals, at the start of a word
and within one, takes the mean of several translations and of the pieces of a source word, and composes the remaining
tokens of their own pieces.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from megatron_adapt.errors import ConfigError
from megatron_adapt.options import option
from megatron_adapt.vocab.dictionary import read_dictionary, with_cases
from megatron_adapt.vocab.material import Maps, Material
from megatron_adapt.vocab.methods.subwords import compose
from megatron_adapt.vocab.pieces import Pieces
from megatron_adapt.vocab.token_map import NORMS, TokenMap
from megatron_adapt.vocab.weighting import Triples, concatenated, empty, summed


@dataclass(frozen=True)
class Options:
    VARIANTS: ClassVar[dict] = {
        "original": {"keep_overlap": False, "cases": False, "several": False, "rest": "draw", "norm": "none"}
    }
    file: Path = option(..., "word list, one pair a line: source word, tab, target word")
    variant: str = option("default", "published settings", choices=("default", *VARIANTS))
    keep_overlap: bool = option(True, "tokens that both vocabularies have keep their rows; else special tokens only")
    cases: bool = option(True, "try every pair in lower case and capitalised, too")
    several: bool = option(True, "mean over translations and over the pieces of a source word; else single tokens only")
    rest: str = option("subwords", "tokens that the dictionary lacks", choices=("subwords", "draw", "mean"))
    norm: str = option("none", "length of composed rows", choices=NORMS)


def build(material: Material, options: Options) -> Maps:
    pairs = read_dictionary(options.file)
    pairs = with_cases(pairs) if options.cases else pairs
    kept, old = material.kept()
    if not options.keep_overlap:
        special = np.array([isinstance(material.target_keys.keys[row], str) for row in kept], dtype=bool)
        kept, old = kept[special], old[special]
    translated, words, used = _translated(material, options, pairs, set(kept.tolist()))
    if not words:
        raise ConfigError(
            f"{options.file}: none of {len(pairs)} pairs has a target word that is one token of {material.target.path}. Is the "
            f"order source, tab, target?"
        )
    done = np.zeros(material.target.vocab_size, dtype=bool)
    done[kept] = done[translated[0]] = True
    rest = compose(material, np.flatnonzero(~done)) if options.rest == "subwords" else None
    maps = []
    for side in ("uniform", "uniform") if material.tied else ("back", "front"):
        triples = concatenated((kept, old, np.ones(len(kept))), translated, rest.weighted(side, 0.7) if rest else empty())
        sizes = material.target.vocab_size, material.source.vocab_size
        maps.append(TokenMap.from_entries(*triples, *sizes, spread=float(options.rest != "mean"), norm=options.norm))
    warnings = [] if used else [f"no pair of {options.file} was used: their tokens are kept, or the source words are several tokens"]
    report = {"pairs": len(pairs), "pairs_matched": words, "pairs_used": used}
    return Maps(*maps, report | {"translated_tokens": len(np.unique(translated[0]))}, warnings)


def _translated(
    material: Material, options: Options, pairs: list[tuple[str, str]], kept: set[int]
) -> tuple[Triples, int, int]:
    """Triples of translated tokens; how many pairs have a target word that is a token; how many entered the triples."""
    by_bytes: dict[bytes, int] = {}
    for index, key in enumerate(material.target_keys.keys):
        if isinstance(key, bytes) and not material.target_keys.is_byte[index]:
            by_bytes.setdefault(key, index)
    pieces = Pieces(material.source, material.source_keys)
    found: dict[int, list[list[int]]] = {}
    words, used = set(), set()
    for pair in pairs:
        for start in (" ", ""):
            token = by_bytes.get((start + pair[1]).encode())
            if token is None:
                continue
            words.add(pair)
            if token in kept or (found.get(token) and not options.several):
                continue
            ids = pieces.of((start + pair[0]).encode())
            if ids and (len(ids) == 1 or options.several) and ids not in found.get(token, []):
                found.setdefault(token, []).append(ids)
                used.add(pair)
    parts = [
        (np.full(len(ids), token), np.array(ids), np.full(len(ids), 1 / len(ids) / len(translations)))
        for token, translations in found.items()
        for ids in translations
    ]
    return summed(parts, material.source.vocab_size), len(words), len(used)
