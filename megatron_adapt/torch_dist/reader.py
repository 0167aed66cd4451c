"""Any tensor of a distributed checkpoint, read alone: whatever the number of ranks that wrote it."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Iterator

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.utils import _create_file_view

from megatron_adapt.errors import CheckpointError
from megatron_adapt.torch_dist.pickles import read_table

if TYPE_CHECKING:
    from torch import Tensor

TABLE = ".metadata"


class TensorReader:
    """The tensors of one checkpoint directory. Memory: one chunk.

    Raises (at construction):
        CheckpointError: no checkpoint, a missing or truncated file, or a tensor with missing chunks; all are listed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._table = read_table(self.path / TABLE)
        self._tensors = {
            name: entry for name, entry in self._table.state_dict_metadata.items() if isinstance(entry, TensorStorageMetadata)
        }
        if problems := [*self._damaged_files(), *self._incomplete_tensors()]:
            shown = "; ".join(problems[:6]) + (f" and {len(problems) - 6} more" if len(problems) > 6 else "")
            raise CheckpointError(f"{self.path}: damaged checkpoint: {shown}. Copy it again, or use another one.")

    def names(self) -> list[str]:
        """All tensors, in the order of the table."""
        return list(self._tensors)

    def objects(self) -> list[str]:
        """All entries that are no tensors."""
        return [name for name in self._table.state_dict_metadata if name not in self._tensors]

    def info(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and dtype ("float32", "bfloat16", ...) of a whole tensor."""
        entry = self._tensors[name]
        return tuple(entry.size), str(entry.properties.dtype).removeprefix("torch.")

    def parts(self, name: str, begin: tuple[int, ...], size: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Tensor]]:
        """The region of ``size`` at ``begin`` of a tensor, as it was saved: (offset in the region, part) of each chunk
        that overlaps it. No other chunk is read.
        """
        for chunk in self._tensors[name].chunks:
            low = [max(ours, theirs) for ours, theirs in zip(begin, chunk.offsets)]
            high = [min(a + b, c + d) for a, b, c, d in zip(begin, size, chunk.offsets, chunk.sizes)]
            if all(first < last for first, last in zip(low, high)):
                inside = tuple(slice(first - at, last - at) for first, last, at in zip(low, high, chunk.offsets))
                yield tuple(first - at for first, at in zip(low, begin)), self._read(name, chunk)[inside]

    def get_object(self, name: str) -> io.BytesIO:
        """The bytes of an entry that is no tensor."""
        place = self._table.storage_data[MetadataIndex(name)]
        with open(self.path / place.relative_path, "rb") as file:
            file.seek(place.offset)
            return io.BytesIO(file.read(place.length))

    def _read(self, name: str, chunk: ChunkStorageMetadata) -> Tensor:
        place = self._table.storage_data[MetadataIndex(name, chunk.offsets)]
        file = self.path / place.relative_path
        if getattr(place, "transform_descriptors", None):
            raise CheckpointError(f"{file}: {name} is stored with {', '.join(place.transform_descriptors)}, not supported.")
        try:
            with open(file, "rb") as stream:
                view = _create_file_view(stream, place.offset, place.length)
                tensor = torch.load(view, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{file}: {name} cannot be read ({type(error).__name__}: {reason}).") from None
        expected = self._tensors[name].properties.dtype
        if tensor.numel() != math.prod(chunk.sizes) or tensor.dtype != expected:
            raise CheckpointError(
                f"{file}: {name} holds {tensor.dtype} {list(tensor.shape)} where the table says {expected} {list(chunk.sizes)}."
            )
        return tensor.detach().reshape(chunk.sizes)

    def _damaged_files(self) -> list[str]:
        needed: dict[str, int] = {}
        for place in self._table.storage_data.values():
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
            stored = all(MetadataIndex(name, chunk.offsets) in self._table.storage_data for chunk in entry.chunks)
            if found != math.prod(entry.size) or not stored:
                problems.append(f"{name} {list(entry.size)} is not whole")
        return problems
