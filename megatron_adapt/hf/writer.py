"""Sharded safetensors written straight from a lazy source: one tensor in memory at a time, and continued after a stop.

Which tensor goes where is decided before the first is read, so a file's header can be written in front of its data, and
a file that has its final name is whole.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Protocol

from megatron_adapt.errors import CheckpointError
from megatron_adapt.hf.bits import is_finite, refuse_broken, same_bits
from megatron_adapt.hf.weights import DTYPES, Info, WeightReader, bytes_of, finish, shard_names, synchronize

if TYPE_CHECKING:
    from torch import Tensor

CODES = {dtype: (code, width) for code, (dtype, width) in DTYPES.items()}


class Source(Protocol):
    """Tensors by name, read when asked for."""

    def names(self) -> list[str]: ...

    def info(self, name: str) -> Info: ...

    def get(self, name: str) -> Tensor: ...


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
        size = size_of(source.info(name))
        if groups[-1] and filled + size > max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
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
    path.mkdir(parents=True, exist_ok=True)
    total = sum(len(shard.names) for shard in shards)
    done, kept, broken = 0, 0, []
    for shard in shards:
        file = path / shard.file
        if file.is_file() and _holds(file, shard, source):
            kept += 1
        else:
            broken += _write_shard(source, shard, file, lambda count: progress(done + count, total))
        done += len(shard.names)
        progress(done, total)
    refuse_broken(broken, str(path))
    for stray in {*path.glob("model*.safetensors"), *path.glob(".model*.partial")} - {path / shard.file for shard in shards}:
        stray.unlink()  # of an earlier call with another size limit
    size = sum(size_of(source.info(name)) for shard in shards for name in shard.names)
    finish(path, {shard.file: shard.names for shard in shards}, size)
    return {"files": len(shards), "kept": kept, "bytes": size}


def _write_shard(source: Source, shard: Shard, file: Path, progress: Callable[[int], None]) -> list[str]:
    """Write one file under a hidden name, flush it, give it its name; returns the names of tensors that are not finite."""
    partial = file.with_name(f".{file.name}.partial")
    broken = []
    try:
        with open(partial, "wb") as stream:
            stream.write(header(source, shard))
            for count, name in enumerate(shard.names, 1):
                tensor = source.get(name)
                shape, dtype = source.info(name)
                assert tuple(tensor.shape) == tuple(shape) and str(tensor.dtype) == f"torch.{dtype}", (name, tensor.shape)
                if not is_finite(tensor):
                    broken.append(name)
                stream.write(bytes_of(tensor))
                del tensor  # before the next one is read
                progress(count)
        synchronize(partial)
        os.replace(partial, file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"could not write the weights to {file.parent}: {error}.") from None
    return broken


def header(source: Source, shard: Shard) -> bytes:
    """Length and JSON, padded with spaces to a multiple of 8 bytes, so that the data is aligned."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in shard.names:
        shape, dtype = source.info(name)
        begin, end = end, end + size_of((shape, dtype))
        header[name] = {"dtype": CODES[dtype][0], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _holds(file: Path, shard: Shard, source: Source) -> bool:
    """Whether a file is what the shard would become, bit for bit; reads one tensor of each at a time."""
    try:
        reader = WeightReader(file.parent, file.name)
    except CheckpointError:
        return False
    with reader:
        return reader.names() == shard.names and all(
            reader.info(name) == (tuple(source.info(name)[0]), source.info(name)[1]) and same_bits(reader.get(name), source.get(name))
            for name in shard.names
        )


def size_of(info: Info) -> int:
    shape, dtype = info
    return math.prod(shape) * CODES[dtype][1]
