"""PREFIX.loss_mask of a corpus of chats: a byte for each token of PREFIX.bin, 1 for those that are learnt, else 0."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from megatron_adapt.data.indexed import IndexedReader
from megatron_adapt.errors import DataError

SUFFIX = ".loss_mask"


def has_mask(prefix: str | Path, description: Mapping[str, Any] | None) -> bool:
    """Whether a corpus is of chats: its description says so, or without one the file is there.

    Raises:
        DataError: the file is there, and the description does not know it.
    """
    path = Path(f"{prefix}{SUFFIX}")
    if description is None:
        return path.exists()
    described = "loss_mask" in description
    if path.exists() and not described:
        raise DataError(f"{path} lies beside {prefix}.json, which describes text, of which all is learnt; remove it, or preprocess {prefix} again")
    return described


def open_mask(reader: IndexedReader) -> np.ndarray:
    """[tokens] uint8, memory-mapped: which tokens of a corpus of chats are learnt.

    Raises:
        DataError: the file is missing, or of another length than the corpus.
    """
    path = Path(f"{reader.prefix}{SUFFIX}")
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"cannot open {path}: {error.strerror}; preprocess the corpus of chats again") from None
    if size != reader.num_tokens:
        raise DataError(f"{path} has {size} bytes, one for each token, but the corpus {reader.num_tokens} tokens; preprocess it again")
    return np.memmap(path, dtype=np.uint8, mode="r") if size else np.empty(0, np.uint8)
