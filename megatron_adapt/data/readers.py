"""Documents of one task, as flat arrays of UTF-8: nothing is done document by document in Python."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from megatron_adapt.data import tables
from megatron_adapt.data.documents import Bad, Batch, ChatReader, Task
from megatron_adapt.data.parsing import BadLine, parse_block, parse_json, parse_whole
from megatron_adapt.data.sources import BLANK_LINE, MAX_BYTES, STDIN
from megatron_adapt.errors import DataError

_READ_BYTES = 4 << 20
_ZSTD_READ_BYTES = 64 << 10  # compressed; text repeats itself, so this may become a thousand times as much
_NO_KEY = "\0"  # of no line, so that the scanner leaves each one to Python
_BOM = b"\xef\xbb\xbf"


def read(task: Task, text_key: str, chats: ChatReader | None = None) -> Iterator[Batch]:
    """Everything that a task names, in order; ``chats``: makes the documents, where these are chats.

    Raises:
        DataError: a file cannot be opened, read or decompressed, or is plain text instead of chats.
    """
    if task.kind in ("parquet", "hub"):
        yield from tables.read(task, text_key, chats)
        return
    for file in task.files:
        if chats is not None and task.kind != "json":
            raise DataError(f"{file} is plain text, and chats are lists of messages: JSON lines or a column of a table")
        if task.kind == "file":
            yield _whole_file(file)
        else:
            yield from _Scanned(file, task, text_key, chats)


class _Scanned:
    """Batches of a file of JSON lines, or lines or blocks of text."""

    def __init__(self, file: str, task: Task, text_key: str, chats: ChatReader | None) -> None:
        from megatron_adapt import _C

        self.file, self.key, self.task = file, text_key, task
        self.parse = parse_json if task.kind == "json" else parse_block  # a line is a block of one
        if chats is not None:
            self.parse = lambda data, _key: chats.parse(data)
            text_key = _NO_KEY
        self.scanner = _C.DocumentScanner(text_key.encode("utf-8", "surrogatepass"), task.kind)

    def __iter__(self) -> Iterator[Batch]:
        tail = bytearray()  # grows in place: a line may be a thousand pieces long
        for piece, size in _pieces(self.file, self.task):
            seen = len(tail)
            data: bytes | bytearray = piece
            if seen:
                tail += piece
                data = tail
            end = self._cut(data, seen)
            if len(data) - end > MAX_BYTES:
                yield self._too_long(data, end)
                return
            if end or not seen:
                tail = bytearray(memoryview(data)[end:])
            if end:
                yield self._batch(memoryview(data)[:end], size)
        if tail:
            yield self._batch(memoryview(tail), 0)

    def _cut(self, data: bytes | bytearray, seen: int) -> int:
        """Where the last whole line or block ends; no need to look again at the ``seen`` bytes at the begin."""
        if self.task.kind != "text":
            return data.rfind(b"\n", seen) + 1
        newline = max(data.rfind(b"\n\n", max(seen - 1, 0)), data.rfind(b"\n\r\n", max(seen - 2, 0)))
        if newline >= 0:
            return newline + 2
        matches = [match.end() for match in BLANK_LINE.finditer(data, max(data.rfind(b"\n", 0, seen), 0))]
        return matches[-1] if matches else 0

    def _batch(self, data: memoryview, size: int) -> Batch:
        scanner, bad, replaced, begin = self.scanner, [], {}, 0
        while True:
            begin, end = scanner.scan(data, begin)
            if begin == len(data):
                break
            odd = bytes(data[begin:end])
            try:
                text, count = self.parse(odd, self.key)
            except BadLine as error:
                bad.append(Bad(len(scanner), self.file, scanner.lines, str(error), odd))
            else:
                if count:
                    replaced[len(scanner)] = count
                scanner.push(text.encode("utf-8"))
            scanner.pass_(odd)
            begin = end
        return Batch(self.file, *scanner.take(), bad, replaced, size, scanner.lines)

    def _too_long(self, data: bytes | bytearray, end: int) -> Batch:
        batch = self._batch(memoryview(data)[:end], 0)
        limit = f"{MAX_BYTES >> 20} MiB"
        message = (
            f"the line is longer than {limit}; is this text?"
            if self.task.kind != "text"
            else f"no blank line in {limit}; blank lines separate the documents of a .txt file (or text_documents 'lines': each line)"
        )
        batch.bad.append(Bad(len(batch.lines), self.file, self.scanner.lines, message, fatal=True))
        return batch


def _pieces(file: str, task: Task) -> Iterator[tuple[bytes, int]]:
    """Raw bytes and how much of the file they are; without the byte order mark."""
    begin = task.begin
    try:
        with _open(file) as stream:
            if begin:
                stream.seek(begin)
            left = None if task.end is None else task.end - begin
            source = _decompressed(file, stream) if left is None else _plain(stream, left)
            yield from source if begin else _without_mark(source)
    except OSError as error:  # gzip.BadGzipFile has no strerror
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error
    except (EOFError, zlib.error) as error:
        raise DataError(f"cannot decompress {file}: it is truncated or damaged ({error})") from error


def _without_mark(source: Iterator[tuple[bytes, int]]) -> Iterator[tuple[bytes, int]]:
    """The same without the byte order mark in front, of which the first read of a pipe may give a part."""
    head, size = b"", 0
    for piece, count in source:
        head, size = head + piece, size + count
        if len(head) >= len(_BOM):
            yield head.removeprefix(_BOM), size
            yield from source
            return
    if head:
        yield head, size


def _open(file: str) -> BinaryIO:
    return os.fdopen(os.dup(0), "rb", buffering=0) if file == STDIN else open(file, "rb", buffering=0)


def _plain(stream: BinaryIO, left: int | None) -> Iterator[tuple[bytes, int]]:
    while data := stream.read(_READ_BYTES if left is None else min(_READ_BYTES, left)):
        yield data, len(data)
        if left is not None:
            left -= len(data)
            if not left:
                return


def _decompressed(file: str, stream: BinaryIO) -> Iterator[tuple[bytes, int]]:
    if file.endswith(".gz"):
        with gzip.GzipFile(fileobj=stream) as unzipped:
            done = 0
            while data := unzipped.read(_READ_BYTES):
                yield data, stream.tell() - done
                done = stream.tell()
    elif file.endswith(".zst"):
        yield from _unzstd(stream)
    else:
        yield from _plain(stream, None)


def _unzstd(stream: BinaryIO) -> Iterator[tuple[bytes, int]]:
    import zstandard

    def frame() -> Any:
        return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()

    frames, pieces, size, is_open = frame(), [], 0, False
    try:
        while data := stream.read(_ZSTD_READ_BYTES):
            size += len(data)
            while data:
                pieces.append(frames.decompress(data))
                data, is_open = frames.unused_data, not frames.eof
                if frames.eof:
                    frames = frame()
            if sum(map(len, pieces)) >= _READ_BYTES:
                yield b"".join(pieces), size
                pieces, size = [], 0
    except zstandard.ZstdError as error:
        raise EOFError(str(error)) from error
    if is_open:
        raise EOFError("the last frame is not complete")
    if pieces:
        yield b"".join(pieces), size


def _whole_file(file: str) -> Batch:
    pieces, size = [], 0
    for piece, _ in _pieces(file, Task(0, "file", (file,))):
        pieces.append(piece)
        size += len(piece)
        if size > MAX_BYTES:
            message = f"the file is longer than {MAX_BYTES >> 20} MiB, which is too long for one document"
            return _single(file, b"", [Bad(0, file, None, message, fatal=True)], size)
    try:
        text, _ = parse_whole(b"".join(pieces), "")
    except BadLine as error:
        return _single(file, None, [Bad(0, file, None, str(error), b"".join(pieces))], size)
    return _single(file, text.encode("utf-8"), [], size)


def _single(file: str, text: bytes | None, bad: list[Bad], size: int) -> Batch:
    texts = [] if text is None or bad else [text]
    offsets = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    return Batch(file, np.frombuffer(b"".join(texts), dtype=np.uint8), offsets, np.zeros(len(texts), np.int64), bad, {}, size)


def line_before(file: str, position: int) -> int:
    """Number of line ends in front of a byte of a plain file."""
    count = 0
    with Path(file).open("rb", buffering=0) as stream:
        for data, _ in _plain(stream, position) if position else ():
            count += data.count(b"\n")
    return count
