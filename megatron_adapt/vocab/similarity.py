"""Weights over anchors from the similarity of auxiliary vectors, block by block."""

from __future__ import annotations

import numpy as np

from megatron_adapt.vocab.weighting import Triples, concatenated

BLOCK_VALUES = 2**22  # similarities held at a time: what a cache holds is twice as fast as what fills memory
GROUP = 16  # columns whose maximum is looked at first
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


def sparsemax(scores: np.ndarray, first: int = 32) -> Triples:
    """(row, column, weight) of the projection of every row of ``scores`` [n, m] onto the simplex.

    With z sorted downwards, k is the largest for which 1 + k z_k > z_1 + ... + z_k, tau = (z_1 + ... + z_k - 1) / k and
    the weights are max(z - tau, 0). Only the largest entries matter, so ``first`` of them are sorted, and more only in
    rows whose support might be larger.
    """
    size = scores.shape[1]
    chosen = _first(scores, first) if 2 * first * GROUP < size else _largest(scores, min(first, size))
    values = np.take_along_axis(scores, chosen, 1).astype(np.float64)
    sums = np.cumsum(values, 1)
    position = np.arange(1, values.shape[1] + 1)
    support = (1 + position * values > sums).sum(1)
    complete = (support < values.shape[1]) | (values.shape[1] == size)
    tau = (np.take_along_axis(sums, support[:, None] - 1, 1) - 1) / support[:, None]
    weights = np.maximum(values - tau, 0)
    rows, columns = np.nonzero((weights > 0) & complete[:, None])
    found = (rows, chosen[rows, columns], weights[rows, columns])
    if complete.all():
        return found
    left = np.flatnonzero(~complete)
    rows, columns, more = sparsemax(scores[left], first * 8)
    return concatenated(found, (left[rows], columns, more))


def _first(scores: np.ndarray, count: int) -> np.ndarray:
    """Columns of the ``count`` largest entries of every row, largest first: int64 [n, count]; needs count * GROUP columns.

    The largest entries lie in the groups of columns with the largest maxima, so that only a few columns are looked at twice.
    """
    import torch

    height, width = scores.shape
    groups = width // GROUP
    values = torch.from_numpy(scores)
    whole = values[:, : groups * GROUP].view(height, GROUP, groups)  # column g + k * groups is in group g
    leading = whole.amax(1).topk(count, sorted=False).indices
    members = (leading[:, None, :] + torch.arange(0, groups * GROUP, groups)[None, :, None]).reshape(height, -1)
    rest = torch.arange(groups * GROUP, width).expand(height, -1)
    candidates = torch.cat([members, rest], 1)
    best = values.gather(1, candidates).topk(count).indices
    return candidates.gather(1, best).numpy()


def _largest(scores: np.ndarray, count: int) -> np.ndarray:
    """Columns of the ``count`` largest entries of every row, largest first, equal ones by column: int64 [n, count]."""
    size = scores.shape[1]
    if count < size:
        columns = np.sort(np.argpartition(scores, size - count, axis=1)[:, size - count :], axis=1)
    else:
        columns = np.broadcast_to(np.arange(size), scores.shape)
    order = np.argsort(-np.take_along_axis(scores, columns, 1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, 1)
