"""Checksums of the files of a checkpoint that take long to read, in a file beside them.

    checksums.json   {"algorithm": "crc32", "block_bytes": 1048576, "files": {"__0_0.distcp": "0f3a...", ...}}

Of each file a string of eight hexadecimal digits for each megabyte, the last one's what is left. They are taken in memory of
what is about to be written, by the process that writes it. Checkpoints of Megatron-LM, and our own older ones, have none.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator, Mapping, Sequence

import numpy as np

from megatron_adapt.errors import CheckpointError
from megatron_adapt.streams import files
from megatron_adapt.streams.checksums import BLOCK, Changed, CheckedFile, Room
from megatron_adapt.torch_dist.pickles import read_table

NAME = "checksums.json"
_HEADER = {"algorithm": "crc32", "block_bytes": BLOCK}


def write(folder: Path, found: Mapping[str, Sequence[int]]) -> None:
    """``found``: of the blocks of each file, by its path in the folder."""
    texts = {name: np.array(found[name], ">u4").tobytes().hex() for name in sorted(found)}
    files.write_small(folder / NAME, json.dumps(_HEADER | {"files": texts}, indent=1).encode())


def read(folder: Path) -> dict[str, np.ndarray]:
    """What ``write`` was given; empty where there is none.

    Raises:
        CheckpointError: damaged, or checksums of another kind.
    """
    try:
        found = json.loads((folder / NAME).read_bytes())
        if _HEADER | {"files": found["files"]} != found:
            raise ValueError
        return {name: np.frombuffer(bytes.fromhex(text), ">u4") for name, text in found["files"].items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError, KeyError):
        raise CheckpointError(f"{folder / NAME} is damaged, or another version of this program wrote it.") from None


@dataclass(frozen=True, order=True)
class Damage:
    """Where a file of a checkpoint was first found to be wrong, and how."""

    file: str
    begin: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


def damage(
    folder: Path, wanted: Callable[[str], bool] | None = None, share: int = 0, shares: int = 1
) -> list[Damage]:
    """Read a checkpoint, or one of several equal parts of it, and compare it with its checksums: at most one finding a file.

    Args:
        wanted: whether a tensor of this name is going to be read; None: all that there is.
    Memory: a megabyte, and a number for each megabyte of the checkpoint.
    """
    checksums = read(folder)
    runs = list(_all(checksums) if wanted is None else _needed(folder, checksums, wanted))
    total = sum(len(blocks) for _, blocks in runs)
    first, last = total * share // shares, total * (share + 1) // shares
    found, room = [], Room()
    for name, blocks in runs:
        mine = blocks[max(0, first) : max(0, last)]
        first, last = first - len(blocks), last - len(blocks)
        if mine:
            found += _check(folder, name, checksums[name], mine, room)
    return found


def _all(checksums: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Sequence[int]]]:
    for name in sorted(checksums):
        yield name, range(len(checksums[name]))


def _needed(folder: Path, checksums: Mapping[str, np.ndarray], wanted: Callable[[str], bool]) -> Iterator[tuple[str, Sequence[int]]]:
    blocks: dict[str, set[int]] = {}
    for index, place in read_table(folder / ".metadata").storage_data.items() if checksums else ():
        if wanted(index.fqn) and place.relative_path in checksums:
            end = -(-(place.offset + place.length) // BLOCK)
            blocks.setdefault(place.relative_path, set()).update(range(place.offset // BLOCK, end))
    for name in sorted(blocks):
        yield name, sorted(blocks[name])


def _check(folder: Path, name: str, checksums: np.ndarray, blocks: Sequence[int], room: Room) -> list[Damage]:
    number = blocks[0]
    try:
        file = CheckedFile(folder / name, checksums, room)
        try:
            for number in blocks:
                file.check(number)
        finally:
            file.close()
    except Changed as error:
        return [Damage(name, number * BLOCK, str(error))]
    except OSError as error:  # a bad place on the disk
        return [Damage(name, number * BLOCK, f"cannot be read from byte {number * BLOCK:,} on ({error.strerror})")]
    return []
