"""Files of tensors written from a stream, and continued after a stop: a file that has its name is whole.

What a file is to hold is known before the first tensor is read: literal bytes (headers) and names of tensors, in order.
So it can be told of a file that is there already whether it is that file.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Callable, Iterator, Mapping, Sequence, Union

import numpy as np

from megatron_adapt.streams.bits import Source, bands, is_finite, size
from megatron_adapt.streams.checksums import CheckedFile, Running

FLUSHED = 64 * 2**20  # bytes after which the disk is told to begin
WRITTEN = 2**18  # bytes at a time: for more than a megabyte ext4 looks for larger pages, which takes ten times as long

Piece = Union[bytes, str]  # literal bytes, or the name of a tensor


def write(
    source: Source,
    files: Mapping[Path, Sequence[Piece]],
    progress: Callable[[int, int], None] = lambda done, total: None,
    checksums: dict[Path, list[int]] | None = None,
) -> tuple[int, list[str]]:
    """Write files of one folder; those that are there already and hold every bit of what they should are kept.

    Args:
        progress: called with (tensors done, tensors in all).
        checksums: gets those of all files, taken of what is to be in them.
    Returns:
        how many were kept, and the names of tensors that hold a NaN or infinite value.
    Raises:
        OSError: writing failed (disk full, ...); of the file nothing is left.
    """
    total = sum(isinstance(piece, str) for pieces in files.values() for piece in pieces)
    done, kept, broken = 0, 0, []
    for path, pieces in files.items():
        passing = None if checksums is None else Running()
        found = held(path, pieces, source, passing) if path.is_file() else None
        kept += found is not None
        if found is None:
            passing = passing and Running()
            found = _write(path, pieces, source, lambda count: progress(done + count, total), passing)
        broken += found
        if checksums is not None and passing is not None:
            checksums[path] = passing.blocks()
        done += sum(isinstance(piece, str) for piece in pieces)
        progress(done, total)
    return kept, broken


def write_small(path: Path, content: bytes) -> None:
    """A file whose name never stands for half of it."""
    partial = _partial(path)
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def held(path: Path, pieces: Sequence[Piece], source: Source, passing: Running | None = None) -> list[str] | None:
    """Of a file that consists of these bytes and tensors, bit for bit, those with a NaN or infinite value; None: it does not.

    Reads a band of each at a time; ``passing`` gets all that should be in the file.
    """
    if path.stat().st_size != length(pieces, source):
        return None
    broken: list[str] = []
    with open(path, "rb", buffering=0) as file:
        for name, part in _content(pieces, source):
            found = np.empty_like(part)
            fill(file, found)
            if not np.array_equal(part, found):
                return None
            if passing is not None:
                passing.add(part)
            if _is_broken(name, part, source) and name not in broken:
                broken.append(name)
    return broken


def _is_broken(name: str, part: np.ndarray, source: Source) -> bool:
    return bool(name) and not is_finite(part, source.info(name)[1])


def length(pieces: Sequence[Piece], source: Source) -> int:
    """Bytes of a file."""
    return sum(len(piece) if isinstance(piece, bytes) else size(source.info(piece)) for piece in pieces)


def fill(file: BinaryIO | CheckedFile, out: np.ndarray) -> None:
    """Read as many bytes as the contiguous array has.

    Raises:
        EOFError: the file ends before that.
    """
    rest = memoryview(out.reshape(-1).view(np.uint8))
    while rest:  # one call reads 2 GiB at most
        count = file.readinto(rest)  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        rest = rest[count:]


def _write(
    path: Path, pieces: Sequence[Piece], source: Source, progress: Callable[[int], None], passing: Running | None
) -> list[str]:
    partial = _partial(path)
    broken: list[str] = []
    seen: list[str] = []
    try:
        # The pool ends before the file is closed: nothing is flushed that has become another file.
        with open(partial, "wb", buffering=0) as file, ThreadPoolExecutor(1) as pool:
            flushing: Future[None] | None = None
            waiting = 0
            for name, part in _content(pieces, source):
                waiting += _put(file, part)
                if passing is not None:
                    passing.add(part)
                if name not in broken and _is_broken(name, part, source):
                    broken.append(name)
                if name and name not in seen[-1:]:
                    seen.append(name)
                    progress(len(seen))
                if waiting >= FLUSHED and (flushing is None or flushing.done()):
                    flushing, waiting = pool.submit(os.fdatasync, file.fileno()), 0
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    return broken


def _content(pieces: Sequence[Piece], source: Source) -> Iterator[tuple[str, np.ndarray]]:
    """(name, bits) in order; literal bytes have no name."""
    stream = bands(source, [piece for piece in pieces if isinstance(piece, str)])
    for piece in pieces:
        if isinstance(piece, bytes):
            yield "", np.frombuffer(piece, np.uint8)
            continue
        rows = source.info(piece)[0][0]
        while rows:
            name, part = next(stream)
            assert name == piece
            rows -= len(part)
            yield name, part


def _put(file: BinaryIO, part: np.ndarray) -> int:
    rest = memoryview(part.reshape(-1).view(np.uint8))
    count = len(rest)
    while rest:
        rest = rest[file.write(rest[:WRITTEN]) :]
    return count


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")
