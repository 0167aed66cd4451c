"""clp: a new token is the sum of kept tokens that are similar to it in a helper model with the target's tokenizer.

CLP-Transfer (Ostendorff & Rehm 2023): with s = cosine similarity of the helper's embeddings to every kept token o,
E'[i] = sum_o s_io / (sum_o s_io) E[o]. All kept tokens weigh in, and most cosines are much alike, so such rows are close
to the mean. The default keeps the few that matter (sparsemax of similarities without the helper's mean vector). The output matrix takes its weights from the helper's head where it has its own.
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
from megatron_adapt.vocab.token_map import NORMS, Factors, TokenMap
from megatron_adapt.vocab.weighting import empty


@dataclass(frozen=True)
class Options:
    VARIANTS: ClassVar[dict] = {"original": {"weights": "all", "centre": False, "norm": "none", "output": "input"}}
    helper: Path = option(..., "Hugging Face directory of a model that has the target's tokenizer")
    variant: str = option("default", "published settings", choices=("default", *VARIANTS))
    weights: str = option("sparsemax", "weights over anchors", choices=(*similarity.WEIGHTS, "all"))
    k: int = option(10, "nearest anchors of softmax and clip", low=1)
    temperature: float = option(0.1, "of softmax", low=1e-3)
    centre: bool = option(True, "take the mean of the anchors' vectors off first")
    norm: str = option("none", "length of composed rows", choices=NORMS)
    output: str = option("own", "similarities for the output matrix: the helper's head or its input", choices=("own", "input"))


def build(material: Material, options: Options) -> Maps:
    helper = Helper.load(options.helper, material.target)
    first, report = _map(material, options, helper.input)
    if options.output == "input" or helper.tied:
        return Maps.same(first, {"input": report})
    second, other = _map(material, options, helper.output)
    return Maps(first, second, {"input": report, "output": other})


def _map(material: Material, options: Options, vectors: np.ndarray) -> tuple[TokenMap, dict]:
    rows, ids = material.anchors("clp")
    new = material.new()
    queries, anchors = vectors[new], vectors[rows]
    if options.centre:
        queries, anchors = similarity.centred(queries, anchors)
    if options.weights == "all":
        return _dense(material, new, similarity.unit(queries), ids, similarity.unit(anchors), options.norm), {"anchors": len(rows)}
    query, anchor, weights = similarity.weights_over(queries, anchors, options.weights, options.k, options.temperature)
    report = {"anchors": len(rows), "anchors_per_token": round(len(query) / max(1, len(new)), 2)}
    return material.token_map((new[query], ids[anchor], weights), norm=options.norm), report


def _dense(material: Material, new: np.ndarray, queries: np.ndarray, ids: np.ndarray, anchors: np.ndarray, norm: str) -> TokenMap:
    """The published formula: since s_io is a product, so is the whole, and no row needs to store all its weights."""
    total = queries.astype(np.float64) @ anchors.sum(0, dtype=np.float64)
    usable = np.abs(total) > 1e-6 * len(anchors)  # else nearly 0 / 0: such rows are drawn
    left = (queries[usable] / total[usable, None]).astype(np.float32)
    return material.token_map(empty(), norm=norm, factors=Factors(new[usable], left, ids, anchors))
