"""Weights of the pieces a token is made of, and sparse sums of them."""

from __future__ import annotations

from typing import Callable

import numpy as np

# How much each piece counts: all the same, by its bytes, only the first or last, or falling off from that end.
WEIGHTINGS = ("uniform", "length", "first", "last", "front", "back")

Triples = tuple[np.ndarray, np.ndarray, np.ndarray]  # target rows, source ids (int64), weights (float64)


def piece_weights(weighting: str, token: np.ndarray, lengths: np.ndarray, alpha: float) -> np.ndarray:
    """Weights that sum to 1 for each token, float64 [pieces].

    Args:
        weighting: one of ``WEIGHTINGS``. "front" is proportional to exp(-alpha k) for the k-th piece, "back" the same
            from the end: AdaptiVocab (Nakash et al. 2025) has alpha = 2 in the paper and ln 2 in its code.
        token: for every piece, the number of the token it belongs to; ascending.
        lengths: bytes of the pieces.
    """
    if not len(token):
        return np.zeros(0)
    position = np.arange(len(token)) - np.searchsorted(token, token, "left")
    last = np.searchsorted(token, token, "right") - 1 - np.arange(len(token))
    formulas: dict[str, Callable[[], np.ndarray]] = {
        "uniform": lambda: np.ones(len(token)),
        "length": lambda: lengths.astype(np.float64),
        "first": lambda: (position == 0).astype(np.float64),
        "last": lambda: (last == 0).astype(np.float64),
        "front": lambda: np.exp(-alpha * position),
        "back": lambda: np.exp(-alpha * last),
    }
    weights = formulas[weighting]()
    return weights / np.bincount(token, weights)[token]


def empty() -> Triples:
    return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0)


def concatenated(*parts: Triples) -> Triples:
    rows, ids, weights = (np.concatenate(column) for column in zip(empty(), *parts))
    return rows.astype(np.int64), ids.astype(np.int64), weights.astype(np.float64)


def summed(parts: list[Triples], source_size: int) -> Triples:
    """All triples, the weights of equal pairs added up and those of weight 0 left out."""
    rows, ids, weights = concatenated(*parts)
    codes, index = np.unique(rows * source_size + ids, return_inverse=True)
    totals = np.bincount(index.reshape(-1), weights=weights, minlength=len(codes))
    used = totals != 0
    return codes[used] // source_size, codes[used] % source_size, totals[used]
