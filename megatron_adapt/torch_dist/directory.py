"""The directory of a checkpoint of ours: complete when it has its name, and it explains itself.

    PHASE/step_00000100/            one checkpoint; a name that ends in .tmp was never finished and is never loaded
        __0_0.distcp ... .metadata  Megatron's own files: model, optimizer, any layout may read them
        rng/rank_00000.pt           random states, used again when the layout is the same
        checksums.json              of the files above but .metadata, for each megabyte
        hf/                         config.json and tokenizer of the model
        checkpoint.json             written last: what and where in training, the size of every other file, digests of small ones,
                                    and of itself
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Callable, Iterable

from megatron_adapt.errors import CheckpointError
from megatron_adapt.torch_dist import checksums

MARK = "checkpoint.json"
FORMAT = 1
PARTIAL = ".tmp"


@dataclass
class History:
    """What the verdict on the next loss depends on (``engine/guard.py``): a continued run judges alike."""

    recent: list[float] = field(default_factory=list)  # accepted losses, oldest first
    events: list[dict[str, Any]] = field(default_factory=list)  # spikes, and what was done about them
    skipped: int = 0  # steps of the phase without an update
    in_a_row: int = 0  # spikes since the last accepted step


@dataclass(frozen=True)
class Learnt:
    """What the whole run has taught a model that its weights do not say and an export has to.

    Attributes:
        chats: keywords of the chat template with which answers were learnt; None: none were.
        chat_template: of the last phase with chats, where it had one from a file.
        both_ways: phases in which what stands before targets was seen in both directions.
    """

    chats: dict[str, Any] | None = None
    chat_template: str | None = None
    both_ways: tuple[str, ...] = ()


@dataclass
class Position:
    """Where training stands: all integers, so that a resumed run is the same run."""

    phase: str = ""
    step: int = 0
    tokens: int = 0
    # "corpus@sequence_length" -> samples drawn so far in the whole run
    consumed: dict[str, int] = field(default_factory=dict)
    # corpus -> samples drawn in this phase
    drawn: dict[str, int] = field(default_factory=dict)
    # parameter -> updates in phases before, of those whose optimizer state was kept
    ages: dict[str, int] = field(default_factory=dict)
    # stretches of the whole run with one mix, batch and schedule each, oldest first: see engine/stretches.py
    trained: list[dict[str, Any]] = field(default_factory=list)
    learnt: Learnt = Learnt()
    history: History = field(default_factory=History)

    @property
    def updates(self) -> int:
        """Steps of the phase whose update was applied: the optimizer's own count."""
        return self.step - self.history.skipped


@dataclass
class Checkpoint:
    """An opened checkpoint directory: its position and the Hugging Face config of its model."""

    path: Path
    position: Position
    world: dict[str, int]
    config: dict[str, Any]
    is_checked: bool = False  # whether everything in it has been compared with its checksums

    @property
    def hf(self) -> Path:
        return self.path / "hf"


def is_checkpoint(path: Path) -> bool:
    return (Path(path) / MARK).is_file() and Path(path).suffix != PARTIAL


def open_checkpoint(path: Path) -> Checkpoint:
    """Validate a checkpoint directory (mark, every file's size, small ones' content); ``CheckpointError`` tells what is wrong.

    What tensors hold is compared by those who read them: it takes long.
    """
    path = Path(path)
    if not is_checkpoint(path):
        raise CheckpointError(f"{path}: no finished checkpoint here ({MARK} is missing).")
    mark = _read_mark(path / MARK)
    problems = []
    for name, size in mark["files"].items():
        file = path / name
        if not file.is_file():
            problems.append(f"{name} is missing")
        elif file.stat().st_size != size:
            problems.append(f"{name} has {file.stat().st_size} bytes instead of {size}")
    if problems:
        raise damaged(path, problems)
    changed = [name for name, digest in mark.get("digests", {}).items() if _digest(path / name) != digest]
    if changed:
        raise damaged(path, [f"{', '.join(changed)} changed since it was written"])
    try:
        config = json.loads((path / "hf" / "config.json").read_text())
    except ValueError as error:  # of older checkpoints, without digests
        raise damaged(path, [f"hf/config.json is not JSON ({error})"]) from error
    said = mark["position"]
    try:
        learnt = Learnt(**said.get("learnt", {}))
        learnt = replace(learnt, both_ways=tuple(learnt.both_ways))
        position = Position(**said | {"history": History(**said.get("history", {})), "learnt": learnt})
    except TypeError as error:
        raise CheckpointError(f"{path / MARK} says more than this version of the program understands ({error}).") from error
    return Checkpoint(path, position, {"context": 1} | mark["world"], config)  # of which older checkpoints say nothing


