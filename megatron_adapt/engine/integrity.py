"""Checkpoints compared with their checksums before they are loaded: every rank reads an equal part of the files."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import torch.distributed as dist

from megatron_adapt.engine import backend
from megatron_adapt.errors import CheckpointError
from megatron_adapt.torch_dist import checksums, directory
from megatron_adapt.torch_dist.checksums import Damage
from megatron_adapt.torch_dist.directory import Checkpoint


def damage(folder: Path, wanted: Callable[[str], bool] | None = None) -> list[Damage]:
    """What all ranks together find wrong with a checkpoint, or with its tensors of ``wanted`` names; the same on all of them."""
    size = dist.get_world_size()
    try:
        mine = checksums.damage(folder, wanted, backend.rank(), size)
    except CheckpointError as error:
        mine = [Damage(checksums.NAME, 0, str(error))]
    found: list[list[Damage]] = [[]] * size
    dist.all_gather_object(found, mine)
    first = {each.file: each for each in sorted((each for part in found for each in part), reverse=True)}
    return [first[file] for file in sorted(first)]


def require(opened: Checkpoint, wanted: Callable[[str], bool] | None = None) -> None:
    """Raise ``CheckpointError`` on all ranks unless what is about to be read is what was written."""
    if not opened.is_checked and (found := damage(opened.path, wanted)):
        raise directory.damaged(opened.path, found)
