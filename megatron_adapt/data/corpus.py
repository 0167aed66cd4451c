"""Raw text on disk, streamed document by document: JSON lines and plain text, gzipped or not."""

from __future__ import annotations

import glob
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from megatron_adapt.errors import ConfigError, DataError

Paths = str | Path | Iterable[str | Path]

SUFFIXES = (".jsonl", ".jsonl.gz", ".json.gz", ".txt", ".txt.gz")
# Plain .json is read when it is named, but not when a folder is searched: there it is more often something else.
_NAMED_SUFFIXES = (*SUFFIXES, ".json")
_MAX_BYTES = 256 << 20  # of one document: what has no line ends or blank lines must not fill the memory
_BOM = b"\xef\xbb\xbf"
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Document:
    """One text and where it comes from; ``line`` counts from 1 and is the first line of the document.

    ``replaced``: how many lone surrogates (``"\\ud800"`` in JSON, not encodable as UTF-8) became U+FFFD.
    """

    text: str
    file: Path
    line: int
    replaced: int = 0


def find_files(paths: Paths) -> list[Path]:
    """The corpus files that the paths name: files as given, folders (searched recursively) and globs in sorted order.

    Raises:
        DataError: a path does not exist or has no corpus file, a file is of an unknown kind or named twice.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not paths:
        raise DataError("no corpus file was given")
    files = [file for path in paths for file in _expand(Path(path))]
    seen: set[Path] = set()
    for file in files:
        if file.resolve() in seen:
            raise DataError(f"the corpus file {file} is named twice; name it once (weights belong in the recipe)")
        seen.add(file.resolve())
    return files


def read_documents(
    paths: Paths,
    text_key: str = "text",
    on_error: str = "stop",
    on_skip: Callable[[str], None] | None = None,
) -> Iterator[Document]:
    """Stream the documents of files, folders and globs in order.

    ``.jsonl``, ``.json`` (one object per line): the string under ``text_key``. ``.txt``: blocks separated by blank
    lines, line ends normalised to ``\\n``. All may be gzipped. Blank lines, byte order marks, ``\\r\\n`` are accepted.

    Args:
        on_error: "stop" raises at a bad line, "skip" goes on with the next one.
        on_skip: receives the message of every skipped line.

    Raises:
        ConfigError: ``on_error`` is neither.
        DataError: "FILE:LINE: ..." when a line is not UTF-8, not JSON, or without a string under ``text_key``; with
            either ``on_error`` when a file cannot be read or decompressed.
    """
    if on_error not in ("stop", "skip"):
        raise ConfigError(f"on_error must be 'stop' or 'skip', not {on_error!r}")
    for file in find_files(paths):
        is_plain = file.name.endswith((".txt", ".txt.gz"))
        parse = _parse_block if is_plain else _parse_json
        for line, data in _blocks(file) if is_plain else _lines(file):
            try:
                text, replaced = parse(data, text_key)
            except _BadLine as error:
                message = f"{file}:{line}: {error}"
                if on_error == "stop":
                    raise DataError(f"{message}; correct it or skip bad lines (on_error 'skip')") from error
                if on_skip is not None:
                    on_skip(message)
                continue
            yield Document(text, file, line, replaced)


class _BadLine(Exception):
    """What is wrong with one line or block."""


def _expand(path: Path) -> list[Path]:
    if path.is_dir():
        inner = (file for file in path.rglob("*") if file.name.endswith(SUFFIXES) and file.is_file())
        files = sorted(file for file in inner if not any(part.startswith(".") for part in file.relative_to(path).parts))
        if not files:
            raise DataError(f"{path} contains no corpus file ({', '.join(SUFFIXES)})")
        return files
    files = [path] if path.exists() else [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    if not files:
        raise DataError(f"the corpus {path} does not exist")
    for file in files:
        if not file.name.endswith(_NAMED_SUFFIXES):
            raise DataError(f"{file} is of an unknown kind; a corpus file ends in {', '.join(_NAMED_SUFFIXES)}")
    return files


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Line numbers from 1 and lines without their end; blank lines are left out, and the byte order mark."""
    try:
        with file.open("rb") as raw:
            stream: BinaryIO = raw
            if file.suffix == ".gz":
                stream = io.BufferedReader(gzip.GzipFile(fileobj=raw), 1 << 20)  # type: ignore[arg-type]
            for number, line in enumerate(iter(lambda: stream.readline(_MAX_BYTES + 1), b""), start=1):
                if number == 1:
                    line = line.removeprefix(_BOM)
                if len(line) > _MAX_BYTES:
                    raise DataError(f"{file}:{number}: the line is longer than {_MAX_BYTES >> 20} MiB; is this text?")
                if line.strip():
                    yield number, line.rstrip(b"\r\n")
    except OSError as error:  # gzip.BadGzipFile has no strerror
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error
    except (EOFError, zlib.error) as error:
        raise DataError(f"cannot decompress {file}: it is truncated or damaged ({error})") from error


def _blocks(file: Path) -> Iterator[tuple[int, bytes]]:
    """Runs of non-blank lines, with the number of their first line."""
    first, last, size, block = 0, 0, 0, []
    for number, line in _lines(file):
        if block and number != last + 1:
            yield first, b"\n".join(block)
            block, size = [], 0
        if not block:
            first = number
        last = number
        size += len(line) + 1
        if size > _MAX_BYTES:
            raise DataError(
                f"{file}:{first}: no blank line in {_MAX_BYTES >> 20} MiB; "
                "blank lines separate the documents of a .txt file"
            )
        block.append(line)
    if block:
        yield first, b"\n".join(block)


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _BadLine(f"not UTF-8 (byte {error.start + 1} is 0x{data[error.start]:02x})") from error


def _parse_block(data: bytes, _text_key: str) -> tuple[str, int]:
    return _decode(data), 0


def _parse_json(data: bytes, text_key: str) -> tuple[str, int]:
    try:
        record = json.loads(_decode(data))
    except (ValueError, RecursionError) as error:
        raise _BadLine(f"not JSON ({error})") from error
    if not isinstance(record, dict):
        raise _BadLine(f"a JSON {_json_type(record)} instead of an object with the key {text_key!r}")
    if text_key not in record:
        raise _BadLine(f"no key {text_key!r}; the keys are {', '.join(map(repr, list(record)[:10])) or 'none'}")
    text = record[text_key]
    if not isinstance(text, str):
        raise _BadLine(f"the value of {text_key!r} is a JSON {_json_type(text)} instead of a string")
    # Only an escape can bring a surrogate in: it is not valid UTF-8.
    return _SURROGATE.subn("\ufffd", text) if b"\\u" in data else (text, 0)


def _json_type(value: object) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")
