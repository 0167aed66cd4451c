"""What of a shape a GPU's memory holds: how many layers, and of these how many computed again.

By the estimate first; what it says too little of is tried again with less.
"""

from __future__ import annotations

from typing import Callable, NamedTuple

from megatron_adapt.analysis import recomputation
from megatron_adapt.config import Parallel, Phase
from megatron_adapt.families.family import ModelShape

SMALLER = 0.9  # times the layers, after an out-of-memory


class Fit(NamedTuple):
    layers: int
    recompute: str | int


def first(shape_of: Callable[[int], ModelShape], layers: int, phase: Phase, precision: str, memory: float) -> Fit:
    """The most of ``layers`` that fit, of which ``recompute: auto`` then recomputes the fewest.

    ``shape_of``: the model of so many layers; ``memory``: bytes of the GPU.
    """
    limit = recomputation.USABLE * memory
    least = "full" if phase.recompute == "auto" else phase.recompute
    while layers > 1 and recomputation.needs(least, shape_of(layers), Parallel(), phase, precision) > limit:
        layers -= 1
    if phase.recompute != "auto":
        return Fit(layers, phase.recompute)
    return Fit(layers, recomputation.fewest(shape_of(layers), Parallel(), phase, precision, limit))


def after_out_of_memory(tried: Fit, recompute: str | int) -> Fit | None:
    """An eighth of the layers more computed again where the phase's ``recompute`` is `auto`, until all are; then fewer layers.

    None: one layer was too many.
    """
    if recompute == "auto" and tried.recompute != "full":
        count = (tried.recompute if isinstance(tried.recompute, int) else 0) + max(1, tried.layers // 8)
        return Fit(tried.layers, count if count < tried.layers else "full")
    return Fit(int(SMALLER * tried.layers), tried.recompute) if tried.layers > 1 else None
