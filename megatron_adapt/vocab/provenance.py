"""Where every row of a new vocabulary came from, and how its length compares: what a receipt says about a swap."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterable, Iterator

import numpy as np

from megatron_adapt.vocab.material import Maps, Material
from megatron_adapt.vocab.matching import BYTE, EXACT, ROLE, SPECIAL

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_adapt.vocab.token_map import TokenMap

FILE = "provenance.jsonl.gz"
LARGEST = 8  # sources of a row that are listed, the heaviest; "sources" says how many there are
TIERS = {EXACT: "same bytes", BYTE: "same byte", ROLE: "same role", SPECIAL: "same special token"}


def write(path: Path, material: Material, maps: Maps, tied: bool) -> None:
    """One line for every row: id, token, how ("copied", "composed", "drawn"), what it matched, and its sources."""
    outputs = None if tied or maps.output is maps.input else _rows(maps.output)
    with open(path, "wb") as file:
        # Name and time would differ from run to run.
        with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0) as packed:
            for row, origin in enumerate(_rows(maps.input)):
                line = {**_about(row, material), **origin}
                other = next(outputs) if outputs is not None else origin
                if other != origin:
                    line["output"] = other
                packed.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def _about(row: int, material: Material) -> dict[str, Any]:
    tokens = material.target_keys.tokens
    if row >= len(tokens):
        return {"id": row, "token": None, "padding": True}
    about: dict[str, Any] = {"id": row, "token": tokens[row]}
    if (tier := int(material.matching.tiers[row])) in TIERS:
        about["matched"] = TIERS[tier]
    return about


def _rows(token_map: TokenMap) -> Iterator[dict[str, Any]]:
    copies, indptr = token_map.copies(), token_map.indptr
    dense: dict[int, int] = {}
    if token_map.factors is not None:
        dense = {int(row): number for number, row in enumerate(token_map.factors.rows)}
    for row in range(token_map.rows):
        ids, weights = token_map.source_ids[indptr[row] : indptr[row + 1]], token_map.weights[indptr[row] : indptr[row + 1]]
        if token_map.factors is not None and row in dense:
            ids, weights = token_map.factors.anchors, token_map.factors.right @ token_map.factors.left[dense[row]]
        if not len(ids):
            yield {"how": "drawn"}
            continue
        heaviest = np.argsort(-np.abs(weights), kind="stable")[:LARGEST]
        origin = {
            "how": "copied" if copies[row] else "composed",
            "from": [[int(ids[k]), round(float(weights[k]), 4)] for k in heaviest],
        }
        yield {**origin, "sources": len(ids)} if len(ids) > LARGEST else origin


class Lengths:
    """Lengths of rows at the 10th, 50th and 90th percentile: of the source's, and of the new ones by how they came."""

    def __init__(self, source: Tensor, token_map: TokenMap) -> None:
        self.token_map = token_map
        self.source = _lengths(source[: token_map.source_size])
        self.target: list[np.ndarray] = []

    def watch(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Passes on all rows of the target, in order."""
        self.target = []
        for block in blocks:
            self.target.append(_lengths(block))
            yield block

    def quantiles(self) -> dict[str, list[float]]:
        copied, drawn = self.token_map.copies(), self.token_map.drawn
        lengths = np.concatenate(self.target)
        groups = {"copied": copied, "composed": ~copied & ~drawn, "drawn": drawn}
        found = {"source": self.source} | {name: lengths[chosen] for name, chosen in groups.items() if chosen.any()}
        return {name: [float(f"{value:.5g}") for value in np.quantile(values, (0.1, 0.5, 0.9))] for name, values in found.items()}


def _lengths(block: Tensor) -> np.ndarray:
    return np.concatenate([rows.float().norm(dim=1).numpy() for rows in block.split(256)])
