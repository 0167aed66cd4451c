"""Megatron distributed checkpoints (``torch_dist``), saved atomically and resumed exactly.

    PHASE/step_00000100/            one checkpoint; a name that ends in .tmp was never finished and is never loaded
        __0_0.distcp ... .metadata  Megatron's own files: model, optimizer, any layout may read them
        rng/rank_00000.pt           random states, used again when the layout is the same
        hf/                         config.json and tokenizer of the model: a checkpoint explains itself
        checkpoint.json             written last: what and where in training, and the size of every other file
"""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer.optimizer import MegatronOptimizer
from megatron_adapt.engine import backend
from megatron_adapt.errors import CheckpointError
from megatron_adapt.hf.directory import HFDirectory

MARK = "checkpoint.json"
_METADATA = {
    # The only optimizer format that may be read back at another TP/PP; Megatron's default names one it has removed.
    "distrib_optim_sharding_type": "fully_reshardable",
    # Every layer under its own name. Megatron's default stacks a parameter of all layers into one tensor, which cannot
    # be saved when a phase trains (and so has optimizer state for) some of the layers only.
    "non_homogeneous_layers": True,
}


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


@dataclass
class Checkpoint:
    """An opened checkpoint directory: its position and the Hugging Face config of its model."""

    path: Path
    position: Position
    world: dict[str, int]
    config: dict[str, Any]

    @property
    def hf(self) -> Path:
        return self.path / "hf"


def is_checkpoint(path: Path) -> bool:
    return (Path(path) / MARK).is_file()


def open_checkpoint(path: Path) -> Checkpoint:
    """Validate a checkpoint directory (mark, every file's size); ``CheckpointError`` tells what is wrong with it."""
    path = Path(path)
    if not is_checkpoint(path):
        raise CheckpointError(f"{path}: no finished checkpoint here ({MARK} is missing).")
    try:
        mark = json.loads((path / MARK).read_text())
    except ValueError as error:
        raise CheckpointError(f"{path / MARK}: not JSON ({error}); use an earlier checkpoint.") from error
    problems = []
    for name, size in mark["files"].items():
        file = path / name
        if not file.is_file():
            problems.append(f"{name} is missing")
        elif file.stat().st_size != size:
            problems.append(f"{name} has {file.stat().st_size} bytes instead of {size}")
    if problems:
        raise CheckpointError(f"{path}: damaged checkpoint: {'; '.join(problems)}. Use an earlier one or repeat the phase.")
    config = json.loads((path / "hf" / "config.json").read_text())
    return Checkpoint(path, Position(**mark["position"]), mark["world"], config)


def resolve(path: Path) -> Checkpoint:
    """The checkpoint at ``path``, or the newest one inside it (a phase's directory)."""
    if is_checkpoint(path):
        return open_checkpoint(path)
    newest = latest(path)
    if newest is None:
        raise CheckpointError(f"{path}: neither a checkpoint nor a folder with finished checkpoints (step_*/{MARK}).")
    return newest


def _finished(folder: Path) -> list[Path]:
    found = [p for p in Path(folder).glob("step_*") if re.fullmatch(r"step_\d+", p.name) and is_checkpoint(p)]
    return sorted(found, key=lambda p: int(p.name.split("_")[1]))


def latest(folder: Path) -> Checkpoint | None:
    finished = _finished(folder)
    return open_checkpoint(finished[-1]) if finished else None


def _sharded_state(model: GPTModel, optimizer: MegatronOptimizer | None, loading: bool) -> dict[str, Any]:
    state = {"model": model.sharded_state_dict(metadata=_METADATA)}
    if optimizer is not None:
        state["optimizer"] = optimizer.sharded_state_dict(state["model"], is_loading=loading, metadata=_METADATA)
    return state


