"""What a phase's `recompute: auto` is on the GPUs that are there."""

from __future__ import annotations

import math
from typing import Callable

from megatron.core import parallel_state
from megatron_adapt.analysis import recomputation
from megatron_adapt.config import Parallel, Phase
from megatron_adapt.engine import backend
from megatron_adapt.engine.layout import Layout
from megatron_adapt.families.family import ModelShape


def of_gpu() -> float:
    """Bytes of memory of this rank's GPU; infinite without one, where nobody asks."""
    found = backend.gpus()
    return found[backend.device().index]["memory"] if found else math.inf


def recompute(phase: Phase, shape: ModelShape, layout: Layout, precision: str, log: Callable[[str], None]) -> str | int:
    """The phase's, or instead of `auto` the least that fits by the estimate, told to ``log``; collective.

    By the smallest memory of all ranks, so the same on each. It changes no number: an interrupted run may go on with another.
    """
    if phase.recompute != "auto":
        return phase.recompute
    (least,) = backend.agree([-of_gpu()])
    keys = ("tensor", "context", "pipeline", "virtual_pipeline", "sequence", "distributed_optimizer")
    data = parallel_state.get_data_parallel_world_size()
    parallel = Parallel(data=data, **{key: getattr(layout, key) for key in keys})
    chosen = recomputation.fewest(shape, parallel, phase, precision, recomputation.USABLE * -least)
    needed = recomputation.needs(chosen, shape, parallel, phase, precision)
    of = f" of {-least / 1e9:.0f} GB" if math.isfinite(least) else " GB"
    log(f"recompute: auto: {recomputation.words(chosen, shape, layout.pipeline)}; ~{needed / 1e9:.2f}{of} a rank")
    return chosen
