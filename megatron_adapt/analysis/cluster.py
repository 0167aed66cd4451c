"""Which layout a cluster should train a recipe in, and at how many tokens a second: a model of cost, before anything runs.

Of one optimizer step of a phase with m micro-batches of b sequences of s tokens on each of d data ranks, for t tensor ranks
and p pipeline stages of a model with L layers of width h:

    compute      F b s / (t R) of the slowest stage, the last, which has the head besides L / p layers. F: FLOPs a token, 6 for
                 each weight that multiplies and 12 s q for the scores of each layer with q query units (Chowdhery et al. 2022,
                 appendix B), 4 of these 6 in layers that are frozen; what is computed again (recompute, logits in slices)
                 comes on top. R: FLOP/s that a GPU reaches, its peak times the efficiency.
    tensor       4 all-reduces of 2 s b h bytes for each of the stage's layers, 2 of them forward (Shoeybi et al. 2019, section 3);
                 6 under full recomputation; sequence parallelism moves as much (Korthikanti et al. 2022, section 4.2.2)
    context      of c ranks each computes a c-th of a micro-batch, scores included, and hands on as much less in what is above and below;
                 the keys and values of all positions, 2 k s b numbers for k units of keys on a tensor rank, are gathered in each
                 layer, once more under full recomputation, and their gradients scattered: (c - 1) / c of their bytes each time
                 (Llama 3 Team 2024, section 3.3.2)
    pipeline     2 s b h bytes forward and as many back, divided by t under sequence parallelism, at each micro-batch
    idle         p - 1 micro-batches' time at both ends of the step (Narayanan et al. 2021, section 2.2)
    data         once a step a sum of the gradients: 2 (d - 1) / d of their bytes; with the distributed optimizer half of that,
                 and the weights gathered; of c d ranks instead of d under context parallelism
    fp8          only the layers' products with weights are in fp8, N FLOPs a token: 6 for each weight, 4 in frozen layers, and those
                 computed again. Of the time in bf16 N / (g P) becomes N / (g Q): P and Q the peaks in bf16 and fp8, g what large
                 products reach of them (or the efficiency, if that is higher). To be brought into fp8, inputs and gradients of
                 outputs are read in bf16 and written twice, as they are and transposed: 4 bytes a number, at the bandwidth of
                 memory. Attention's scores, the head and all that is no product are as in bf16. Nothing of this has been measured.
    update       twice the bytes of weights, gradients and optimizer state, at the bandwidth of memory

A ring of n ranks moves 2 (n - 1) / n of what it sums through each rank (Patarasuk & Yuan 2009), and every transfer has a latency.
Ranks are numbered tensor first, context next, then data, pipeline last, as Megatron does, so a group is within a node where its span is;
there NVLink counts, else the network of the GPUs that the group has in a node. Nothing overlaps with anything, as in the engine. Memory is ``estimate.memory_per_rank``'s.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Sequence

from megatron_adapt import recipe as recipes
from megatron_adapt.analysis import estimate
from megatron_adapt.config import BF16_ALONE, FP8, Parallel, Phase, parts_of_sequences
from megatron_adapt.config_phases import FP8_POSITIONS, FP8_SINCE, slices_logits
from megatron_adapt.errors import ConfigError
from megatron_adapt.families.family import ModelShape

ASSUMED = 0.40  # of the peak, where no measurement is given: a cautious figure for dense models in bf16
PRODUCTS = 0.8  # of the peak, what large products reach: bf16 ones of an H200, about
ASSUMED_LINKS = 0.8  # of the bandwidth of NVLink and network
LATENCY = 2e-5  # seconds of a transfer between GPUs, however small
USABLE = 0.92  # of a GPU's memory: the rest is the context's, NCCL's and lost between allocations
CLOSE = 1.1
MOST_NODES = 64  # as far as the search for enough memory goes


@dataclass(frozen=True)
class GPU:
    """Dense TFLOP/s in bf16 and in fp8 (0: it has none), GiB of memory, its GB/s, NVLink's GB/s in one direction, and the compute
    capability; from the makers' data sheets."""

    tflops: float
    fp8: float
    memory: float
    bandwidth: float
    link: float
    capability: tuple[int, int]


