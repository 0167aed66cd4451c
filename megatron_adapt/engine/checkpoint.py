"""A model and its optimizer in Megatron distributed checkpoints: saved atomically, resumed exactly, in any layout."""

from __future__ import annotations

import queue
import re
import shutil
import textwrap
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException  # no Exception but a BaseException

from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer.optimizer import MegatronOptimizer
from megatron_adapt.engine import backend, optimizer as optimizers, optimizer_state
from megatron_adapt.errors import CheckpointError
from megatron_adapt.hf.directory import HFDirectory
from megatron_adapt.torch_dist.directory import (
    MARK,
    PARTIAL,
    Checkpoint,
    Position,
    finished,
    is_checkpoint,
    latest,
    latest_intact,
    open_checkpoint,
    resolve,
    seal,
    step_folder,
)
from megatron_adapt.torch_dist.writer import CONTENT

__all__ = [
    "MARK", "Checkpoint", "Position", "finished", "is_checkpoint", "latest", "latest_intact", "load", "open_checkpoint",
    "resolve", "save",
]  # fmt: skip


def _sharded_state(model: GPTModel, optimizer: MegatronOptimizer | None, loading: bool) -> dict[str, Any]:
    # Layers of Transformer Engine and of Megatron each add states for FP8, empty without it and of different names.
    # Left out, a checkpoint of either kind loads into both.
    sharded = model.sharded_state_dict(metadata=CONTENT)
    state = {"model": {name: value for name, value in sharded.items() if not name.endswith("_extra_state")}}
    if optimizer is not None:
        state["optimizer"] = optimizer_state.sharded_state(optimizers.base(optimizer), state["model"], loading)
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
    final = step_folder(folder, position.step)
    partial = final.with_suffix(PARTIAL)
    try:
        if backend.rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        dist.barrier()
        _write(partial, model, optimizer)
        dist.barrier()
        if backend.rank() == 0:
            HFDirectory.open(hf, weights=False).copy_metadata(partial / "hf")
            seal(partial, final, position, _world())
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
    found = finished(folder)
    for old in found[:-keep_last]:
        (old / MARK).unlink()  # first, so that a half-deleted one is never taken for a checkpoint
    for path in folder.glob("step_*"):
        if re.fullmatch(rf"step_\d+({re.escape(PARTIAL)})?", path.name) and path not in found[-keep_last:]:
            shutil.rmtree(path)


def _write(partial: Path, model: GPTModel, optimizer: MegatronOptimizer | None) -> None:
    if getattr(filesystem_async, "_results_queue", "absent") is None:
        # Megatron 0.16 would start a whole interpreter (a multiprocessing manager) to hand results of a background save
        # to the trainer. We save in the foreground: a plain queue does, and saves seconds and a spawned copy of __main__.
        filesystem_async._results_queue = queue.SimpleQueue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dist_checkpointing.save(_sharded_state(model, optimizer, loading=False), str(partial), content_metadata=CONTENT)
    rng = partial / "rng"
    rng.mkdir(exist_ok=True)
    torch.save(backend.rng_state(), rng / f"rank_{backend.rank():05d}.pt")


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
    optimizer_state.load(optimizers.base(optimizer), loaded.get("optimizer", {}), checkpoint.position.updates)
    rng = checkpoint.path / "rng" / f"rank_{backend.rank():05d}.pt"
    if checkpoint.world == _world() and rng.is_file():
        backend.set_rng_state(torch.load(rng, weights_only=True))

