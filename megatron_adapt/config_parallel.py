"""What must hold between a recipe's ranks and what they share: batches, sequences, layers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from megatron_adapt.config import FP8, Evaluation, Parallel, Phase, Recipe, parts_of_sequences
from megatron_adapt.config_phases import FP8_POSITIONS
from megatron_adapt.config_types import INVALID

Found = tuple[tuple[str | int, ...], str]  # path of the key, and what is wrong with it


def check(recipe: Recipe) -> Iterator[Found]:
    """What is wrong with the ranks themselves, and with lengths that belong to no phase; `check_phase` has the rest."""
    parallel = recipe.parallel
    if not isinstance(parallel, Parallel):
        return
    if parallel.sequence is True and parallel.tensor == 1:
        yield ("parallel", "sequence"), "sequence parallelism needs parallel.tensor above 1"
    if parallel.pipeline == 1 and parallel.virtual_pipeline not in (1, INVALID):
        yield ("parallel", "virtual_pipeline"), "needs parallel.pipeline above 1: it interleaves the stages of several ranks"
    if parallel.distributed_optimizer is True and parallel.data == parallel.context == 1:
        why = "needs parallel.data or parallel.context above 1: its state is shared by the ranks that have the same weights"
        yield ("parallel", "distributed_optimizer"), why
    if isinstance(recipe.evaluation, Evaluation) and (why := _uneven(recipe.evaluation.sequence_length, parallel)):
        yield ("evaluation", "sequence_length"), why


def check_phase(phase: Phase, parallel: Any, precision: Any) -> Iterator[tuple[str, str]]:
    """(key, problem) of a phase's sequences on these ranks; `precision`: the phase's."""
    if not isinstance(parallel, Parallel):
        return
    if why := _uneven(phase.sequence_length, parallel):
        yield "sequence_length", why
    known = INVALID not in (phase.sequence_length, phase.micro_batch_size, parallel.tensor, parallel.context, parallel.sequence)
    if precision in FP8 and known:
        positions = phase.sequence_length * phase.micro_batch_size
        multiple = FP8_POSITIONS * parallel.context * (parallel.tensor if parallel.sequence else 1)
        if positions % multiple:
            why = f"{phase.micro_batch_size} x sequence_length {phase.sequence_length} positions are no multiple of {multiple}"
            yield "micro_batch_size", f"{why}, which precision {precision!r} needs"
    if precision in ("fp8-delayed", "fp8-delayed-true") and phase.recompute == "auto":
        why = "what is computed again counts in fp8-delayed's history, so that losses would hang on the GPU's memory"
        yield "recompute", f"{why}; use none, full or a number of layers"


def _uneven(length: Any, parallel: Parallel) -> str | None:
    """Why the ranks cannot have equal parts of a sequence."""
    if INVALID in (length, parallel.tensor, parallel.context, parallel.sequence) or length is None:
        return None
    parts = parts_of_sequences(parallel.tensor, parallel.context, parallel.sequence)
    if length % parts == 0:
        return None
    kinds = ["context"] * (parallel.context > 1) + ["sequence"] * parallel.sequence
    factors = ["2 x parallel.context"] * (parallel.context > 1) + ["parallel.tensor"] * parallel.sequence
    below, above = length // parts * parts, -(-length // parts) * parts
    use = f"{below} or {above}" if below else above
    why = f"which {' and '.join(kinds)} parallelism {'need' if len(kinds) > 1 else 'needs'}"
    return f"{length} is not divisible by {' x '.join(factors)} = {parts}, {why}; use {use}"


def unit(phase: Phase, parallel: Any) -> tuple[int | None, str]:
    """What sizes of batches are multiples of, and how it comes about; None while unknown."""
    if not isinstance(parallel, Parallel):
        return None, ""
    factors = {"micro_batch_size": phase.micro_batch_size, "parallel.data": parallel.data}
    if parallel.virtual_pipeline != 1:  # interleaved stages take turns, as many micro-batches at a time as there are ranks
        factors["parallel.pipeline (of an interleaved pipeline)"] = parallel.pipeline
    if INVALID in (*factors.values(), parallel.virtual_pipeline):
        return None, ""
    product = math.prod(factors.values())
    return product, f"{' x '.join(factors)} = {' x '.join(map(str, factors.values()))} = {product}"
