"""Any tensor of a distributed checkpoint, read alone: whatever the number of ranks that wrote it.

Where the checkpoint has checksums, no bit is given out that was not compared with them.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import BinaryIO

import numpy as np

from megatron_adapt.errors import CheckpointError
from megatron_adapt.streams.bits import WIDTHS, Info
from megatron_adapt.streams.checksums import Changed, CheckedFile, Room
from megatron_adapt.streams.files import fill
from megatron_adapt.torch_dist import checksums
from megatron_adapt.torch_dist.container import Unreadable, Values, locate
from megatron_adapt.torch_dist.pickles import Chunk, Place, Tensor, read_table

TABLE = ".metadata"


class TensorReader:
    """The tensors of one checkpoint directory; used in a ``with`` statement, or left to be collected.

    Raises (at construction):
        CheckpointError: no checkpoint, a missing or truncated file, or a tensor with missing chunks; all are listed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        table = read_table(self.path / TABLE)
        self._entries: dict[str, object] = table.state_dict_metadata
        self._tensors = {name: entry for name, entry in self._entries.items() if isinstance(entry, Tensor)}
        self._places: dict[tuple, Place] = {index.key: place for index, place in table.storage_data.items()}
        self._checksums, self._room = checksums.read(self.path), Room()
        self._files: dict[str, BinaryIO | CheckedFile] = {}
        self._found: dict[tuple, Values] = {}
        if problems := [*self._damaged_files(), *self._incomplete_tensors()]:
            shown = "; ".join(problems[:6]) + (f" and {len(problems) - 6} more" if len(problems) > 6 else "")
            raise CheckpointError(f"{self.path}: damaged checkpoint: {shown}. Copy it again, or use another one.")

    def names(self) -> list[str]:
        """All tensors, in the order of the table."""
        return list(self._tensors)

    def objects(self) -> list[str]:
        """All entries that are no tensors."""
        return [name for name in self._entries if name not in self._tensors]

    def info(self, name: str) -> Info:
        """Shape and dtype ("float32", "bfloat16", ...) of a whole tensor."""
        entry = self._tensors[name]
        return tuple(entry.size), entry.properties.state[0]

    def read(self, name: str, begin: tuple[int, ...], out: np.ndarray) -> None:
        """Fill ``out``, bits of as many dimensions as the tensor has, with the region that begins at ``begin``.

        Only chunks that overlap it are looked at. Memory: the region once more where a chunk is narrower than it.
        """
        for chunk in self._tensors[name].chunks:
            low = [max(ours, theirs) for ours, theirs in zip(begin, chunk.offsets)]
            high = [min(a + b, c + d) for a, b, c, d in zip(begin, out.shape, chunk.offsets, chunk.sizes)]
            if all(first < last for first, last in zip(low, high)):
                inside = tuple(slice(first - at, last - at) for first, last, at in zip(low, high, chunk.offsets))
                wanted = tuple(slice(first - at, last - at) for first, last, at in zip(low, high, begin))
                try:
                    self._read(name, chunk, inside, out[wanted])
                except (Unreadable, Changed, EOFError, OSError) as error:
                    raise self._unreadable(name, self._places[name, chunk.offsets], error) from None

    def get_object(self, name: str) -> io.BytesIO:
        """The bytes of an entry that is no tensor."""
        place = self._places[name, None]
        try:
            file = self._open(place.relative_path)
            file.seek(place.offset)
            return io.BytesIO(file.read(place.length))
        except (Changed, OSError) as error:
            raise self._unreadable(name, place, error) from None

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files = {}

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _read(self, name: str, chunk: Chunk, inside: tuple[slice, ...], out: np.ndarray) -> None:
        place = self._places[name, chunk.offsets]
        file = self._open(place.relative_path)
        values = self._values(name, chunk, place, file)
        width = WIDTHS[values.dtype]
        if not values.is_contiguous:  # saved transposed, say
            storage = np.empty(values.count, out.dtype)
            file.seek(values.offset)
            fill(file, storage)
            steps = [step * width for step in values.strides]
            out[...] = np.ndarray(chunk.sizes, out.dtype, storage, values.first * width, steps)[inside]
            return
        # Rows of the region are next to each other in the chunk unless it cuts a dimension after the first.
        leading = next((dim for dim in range(out.ndim) if out.shape[dim] > 1), max(0, out.ndim - 1))
        assert all(out.shape[dim] == chunk.sizes[dim] for dim in range(leading + 1, out.ndim)), (name, inside)
        start = sum(part.start * step for part, step in zip(inside, values.strides))
        file.seek(values.offset + (values.first + start) * width)
        if out.flags.c_contiguous:
            fill(file, out)
        else:
            part = np.empty(out.shape, out.dtype)
            fill(file, part)
            out[...] = part

    def _open(self, name: str) -> BinaryIO | CheckedFile:
        if name not in self._files:
            found = self._checksums.get(name)
            file = self.path / name
            self._files[name] = open(file, "rb", buffering=0) if found is None else CheckedFile(file, found, self._room)
        return self._files[name]

    def _unreadable(self, name: str, place: Place, error: Exception) -> CheckpointError:
        reason = "it has become shorter" if isinstance(error, EOFError) else str(error)
        return CheckpointError(f"{self.path / place.relative_path}: {name} cannot be read: {reason}.")

    def _values(self, name: str, chunk: Chunk, place: Place, file: BinaryIO | CheckedFile) -> Values:
        key = (name, chunk.offsets)
        if key not in self._found:
            if transforms := getattr(place, "transform_descriptors", None):
                raise Unreadable(f"it is stored with {', '.join(transforms)}, not supported")
            found = locate(file, place.offset, place.length)
            expected = self.info(name)[1]
            if math.prod(found.shape) != math.prod(chunk.sizes) or found.dtype != expected:
                raise Unreadable(
                    f"it holds {found.dtype} {list(found.shape)} where the table says {expected} {list(chunk.sizes)}"
                )
            if found.count * WIDTHS[found.dtype] != found.size:
                raise Unreadable(f"{found.count} values of {found.dtype} do not take {found.size} bytes")
            self._found[key] = found
        return self._found[key]

    def _damaged_files(self) -> list[str]:
        needed: dict[str, int] = {}
        for place in self._places.values():
            end = place.offset + place.length
            needed[place.relative_path] = max(end, needed.get(place.relative_path, 0))
        problems = []
        for name, size in sorted(needed.items()):
            file = self.path / name
            if Path(name).is_absolute() or ".." in Path(name).parts:
                problems.append(f"{name} lies outside of the checkpoint")
            elif not file.is_file():
                problems.append(f"{name} is missing")
            elif file.stat().st_size < size:
                problems.append(f"{name} has {file.stat().st_size} bytes instead of {size}")
        return problems

    def _incomplete_tensors(self) -> list[str]:
        problems = []
        for name, entry in self._tensors.items():
            found = sum(math.prod(chunk.sizes) for chunk in entry.chunks)
            stored = all((name, chunk.offsets) in self._places for chunk in entry.chunks)
            if found != math.prod(entry.size) or not stored:
                problems.append(f"{name} {list(entry.size)} is not whole")
        return problems
