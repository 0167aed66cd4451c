"""A distributed checkpoint written tensor by tensor, which Megatron Core loads in any layout."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import IO, TYPE_CHECKING

import torch
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult

from megatron_adapt.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

# What Megatron Core calls this format; 0.16 writes it, 0.16 to 0.19 read it.
FORMAT = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
# Kept in the checkpoint as Megatron's "content metadata": a program that asks its model for a sharded state with these
# settings, as Megatron-LM's training script does, finds what is stored.
CONTENT = {
    # The only optimizer format that may be read back at another TP/PP; Megatron's default names one it has removed.
    "distrib_optim_sharding_type": "fully_reshardable",
    # Every layer under its own name. Megatron's default stacks a parameter of all layers into one tensor, which cannot
    # be saved when a phase trains (and so has optimizer state for) some of the layers only.
    "non_homogeneous_layers": True,
}


class TensorWriter:
    """Writes whole tensors under their names, in files of about ``file_bytes``; used in a ``with`` statement.

    Memory: nothing beyond the tensor being added. The table is written last: without it the directory is no checkpoint.

    Raises:
        CheckpointError: writing failed (disk full, ...); what was written stays for the caller to remove.
    """

    def __init__(self, path: str | Path, file_bytes: float = 5e9) -> None:
        self.path = Path(path)
        self.file_bytes = file_bytes
        self._entries: dict[str, TensorStorageMetadata] = {}
        self._places: list[WriteResult] = []
        self._file: IO[bytes] | None = None
        self._count = 0
        self.path.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, tensor: Tensor) -> None:
        """Write one tensor (moved to the CPU, dtype kept)."""
        assert name not in self._entries, f"{name} was added twice"
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().nbytes() != tensor.nbytes:
            tensor = tensor.clone()  # torch.save writes the whole storage of a view
        try:
            file = self._open()
            offset = file.tell()
            torch.save(tensor, file)
            place = _StorageInfo(Path(file.name).name, offset, file.tell() - offset)
        except (OSError, RuntimeError) as error:  # torch words a full disk as "unexpected pos 704 vs 598"
            raise self._failed(error) from None
        begin = torch.Size([0] * tensor.dim())
        properties = TensorProperties(dtype=tensor.dtype)
        self._entries[name] = TensorStorageMetadata(properties, tensor.size(), [ChunkStorageMetadata(begin, tensor.size())])
        self._places.append(WriteResult(MetadataIndex(name, begin, 0), place.length, place))

    def close(self) -> None:
        try:
            self._close_file()
            torch.save({"content_metadata": CONTENT}, self.path / "common.pt")
            (self.path / "metadata.json").write_text(json.dumps(FORMAT))
            FileSystemWriter(self.path).finish(Metadata(self._entries), [self._places])
        except (OSError, RuntimeError) as error:
            raise self._failed(error) from None

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        if kind is None:
            self.close()
        elif self._file is not None:
            with contextlib.suppress(OSError):  # what is still in its buffer cannot be written, either
                self._file.close()

    def _open(self) -> IO[bytes]:
        if self._file is not None and self._file.tell() >= self.file_bytes:
            self._close_file()
        if self._file is None:
            self._file = open(self.path / f"__0_{self._count}.distcp", "wb")
            self._count += 1
        return self._file

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def _failed(self, error: Exception) -> CheckpointError:
        free = shutil.disk_usage(self.path).free / 1e9
        return CheckpointError(f"could not write {self.path} ({free:.3g} GB are free there): {error}. Free some space and run again.")
