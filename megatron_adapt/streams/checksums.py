"""Checksums of files, one for each megabyte, so that any part of a file can be checked without the rest.

CRC-32 as zlib and zip have it: it finds every change of up to 32 bits in a row, and any other but one in four billion.
"""

from __future__ import annotations

import functools
import os
import zlib
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np

BLOCK = 2**20  # bytes of a file that have a checksum of their own


@functools.lru_cache(maxsize=None)
def _function() -> Callable[..., int]:
    """(buffer, value of what comes before it) -> value."""
    from megatron_adapt import _C

    return _C.crc32 if _C.crc32_is_fast() else zlib.crc32


class Changed(Exception):
    """Bytes of a file are not those that were written."""

    def __init__(self, begin: int, end: int) -> None:
        super().__init__(f"bytes {begin:,} to {end - 1:,} of the file changed since it was written")


class Running:
    """The checksums of a file whose bytes pass by, in order."""

    def __init__(self) -> None:
        self._finished: list[int] = []
        self._value, self._filled = 0, 0

    def add(self, data: Any) -> None:
        """``data``: a buffer, or a contiguous array."""
        rest = data.reshape(-1).view(np.uint8).data if isinstance(data, np.ndarray) else memoryview(data).cast("B")
        while rest:
            part = rest[: BLOCK - self._filled]
            self._value = _function()(part, self._value)
            self._filled += len(part)
            rest = rest[len(part) :]
            if self._filled == BLOCK:
                self._finished.append(self._value)
                self._value, self._filled = 0, 0

    def blocks(self) -> list[int]:
        return self._finished + [self._value] * (self._filled > 0)


def of(data: Any) -> list[int]:
    """Of a file that consists of these bytes."""
    running = Running()
    running.add(data)
    return running.blocks()


class Room:
    """For one block, of any of the files that share it: the one that was read last."""

    def __init__(self) -> None:
        self.bytes = np.empty(BLOCK, np.uint8)
        self.filled = 0
        self.block: tuple[CheckedFile, int] | None = None


class CheckedFile:
    """A file for reading, of which each block is compared with its checksum before anything of it is given out.

    From front to back each byte is read once; blocks that are read in parts, in between others, partly twice.

    Args:
        checksums: of all blocks.
    Raises (on reading):
        Changed: a block is not the one that was written, or not there.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path, checksums: Sequence[int] | np.ndarray, room: Room | None = None) -> None:
        self._file = open(path, "rb", buffering=0)
        self._checksums, self._room = checksums, room or Room()
        self._is_right = bytearray(len(checksums))
        self._at = 0

    def seek(self, offset: int) -> None:
        self._at = offset

    def read(self, size: int) -> bytes:
        out = bytearray(size)
        rest = memoryview(out)
        while rest and (count := self.readinto(rest)):
            rest = rest[count:]
        return bytes(out[: size - len(rest)])

    def readinto(self, out: memoryview) -> int:
        """Fill the front of ``out`` with what comes next; returns how many bytes, 0 at the end."""
        number, inside = divmod(self._at, BLOCK)
        if number >= len(self._checksums) or not out:
            return 0
        is_there = self._room.block == (self, number)
        if self._is_right[number] and not is_there:
            end = number + 1
            while end < len(self._is_right) and self._is_right[end] and end * BLOCK < self._at + len(out):
                end += 1
            count = os.preadv(self._file.fileno(), [out[: end * BLOCK - self._at]], self._at)
        else:
            if not is_there:
                self.check(number)
            count = max(0, min(len(out), self._room.filled - inside))
            out[:count] = self._room.bytes[inside : inside + count].data
        self._at += count
        return count

    def check(self, number: int) -> None:
        """Compare a block, which is in the room then."""
        self._room.block = None
        begin, filled = number * BLOCK, 0
        while count := os.preadv(self._file.fileno(), [self._room.bytes[filled:].data], begin + filled):
            filled += count
        if _function()(self._room.bytes[:filled].data) != self._checksums[number]:
            raise Changed(begin, begin + max(filled, 1))
        self._room.block, self._room.filled = (self, number), filled
        self._is_right[number] = True

    def close(self) -> None:
        self._file.close()
