"""A corpus cut into pieces of work: files, groups of small files, byte ranges of large ones."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from megatron_adapt.data import tables
from megatron_adapt.data.documents import Task
from megatron_adapt.data.sources import BLANK_LINE, COMPRESSIONS, STDIN, TEXT_DOCUMENTS, kind_of
from megatron_adapt.errors import ConfigError, DataError

_CHUNK_BYTES = (2 << 20, 16 << 20)  # of input in one piece of work, at least and at most
_CHUNKS = 32  # that a corpus is cut into where these allow it: enough to keep several workers equally busy
_CHUNK_FILES = 1000
_PROBE_BYTES = 64 << 10


def plan(names: Iterable[str], text_documents: str = "blocks", chunk_bytes: int | None = None) -> list[Task]:
    """Cut sources into tasks of 2 to 16 MiB, in order; the same for every number of workers.

    Large plain files are cut at line ends (between blocks of plain text at blank lines), parquet files between row
    groups, data sets between rows; compressed files are one task each, small files go together.
    """
    if text_documents not in TEXT_DOCUMENTS:
        raise ConfigError(f"text_documents must be one of {', '.join(TEXT_DOCUMENTS)}, not {text_documents!r}")
    names = list(names)
    if chunk_bytes is None:
        total = sum(Path(name).stat().st_size for name in names if Path(name).is_file())
        chunk_bytes = min(max(total // _CHUNKS, _CHUNK_BYTES[0]), _CHUNK_BYTES[1])
    tasks: list[Task] = []
    for name in names:
        kind = kind_of(name, text_documents)
        for part in _cut(name, kind, chunk_bytes):
            last = tasks[-1] if tasks else None
            if last is not None and _fit(last, part, chunk_bytes):
                tasks[-1] = replace(last, files=last.files + part.files, size=last.size + part.size)
            else:
                tasks.append(replace(part, number=len(tasks)))
    return tasks


def _fit(last: Task, part: Task, chunk_bytes: int) -> bool:
    whole = last.kind == part.kind in ("json", "text", "lines", "file") and last.end is part.end is None
    return whole and last.size + part.size <= chunk_bytes and len(last.files) < _CHUNK_FILES and STDIN not in last.files


def _cut(name: str, kind: str, chunk_bytes: int) -> Iterator[Task]:
    if kind in ("parquet", "hub"):
        for begin, end, size in tables.cut(name, chunk_bytes):
            yield Task(0, kind, (name,), begin, end, size)
        return
    try:
        size = 0 if name == STDIN else Path(name).stat().st_size
    except OSError as error:
        raise DataError(f"cannot read {name}: {error.strerror}") from error
    if kind == "file" or name.endswith(COMPRESSIONS) or size <= chunk_bytes:
        yield Task(0, kind, (name,), size=size)
        return
    begin = 0
    while begin < size:
        end = size if begin + chunk_bytes >= size else _boundary(name, kind, begin + chunk_bytes, size)
        yield Task(0, kind, (name,), begin, end, end - begin)
        begin = end


def _boundary(name: str, kind: str, position: int, size: int) -> int:
    """The first position from here on at which no document is cut."""
    try:
        with open(name, "rb") as stream:
            stream.seek(position)
            seen = b""
            while data := stream.read(_PROBE_BYTES):
                seen = seen[-_PROBE_BYTES:] + data
                start = stream.tell() - len(seen)
                found = BLANK_LINE.search(seen) if kind == "text" else re.search(rb"\n", seen)
                if found:
                    return start + found.end()
    except OSError as error:
        raise DataError(f"cannot read {name}: {error.strerror}") from error
    return size
