"""Weights over anchors from the similarity of auxiliary vectors, block by block."""

from __future__ import annotations

import numpy as np

from megatron_adapt.vocab.weighting import Triples, concatenated

BLOCK_VALUES = 2**22  # similarities held at a time: what a cache holds is twice as fast as what fills memory
WEIGHTS = ("sparsemax", "softmax", "clip")


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32; zero rows stay zero."""
    vectors = np.asarray(vectors, dtype=np.float32)
    length = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1)).astype(np.float32)


def centred(vectors: np.ndarray, anchors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both without the anchors' mean: a direction that all vectors share says nothing about a single one."""
    mean = anchors.mean(0, dtype=np.float64).astype(np.float32)
    return vectors - mean, anchors - mean


def weights_over(
    vectors: np.ndarray, anchors: np.ndarray, weights: str = "sparsemax", k: int = 10, temperature: float = 0.1
) -> Triples:
    """(row of ``vectors``, row of ``anchors``, weight) from cosine similarities.

    Args:
        vectors: [n, h]. anchors: [m, h].
        weights: "sparsemax" of all similarities (Martins & Astudillo 2016; FOCUS); "softmax" of similarity /
            temperature over the k nearest (WECHSEL); "clip": positive similarities of the k nearest over their sum.
    """
    vectors, anchors = unit(vectors), unit(anchors)
    parts: list[Triples] = []
    block = max(1, BLOCK_VALUES // len(anchors))
    for begin in range(0, len(vectors), block):
        scores = vectors[begin : begin + block] @ anchors.T
        if weights == "sparsemax":
            rows, columns, values = sparsemax(scores)
        else:
            columns = _largest(scores, min(k, len(anchors)))
            values = np.take_along_axis(scores, columns, 1).astype(np.float64)
            if weights == "softmax":
                values = np.exp((values - values[:, :1]) / temperature)
            else:
                values = np.maximum(values, 0)
                values[values.sum(1) == 0, 0] = 1  # nothing points the same way: the nearest alone
            values /= values.sum(1, keepdims=True)
            rows, columns, values = np.repeat(np.arange(len(scores)), columns.shape[1]), columns.reshape(-1), values.reshape(-1)
        used = values > 0
        parts.append((rows[used] + begin, columns[used], values[used]))
    return concatenated(*parts)


def sparsemax(scores: np.ndarray) -> Triples:
    """(row, column, weight) of the projection of every row of ``scores`` float32 [n, m] onto the simplex.

    With z sorted downwards, k is the largest for which 1 + k z_k > z_1 + ... + z_k, tau = (z_1 + ... + z_k - 1) / k and
    the weights are max(z - tau, 0); by row, then by column.
    """
    import torch

    from megatron_adapt import _C

    return _C.sparsemax(scores, threads=torch.get_num_threads())


def _largest(scores: np.ndarray, count: int) -> np.ndarray:
    """Columns of the ``count`` largest entries of every row, largest first, equal ones by column: int64 [n, count]."""
    size = scores.shape[1]
    if count < size:
        columns = np.sort(np.argpartition(scores, size - count, axis=1)[:, size - count :], axis=1)
    else:
        columns = np.broadcast_to(np.arange(size), scores.shape)
    order = np.argsort(-np.take_along_axis(scores, columns, 1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, 1)