def damaged(path: Path, problems: Iterable[object]) -> CheckpointError:
    """What to raise where some files of a checkpoint are not as they were written."""
    return CheckpointError(f"{path}: damaged checkpoint: {'; '.join(map(str, problems))}. Use an earlier one or repeat the phase.")


def _read_mark(file: Path) -> dict[str, Any]:
    try:
        mark = json.loads(file.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{file}: not JSON ({error}); use an earlier checkpoint.") from error
    if not isinstance(mark, dict) or mark.get("format") != FORMAT:
        raise CheckpointError(f'{file} does not say "format": {FORMAT}; another version of this program wrote it.')
    # Older checkpoints have neither the digest nor checksums: where it was damaged away, these are still there.
    digest = mark.pop("digest", None)
    if digest != _mark_digest(mark) and (digest is not None or (file.parent / checksums.NAME).is_file()):
        raise damaged(file.parent, [f"{MARK} changed since it was written"])
    if missing := {"files", "position", "world"} - mark.keys():
        raise damaged(file.parent, [f"{MARK} does not say {', '.join(sorted(missing))}"])
    return mark


def resolve(path: Path) -> Checkpoint:
    """The checkpoint at ``path``, or the newest one inside it (a phase's directory)."""
    if is_checkpoint(path):
        return open_checkpoint(path)
    newest = latest(path)
    if newest is None and not path.exists():
        raise CheckpointError(f"{path} does not exist.")
    if newest is None:
        raise CheckpointError(f"{path}: neither a checkpoint nor a folder with finished checkpoints (step_*/{MARK}).")
    return newest


def finished(folder: Path) -> list[Path]:
    found = [p for p in Path(folder).glob("step_*") if re.fullmatch(r"step_\d+", p.name) and is_checkpoint(p)]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """Of a checkpoint's folder."""
    return int(path.name.split("_")[1])


def latest(folder: Path) -> Checkpoint | None:
    found = finished(folder)
    return open_checkpoint(found[-1]) if found else None


def latest_intact(folder: Path, counts: Callable[[int], bool] = lambda step: True) -> tuple[Checkpoint | None, list[str]]:
    """The newest undamaged checkpoint of a folder, of steps that count, and what is wrong with newer ones.

    Raises ``CheckpointError`` when all are damaged: beginning anew is not for a program to decide.
    """
    problems: list[str] = []
    for path in reversed([path for path in finished(folder) if counts(step_of(path))]):
        try:
            return open_checkpoint(path), problems
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise none_intact(folder, problems)
    return None, []


def none_intact(folder: Path, problems: Iterable[str]) -> CheckpointError:
    return CheckpointError(" ".join([*problems, f"No checkpoint in {folder} is intact; remove it to train the phase anew."]))


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies in its phase's folder."""
    return Path(folder) / f"step_{step:08d}"


def seal(partial: Path, final: Path, position: Position, world: dict[str, int]) -> None:
    """Add the mark with every file's size and small ones' digests, flush, and give the directory its name, replacing what has it.

    ``partial`` holds everything else by now, ``hf/`` included; ``world``: sizes ``{size, tensor, context, pipeline}`` of the run.
    """
    files = {str(p.relative_to(partial)): p.stat().st_size for p in sorted(partial.rglob("*")) if p.is_file()}
    compared = [name for name in files if _is_compared(name)]
    for name in compared:  # others are flushed by the ranks that write them
        _flush(partial / name)
    digests = {name: _digest(partial / name) for name in compared}
    mark: dict[str, Any] = {"format": FORMAT, "position": asdict(position), "world": world, "files": files, "digests": digests}
    mark["digest"] = _mark_digest(mark)
    with open(partial / MARK, "w") as file:
        json.dump(mark, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    if final.exists():
        shutil.rmtree(final)
    os.replace(partial, final)
    _flush(final.parent)


def _is_compared(name: str) -> bool:
    """Whether a file's content is compared whenever a checkpoint is opened: not what has checksums instead."""
    return not name.endswith(".distcp") and not name.startswith("rng/")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def _mark_digest(mark: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(mark, sort_keys=True).encode()).hexdigest()[:32]


def _flush(path: Path) -> None:
    """To the disk, files and folders alike."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
