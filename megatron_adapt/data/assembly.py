"""What is left when every part has its place: the index, the side files, and the final names."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from megatron_adapt.data.held_out import HeldOutWriter, writing
from megatron_adapt.data.indexed import HEADER, MAGIC, TYPE_CODES
from megatron_adapt.data.loss_mask import SUFFIX as LOSS_MASK
from megatron_adapt.data.parts import Parts
from megatron_adapt.errors import DataError

_UNSUPPORTED = (errno.EINVAL, errno.EROFS)
_ENTRIES = 1 << 20  # of an index at a time


def complete(parts: Parts, headers: list[dict[str, Any]], dtype: np.dtype, has_texts: bool) -> None:
    """Everything of PREFIX.bin and PREFIX.idx is on the disk when this returns, still in the folder of the parts.

    Args:
        has_texts: documents consist of several sequences, counted in the parts' ``texts`` files.
    """
    with writing(parts.folder / "data"):
        os.ftruncate(parts.data, sum(header["size"] for header in headers))
    data = _Sync(parts.data)  # the disk works while the index is put together
    path = parts.folder / "index"
    try:
        with writing(path), path.open("wb") as stream:
            numbers = [header["number"] for header in headers]
            sizes = [parts.path(number, "sizes") for number in numbers]
            texts = [parts.path(number, "texts") for number in numbers] if has_texts else None
            sequences, documents = (sum(header[kind] for header in headers) for kind in ("sequences", "documents"))
            stream.write(HEADER.pack(MAGIC, 1, TYPE_CODES[dtype.type], sequences, documents + 1))
            _write_index(stream, sizes, texts, dtype.itemsize, documents)
            stream.flush()
            os.fsync(stream.fileno())
    finally:
        data.join()
    with writing(parts.folder / "data"):
        data.check()


class _Sync(threading.Thread):
    """A file on its way to the disk."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(daemon=True)
        self.descriptor = descriptor
        self.error: OSError | None = None
        self.start()

    def run(self) -> None:
        try:
            os.fsync(self.descriptor)
        except OSError as error:
            self.error = error

    def check(self) -> None:
        """
        Raises:
            OSError: what fsync raised.
        """
        if self.error is not None:
            raise self.error


def join_masks(parts: Parts, headers: list[dict[str, Any]]) -> None:
    """Which tokens are learnt, uint8 for each in the order of PREFIX.bin; on the disk when this returns."""
    path = parts.folder / "mask"
    with writing(path), path.open("wb") as stream:
        for header in headers:
            if "mask" in header["files"]:  # else it has no tokens
                with parts.path(header["number"], "mask").open("rb") as part:
                    shutil.copyfileobj(part, stream, _ENTRIES)
        stream.flush()
        os.fsync(stream.fileno())


def _write_index(stream: BinaryIO, sizes: list[Path], texts: list[Path] | None, item_size: int, documents: int) -> None:
    for part in _values(sizes):
        stream.write(part.data)
    pointer = 0
    for part in _values(sizes):
        ends = pointer + np.cumsum(part, dtype=np.int64) * item_size
        stream.write((ends - part.astype(np.int64) * item_size).data)
        pointer = int(ends[-1])
    if texts is None:
        for begin in range(0, documents + 1, _ENTRIES):
            stream.write(np.arange(begin, min(begin + _ENTRIES, documents + 1), dtype=np.int64).data)
        return
    stream.write(np.zeros(1, np.int64).data)
    done = 0
    for part in _values(texts):
        ends = done + np.cumsum(part, dtype=np.int64)
        stream.write(ends.data)
        done = int(ends[-1])


def _values(files: Iterable[Path]) -> Iterator[np.ndarray]:
    """int32 values of files, in pieces."""
    for file in files:
        with file.open("rb") as stream:
            while len(part := np.fromfile(stream, np.int32, _ENTRIES)):
                yield part


def take_held_out(parts: Parts, headers: list[dict[str, Any]], held_out: HeldOutWriter) -> None:
    """Append the documents that the workers held out."""
    for header in headers:
        if header["held_out_documents"]:
            file = parts.path(header["number"], "held")
            held_out.append(file, header["held_out_documents"], header["held_out_bytes"])


def publish(parts: Parts, stats: dict[str, Any], held_out: HeldOutWriter, skipped: Path | None) -> None:
    """All is synced before the first name changes; the description goes first and comes back last."""
    prefix = parts.prefix
    description, temporary = Path(f"{prefix}.json"), Path(f"{prefix}.json.tmp")
    try:
        with writing(temporary), temporary.open("w", encoding="utf-8") as stream:
            stream.write(describe(stats))
            stream.flush()
            os.fsync(stream.fileno())
        held_out.sync()
        side = Path(f"{prefix}.skipped.jsonl")
        mask = parts.folder / "mask" if "loss_mask" in stats else None
        for path in (description, Path(f"{prefix}.idx"), side, Path(f"{prefix}{LOSS_MASK}")):
            with writing(path):
                path.unlink(missing_ok=True)
        made = ((parts.folder / "data", ".bin"), (parts.folder / "index", ".idx"), (skipped, ".skipped.jsonl"), (mask, LOSS_MASK))
        for source, target in made:
            if source is not None:
                with writing(Path(f"{prefix}{target}")):
                    os.replace(source, f"{prefix}{target}")
        held_out.publish()
        with writing(description):
            os.replace(temporary, description)
            sync_folder(prefix.parent)
    finally:
        if temporary.is_file():
            temporary.unlink()


def describe(stats: dict[str, Any]) -> str:
    """JSON, one line for each shard."""
    shards = ",\n    ".join(json.dumps(shard) for shard in stats["shards"])
    text = json.dumps({**stats, "shards": []}, indent=2, ensure_ascii=False)
    return text.replace('"shards": []', f'"shards": [\n    {shards}\n  ]' if shards else '"shards": []') + "\n"


def sync_folder(folder: Path) -> None:
    """What was renamed in it stays renamed; DataError where the disk says no."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems cannot; the files themselves are on the disk
        if error.errno not in _UNSUPPORTED:
            raise DataError(f"cannot write {folder}: {error.strerror}") from error
    finally:
        os.close(descriptor)
