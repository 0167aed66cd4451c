"""Raw text on disk, streamed document by document."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from megatron_adapt.data.documents import Batch, ChatReader
from megatron_adapt.data.ranges import plan
from megatron_adapt.data.readers import read
from megatron_adapt.data.sources import Paths, find_repeatable
from megatron_adapt.errors import ConfigError, DataError


@dataclass(frozen=True)
class Document:
    """One text and where it comes from; ``line`` counts from 1 and is the first line of the document.

    ``replaced``: how many lone surrogates (``"\\ud800"`` in JSON, not encodable as UTF-8) became U+FFFD.
    """

    text: str
    file: Path
    line: int
    replaced: int = 0


def read_documents(
    paths: Paths,
    text_key: str = "text",
    on_error: str = "stop",
    on_skip: Callable[[str], None] | None = None,
    chats: ChatReader | None = None,
    text_documents: str = "blocks",
) -> Iterator[Document]:
    """Stream the documents of files, folders, globs and data sets (``hf:NAME``) in order.

    ``.jsonl``, ``.json`` (one object per line): the string under ``text_key``. ``.txt``: blocks separated by blank
    lines (or what ``text_documents`` says), line ends normalised to ``\\n``. Both may be compressed (``.gz``, ``.zst``). ``.parquet``: the column
    ``text_key``. Blank lines, byte order marks, ``\\r\\n`` are accepted.

    Args:
        on_error: "stop" raises at a bad line, "skip" goes on with the next one.
        on_skip: receives the message of every skipped line.
        chats: what makes the documents, where these are chats; ``text_key`` counts for nothing then.
        text_documents: "blocks", "lines" or whole "files" are the documents of ``.txt`` files.

    Raises:
        ConfigError: ``on_error`` or ``text_documents`` is none of these.
        DataError: "FILE:LINE: ..." when a line is not UTF-8, not JSON, or without a string under ``text_key``; with
            either ``on_error`` when a file cannot be read or decompressed.
    """
    check_on_error(on_error)
    for name in find_repeatable(paths):
        # In one piece: it is read in order anyway, and lines count from its begin.
        for task in plan([name], text_documents, chunk_bytes=1 << 62):
            for batch in read(task, text_key, chats):
                yield from _documents(batch, Path(name), on_error, on_skip)


def check_on_error(on_error: str) -> None:
    if on_error not in ("stop", "skip"):
        raise ConfigError(f"on_error must be 'stop' or 'skip', not {on_error!r}")


def place(file: str, line: int | None, message: str) -> str:
    """ "FILE:LINE: message"; the line is counted from 0 here and from 1 in the result."""
    return f"{file}: {message}" if line is None else f"{file}:{line + 1}: {message}"


def stop_message(message: str, fatal: bool) -> str:
    """What ends a run at a bad line."""
    return message if fatal else f"{message}; correct it or skip bad lines (on_error 'skip')"


def _documents(
    batch: Batch, file: Path, on_error: str, on_skip: Callable[[str], None] | None
) -> Iterator[Document]:
    bad = iter([*batch.bad, None])
    next_bad = next(bad)
    for number in range(len(batch.lines) + 1):
        while next_bad is not None and next_bad.before <= number:
            message = place(next_bad.file, next_bad.line, next_bad.message)
            if on_error == "stop" or next_bad.fatal:
                raise DataError(stop_message(message, next_bad.fatal))
            if on_skip is not None:
                on_skip(message)
            next_bad = next(bad)
        if number < len(batch.lines):
            text = batch.text[batch.offsets[number] : batch.offsets[number + 1]].tobytes().decode("utf-8")
            yield Document(text, file, int(batch.lines[number]) + 1, batch.replaced.get(number, 0))