def save(
    folder: Path,
    model: GPTModel,
    optimizer: MegatronOptimizer | None,
    position: Position,
    hf: Path,
    keep_last: int = 1,
) -> Path:
    """Write ``folder/step_N`` (all ranks call this); ``model`` is the unwrapped one, ``hf`` holds config and tokenizer.

    The directory appears under its name only when complete. On an error (disk full, say) the unfinished one is removed,
    earlier checkpoints stay as they were, and ``CheckpointError`` says so on every rank.
    """
    final = Path(folder) / f"step_{position.step:08d}"
    partial = final.with_suffix(".tmp")
    if backend.rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    try:
        _write(partial, model, optimizer)
    except Exception as error:  # Megatron wraps a full disk in several kinds of error, one per version
        # No collective here: the other ranks may be waiting in another one. Whoever fails leaves, the launcher ends the rest.
        if backend.rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"could not save {final}: {error}. Earlier checkpoints are intact; free some space and run again."
        ) from error
    dist.barrier()
    if backend.rank() == 0:
        _finish(partial, final, position, hf)
        for old in _finished(folder)[:-keep_last]:
            (old / MARK).unlink()  # first, so that a half-deleted one is never taken for a checkpoint
            shutil.rmtree(old)
    dist.barrier()
    return final


def _write(partial: Path, model: GPTModel, optimizer: MegatronOptimizer | None) -> None:
    if getattr(filesystem_async, "_results_queue", "absent") is None:
        # Megatron 0.16 would start a whole interpreter (a multiprocessing manager) to hand results of a background save
        # to the trainer. We save in the foreground: a plain queue does, and saves seconds and a spawned copy of __main__.
        filesystem_async._results_queue = queue.SimpleQueue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dist_checkpointing.save(_sharded_state(model, optimizer, loading=False), str(partial))
    rng = partial / "rng"
    rng.mkdir(exist_ok=True)
    torch.save(backend.rng_state(), rng / f"rank_{backend.rank():05d}.pt")


def _finish(partial: Path, final: Path, position: Position, hf: Path) -> None:
    """On rank 0: add config and tokenizer, the mark with every file's size, flush, and give the directory its name."""
    HFDirectory.open(hf, weights=False).copy_metadata(partial / "hf")
    files = {str(p.relative_to(partial)): p.stat().st_size for p in sorted(partial.rglob("*")) if p.is_file()}
    mark = {"format": 1, "position": asdict(position), "world": {"size": dist.get_world_size()}, "files": files}
    with open(partial / MARK, "w") as file:
        json.dump(mark, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    if final.exists():
        shutil.rmtree(final)
    os.replace(partial, final)
    directory = os.open(final.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def load(checkpoint: Checkpoint, model: GPTModel, optimizer: MegatronOptimizer | None = None) -> None:
    """Fill model and, when given, optimizer and random states from a checkpoint written in any layout."""
    state = _sharded_state(model, optimizer, loading=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = dist_checkpointing.load(state, str(checkpoint.path))
    except Exception as error:
        raise CheckpointError(f"{checkpoint.path}: cannot be read ({type(error).__name__}: {error}).") from error
    model.load_state_dict(loaded["model"])
    if optimizer is None:
        return
    optimizer.load_state_dict(loaded["optimizer"])
    _restore_step(optimizer, checkpoint.position.step)
    rng = checkpoint.path / "rng" / f"rank_{backend.rank():05d}.pt"
    if checkpoint.world["size"] == dist.get_world_size() and rng.is_file():
        backend.set_rng_state(torch.load(rng, weights_only=True))


def _restore_step(optimizer: MegatronOptimizer, step: int) -> None:
    """Adam's step count of every parameter.

    Megatron stores it once, from rank 0: on a pipeline whose first stage trains nothing it would be lost.
    """
    for base in getattr(optimizer, "chained_optimizers", [optimizer]):
        if base.optimizer is None:
            continue
        for group in base.optimizer.param_groups:
            if "step" in group:  # Transformer Engine's and Apex's FusedAdam count per group
                group["step"] = step
        for state in base.optimizer.state.values():
            if "step" in state:
                state["step"] = torch.full_like(state["step"], step)
            elif "exp_avg" in state and not any("step" in group for group in base.optimizer.param_groups):
                state["step"] = torch.tensor(float(step))