GPUS = {
    "a100": GPU(312, 0, 80, 2039, 300, (8, 0)),
    "a100-40gb": GPU(312, 0, 40, 1555, 300, (8, 0)),
    "h100": GPU(989, 1979, 80, 3350, 450, (9, 0)),
    "h200": GPU(989, 1979, 141, 4800, 450, (9, 0)),
    "b200": GPU(2250, 4500, 180, 8000, 900, (10, 0)),
}


@dataclass(frozen=True)
class Cluster:
    """``nodes`` of ``gpus`` each; ``network``: GB/s in one direction that a GPU has to other nodes."""

    nodes: int
    gpus: int
    gpu: str
    network: float = 50.0

    @property
    def card(self) -> GPU:
        return GPUS[self.gpu]

    @property
    def world(self) -> int:
        return self.nodes * self.gpus


@dataclass(frozen=True)
class Cost:
    """A layout with the seconds of one step of each phase, and its greatest need of memory in bytes."""

    parallel: Parallel
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


def efficiency(measured: Path | None, cluster: Cluster) -> tuple[float, str]:
    """(share of the peak that training reaches, where that number comes from).

    ``measured``: results.json of benchmarks/gpu/first_call.py, whose best training run counts.
    """
    if measured is None:
        return ASSUMED, f"assumed: {ASSUMED:.0%} of the peak; measure with benchmarks/gpu/first_call.py and say --measured results.json"
    try:
        sections = json.loads(measured.read_text(encoding="utf-8"))
        device = str(sections["versions"]["device"])
        speeds = {name: found["tflops"] for name, found in sections.items() if found.get("precision") == "bf16" and "tflops" in found}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"--measured {measured}: not the results.json of benchmarks/gpu/first_call.py ({error}).") from error
    if not speeds:
        raise ConfigError(f"--measured {measured}: no bf16 training speed in it; run the speed part of benchmarks/gpu/first_call.py.")
    if cluster.gpu.split("-")[0] not in device.lower():
        raise ConfigError(f"--measured {measured}: measured on {device}, not on {cluster.gpu}.")
    best = max(speeds, key=speeds.__getitem__)
    return speeds[best] / cluster.card.tflops, f"measured: {speeds[best]:.0f} TFLOP/s in {best} on {device}"


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


def cost(phases: Phases, parallel: Parallel, precision: str, cluster: Cluster, share: float) -> Cost:
    memory = max(estimate.memory_per_rank(shape, parallel, phase, phase.precision or precision) for _, phase, shape in phases)
    seconds = tuple(step_seconds(shape, phase, phase.precision or precision, parallel, cluster, share) for _, phase, shape in phases)
    return Cost(parallel, seconds, memory)


