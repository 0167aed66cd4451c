"""Seconds of one optimizer step on a cluster's GPUs: a model of cost.

Of one optimizer step of a phase with m micro-batches of b sequences of s tokens on each of d data ranks, for t tensor ranks
and p pipeline stages of a model with L layers of width h:

    compute      F b s / (t R) of the slowest stage, the last, which has the head besides L / p layers. F: FLOPs a token, 6 for
                 each weight that multiplies and 6 s q for the scores of each layer with q query units: half of the 12 s q of Chowdhery
                 et al. 2022, appendix B, as positions behind the own are not computed (Dao 2023, section 4.1). Of the 6 of a weight 4 in
                 matrices that are frozen. What is computed again (a third of their FLOPs in layers that are, MLPs, logits in
                 slices) comes on top. R: FLOP/s that a GPU reaches, its peak times the efficiency.
    tensor       4 all-reduces of 2 s b h bytes for each of the stage's layers, 2 of them forward (Shoeybi et al. 2019, section 3);
                 6 in layers that are computed again, 5 where their MLPs are; one for the embedding and one for the head. Sequence
                 parallelism moves as much, but for what it gathers once more beside a product (Korthikanti et al. 2022, section 4.2.2)
    context      of c ranks each computes a c-th of a micro-batch, scores included, and hands on as much less in what is above and below;
                 the keys and values of all positions, 2 k s b numbers for k units of keys on a tensor rank, are gathered in each
                 layer, once more in those computed again, and their gradients scattered: (c - 1) / c of their bytes each time
                 (Llama 3 Team 2024, section 3.3.2)
    pipeline     2 s b h bytes forward and as many back, divided by t under sequence parallelism, at each micro-batch
    idle         p - 1 micro-batches' time at both ends of the step (Narayanan et al. 2021, section 2.2)
    data         once a step a sum of the gradients: 2 (d - 1) / d of their bytes; with the distributed optimizer half of that,
                 and the weights gathered; of c d ranks instead of d under context parallelism. Tied matrices' at both ends of a pipeline
    fp8          only the layers' products with weights are in fp8, N FLOPs a token: 6 for each weight, 4 for frozen ones, and those
                 computed again. Of the time in bf16 N / (g P) becomes N / (g Q): P and Q the peaks in bf16 and fp8, g what large
                 products reach of them (or the efficiency, if that is higher). To be brought into fp8, inputs and gradients of
                 outputs are read in bf16 and written twice, as they are and transposed: 4 bytes a number, at the bandwidth of
                 memory. Attention's scores, the head and all that is no product are as in bf16. Measured rows replace the g
                 of fp8 and scale the 4 bytes (``measured.py``).
    update       twice the bytes of weights, gradients and optimizer state of what trains, at the bandwidth of memory

A ring of n ranks moves 2 (n - 1) / n of what it sums through each rank (Patarasuk & Yuan 2009), and every transfer has a latency.
Ranks are numbered tensor first, context next, then data, pipeline last, as Megatron does, so a group is within a node where its span is;
there NVLink counts, else the network of the GPUs that the group has in a node. Nothing overlaps with anything, as in the engine.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_adapt import recipe as recipes
from megatron_adapt.analysis import estimate
from megatron_adapt.config import FP8, Parallel, Phase
from megatron_adapt.config_phases import slices_logits
from megatron_adapt.families.family import ModelShape

ASSUMED = 0.40  # of the peak, where no measurement is given: a cautious figure for dense models in bf16
PRODUCTS = 0.8  # of the peak, what large products reach: bf16 ones of an H200, about
ASSUMED_LINKS = 0.8  # of the bandwidth of NVLink and network
LATENCY = 2e-5  # seconds of a transfer between GPUs, however small


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
class Rates:
    """What a GPU reaches: ``share`` of its peak in bf16, in all that it computes.

    ``products``: share of fp8's peak in the layers' products, ``casts``: times the formula's, what bringing their operands into fp8
    takes; as measured, or by the formula.
    """

    share: float = ASSUMED
    products: float | None = None
    casts: float = 1.0

    @property
    def large_products(self) -> float:
        return max(PRODUCTS, self.share)


def step_seconds(shape: ModelShape, phase: Phase, precision: str, parallel: Parallel, cluster: Cluster, rates: Rates) -> float:
    """Of one optimizer step, by the formulas above; the phase's ``recompute`` is not `auto`."""
    card, tensor, pipeline, context = cluster.card, parallel.tensor, parallel.pipeline, parallel.context
    positions, copies = phase.sequence_length * phase.micro_batch_size // context, parallel.data * context
    again = estimate.layers_recomputed(phase.recompute, shape, parallel) * pipeline / shape.num_layers
    head, body = flops(shape, phase, positions, tensor, again)
    peak = card.tflops * 1e12 * (0.5 if precision == "fp32" else 1.0)  # TF32
    compute = positions * (body / pipeline + head) / (tensor * peak * rates.share)
    if precision in FP8:
        compute -= positions * fp8_saves(shape, phase, card, rates, again) / (tensor * pipeline)

    def moving(size: float, stride: int, ranks: int) -> float:
        """Seconds for so many bytes through each of ``ranks`` GPUs whose numbers are ``stride`` apart."""
        here = max(1, cluster.gpus // stride)  # ranks of a group in a node, all of whose network it has
        speed = card.link if stride * ranks <= cluster.gpus else min(card.link, here * cluster.network)
        return LATENCY + size / (speed * 1e9 * ASSUMED_LINKS) if ranks > 1 else 0.0

    width, layers = estimate.weight_bytes(precision), shape.num_layers / pipeline
    states = width * positions * shape.hidden_size
    sums = layers * (4 + 2 * again + (phase.recompute == "selective")) + (2 if pipeline == 1 else 1)
    among = sums * moving(ring(tensor) * states, 1, tensor)
    handed = 2 * moving(states / (tensor if parallel.sequence else 1), tensor * copies, pipeline)
    keys = estimate.gathered_bytes(shape, parallel, phase, width) * (context - 1) / context
    gathering = layers * (2 + again) * moving(keys, tensor, context)
    micro_batches = recipes.accumulation(phase, parallel)
    computing = (micro_batches + pipeline - 1) * (compute + among + gathering + handed)
    trained = estimate.parameters_per_rank(shape, parallel, estimate.patterns(phase))
    gradient = estimate.gradient_bytes(precision)
    moved = (gradient + width) / 2 if parallel.distributed_optimizer else gradient
    summing = moving(ring(copies) * moved * trained, tensor, copies)
    if shape.tied and pipeline > 1:
        summing += moving(ring(2) * gradient * shape.vocab_size * shape.hidden_size / tensor, tensor * copies * (pipeline - 1), 2)
    sharers = copies if parallel.distributed_optimizer else 1
    updating = 2 * trained * estimate.state_bytes(phase.optimizer, precision, sharers) / (card.bandwidth * 1e9)
    return computing + summing + updating


def ring(ranks: int) -> float:
    """Times its size, what an all-reduce moves through each rank."""
    return 2 * (ranks - 1) / ranks


def flops(shape: ModelShape, phase: Phase, positions: int, tensor: int, again: float) -> tuple[float, float]:
    """FLOPs a token that are really computed: (of the head, of all layers), a share ``again`` of which is computed again."""
    matrix = 2 * shape.vocab_size * shape.hidden_size
    head = matrix * (4 if slices_logits(phase.logits, positions * shape.vocab_size // tensor) else 3)
    scores = 12 * shape.num_layers * shape.query_size * phase.sequence_length
    weights = estimate.flops_per_token(shape, phase.sequence_length) - 3 * matrix - scores
    mlp = 2 * shape.num_layers * (3 if shape.gated else 2) * shape.hidden_size * shape.ffn_hidden_size
    twice = mlp if phase.recompute == "selective" else again * (weights + scores / 2) / 3
    trained = estimate.layer_matrices(shape, estimate.patterns(phase)) / estimate.layer_matrices(shape)
    return head, weights * (2 + trained) / 3 + scores / 2 + twice


def fp8_saves(shape: ModelShape, phase: Phase, card: GPU, rates: Rates, again: float) -> float:
    """Seconds a token, of all layers, by the formula above."""
    matrices = estimate.layer_matrices(shape)
    mlp = shape.num_layers * (3 if shape.gated else 2) * shape.hidden_size * shape.ffn_hidden_size
    twice = mlp if phase.recompute == "selective" else again * matrices
    products = (matrices * 4 + 2 * estimate.layer_matrices(shape, estimate.patterns(phase)) + 2 * twice) / 1e12
    inputs = 2 * shape.hidden_size + shape.query_size + shape.ffn_hidden_size
    outputs = 2 * shape.hidden_size + shape.qkv_size + (2 if shape.gated else 1) * shape.ffn_hidden_size
    brought = shape.num_layers * (inputs * (1 + twice / matrices) + outputs)
    before = products / (rates.large_products * card.tflops)
    after = products / ((rates.products or rates.large_products) * card.fp8)
    return before - after - rates.casts * 4 * brought / (card.bandwidth * 1e9)
