"""Tensors as rows of bits: read band by band, one band ahead; compared, cast, searched for what is not finite.

Bits are numpy arrays of unsigned integers as wide as the dtype (numpy has no bfloat16). Reading, comparing and writing
release the interpreter's lock, so a thread that reads ahead runs beside its user.
"""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Iterable, Iterator, Protocol

import numpy as np

from megatron_adapt.errors import CheckpointError

WIDTHS = {  # bytes of a value
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1,
    "bool": 1, "float8_e4m3fn": 1, "float8_e5m2": 1,
}  # fmt: skip
# Bits of an infinity without its sign: what is at least this is infinite or NaN.
_INFINITY = {"float32": 0x7F80_0000, "bfloat16": 0x7F80, "float16": 0x7C00}
BAND = 2**20  # bytes read at a time: little enough for a processor's cache

Info = tuple[tuple[int, ...], str]  # shape, dtype


class Source(Protocol):
    """Tensors by name, of which any rows can be read."""

    def names(self) -> list[str]: ...

    def info(self, name: str) -> Info: ...

    def read(self, name: str, first: int, out: np.ndarray) -> None:
        """Fill ``out [rows, ...]``, bits, with the rows of a tensor from ``first`` on."""


def size(info: Info) -> int:
    """Bytes of a tensor."""
    return math.prod(info[0]) * WIDTHS[info[1]]


def empty(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.empty(shape, f"u{WIDTHS[dtype]}")


def whole(source: Source, name: str) -> np.ndarray:
    """All bits of a tensor."""
    out = empty(*source.info(name))
    source.read(name, 0, out)
    return out


def bands(source: Source, names: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, rows) of all tensors in turn; a band is valid until the next one is asked for.

    Memory: two bands, of ``BAND`` bytes or of one row.
    """
    ahead = _bands(source, list(names))
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(next, ahead, None)
        while (band := future.result()) is not None:
            future = pool.submit(next, ahead, None)  # into the buffer that is not in use
            yield band


def _bands(source: Source, names: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    rows = [size(source.info(name)) // source.info(name)[0][0] for name in names]
    buffers = itertools.cycle([np.empty(max([BAND, *rows]), np.uint8) for _ in range(2)])
    for name, row in zip(names, rows):
        (count, *rest), dtype = source.info(name)
        step = max(1, BAND // row)
        for first in range(0, count, step):
            taken = min(step, count - first)
            out = next(buffers)[: taken * row].view(f"u{WIDTHS[dtype]}").reshape(taken, *rest)
            source.read(name, first, out)
            yield name, out


def differing(one: Source, other: Source, names: list[str]) -> list[str]:
    """The tensors of which shape, dtype or any bit differs: a NaN equals itself, and 0 differs from -0."""
    other_info = {name: other.info(name) for name in names}
    wrong = {name for name in names if tuple(map(tuple, one.info(name))) != tuple(map(tuple, other_info[name]))}
    alike = [name for name in names if name not in wrong]
    for (name, ours), (_, theirs) in zip(bands(one, alike), bands(other, alike)):
        if name not in wrong and not np.array_equal(ours, theirs):
            wrong.add(name)
    return [name for name in names if name in wrong]


def is_finite(values: np.ndarray, dtype: str) -> bool:
    """Whether no value is NaN or infinite. Of signed integers the greatest is the greatest positive value; of unsigned
    ones it is the negative value of the greatest magnitude, if there is a negative one."""
    if not values.size:
        return True
    sign = 1 << 8 * WIDTHS[dtype] - 1
    return bool(values.view(f"i{WIDTHS[dtype]}").max() < _INFINITY[dtype] and values.max() < _INFINITY[dtype] + sign)


def broken(source: Source, names: Iterable[str]) -> list[str]:
    """The tensors that hold a NaN or infinite value."""
    found = [name for name, band in bands(source, names) if not is_finite(band, source.info(name)[1])]
    return list(dict.fromkeys(found))


def refuse_broken(names: list[str], where: str) -> None:
    """Raise ``CheckpointError`` naming tensors that are not finite, if there are any."""
    if names:
        shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        raise CheckpointError(
            f"{where}: NaN or infinite values in {len(names)} of the tensors: {shown}. Use an earlier state of this model."
        )


class Cast:
    """A source with every tensor rounded to ``dtype``, to nearest, as torch does it; None: as it is stored."""

    def __init__(self, source: Source, dtype: str | None) -> None:
        self.source, self.dtype = source, dtype

    def names(self) -> list[str]:
        return self.source.names()

    def info(self, name: str) -> Info:
        shape, dtype = self.source.info(name)
        return shape, self.dtype or dtype

    def read(self, name: str, first: int, out: np.ndarray) -> None:
        stored = self.source.info(name)[1]
        if self.dtype in (None, stored):
            return self.source.read(name, first, out)
        import torch

        values = empty(out.shape, stored)
        self.source.read(name, first, values)
        given = torch.from_numpy(values).view(getattr(torch, stored))
        torch.from_numpy(out).view(getattr(torch, self.dtype)).copy_(given)
