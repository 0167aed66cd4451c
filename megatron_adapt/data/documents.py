"""What a corpus is cut into, and what comes out of a piece."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np


class ChatReader(Protocol):
    """Makes documents of chats (``chat.py``): of lines of JSON, or of lists of messages and what is ``beside`` them (argument: key)."""

    key: str
    beside: Mapping[str, str]

    def parse(self, data: bytes) -> tuple[str, int]: ...

    def document(self, messages: Any, **beside: Any) -> tuple[str, int]: ...


@dataclass(frozen=True)
class Task:
    """One piece of work: whole files, or a part of one.

    Attributes:
        kind: "json", "text" (blocks between blank lines), "lines" (a document each), "file" (a document each), "parquet", "hub".
        begin, end: bytes of a plain file (None: all of it), row groups of a parquet file, rows of a data set.
        size: bytes on disk, what progress is counted in.
        first: number of the corpus's non-empty documents before this task, where somebody counted.
        limit: read so many non-empty documents at most.
    """

    number: int
    kind: str
    files: tuple[str, ...]
    begin: int = 0
    end: int | None = None
    size: int = 0
    first: int | None = None
    limit: int | None = None

    @property
    def name(self) -> str:
        more = f" and {len(self.files) - 1} more files" if len(self.files) > 1 else ""
        return self.files[0] + more + (f" from {self.begin}" if self.begin else "")


@dataclass
class Bad:
    """Something that is no document.

    Attributes:
        before: number of the batch's documents in front of it.
        line: counted from 0 where the task begins; None where lines mean nothing.
        fatal: nothing behind it can be read.
    """

    before: int
    file: str
    line: int | None
    message: str
    data: bytes = b""
    fatal: bool = False


@dataclass
class Batch:
    """Some documents of one file.

    Attributes:
        text: [bytes] uint8, UTF-8.
        offsets: [documents + 1] int64, where each begins in ``text``.
        lines: [documents] int64, the line or row of each, counted from 0 where the task begins.
        replaced: lone surrogates that became U+FFFD, by document.
        size: bytes read for it, before decompression where possible.
        passed: lines of the task up to the end of this batch.
    """

    file: str
    text: np.ndarray
    offsets: np.ndarray
    lines: np.ndarray
    bad: list[Bad] = field(default_factory=list)
    replaced: dict[int, int] = field(default_factory=dict)
    size: int = 0
    passed: int = 0
