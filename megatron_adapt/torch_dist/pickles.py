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
from collections import OrderedDict
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from megatron_adapt.errors import CheckpointError
from megatron_adapt.streams.bits import WIDTHS


class _Record:
    """Stands for an instance of one of torch's classes: its attributes."""

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)
        else:
            self.state = state


class Tensor(_Record):
    """``size``, ``properties`` (``state[0]`` is the dtype), ``chunks``."""


class Chunk(_Record):
    """``offsets``, ``sizes``."""


class Index(_Record):
    """``fqn``, and of a chunk its ``offset``."""

    @property
    def key(self) -> tuple[str, tuple[int, ...] | None]:
        return self.fqn, getattr(self, "offset", None)


class Place(_Record):
    """``relative_path``, ``offset``, ``length``, and where there are any ``transform_descriptors``."""


class Table(_Record):
    """``state_dict_metadata``: name -> ``Tensor`` or something else; ``storage_data``: ``Index`` -> ``Place``."""


def _first(*values: Any) -> Any:
    return values[0] if values else None


# What a table may name, and what is made of it. Nothing of torch: importing it takes longer than most exports.
_TABLE: dict[str, dict[str, Any]] = {
    "torch": {"Size": tuple},
    "torch.serialization": {"_get_layout": _first},  # a look-up of torch.strided by its name
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata": _Record, "ChunkStorageMetadata": Chunk, "Metadata": Table, "MetadataIndex": Index,
        "StorageMeta": _Record, "TensorProperties": _Record, "TensorStorageMetadata": Tensor, "_MEM_FORMAT_ENCODING": _first,
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo": Place, "_StoragePrefix": _Record},
    "torch.distributed.checkpoint.planner": {
        "SavePlan": _Record, "TensorWriteData": _Record, "WriteItem": _Record, "WriteItemType": _first,
    },
    "collections": {"OrderedDict": OrderedDict},
    "pathlib": {"PosixPath": PurePosixPath},
}  # fmt: skip
# Megatron leaves instances of its own classes in the table, which only it uses.
_MEGATRON = ("MCoreMetadata", "MCoreSavePlan")


class _TableUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in WIDTHS:
            return name
        if name in _TABLE.get(module, ()):
            return _TABLE[module][name]
        if module.startswith("megatron.core.dist_checkpointing.") and name in _MEGATRON:
            return Table if name == "MCoreMetadata" else _Record
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no table of a checkpoint needs")


def read_table(path: Path) -> Table:
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
    if not isinstance(table, Table) or not isinstance(getattr(table, "storage_data", None), dict):
        raise CheckpointError(f"{path} is not the table of a distributed checkpoint.")
    return table


def read_object(file: Path | io.BytesIO, where: str) -> Any:
    """What ``torch.save`` wrote, if it consists of plain values, tensors, ``argparse.Namespace`` and enumerations of
    Megatron Core.

    Raises:
        CheckpointError: damaged, or naming anything else; lists the names. Nothing of it was run.
    """
    import torch

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
