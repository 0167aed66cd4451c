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
import textwrap
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException  # no Exception but a BaseException

from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer.optimizer import MegatronOptimizer
from megatron_adapt.engine import backend, optimizer as optimizers
from megatron_adapt.errors import CheckpointError
from megatron_adapt.hf.directory import HFDirectory

MARK = "checkpoint.json"
FORMAT = 1
PARTIAL = ".tmp"
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
    return (Path(path) / MARK).is_file() and Path(path).suffix != PARTIAL


def open_checkpoint(path: Path) -> Checkpoint:
    """Validate a checkpoint directory (mark, every file's size); ``CheckpointError`` tells what is wrong with it."""
    path = Path(path)
    if not is_checkpoint(path):
        raise CheckpointError(f"{path}: no finished checkpoint here ({MARK} is missing).")
    try:
        mark = json.loads((path / MARK).read_text())
    except ValueError as error:
        raise CheckpointError(f"{path / MARK}: not JSON ({error}); use an earlier checkpoint.") from error
    if not isinstance(mark, dict) or mark.get("format") != FORMAT:
        raise CheckpointError(
            f'{path / MARK} does not say "format": {FORMAT}; another version of this program wrote it.'
        )
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
    # Layers of Transformer Engine and of Megatron each add states for FP8, empty without it and of different names.
    # Left out, a checkpoint of either kind loads into both.
    sharded = model.sharded_state_dict(metadata=_METADATA)
    state = {"model": {name: value for name, value in sharded.items() if not name.endswith("_extra_state")}}
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
    earlier checkpoints stay as they were, and every rank that notices raises ``CheckpointError``.
    """
    final = Path(folder) / f"step_{position.step:08d}"
    partial = final.with_suffix(PARTIAL)
    try:
        if backend.rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        dist.barrier()
        _write(partial, model, optimizer)
        dist.barrier()
        if backend.rank() == 0:
            _finish(partial, final, position, hf)
    except (Exception, CheckpointException) as error:  # Megatron wraps a full disk in several kinds, one per version
        # A rank that fails alone leaves, and its launcher ends those that wait for it.
        reason = _reason(error)
        if backend.rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
        free = shutil.disk_usage(final.parents[1]).free / 1e9  # torch words a full disk as "unexpected pos 704 vs 598"
        raise CheckpointError(
            f"could not save {final} ({free:.3g} GB are free there): {reason}. Earlier checkpoints are intact; free "
            f"some space and run again."
        ) from error
    if backend.rank() == 0:
        _prune(Path(folder), keep_last)
    dist.barrier()
    return final


def _reason(error: BaseException) -> str:
    """An error of torch or Megatron in one line."""
    reasons = [[f"{type(error).__name__}: {error}"]]
    if isinstance(error, CheckpointException):
        # Raised on all ranks together; when writing failed, rank 0 alone knows why.
        reasons = [[f"rank {rank}: {failure}" for rank, (failure, _) in error.failures.items()]]
        dist.broadcast_object_list(reasons, src=0)
    return textwrap.shorten("; ".join(reasons[0]), 500)


def _prune(folder: Path, keep_last: int) -> None:
    """Remove all but the last finished checkpoints, and what runs that were killed while saving have left."""
    finished = _finished(folder)
    for old in finished[:-keep_last]:
        (old / MARK).unlink()  # first, so that a half-deleted one is never taken for a checkpoint
    for path in folder.glob("step_*"):
        if re.fullmatch(rf"step_\d+({re.escape(PARTIAL)})?", path.name) and path not in finished[-keep_last:]:
            shutil.rmtree(path)


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
    mark = {"format": FORMAT, "position": asdict(position), "world": _world(), "files": files}
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


def _world() -> dict[str, int]:
    return {
        "size": dist.get_world_size(),
        "tensor": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline": parallel_state.get_pipeline_model_parallel_world_size(),
    }


def load(checkpoint: Checkpoint, model: GPTModel, optimizer: MegatronOptimizer | None = None) -> None:
    """Fill model and, when given, optimizer and random states from a checkpoint written in any layout."""
    state = _sharded_state(model, optimizer, loading=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = dist_checkpointing.load(state, str(checkpoint.path))
    except (Exception, CheckpointException) as error:
        raise CheckpointError(f"{checkpoint.path}: cannot be read ({_reason(error)}).") from error
    missing, unexpected = model.load_state_dict(loaded["model"], strict=False)
    assert not unexpected and all(name.endswith("_extra_state") for name in missing), (missing, unexpected)
    if optimizer is None:
        return
    _load_optimizer(optimizer, loaded["optimizer"], checkpoint.position.step)
    rng = checkpoint.path / "rng" / f"rank_{backend.rank():05d}.pt"
    if checkpoint.world == _world() and rng.is_file():
        backend.set_rng_state(torch.load(rng, weights_only=True))


def _load_optimizer(optimizer: MegatronOptimizer, state: dict[str, Any], step: int) -> None:
    """Fill the optimizer, with Adam's step count from us.

    Megatron stores the count once, from rank 0: on a pipeline whose first stage trains nothing there is none.
    """
    base = optimizers.base(optimizer)
    counts_per_parameter = isinstance(base.optimizer, torch.optim.Adam)  # AdamW is one
    if counts_per_parameter:
        moments = state.get("optimizer", state)["state"]  # one level down beside fp32 main weights
        moments["common_step"] = torch.tensor(float(step))
    optimizer.load_state_dict(state)
    if not counts_per_parameter:  # Transformer Engine's and Apex's FusedAdam and our own count per group
        for group in base.param_groups:
            group["step"] = step
