"""Which layout a cluster should train a recipe in, and at how many tokens a second, before anything runs.

Every layout that model and batches can be divided by costs what ``step_cost`` says, and computes as few layers again as its
memory allows (``recomputation``). Speeds of one GPU are assumed, or ``measured``.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Sequence

from megatron_adapt import recipe as recipes
from megatron_adapt.analysis import estimate, recomputation
from megatron_adapt.analysis.measured import Measured, by_formula
from megatron_adapt.analysis.recomputation import USABLE
from megatron_adapt.analysis.step_cost import ASSUMED, GPUS, Cluster, Rates, step_seconds
from megatron_adapt.config import FP8, Parallel, Phase, parts_of_sequences
from megatron_adapt.config_phases import FP8_POSITIONS, FP8_SINCE
from megatron_adapt.errors import ConfigError
from megatron_adapt.families.family import ModelShape

CLOSE = 1.1
MOST_NODES = 64  # as far as the search for enough memory goes


@dataclass(frozen=True)
class Cost:
    """A layout with what each phase computes again, the seconds of its steps, and the greatest need of memory in bytes."""

    parallel: Parallel
    recompute: tuple[str | int, ...]
    seconds: tuple[float, ...]
    memory: float


Phases = Sequence[tuple[str, Phase, ModelShape]]


def parse(text: str) -> Cluster:
    """``nodes=2,gpus=8,gpu=h100[,network=50]``; ``ConfigError`` with everything that is wrong with it."""
    kinds: dict[str, Any] = {"nodes": int, "gpus": int, "gpu": str.lower, "network": float}
    found: dict[str, Any] = {"nodes": 1, "gpus": 8}
    problems = []
    for part in filter(None, text.split(",")):
        key, _, value = part.partition("=")
        try:
            found[key] = kinds[key](value)
        except KeyError:
            problems.append(f"unknown key {key!r} (there are {', '.join(kinds)})")
        except ValueError:
            problems.append(f"{key}={value} is not a number")
    problems += [f"{key} has to be above 0" for key in ("nodes", "gpus", "network") if isinstance(found.get(key, 1), (int, float)) and not found.get(key, 1) > 0]
    if found.get("gpu") not in GPUS:
        problems.append(f"gpu={found.get('gpu', '')} is none of {', '.join(GPUS)}")
    if problems:
        raise ConfigError(f"--cluster {text}: {'; '.join(problems)}.")
    return Cluster(**found)


def rates_of(phases: Phases, precision: str, cluster: Cluster, measured: Path | None) -> tuple[list[Rates], list[str]]:
    """(what a GPU reaches in each phase, where these numbers come from: each thing once).

    ``measured``: results.json of benchmarks/gpu/first_call.py.
    """
    if measured is not None:
        rows = Measured(measured, cluster)
        each = [rows.rates(shape, phase, phase.precision or precision) for _, phase, shape in phases]
        return [found for found, _ in each], list(dict.fromkeys(line for _, said in each for line in said))
    lines = [
        f"training at {ASSUMED:.0%} of {cluster.card.tflops:g} TFLOP/s, assumed: {ASSUMED:.0%} of the peak; measure with "
        "benchmarks/gpu/first_call.py and say --measured results.json"
    ]
    if any((phase.precision or precision) in FP8 for _, phase, _ in phases):
        lines.append(by_formula(cluster))
    return [Rates()] * len(phases), lines


def layouts(phases: Phases, precision: str, cluster: Cluster, contexts: bool = False) -> Iterator[Parallel]:
    """Those on all GPUs that model, batches and fp8's multiples can be divided by; tensor ranks stay within a node.

    ``contexts``: those that cut sequences, instead of those that do not.
    """
    sharing = all(phase.optimizer.type != "muon" for _, phase, _ in phases)  # which needs whole matrices
    pairs = itertools.product(_divisors(cluster.gpus), [each for each in _divisors(cluster.world) if (each > 1) == contexts])
    for tensor, context in pairs:
        if cluster.world % (tensor * context):
            continue
        if any(_too_narrow(phase, shape, phase.precision or precision, tensor, context) for _, phase, shape in phases):
            continue
        for pipeline in _divisors(cluster.world // (tensor * context)):
            data = cluster.world // (tensor * context * pipeline)
            if any(shape.layout_problems(tensor, pipeline) for _, _, shape in phases):
                continue
            if any(phase.batch_size % (phase.micro_batch_size * data) for _, phase, _ in phases):
                continue
            distributed = sharing and data * context > 1
            yield Parallel(
                tensor=tensor, context=context, pipeline=pipeline, data=data, sequence=tensor > 1, distributed_optimizer=distributed
            )


def _too_narrow(phase: Phase, shape: ModelShape, precision: str, tensor: int, context: int) -> bool:
    """Whether a sequence cannot be cut, or fp8 does not take a rank's matrices or, with sequence parallelism, its positions."""
    positions = phase.sequence_length * phase.micro_batch_size
    uneven = context > 1 and phase.sequence_length % parts_of_sequences(tensor, context, tensor > 1) > 0
    small = precision in FP8 and positions % (FP8_POSITIONS * tensor * context) > 0
    return uneven or small or bool(shape.fp8_problems(precision, tensor))


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def cost(phases: Phases, parallel: Parallel, precision: str, cluster: Cluster, rates: Sequence[Rates]) -> Cost:
    """``rates``: of each phase."""
    limit, recompute, seconds, memory = cluster.card.memory * 2**30 * USABLE, [], [], 0.0
    for (_, phase, shape), reached in zip(phases, rates):
        low = phase.precision or precision
        recompute.append(recomputation.fewest(shape, parallel, phase, low, limit))
        chosen = phase.model_copy(update={"recompute": recompute[-1]})
        memory = max(memory, estimate.memory_per_rank(shape, parallel, chosen, low))
        seconds.append(step_seconds(shape, chosen, low, parallel, cluster, reached))
    return Cost(parallel, tuple(recompute), tuple(seconds), memory)


