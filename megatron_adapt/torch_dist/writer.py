"""A distributed checkpoint written tensor by tensor, which Megatron Core loads in any layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Callable

from megatron_adapt.errors import CheckpointError
from megatron_adapt.streams import files
from megatron_adapt.streams.bits import WIDTHS, Info, Source, size
from megatron_adapt.torch_dist import checksums, container
from megatron_adapt.torch_dist.encoding import Call, Made, Name, Pairs, dumps

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
FILE_BYTES = 1e9  # as much is written once more when an import that was stopped continues
_METADATA = "torch.distributed.checkpoint.metadata"


def write(
    source: Source,
    path: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    file_bytes: float | None = None,
) -> tuple[dict[str, int], list[str]]:
    """Write whole tensors under their names to ``path``, in files of about ``file_bytes`` (``FILE_BYTES``); finished ones
    are kept.

    The table is written last: without it the directory is no checkpoint.

    Returns:
        ``{files, kept}``, and the names of tensors with a NaN or infinite value.
    Raises:
        CheckpointError: writing failed (disk full, ...); what was written stays, to be continued or removed.
    """
    plan: dict[Path, list[files.Piece]] = {}
    places: dict[str, tuple[str, int, int]] = {}
    file_bytes = FILE_BYTES if file_bytes is None else file_bytes
    filled = file_bytes
    for name in source.names():
        info = source.info(name)
        if filled >= file_bytes:
            filled, file = 0, path / f"__0_{len(plan)}.distcp"
            plan[file] = []
        before, after = container.around(*info, WIDTHS[info[1]])
        length = len(before) + size(info) + len(after)
        places[name] = (file.name, int(filled), length)
        plan[file] += [before, name, after]
        filled += length
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / ".metadata").unlink(missing_ok=True)
        found: dict[Path, list[int]] = {}
        kept, broken = files.write(source, plan, progress, found)
        for stray in {*path.glob("*.distcp"), *path.glob(".*.partial")} - set(plan):
            stray.unlink()  # of an earlier call, for another model
        files.write_small(path / "common.pt", container.plain({"content_metadata": CONTENT}))
        files.write_small(path / "metadata.json", json.dumps(FORMAT).encode())
        checksums.write(path, {file.name: found[file] for file in plan})
        infos = {name: source.info(name) for name in source.names()}
        files.write_small(path / ".metadata", dumps(_table(infos, places)))
    except OSError as error:
        free = shutil.disk_usage(path).free / 1e9
        raise CheckpointError(
            f"could not write {path} ({free:.3g} GB are free there): {error}. Free some space and run again."
        ) from None
    return {"files": len(plan), "kept": kept}, broken


def _table(infos: dict[str, Info], places: dict[str, tuple[str, int, int]]) -> Made:
    """torch's ``Metadata`` of tensors of one chunk each."""
    entries: dict[str, Any] = {}
    storage = Pairs()
    for name, (shape, dtype) in infos.items():
        begin = _size((0,) * len(shape))
        layout = Call(Name("torch.serialization", "_get_layout"), ("torch.strided",))
        contiguous = Call(Name(_METADATA, "_MEM_FORMAT_ENCODING"), (0,))
        properties = Made(Name(_METADATA, "TensorProperties"), (Name("torch", dtype), layout, False, contiguous, False))
        chunk = Made(Name(_METADATA, "ChunkStorageMetadata"), {"offsets": begin, "sizes": _size(shape)})
        entries[name] = Made(
            Name(_METADATA, "TensorStorageMetadata"), {"properties": properties, "size": _size(shape), "chunks": [chunk]}
        )
        file, offset, length = places[name]
        index = Made(Name(_METADATA, "MetadataIndex"), {"fqn": name, "index": 0, "offset": begin})
        place = {"relative_path": file, "offset": offset, "length": length}
        storage.append((index, Made(Name("torch.distributed.checkpoint.filesystem", "_StorageInfo"), place)))
    state = {"state_dict_metadata": entries, "planner_data": None, "storage_data": storage, "storage_meta": None}
    return Made(Name(_METADATA, "Metadata"), state | {"version": "1.0.0"})


def _size(shape: tuple[int, ...]) -> Call:
    return Call(Name("torch", "Size"), (tuple(shape),))
