"""A copy of a model's weights in which a few tensors are others: the rest goes from file to file as bytes, unread.

A file without a replaced tensor is copied whole by the kernel. In the others the header is written anew, what lies
between replaced tensors is copied as byte ranges, and a replaced tensor is written block by block: memory is one block,
whatever the size of the model.
"""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Callable, Collection, Iterable, Iterator, Mapping, Protocol

from megatron_adapt.errors import CheckpointError
from megatron_adapt.hf.weights import Info, WeightReader, bytes_of, finish, shard_names, synchronize
from megatron_adapt.hf.writer import Shard, header, plan, size_of

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 16 * 2**20  # bytes, where the kernel cannot copy from file to file
RANGE = 2**30  # bytes that one call of the kernel copies
NO_KERNEL_COPY = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


class Located(Protocol):
    """Tensors by name, with the place of their bytes: file and offset, or None where they are no plain bytes."""

    def names(self) -> list[str]: ...

    def info(self, name: str) -> Info: ...

    def get(self, name: str) -> Tensor: ...

    def locate(self, name: str) -> tuple[Path, int] | None: ...


@dataclass(frozen=True)
class Replacement:
    """A tensor in the place of another, of the same dtype.

    Attributes:
        rows: of its first dimension; the others stay.
        blocks: opens its rows, in order, any number at a time.
    """

    rows: int
    blocks: Callable[[], Iterable[Tensor]]


class _Result:
    """What the new files hold; a source for headers and plans."""

    def __init__(self, reader: Located, replaced: Mapping[str, Replacement], dropped: Collection[str]) -> None:
        self.reader, self.replaced = reader, replaced
        self._names = [name for name in reader.names() if name not in dropped]

    def names(self) -> list[str]:
        return self._names

    def info(self, name: str) -> Info:
        shape, dtype = self.reader.info(name)
        return ((self.replaced[name].rows, *shape[1:]) if name in self.replaced else shape), dtype

    def get(self, name: str) -> Tensor:
        return self.reader.get(name)


def splice(
    reader: Located, output: Path, replaced: Mapping[str, Replacement], dropped: Collection[str] = ()
) -> dict[str, int]:
    """Write the tensors of ``reader`` to the directory ``output`` as safetensors, in as many files as they come in.

    Tensors of pickle files, which are no plain bytes there, are read one at a time and written in files of 5 GB.

    Args:
        replaced: by name. dropped: names of tensors that are left out.
    Returns:
        ``{files, copied_whole, bytes}``.
    Raises:
        CheckpointError: writing failed (disk full, ...), or a file became shorter meanwhile.
    """
    result = _Result(reader, replaced, dropped)
    homes: dict[Path, list[str]] = {}
    for name in result.names():
        place = reader.locate(name)
        if place is not None:
            homes.setdefault(place[0], []).append(name)
    if homes:
        shards = [Shard(file, names) for file, names in zip(shard_names(len(homes)), homes.values())]
    else:
        shards = plan(result)
    whole = 0
    try:
        for shard, home in zip(shards, [*homes] or [None] * len(shards)):
            if home is not None and not set(shard.names) & set(replaced) and WeightReader(home.parent, home.name).names() == shard.names:
                _copy_file(home, output / shard.file)
                whole += 1
            else:
                _write(result, shard, output / shard.file)
        for shard in shards:  # only now, so that the disk writes while other files are copied
            synchronize(output / shard.file)
        total = sum(size_of(result.info(name)) for name in result.names())
        finish(output, {shard.file: shard.names for shard in shards}, total)
    except OSError as error:
        raise CheckpointError(f"could not write the weights to {output}: {error}.") from None
    return {"files": len(shards), "copied_whole": whole, "bytes": total}


def _write(result: _Result, shard: Shard, file: Path) -> None:
    with open(file, "wb", buffering=0) as stream:
        _put(stream, header(result, shard))
        for place, names in _runs(result, shard.names):
            if place is not None:
                with open(place[0], "rb", buffering=0) as source:
                    _copy_range(source, stream, place[1], sum(size_of(result.info(name)) for name in names))
            elif names[0] in result.replaced:
                _put_blocks(stream, result, names[0])
            else:
                _put(stream, bytes_of(result.get(names[0]).contiguous()))


def _runs(result: _Result, names: list[str]) -> Iterator[tuple[tuple[Path, int] | None, list[str]]]:
    """Tensors that follow one another in a file, with the place of the first; any other tensor alone, without."""
    begin: tuple[Path, int] | None = None
    end: tuple[Path, int] | None = None
    run: list[str] = []
    for name in names:
        place = None if name in result.replaced else result.reader.locate(name)
        if run and (place is None or place != end):
            yield begin, run
            run = []
        if place is None:
            yield None, [name]
            continue
        begin = begin if run else place
        run.append(name)
        end = place[0], place[1] + size_of(result.info(name))
    if run:
        yield begin, run


def _put_blocks(stream: BinaryIO, result: _Result, name: str) -> None:
    shape, dtype = result.info(name)
    written = 0
    for block in result.replaced[name].blocks():
        assert tuple(block.shape[1:]) == tuple(shape[1:]) and str(block.dtype) == f"torch.{dtype}", (name, block.shape)
        _put(stream, bytes_of(block.contiguous()))
        written += len(block)
    assert written == shape[0], (name, written, shape)


def _put(stream: BinaryIO, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:  # one call writes 2 GiB at most
        rest = rest[stream.write(rest) :]


def _copy_file(source: Path, target: Path) -> None:
    with open(source, "rb", buffering=0) as old, open(target, "wb", buffering=0) as new:
        _copy_range(old, new, 0, source.stat().st_size)


def _copy_range(source: BinaryIO, target: BinaryIO, offset: int, size: int) -> None:
    """Append ``size`` bytes of ``source`` to ``target``, in the kernel where it can (some file systems then share them)."""
    while size:
        try:
            count = os.copy_file_range(source.fileno(), target.fileno(), min(size, RANGE), offset)
        except (AttributeError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in NO_KERNEL_COPY:
                raise
            return _copy_through_memory(source, target, offset, size)
        if not count:
            raise CheckpointError(f"{source.name} has become shorter since it was opened.")
        offset, size = offset + count, size - count


def _copy_through_memory(source: BinaryIO, target: BinaryIO, offset: int, size: int) -> None:
    source.seek(offset)
    while size:
        data = source.read(min(size, BLOCK))
        if not data:
            raise CheckpointError(f"{source.name} has become shorter since it was opened.")
        _put(target, data)
        size -= len(data)


def exchange(directory: Path, replaced: Mapping[str, Replacement]) -> None:
    """Replace tensors of a directory's safetensors in place: the old files stay until the new ones are whole.

    Raises:
        CheckpointError: failure to write.
    """
    partial = directory / ".weights.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        with WeightReader(directory) as reader:
            splice(reader, partial, replaced)
        new = sorted(partial.iterdir())
        for file in new:
            os.replace(file, directory / file.name)
        for stray in set(directory.glob("*.safetensors*")) - {directory / file.name for file in new}:
            stray.unlink()
    except OSError as error:
        raise CheckpointError(f"could not write {directory}: {error}.") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
