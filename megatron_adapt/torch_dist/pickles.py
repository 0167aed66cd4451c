"""Pickled parts of a checkpoint, read without running anything that they name.

A pickle calls whatever it likes when it is read. Here it gets the few classes that a checkpoint needs, each of which
only holds values; anything else is refused by its name before it is imported.
"""

from __future__ import annotations

import argparse
import enum
import importlib
import io
import pickle
import signal
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint.metadata import Metadata

from megatron_adapt.errors import CheckpointError

_TABLE = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},  # a look-up of torch.strided by its name
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.distributed.checkpoint.planner": {"SavePlan", "TensorWriteData", "WriteItem", "WriteItemType"},
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath"},
}  # fmt: skip
# Megatron leaves instances of its own classes in the table, which only it uses.
_MEGATRON = ("MCoreMetadata", "MCoreSavePlan")


class _Ignored:
    """Stands for an instance of a class whose values nobody here looks at."""

    def __setstate__(self, state: object) -> None:
        return None


class _TableUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if name in _TABLE.get(module, ()):
            return getattr(importlib.import_module(module), name)
        if module.startswith("megatron.core.dist_checkpointing.") and name in _MEGATRON:
            return _Ignored
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no table of a checkpoint needs")


def read_table(path: Path) -> Metadata:
    """The ``.metadata`` of a checkpoint.

    Raises:
        CheckpointError: missing, damaged, or naming anything but the classes of such a table.
    """
    try:
        with open(path, "rb") as file:
            table = _TableUnpickler(file).load()
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} is no distributed checkpoint: it has no {path.name}.") from None
    except Exception as error:  # a damaged pickle raises almost anything
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__}: {error}).") from None
    if not isinstance(table, Metadata) or not isinstance(table.storage_data, dict):
        raise CheckpointError(f"{path} is not the table of a distributed checkpoint.")
    return table


def read_object(file: Path | io.BytesIO, where: str) -> Any:
    """What ``torch.save`` wrote, if it consists of plain values, tensors, ``argparse.Namespace`` and enumerations of
    Megatron Core.

    Raises:
        CheckpointError: damaged, or naming anything else; lists the names. Nothing of it was run.
    """
    allowed, refused = [], []
    try:
        for name in torch.serialization.get_unsafe_globals_in_checkpoint(_whole(file)):
            found = _harmless(name)
            (refused if found is None else allowed).append(name if found is None else found)
        if not refused:
            with torch.serialization.safe_globals(allowed):
                return torch.load(_whole(file), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a broken file
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{where} cannot be read ({type(error).__name__}: {reason}).") from None
    raise CheckpointError(
        f"{where} was not read: it names {', '.join(sorted(refused))}, and reading it would run that code. Say --family "
        f"and --hf-config instead: then it is not needed."
    )


def _whole(file: Path | io.BytesIO) -> Path | BinaryIO:
    if isinstance(file, io.BytesIO):
        file.seek(0)
    return file


def _harmless(name: str) -> type | None:
    """The class of this dotted name if it only holds values, else None."""
    plain = {"argparse.Namespace": argparse.Namespace, "signal.Signals": signal.Signals}
    if name in plain:
        return plain[name]
    module, _, attribute = name.rpartition(".")
    if not module.startswith("megatron.core."):
        return None
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError:
        return None
    return found if isinstance(found, type) and issubclass(found, enum.Enum) else None