def step_seconds(
    shape: ModelShape, phase: Phase, precision: str, parallel: Parallel, cluster: Cluster, share: float
) -> float:
    """Of one optimizer step, by the formulas above; ``share`` of the peak that matrix products and all else reach together."""
    card, tensor, pipeline, context = cluster.card, parallel.tensor, parallel.pipeline, parallel.context
    positions, copies = phase.sequence_length * phase.micro_batch_size // context, parallel.data * context
    head, body = flops(shape, phase, positions, tensor)
    peak = card.tflops * 1e12 * (0.5 if precision == "fp32" else 1.0)  # TF32
    compute = positions * (body / pipeline + head) / (tensor * peak * share)
    if precision in FP8:
        compute -= positions * fp8_saves(shape, phase, card, share) / (tensor * pipeline)

    def moving(size: float, stride: int, ranks: int) -> float:
        """Seconds for so many bytes through each of ``ranks`` GPUs whose numbers are ``stride`` apart."""
        here = max(1, cluster.gpus // stride)  # ranks of a group in a node, all of whose network it has
        speed = card.link if stride * ranks <= cluster.gpus else min(card.link, here * cluster.network)
        return LATENCY + size / (speed * 1e9 * ASSUMED_LINKS) if ranks > 1 else 0.0

    width = 4 if precision == "fp32" else 2
    states = width * positions * shape.hidden_size
    sums = 6 if phase.recompute == "full" else 4
    among = sums * shape.num_layers / pipeline * moving(ring(tensor) * states, 1, tensor)
    handed = 2 * moving(states / (tensor if parallel.sequence else 1), tensor * copies, pipeline)
    times = 3 if phase.recompute == "full" else 2
    keys = estimate.gathered_bytes(shape, parallel, phase, width) * (context - 1) / context
    gathering = times * shape.num_layers / pipeline * moving(keys, tensor, context)
    micro_batches = recipes.accumulation(phase, parallel)
    computing = (micro_batches + pipeline - 1) * (compute + among + gathering + handed)
    parameters = estimate.parameters_per_rank(shape, parallel)
    gradient = 2 if precision in BF16_ALONE else 4
    moved = (gradient + width) / 2 if parallel.distributed_optimizer else gradient
    summing = moving(ring(copies) * moved * parameters, tensor, copies)
    sharers = copies if parallel.distributed_optimizer else 1
    updating = 2 * parameters * estimate.state_bytes(phase.optimizer, precision, sharers) / (card.bandwidth * 1e9)
    return computing + summing + updating


def ring(ranks: int) -> float:
    """Times its size, what an all-reduce moves through each rank."""
    return 2 * (ranks - 1) / ranks


def fp8_saves(shape: ModelShape, phase: Phase, card: GPU, share: float) -> float:
    """Seconds a token, of all layers, by the formula above."""
    sizes = (size for name, size in shape.parameter_shapes().items() if name.startswith("decoder.layers."))
    matrices = sum(math.prod(size) for size in sizes if len(size) == 2)
    mlp = shape.num_layers * (3 if shape.gated else 2) * shape.hidden_size * shape.ffn_hidden_size
    again = {"none": 0, "selective": mlp, "full": matrices}[phase.recompute]
    products = matrices * (6 if _layers_train(phase) else 4) + 2 * again
    faster = products * (1 / card.tflops - 1 / card.fp8) / (1e12 * max(PRODUCTS, share))
    inputs = 2 * shape.hidden_size + shape.query_size + shape.ffn_hidden_size
    outputs = 2 * shape.hidden_size + shape.qkv_size + (2 if shape.gated else 1) * shape.ffn_hidden_size
    brought = shape.num_layers * (inputs * (1 + again / matrices) + outputs)
    return faster - 4 * brought / (card.bandwidth * 1e9)


def _layers_train(phase: Phase) -> bool:
    train = [phase.train] if isinstance(phase.train, str) else phase.train
    return any(part not in ("embedding", "output", "norms") for part in train)


def flops(shape: ModelShape, phase: Phase, positions: int, tensor: int) -> tuple[float, float]:
    """FLOPs a token that are really computed: (of the head, of all layers)."""
    matrix = 2 * shape.vocab_size * shape.hidden_size
    head = matrix * (4 if slices_logits(phase.logits, positions * shape.vocab_size // tensor) else 3)
    whole = estimate.flops_per_token(shape, phase.sequence_length) - 3 * matrix
    mlp = 2 * shape.num_layers * (3 if shape.gated else 2) * shape.hidden_size * shape.ffn_hidden_size
    again = {"none": 0.0, "selective": mlp, "full": whole / 3}[phase.recompute]
    return head, whole * (1 if _layers_train(phase) else 2 / 3) + again


def ranked(phases: Phases, precision: str, cluster: Cluster, share: float) -> tuple[list[Cost], list[Cost]]:
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
            found += [cost(phases, one, precision, cluster, share) for one in layouts(phases, precision, cluster, contexts)]
            fitting = sorted((one for one in found if one.memory <= limit), key=total)
    if fitting:
        near = [one for one in fitting if total(one) <= CLOSE * total(fitting[0])]
        best = min(near, key=lambda one: (one.parallel.model_ranks, total(one)))
        fitting = [best, *(one for one in fitting if one is not best)]
    return fitting, sorted((one for one in found if one.memory > limit), key=lambda one: one.memory)


def lines(phases: Phases, precision: str, cluster: Cluster, measured: Path | None = None) -> Iterator[str]:
    """The advice in words. Raises ``ConfigError``, saying what would help, where nothing fits."""
    share, source = efficiency(measured, cluster)
    _require_fp8(phases, precision, cluster)
    fitting, too_large = ranked(phases, precision, cluster, share)
    if not fitting:
        raise ConfigError(_missing(phases, precision, cluster, too_large))
    best = fitting[0]
    yield f"{cluster.nodes} x {cluster.gpus} {cluster.gpu}; training at {share:.0%} of {cluster.card.tflops:g} TFLOP/s, {source}"
    if any((phase.precision or precision) in FP8 for _, phase, _ in phases):
        yield f"fp8 is predicted, not measured: layers' products at {cluster.card.fp8:g} TFLOP/s, all else as in bf16"
    yield f"recommended: {overrides(best.parallel)}"
    for (branch, phase, shape), seconds in zip(phases, best.seconds):
        tokens = recipes.tokens_per_step(phase) / seconds
        used = tokens * estimate.flops_per_token(shape, phase.sequence_length) / (cluster.world * cluster.card.tflops * 1e12)
        yield f"{branch}/{phase.name}: {tokens:,.0f} tokens/s predicted, {seconds:.3g} s a step, {used:.0%} of the peak"
    yield f"memory per GPU: ~{best.memory / 1e9:.1f} of {cluster.card.memory * 2**30 / 1e9:.0f} GB"
    for other in fitting[1:4]:
        yield f"instead: {overrides(other.parallel)}: {sum(other.seconds) / sum(best.seconds):.2f} times the time, ~{other.memory / 1e9:.1f} GB"
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


def _missing(phases: Phases, precision: str, cluster: Cluster, too_large: list[Cost]) -> str:
    where = f"--cluster: {cluster.nodes} x {cluster.gpus} {cluster.gpu}"
    if not too_large:
        return (
            f"{where}: no layout of {cluster.world} GPUs divides this model and its batches: choose a batch_size that is a multiple of "
            f"micro_batch_size x {cluster.world}, a sequence_length that is one of {2 * cluster.world}, or fewer GPUs."
        )
    smallest, limit = too_large[0], cluster.card.memory * 2**30 * USABLE

    def fits(name: str, changed: Phases, precision: str, cluster: Cluster) -> list[str]:
        fitting, _ = ranked(changed, precision, cluster, ASSUMED)
        return [name] if fitting else []

    def with_(**changes: Any) -> Phases:
        return [(branch, phase.model_copy(update=changes), shape) for branch, phase, shape in phases]

    helps = fits("recompute: full", with_(recompute="full"), precision, cluster)
    helps += fits("micro_batch_size: 1", with_(micro_batch_size=1), precision, cluster)
    helps += fits("precision: bf16-true", with_(precision="bf16-true"), "bf16-true", cluster)
    if not helps:
        least = with_(precision="bf16-true", recompute="full", micro_batch_size=1)
        helps = fits("precision: bf16-true with recompute: full and micro_batch_size: 1", least, "bf16-true", cluster)
    nodes = cluster.nodes * 2
    while nodes <= MOST_NODES:
        if fits("", phases, precision, more := Cluster(nodes, cluster.gpus, cluster.gpu, cluster.network)):
            helps.append(f"{more.nodes} nodes")
            break
        nodes *= 2
    what = f"What would fit: {'; or '.join(helps)}." if helps else "Nothing that the planner can change makes it fit."
    return (
        f"{where}: {limit / 1e9:.0f} GB of each GPU can be used, and the smallest layout ({overrides(smallest.parallel)}) needs "
        f"~{smallest.memory / 1e9:.1f} GB. {what}"
    )
