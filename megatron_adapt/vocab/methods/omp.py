"""omp: a new token is rebuilt, as in a helper model with the target's tokenizer, from few kept tokens.

Orthogonal matching pursuit (Goddard & Fernandes Neto 2025): the helper's vector x of a new token is approximated by
x ~ sum_j c_j D_j over at most k kept tokens, one more at a time, always the one closest to what is still missing; the
same coefficients are then applied to the source's rows, separately for input and output. The plain method blows up where
kept tokens are nearly the same (untrained rows are): here such anchors are left out, directions are compared
instead of products with long vectors, a ridge keeps coefficients small, the search stops when little is missing, and
rows that come out longer than their sources are cut back. ``original`` has none of that.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from megatron_adapt.options import option
from megatron_adapt.vocab import similarity
from megatron_adapt.vocab.helper import Helper
from megatron_adapt.vocab.material import Maps, Material
from megatron_adapt.vocab.token_map import NORMS, TokenMap
from megatron_adapt.vocab.weighting import Triples, concatenated

BLOCK = 512  # tokens at a time


@dataclass(frozen=True)
class Options:
    VARIANTS: ClassVar[dict] = {
        "original": {
            "k": 64, "ridge": 0.0, "residual": 0.0, "duplicates": 1.0, "weakest": 0.0, "normalise": False, "norm": "none",
        }
    }  # fmt: skip
    helper: Path = option(..., "Hugging Face directory of a model that has the target's tokenizer")
    variant: str = option("default", "published settings", choices=("default", *VARIANTS))
    k: int = option(32, "most anchors of a token; never above a quarter of all or half the helper's width", low=1)
    ridge: float = option(0.01, "penalty on coefficients, times the anchors' mean squared length", low=0)
    residual: float = option(0.3, "stop when so much of the length is missing", low=0, high=1)
    duplicates: float = option(0.999, "cosine from which anchors count as the same", low=0, high=1)
    weakest: float = option(0.01, "share of anchors, the shortest, that is left out as untrained", low=0, high=0.5)
    normalise: bool = option(True, "choose anchors by direction rather than by product")
    norm: str = option("clip", "length of composed rows", choices=NORMS)


def build(material: Material, options: Options) -> Maps:
    helper = Helper.load(options.helper, material.target)
    first, report = _map(material, options, helper.input)
    if helper.tied:
        return Maps.same(first, {"input": report})
    second, other = _map(material, options, helper.output)
    return Maps(first, second, {"input": report, "output": other})


def _map(material: Material, options: Options, vectors: np.ndarray) -> tuple[TokenMap, dict]:
    rows, ids = material.anchors("omp")
    usable = _distinct(vectors[rows], options)
    rows, ids = rows[usable], ids[usable]
    new = material.new()
    most = options.k if options.variant == "original" else max(1, min(options.k, len(rows) // 4, vectors.shape[1] // 2))
    query, anchor, weights = pursue(
        vectors[new], vectors[rows], min(most, len(rows)), options.ridge, options.residual, options.normalise
    )
    report = {
        "anchors": len(rows), "anchors_left_out": len(usable) - len(rows),
        "anchors_per_token": round(len(query) / max(1, len(new)), 2),
        "largest_coefficient": round(float(np.abs(weights).max(initial=0)), 4),
    }  # fmt: skip
    return material.token_map((new[query], ids[anchor], weights), norm=options.norm), report


def _distinct(anchors: np.ndarray, options: Options) -> np.ndarray:
    """Which anchors to use: not the shortest, and of nearly equal ones the first: bool [n]."""
    lengths = np.linalg.norm(anchors, axis=1)
    usable = (lengths > 0) & (lengths >= np.quantile(lengths, options.weakest))
    if options.duplicates < 1:
        directions = similarity.unit(anchors)
        for begin in range(0, len(anchors), BLOCK):
            same = directions[begin : begin + BLOCK] @ directions.T >= options.duplicates
            earlier = np.arange(len(anchors))[None] < np.arange(begin, begin + len(same))[:, None]
            usable[begin : begin + BLOCK] &= ~(same & earlier & usable[None]).any(1)
    return usable


def pursue(
    vectors: np.ndarray, anchors: np.ndarray, most: int, ridge: float, residual: float, normalise: bool
) -> Triples:
    """(row of ``vectors``, row of ``anchors``, coefficient) of orthogonal matching pursuit with at most ``most`` anchors.

    Args:
        vectors: [n, h]. anchors: [m, h].
        ridge: solves min |x - D c|² + ridge * mean |D_j|² * |c|².
        residual: stops at |x - D c| <= residual * |x|.
    """
    anchors = anchors.astype(np.float64)
    directions = similarity.unit(anchors).astype(np.float64) if normalise else anchors
    penalty = ridge * float((anchors**2).sum(1).mean())
    parts: list[Triples] = []
    for begin in range(0, len(vectors), BLOCK):
        wanted = vectors[begin : begin + BLOCK].astype(np.float64)
        limit = np.maximum(residual, 1e-7) * np.linalg.norm(wanted, axis=1)
        chosen = np.zeros((len(wanted), 0), dtype=np.int64)
        coefficients = np.zeros((len(wanted), 0))
        active = np.flatnonzero(np.linalg.norm(wanted, axis=1) > 0)
        missing = wanted.copy()
        for _ in range(most):
            if not len(active):
                break
            scores = np.abs(missing[active] @ directions.T)
            np.put_along_axis(scores, chosen[active], -1.0, 1)
            following = np.full(len(wanted), -1, dtype=np.int64)
            following[active] = scores.argmax(1)
            chosen = np.concatenate([chosen, following[:, None]], 1)
            coefficients = np.concatenate([coefficients, np.zeros((len(wanted), 1))], 1)
            atoms = anchors[chosen[active]]  # [active, step, h]
            gram = atoms @ atoms.transpose(0, 2, 1)
            if penalty:
                gram += penalty * np.eye(gram.shape[1])
                solved = np.linalg.solve(gram, atoms @ wanted[active][:, :, None])[:, :, 0]
            else:
                solved = np.stack([np.linalg.lstsq(a.T, x, rcond=None)[0] for a, x in zip(atoms, wanted[active])])
            coefficients[active] = solved
            missing[active] = wanted[active] - (solved[:, None] @ atoms)[:, 0]
            active = active[np.linalg.norm(missing[active], axis=1) > limit[active]]
        used = (chosen >= 0) & (coefficients != 0)
        rows, columns = np.nonzero(used)
        parts.append((rows + begin, chosen[rows, columns], coefficients[rows, columns]))
    return concatenated(*parts)
