"""Vectors of tokens from the company they keep in a corpus, and vectors from files in fastText's text format."""

from __future__ import annotations

from pathlib import Path
from typing import Iterable

import numpy as np

from megatron_adapt.errors import DataError
from megatron_adapt.vocab.material import read_lines

SMOOTHING = 0.75  # of context counts (Levy, Goldberg & Dagan 2015)
PAIRS = 2**23  # counted at a time


def from_corpus(
    documents: Iterable[np.ndarray], size: int, dim: int, window: int, min_count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Token vectors by factorising positive pointwise mutual information.

    Skip-gram with negative sampling factorises shifted PMI implicitly (Levy & Goldberg 2014); on corpora of a few
    million tokens the explicit factorisation needs no passes over the text and no learning rate, and gives the same
    vectors for the same seed. Co-occurrences at distance r count 1 - (r - 1) / window, as word2vec's random window does
    on average.

    Args:
        documents: ids of one document each.
        size: of the vocabulary.
    Returns:
        vectors, float32 [size, dim]: zero for tokens below ``min_count``; counts, int64 [size].
    """
    parts = [np.asarray(ids, dtype=np.int64) for ids in documents]
    ids = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
    document = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    counts = np.bincount(ids, minlength=size)
    kept = counts >= min_count
    dense = np.cumsum(kept) - 1  # numbering of the kept tokens
    frequent = kept[ids]
    ids, document = dense[ids[frequent]], document[frequent]
    number = int(kept.sum())
    vectors = np.zeros((size, dim), dtype=np.float32)
    if number > 1 and len(ids) > 1:
        vectors[kept] = _factorised(*_pairs(ids, document, number, window), number, dim, seed)
    return vectors, counts


def _pairs(ids: np.ndarray, document: np.ndarray, size: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes left * size + right of tokens that occur together in both orders, and how often (weighted by distance)."""
    codes, weights = np.zeros(0, dtype=np.int64), np.zeros(0)
    for begin in range(0, len(ids), PAIRS // window):
        end = begin + PAIRS // window
        found, values = [codes], [weights]
        for distance in range(1, window + 1):
            left, right = ids[begin:end], ids[begin + distance : end + distance]
            left = left[: len(right)]
            same = document[begin : begin + len(right)] == document[begin + distance : end + distance]
            left, right = left[same], right[same]
            for first, second in ((left, right), (right, left)):
                found.append(first * size + second)
                values.append(np.full(len(first), 1 - (distance - 1) / window))
        codes, index = np.unique(np.concatenate(found), return_inverse=True)
        weights = np.bincount(index.reshape(-1), np.concatenate(values))
    return codes, weights


def _factorised(codes: np.ndarray, weights: np.ndarray, size: int, dim: int, seed: int) -> np.ndarray:
    """U sqrt(S) of the positive pointwise mutual information by a randomised SVD (Halko et al. 2011)."""
    import torch

    rows, columns = codes // size, codes % size
    left = np.bincount(rows, weights, size)
    right = np.bincount(columns, weights, size) ** SMOOTHING
    information = np.log(weights * right.sum() / (left[rows] * right[columns]))
    positive = information > 0
    indices = torch.from_numpy(np.stack([rows[positive], columns[positive]]))
    values = torch.from_numpy(information[positive].astype(np.float32))
    matrix = torch.sparse_coo_tensor(indices, values, (size, size), check_invariants=False).coalesce()
    transposed = torch.sparse_coo_tensor(indices.flip(0), values, (size, size), check_invariants=False).coalesce()
    width = min(size, dim + 16)
    generator = torch.Generator("cpu").manual_seed(seed)
    basis = torch.linalg.qr(matrix @ torch.randn(size, width, generator=generator, device="cpu"))[0]
    for _ in range(3):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(transposed @ basis)[0])[0]
    left_vectors, strengths, _ = torch.linalg.svd((transposed @ basis).T, full_matrices=False)
    rank = min(dim, width)
    found = (basis @ left_vectors[:, :rank]) * strengths[:rank].sqrt()
    result = np.zeros((size, dim), dtype=np.float32)
    result[:, :rank] = found.numpy()
    return result


def read_vectors(path: Path, wanted: Iterable[str] | None = None) -> tuple[list[str], np.ndarray]:
    """Words and float32 vectors of a file in fastText's text format: ``count dim``, then ``word v1 v2 ...``.

    Args:
        wanted: only these words; None reads all.
    Raises:
        ConfigError: it cannot be opened. DataError: "FILE:LINE: ..." where it is not in that format, or empty.
    """
    chosen = None if wanted is None else set(wanted)
    words: list[str] = []
    vectors: list[np.ndarray] = []
    seen: set[str] = set()
    dim = 0
    for number, line in read_lines(path, "vectors"):
        parts = line.rstrip(" ").split(" ")
        if number == 1:
            if len(parts) != 2 or not all(part.isdigit() for part in parts):
                raise DataError(f"{path}:1: expected the number of words and of dimensions, as in a fastText .vec file.")
            dim = int(parts[1])
            continue
        word = " ".join(parts[:-dim])
        if chosen is not None and word not in chosen or word in seen:
            continue
        try:
            vector = np.array(parts[-dim:], dtype=np.float32)
        except ValueError:
            vector = np.zeros(0, dtype=np.float32)
        if len(vector) != dim or not word or not np.isfinite(vector).all():
            raise DataError(f"{path}:{number}: expected a word and {dim} finite numbers.")
        seen.add(word)
        words.append(word)
        vectors.append(vector)
    if not words:
        raise DataError(f"{path} holds no vectors{' of the words looked for' if chosen else ''}.")
    return words, np.stack(vectors)
