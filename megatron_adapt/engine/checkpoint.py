"""A model and its optimizer in Megatron distributed checkpoints: saved atomically, resumed exactly, in any layout."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import math
import os
import re
import shutil
import textwrap
import threading
import time
import warnings
from pathlib import Path
from typing import Any, Iterator

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException  # no Exception but a BaseException

from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import is_main_replica
from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer.optimizer import MegatronOptimizer
from megatron_adapt.engine import backend, files, fp8, integrity, optimizer as optimizers, optimizer_state, vocabulary
from megatron_adapt.engine.chunks import Chunks
from megatron_adapt.errors import CheckpointError
from megatron_adapt.hf.directory import HFDirectory
from megatron_adapt.streams import checksums
from megatron_adapt.torch_dist.checksums import write as write_checksums
from megatron_adapt.torch_dist.directory import (
    MARK,
    PARTIAL,
    Checkpoint,
    Learnt,
    Position,
    finished,
    is_checkpoint,
    latest,
    open_checkpoint,
    resolve,
    seal,
    step_folder,
    step_of,
)
from megatron_adapt.torch_dist.writer import CONTENT

__all__ = [
    "MARK", "Checkpoint", "Learnt", "Position", "Save", "finished", "is_checkpoint", "latest", "load",
    "open_checkpoint", "require_space", "resolve", "save", "size", "step_folder",
]  # fmt: skip


# Megatron 0.19 would hand an asynchronous save to a package of its makers' (nvidia-resiliency-ext), 0.16 has no choice.
_STRATEGY = {"async_strategy": "mcore"} if "async_strategy" in inspect.signature(dist_checkpointing.save).parameters else {}


def _sharded_state(
    model: GPTModel | Chunks, optimizer: MegatronOptimizer | None, loading: bool, source: Path | None = None
) -> dict[str, Any]:
    """``source``: the checkpoint to load, of which states of layers are taken if it has them."""
    # Layers of Transformer Engine and of Megatron each add states for FP8, of different names and empty but under delayed
    # scaling. Left out, a checkpoint of either kind loads into both.
    sharded = vocabulary.sharded_state(model)
    state = {"model": {name: value for name, value in sharded.items() if not name.endswith("_extra_state")}}
    if fp8.has_history(model.config) and not (loading and source is None):
        there = FileSystemReader(source).read_metadata().state_dict_metadata if source is not None else None
        for name, value in sharded.items():
            if name.endswith("_extra_state") and (there is None or value.unique_key in there):
                state["model"][name] = value
    if optimizer is not None and (found := optimizer_state.sharded_state(optimizers.base(optimizer), state["model"], loading)):
        state["optimizer"] = found  # where nothing trains an empty one would be said to differ from the other ranks'
    return state


def save(
    folder: Path, model: GPTModel | Chunks, optimizer: MegatronOptimizer | None, position: Position, hf: Path, keep_last: int = 1
) -> Path:
    """Write ``folder/step_N``; see ``Save``."""
    return Save(folder, model, optimizer, position, hf, keep_last).finish()


class Save:
    """A checkpoint on its way to ``folder/step_N``: begun when made, there after ``finish``. All ranks do both together.

    The directory appears under its name only when complete. On an error (disk full, say) the unfinished one is removed,
    earlier checkpoints stay as they were, and every rank that notices raises ``CheckpointError``; so it does, before
    anything is written, where the disk has not enough space.

    Args:
        model: the unwrapped one.
        hf: directory with config and tokenizer; has to be there until ``finish``.
        keep_last: finished checkpoints to keep in ``folder``, this one included.
        keep_every: those of multiples of so many steps stay as well.
        keep_step: that of this step stays, too.
        background: write a copy of everything from another thread, so that training can go on until ``finish``.
    """

    def __init__(
        self,
        folder: Path,
        model: GPTModel | Chunks,
        optimizer: MegatronOptimizer | None,
        position: Position,
        hf: Path,
        keep_last: int = 1,
        keep_every: int | None = None,
        background: bool = False,
        keep_step: int | None = None,
    ) -> None:
        self.folder, self.hf, self.kept = Path(folder), hf, (keep_last, keep_every, keep_step)
        self.position = copy.deepcopy(position)
        self.final = step_folder(folder, position.step)
        # A name of its own: a process that Megatron forked for writing can outlive a killed trainer for a moment, and must not
        # write into what the next one has begun.
        (token,) = backend.agree([time.time_ns() // 1000 if backend.rank() == 0 else 0])
        self.partial = self.final.with_name(f"{self.final.name}.{int(token)}{PARTIAL}")
        self.thread: threading.Thread | None = None
        self.checksums: dict[str, list[int]] = {}  # of what this rank writes
        with self._reported():
            state = _sharded_state(model, optimizer, loading=False)
            self.scales = optimizer_state.scales(optimizers.base(optimizer)) if optimizer is not None else {}
        if backend.rank() == 0:
            _remove_unfinished(self.folder)
        try:
            require_space(folder, _bytes(state), 1)
        except CheckpointError as error:
            raise CheckpointError(f"{self.final} is not saved: {error} Earlier checkpoints are intact.") from error
        with self._reported():
            if backend.rank() == 0:
                self.partial.mkdir(parents=True)
            dist.barrier()
            self._begin(_copied(state) if background else state, background)

    def _begin(self, state: dict[str, Any], background: bool) -> None:
        files.write_here(self.checksums)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.request = dist_checkpointing.save(
                state, str(self.partial), content_metadata=CONTENT, async_sharded_save=True, **_STRATEGY
            )
        rng, content = _rng_file(self.partial), io.BytesIO()
        torch.save(backend.rng_state() | {"scales": self.scales}, content)
        self.checksums[str(rng.relative_to(self.partial))] = checksums.of(content.getbuffer())
        rng.parent.mkdir(exist_ok=True)
        with open(rng, "wb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        arguments = list(self.request.async_fn_args)
        if self.request.preload_fn is not None:
            arguments[1] = self.request.preload_fn()  # from the GPU
        if self.request.async_fn is None:
            return  # this rank has nothing to write

        def write() -> None:  # what goes wrong is in its results, which `finish` looks at
            self.request.async_fn(*arguments, **self.request.async_fn_kwargs)

        if background:
            self.thread = threading.Thread(target=write, name="checkpoint", daemon=True)
            self.thread.start()
        else:
            write()

    @property
    def done(self) -> bool:
        """Whether ``finish`` would not have to wait for this rank."""
        return self.thread is None or not self.thread.is_alive()

    def finish(self) -> Path:
        """Wait for all ranks, give the directory its name and remove older ones."""
        with self._reported():
            if self.thread is not None:
                self.thread.join()
            dist.barrier()
            for function in self.request.finalize_fns:
                function()
            dist.barrier()
            found: list[dict[str, list[int]]] | None = [{}] * dist.get_world_size() if backend.rank() == 0 else None
            dist.gather_object(self.checksums, found)
            if found is not None:
                write_checksums(self.partial, {name: blocks for part in found for name, blocks in part.items()})
                HFDirectory.open(self.hf, weights=False).copy_metadata(self.partial / "hf")
                seal(self.partial, self.final, self.position, _world())
        if backend.rank() == 0:
            _prune(self.folder, self.position.step, *self.kept)
        dist.barrier()
        return self.final

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except (Exception, CheckpointException) as error:  # Megatron wraps a full disk in several kinds, one per version
            # A rank that fails alone leaves, and its launcher ends those that wait for it.
            reason = _reason(error)
            if backend.rank() == 0:
                shutil.rmtree(self.partial, ignore_errors=True)
            free = _free(self.folder) / 1e9  # torch words a full disk as "unexpected pos 704 vs 598"
            raise CheckpointError(
                f"could not save {self.final} ({free:.3g} GB are free there): {reason}. Earlier checkpoints are intact; free "
                f"some space and run again."
            ) from error


def require_space(folder: Path, size: int, count: int) -> None:
    """Raise ``CheckpointError``, on every rank, unless ``count`` checkpoints of ``size`` bytes fit on the disk of ``folder``."""
    free = backend.agree([-float(_free(folder)) if backend.rank() == 0 else -math.inf])[0] * -1  # rank 0's
    needed = count * size * OVERHEAD
    if needed > free:
        what = "a checkpoint" if count == 1 else f"{count} checkpoints"
        raise CheckpointError(
            f"{what} of {size / 1e9:.3g} GB will not fit on the disk of {folder}, where {free / 1e9:.3g} GB are free. Free "
            "some space, keep fewer (keep_last, keep_every) or choose another output, and run again."
        )


OVERHEAD = 1.02  # of a checkpoint's size over that of its tensors: headers, indices


def size(model: GPTModel | Chunks, optimizer: MegatronOptimizer | None) -> int:
    """Bytes of all tensors of a checkpoint; all ranks call this."""
    return _bytes(_sharded_state(model, optimizer, loading=True))


def _bytes(state: dict[str, Any]) -> int:
    mine = sum(entry.data.nbytes for entry in _written(state))
    return int(backend.agree([float(mine)], "sum")[0])


def _written(state: dict[str, Any]) -> list[Any]:
    """Entries of a sharded state that this rank writes."""
    entries, _ = extract_sharded_tensors_and_factories(state)
    return [entry for entry in nested_values(entries) if is_main_replica(entry.replica_id)]


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    """The state with copies of what this rank writes; what is on a GPU is going to be copied anyway."""
    for entry in _written(state):
        if entry.data.device.type == "cpu":
            entry.data = entry.data.detach().clone()
    return state


def _free(folder: Path) -> int:
    """Bytes free on the disk of a folder, which need not exist yet."""
    there = next(path for path in (Path(folder).absolute(), *Path(folder).absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def _reason(error: BaseException) -> str:
    """An error of torch or Megatron in one line."""
    reasons = [[f"{type(error).__name__}: {error}"]]
    if isinstance(error, CheckpointException):
        # Raised on all ranks together; when writing failed, rank 0 alone knows why.
        reasons = [[f"rank {rank}: {failure}" for rank, (failure, _) in error.failures.items()]]
        dist.broadcast_object_list(reasons, src=0)
    return textwrap.shorten("; ".join(reasons[0]), 500)


def _prune(folder: Path, step: int, keep_last: int, keep_every: int | None, keep_step: int | None) -> None:
    """Remove finished checkpoints that are not to be kept once that of ``step`` is there.

    Those of later steps are damaged, or of before a spike that the run has gone back behind: they count for nothing.
    """
    found = finished(folder)
    reached = [path for path in found if step_of(path) <= step]
    kept = reached[-keep_last:] + [path for path in reached if (keep_every and step_of(path) % keep_every == 0) or step_of(path) == keep_step]
    for old in found:
        if old not in kept:
            (old / MARK).unlink()  # first, so that a half-deleted one is never taken for a checkpoint
            shutil.rmtree(old)


def _remove_unfinished(folder: Path) -> None:
    """Remove what runs have left that were killed while saving, or while removing."""
    for path in folder.glob("step_*"):
        if re.fullmatch(rf"step_\d+(\.\d+)?{re.escape(PARTIAL)}", path.name) or (
            re.fullmatch(r"step_\d+", path.name) and not is_checkpoint(path)
        ):
            shutil.rmtree(path, ignore_errors=True)


def _rng_file(folder: Path) -> Path:
    return folder / "rng" / f"rank_{backend.rank():05d}.pt"


def _world() -> dict[str, int]:
    return {
        "size": dist.get_world_size(),
        "tensor": parallel_state.get_tensor_model_parallel_world_size(),
        "context": parallel_state.get_context_parallel_world_size(),
        "pipeline": parallel_state.get_pipeline_model_parallel_world_size(),
    }


_INSTEAD = "Where there is an earlier checkpoint beside it, move this one away to continue from that."


def load(checkpoint: Checkpoint, model: GPTModel | Chunks, optimizer: MegatronOptimizer | None = None) -> None:
    """Fill model and, when given, optimizer and random states from a checkpoint written in any layout.

    What is going to be read is compared with its checksums first; all ranks share that work.
    """
    if optimizer is None:
        integrity.require(checkpoint, lambda name: not name.startswith("optimizer."))
    else:
        integrity.require(checkpoint)
    state = _sharded_state(model, optimizer, loading=True, source=checkpoint.path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = dist_checkpointing.load(state, str(checkpoint.path))
    except (Exception, CheckpointException) as error:
        raise CheckpointError(f"{checkpoint.path}: cannot be read ({_reason(error)}). {_INSTEAD}") from error
    missing, unexpected = model.load_state_dict(loaded["model"], strict=False)
    assert not unexpected and all(name.endswith("_extra_state") for name in missing), (missing, unexpected)
    if optimizer is None:
        return
    rng = _rng_file(checkpoint.path)
    try:
        own = torch.load(rng, weights_only=True) if checkpoint.world == _world() and rng.is_file() else {}
    except Exception as error:  # whatever a file without its content makes of it
        raise CheckpointError(f"{rng}: cannot be read ({type(error).__name__}). {_INSTEAD}") from error
    scales = own.pop("scales", {})
    optimizer_state.load(optimizers.base(optimizer), loaded.get("optimizer", {}), checkpoint.position.updates, scales)
    if own:
        backend.set_rng_state(own)

