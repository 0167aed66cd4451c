"""Sharded safetensors written straight from a lazy source: little of a tensor in memory at a time, continued after a stop.

Which tensor goes where is decided before the first is read, so a file's header can be written in front of its data.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from megatron_adapt.errors import CheckpointError
from megatron_adapt.hf.weights import DTYPES, finish, shard_names
from megatron_adapt.streams import files
from megatron_adapt.streams.bits import Source, refuse_broken, size as size_of

CODES = {dtype: code for code, (dtype, _) in DTYPES.items()}


@dataclass(frozen=True)
class Shard:
    """One file to be: its name, and its tensors in order."""

    file: str
    names: list[str]


def plan(source: Source, max_shard_bytes: float = 5e9) -> list[Shard]:
    """The tensors of ``source``, in its order, in files of at most ``max_shard_bytes`` (or of one larger tensor)."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name in source.names():
        more = size_of(source.info(name))
        if groups[-1] and filled + more > max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += more
    return [Shard(file, names) for file, names in zip(shard_names(len(groups)), groups)]


def write(
    source: Source,
    path: Path,
    max_shard_bytes: float = 5e9,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:
    """Write all tensors of ``source`` to ``path``; files that an earlier, interrupted call finished are kept.

    A file counts as finished when it has its final name, the same tensors, and every bit of them equals the source's.

    Args:
        progress: called with (tensors done, tensors in all).
    Returns:
        ``{files, kept, bytes}``.
    Raises:
        CheckpointError: writing failed (disk full, ...), or a tensor holds a NaN or infinite value: all are named.
    """
    shards = plan(source, max_shard_bytes)
    contents: dict[Path, list[files.Piece]] = {path / shard.file: [header(source, shard), *shard.names] for shard in shards}
    try:
        path.mkdir(parents=True, exist_ok=True)
        kept, broken = files.write(source, contents, progress)
        refuse_broken(broken, str(path))
        for stray in {*path.glob("model*.safetensors"), *path.glob(".model*.partial")} - set(contents):
            stray.unlink()  # of an earlier call with another size limit
        total = sum(size_of(source.info(name)) for name in source.names())
        finish(path, {shard.file: shard.names for shard in shards}, total)
    except OSError as error:
        raise CheckpointError(f"could not write the weights to {path}: {error}.") from None
    return {"files": len(shards), "kept": kept, "bytes": total}


def header(source: Source, shard: Shard) -> bytes:
    """Length and JSON, padded with spaces to a multiple of 8 bytes, so that the data is aligned."""
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in shard.names:
        shape, dtype = source.info(name)
        begin, end = end, end + size_of((shape, dtype))
        content[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