def ranked(phases: Phases, precision: str, cluster: Cluster, rates: Sequence[Rates]) -> tuple[list[Cost], list[Cost]]:
    """(layouts that fit into the memory, the fastest first; those that do not, the smallest first).

    The fastest: over all phases, each counted with its known steps or, in epochs, one. Of those that are within ``CLOSE``, which
    is about what the model can tell, the one that splits the model least. Sequences are cut only where nothing else fits.
    """
    steps = [phase.known_steps or 1 for _, phase, _ in phases]

    def total(one: Cost) -> float:
        return sum(count * seconds for count, seconds in zip(steps, one.seconds))

    limit, found, fitting = cluster.card.memory * 2**30 * USABLE, [], []
    for contexts in (False, True):
        if not fitting:
            found += [cost(phases, one, precision, cluster, rates) for one in layouts(phases, precision, cluster, contexts)]
            fitting = sorted((one for one in found if one.memory <= limit), key=total)
    if fitting:
        near = [one for one in fitting if total(one) <= CLOSE * total(fitting[0])]
        best = min(near, key=lambda one: (one.parallel.model_ranks, total(one)))
        fitting = [best, *(one for one in fitting if one is not best)]
    return fitting, sorted((one for one in found if one.memory > limit), key=lambda one: one.memory)


def lines(phases: Phases, precision: str, cluster: Cluster, measured: Path | None = None) -> Iterator[str]:
    """The advice in words. Raises ``ConfigError``, saying what would help, where nothing fits."""
    _require_fp8(phases, precision, cluster)
    rates, sources = rates_of(phases, precision, cluster, measured)
    fitting, too_large = ranked(phases, precision, cluster, rates)
    if not fitting:
        raise ConfigError(_missing(phases, precision, cluster, too_large))
    best = fitting[0]
    yield f"{cluster.nodes} x {cluster.gpus} {cluster.gpu}; {sources[0]}"
    yield from sources[1:]
    yield f"recommended: {' '.join([overrides(best.parallel), *_recompute_overrides(phases, best)])}"
    for (branch, phase, shape), recompute, seconds in zip(phases, best.recompute, best.seconds):
        tokens = recipes.tokens_per_step(phase) / seconds
        used = tokens * estimate.flops_per_token(shape, phase.sequence_length) / (cluster.world * cluster.card.tflops * 1e12)
        yield f"{branch}/{phase.name}: {tokens:,.0f} tokens/s predicted, {seconds:.3g} s a step, {used:.0%} of the peak; " + (
            recomputation.words(recompute, shape, best.parallel.pipeline)
        )
    yield f"memory per GPU: ~{best.memory / 1e9:.1f} of {cluster.card.memory * 2**30 / 1e9:.0f} GB"
    for other in fitting[1:4]:
        layout = " ".join([overrides(other.parallel), *_recompute_overrides(phases, other)])
        yield f"instead: {layout}: {sum(other.seconds) / sum(best.seconds):.2f} times the time, ~{other.memory / 1e9:.1f} GB"
    for unsplit in too_large:
        if unsplit.parallel.data == cluster.world:
            yield f"data parallelism alone would need ~{unsplit.memory / 1e9:.1f} GB per GPU"


