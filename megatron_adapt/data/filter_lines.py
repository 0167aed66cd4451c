"""Lines of JSON on their way to a file whose digest is wanted."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from megatron_adapt.data.held_out import writing

_WRITE_BYTES = 1 << 20


class _Hashed:
    """A file that is written, and the digest of its bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size, self.digest = file, 0, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.file.write(data)
        self.digest.update(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()


def write_lines(file: Path, name: str, entries: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Entries as lines of JSON, compressed as ``name`` says, on the disk; what the report says about the file.

    Raises:
        DataError: it cannot be written.
    """
    with writing(file), file.open("wb") as raw:
        hashed = _Hashed(raw)
        stream: Any = hashed
        if name.endswith(".gz"):
            stream = gzip.GzipFile(filename="", mode="wb", fileobj=hashed, compresslevel=6, mtime=0)  # type: ignore[arg-type]
        elif name.endswith(".zst"):
            import zstandard

            stream = zstandard.ZstdCompressor().stream_writer(hashed, closefd=False)  # type: ignore[arg-type]
        lines, size = [], 0
        for entry in entries:
            lines.append(json.dumps(entry, ensure_ascii=False).encode("utf-8") + b"\n")
            size += len(lines[-1])
            if size >= _WRITE_BYTES:
                stream.write(b"".join(lines))
                lines, size = [], 0
        stream.write(b"".join(lines))
        if stream is not hashed:
            stream.close()
        raw.flush()
        os.fsync(raw.fileno())
    return {"name": name, "size": hashed.size, "sha256": hashed.digest.hexdigest()}
