"""How many layers have to be computed again in the backward pass for a phase to fit into a GPU's memory: no more than that."""

from __future__ import annotations

import bisect

from megatron_adapt.analysis import estimate
from megatron_adapt.config import Parallel, Phase
from megatron_adapt.families.family import ModelShape

USABLE = 0.92  # of a GPU's memory: the rest is the context's, NCCL's and lost between allocations


def problem(recompute: str | int, shape: ModelShape, pipeline: int, virtual_pipeline: int) -> str | None:
    """Why the ranks of a pipeline cannot compute so many of their layers again, in words."""
    if not isinstance(recompute, int):
        return None
    layers = shape.num_layers // pipeline
    if recompute > layers:
        share = f"the model's {shape.num_layers} layers" if pipeline == 1 else f"{layers} of the model's {shape.num_layers} layers"
        return f"recompute: {recompute} is more than a rank has, {share}; for all of them use 'full'"
    if recompute % virtual_pipeline:
        return f"recompute: {recompute} is no multiple of parallel.virtual_pipeline={virtual_pipeline}: a rank's stages share it equally"
    return None


def choices(shape: ModelShape, parallel: Parallel) -> list[str | int]:
    """What a phase's ``recompute`` may be here, the fastest first; ``selective`` frees less memory for what it computes again."""
    stages = parallel.virtual_pipeline
    return ["none", *range(stages, shape.num_layers // parallel.pipeline, stages), "full"]


def fewest(shape: ModelShape, parallel: Parallel, phase: Phase, precision: str, limit: float) -> str | int:
    """The first of ``choices`` whose estimate is within ``limit`` bytes; ``full`` where none is."""
    found = choices(shape, parallel)
    if needs(found[0], shape, parallel, phase, precision) <= limit:
        return "none"
    numbers = found[1:-1]  # the more of them, the less memory
    fitting = bisect.bisect_left(numbers, True, key=lambda count: needs(count, shape, parallel, phase, precision) <= limit)
    return numbers[fitting] if fitting < len(numbers) else "full"


def needs(recompute: str | int, shape: ModelShape, parallel: Parallel, phase: Phase, precision: str) -> float:
    """The estimate of the memory in bytes, with this ``recompute`` in place of the phase's."""
    return estimate.memory_per_rank(shape, parallel, phase.model_copy(update={"recompute": recompute}), precision)


def words(recompute: str | int, shape: ModelShape, pipeline: int) -> str:
    """For people."""
    layers = shape.num_layers // pipeline
    return {"none": "nothing is computed again", "full": "all layers are computed again"}.get(
        str(recompute), f"{recompute} of {layers} layers{' of each rank' if pipeline > 1 else ''} are computed again"
    )