def _require_fp8(phases: Phases, precision: str, cluster: Cluster) -> None:
    problems = []
    for _, phase, _ in phases:
        kind = (phase.precision or precision).removesuffix("-true")
        since, named = FP8_SINCE.get(kind, ((0, 0), ""))
        if cluster.card.capability < since:
            problems.append(f"phase '{phase.name}': {cluster.gpu} has no {kind}, which came with {named}")
    if problems:
        raise ConfigError(f"--cluster: {'; '.join(problems)}.")


def overrides(parallel: Parallel) -> str:
    text = f"parallel.tensor={parallel.tensor} parallel.pipeline={parallel.pipeline} parallel.data={parallel.data}"
    text += f" parallel.context={parallel.context}" if parallel.context > 1 else ""
    return text + f" parallel.sequence={str(parallel.sequence).lower()} parallel.distributed_optimizer={str(parallel.distributed_optimizer).lower()}"


def _recompute_overrides(phases: Phases, best: Cost) -> Iterator[str]:
    for (branch, phase, _), recompute in zip(phases, best.recompute):
        if phase.recompute not in ("auto", recompute):
            where = "model.from_scratch.phases" if branch == "base" else "phases"
            yield f"{where}.{phase.name}.recompute={recompute}"


def _missing(phases: Phases, precision: str, cluster: Cluster, too_large: list[Cost]) -> str:
    where = f"--cluster: {cluster.nodes} x {cluster.gpus} {cluster.gpu}"
    if not too_large:
        return (
            f"{where}: no layout of {cluster.world} GPUs divides this model and its batches: choose a batch_size that is a multiple of "
            f"micro_batch_size x {cluster.world}, a sequence_length that is one of {2 * cluster.world}, or fewer GPUs."
        )
    smallest, limit = too_large[0], cluster.card.memory * 2**30 * USABLE

    def fits(name: str, changed: Phases, precision: str, cluster: Cluster) -> list[str]:
        fitting, _ = ranked(changed, precision, cluster, [Rates()] * len(phases))
        return [name] if fitting else []

    def with_(**changes: Any) -> Phases:
        return [(branch, phase.model_copy(update=changes), shape) for branch, phase, shape in phases]

    helps = fits("micro_batch_size: 1", with_(micro_batch_size=1), precision, cluster)
    helps += fits("precision: bf16-true", with_(precision="bf16-true"), "bf16-true", cluster)
    if not helps:
        least = with_(precision="bf16-true", micro_batch_size=1)
        helps = fits("precision: bf16-true with micro_batch_size: 1", least, "bf16-true", cluster)
    nodes = cluster.nodes * 2
    while nodes <= MOST_NODES:
        if fits("", phases, precision, more := Cluster(nodes, cluster.gpus, cluster.gpu, cluster.network)):
            helps.append(f"{more.nodes} nodes")
            break
        nodes *= 2
    what = f"What would fit: {'; or '.join(helps)}." if helps else "Nothing that the planner can change makes it fit."
    return (
        f"{where}: {limit / 1e9:.0f} GB of each GPU can be used, and the smallest layout ({overrides(smallest.parallel)}) needs "
        f"~{smallest.memory / 1e9:.1f} GB with all layers computed again. {what}"
    )
