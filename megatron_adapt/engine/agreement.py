"""What ranks of several nodes must have in common before they train together, and are told by rank 0 where they may differ."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_adapt.engine import backend, integrity
from megatron_adapt.errors import CheckpointError, ConfigError
from megatron_adapt.torch_dist import directory
from megatron_adapt.torch_dist.directory import Checkpoint, is_checkpoint, latest_intact, none_intact, open_checkpoint, step_of

LAG = 60.0  # seconds until all nodes see what one has written (NFS remembers directories so long)


def require_same(settings: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` on every rank unless all have the same settings; collective.

    Every node reads a recipe of its own: with other values there, replicas of one model would drift apart unnoticed, or
    ranks wait for one another for ever.
    """
    mine: dict[str, Any] = {}
    for key, value in json.loads(json.dumps(settings, default=str)).items():
        mine |= {f"{key}.{inner}": each for inner, each in value.items()} if isinstance(value, dict) else {key: value}
    first = _from_rank_0(mine)
    differences = [
        f"{key} is {mine.get(key, 'absent')} there and {first.get(key, 'absent')} on rank 0"
        for key in sorted(mine.keys() | first.keys())
        if mine.get(key, "absent") != first.get(key, "absent")
    ]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, differences)
    for rank, texts in enumerate(found):
        if texts:
            raise ConfigError(
                f"rank {rank} was started with other settings: {'; '.join(texts)}. Give every node the same recipe and overrides."
            )


def latest_checkpoint(
    folder: Path, counts: Callable[[int], bool] = lambda step: True
) -> tuple[Checkpoint | None, list[str]]:
    """The newest undamaged checkpoint of a folder, of steps that count, and what is wrong with newer ones; collective.

    Rank 0 chooses, as another node may still see an older one; whether it is what was written all ranks find out together.

    Raises:
        CheckpointError: all are damaged.
    """
    damaged: list[str] = []
    before = math.inf
    while True:
        word: dict[str, Any] = {}
        if backend.rank() == 0:
            try:
                found, more = latest_intact(folder, lambda step: counts(step) and step < before)
                word = {"name": found.path.name if found else None, "damaged": more}
            except CheckpointError as error:
                word = {"problem": str(error)}
        word = _from_rank_0(word)
        if "problem" in word:
            raise CheckpointError(" ".join([*damaged, word["problem"]]))
        damaged += word["damaged"]
        if word["name"] is None:
            if damaged:
                raise none_intact(folder, damaged)
            return None, []
        if backend.rank() != 0:
            found = _seen(Path(folder) / word["name"])
        if not (wrong := integrity.damage(found.path)):
            found.is_checked = True
            return found, damaged
        damaged.append(str(directory.damaged(found.path, wrong)))
        before = step_of(found.path)


def _seen(path: Path) -> Checkpoint:
    began = time.monotonic()
    while not is_checkpoint(path) and time.monotonic() - began < LAG:
        time.sleep(0.2)
    return open_checkpoint(path)


def _from_rank_0(value: Any) -> Any:
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]
