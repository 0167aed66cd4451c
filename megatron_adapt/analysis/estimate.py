"""Derived numbers of a recipe, before anything runs: parameters, tokens, steps, batch split, memory. No torch."""

from __future__ import annotations

import math
import re
from functools import lru_cache
from pathlib import Path
from typing import Mapping, Sequence

from megatron_adapt import recipe as recipes
from megatron_adapt.config import BF16_ALONE, FP8, Optimizer, Parallel, Phase
from megatron_adapt.config_phases import LOGITS_OF_A_SLICE, slices_logits
from megatron_adapt.families.family import ModelShape
from megatron_adapt.families.rules import EMBEDDING, OUTPUT
from megatron_adapt.families.selection import trained_parameters, trained_shapes


@lru_cache(maxsize=512)
def parameters_per_rank(shape: ModelShape, parallel: Parallel, train: str | tuple[str, ...] = "all") -> int:
    """Parameters of the largest rank: most are split by tensor parallelism, layers by pipeline stages. ``train``: those of a phase
    that it trains."""
    largest, sizes = 0, trained_shapes(shape, train)
    for stage in range(parallel.pipeline):
        count = 0
        for name, size in sizes.items():
            elements = math.prod(size)
            if name.startswith("decoder.layers."):
                here = int(name.split(".")[2]) * parallel.pipeline // shape.num_layers == stage
            elif name.startswith("embedding."):
                shared = shape.tied and name == EMBEDDING
                here = stage == 0 or (shared and stage == parallel.pipeline - 1)
            else:
                here = stage == parallel.pipeline - 1
            if here and name in (EMBEDDING, OUTPUT):
                count += -(-size[0] // parallel.tensor) * size[1]
            elif here:
                count += elements // (parallel.tensor if is_cut(name, shape) else 1)
        largest = max(largest, count)
    return largest


def patterns(phase: Phase) -> str | tuple[str, ...]:
    """What a phase trains, as a key of what has been computed."""
    return phase.train if isinstance(phase.train, str) else tuple(phase.train)


def is_cut(name: str, shape: ModelShape) -> bool:
    """Whether tensor parallelism splits the parameter; norms, learned positions and what is added after a sum are whole."""
    if name.endswith(("q_layernorm.weight", "k_layernorm.weight")):
        return shape.qk_norm == "projection"
    return name in (EMBEDDING, OUTPUT) or re.search(r"\.linear_\w+\.weight$|\.linear_(qkv|fc1)\.bias$", name) is not None


def state_bytes(optimizer: Optimizer, precision: str, sharers: int = 1) -> float:
    """Bytes per trained parameter of weights, gradients and optimizer; ``sharers``: ranks that share the latter's state."""
    moments = 0 if optimizer.offload else _moments(optimizer)
    return weight_bytes(precision) + gradient_bytes(precision) + _kept_bytes(optimizer, precision, moments) / sharers


def weight_bytes(precision: str) -> int:
    return 4 if precision == "fp32" else 2


def gradient_bytes(precision: str) -> int:
    """Of what the micro-batches' gradients are summed up in, and the ranks' (``engine.model.wrap``)."""
    return 2 if precision in BF16_ALONE else 4


def _moments(optimizer: Optimizer) -> float:
    """Moments of a parameter, of float32, or of bf16 in bf16-true and fp8-...-true."""
    return {"adamw": 2, "adamw8bit": 0.5}.get(optimizer.type, 1)


def _kept_bytes(optimizer: Optimizer, precision: str, moments: float) -> float:
    """Bytes per trained parameter of moments, and of main weights or compensations where they are kept apart."""
    if precision in BF16_ALONE:
        return 2 * moments + (2 if optimizer.rounding == "kahan" else 0)
    return 4 * moments if precision == "fp32" else 4 + 4 * moments


def memory_per_rank(shape: ModelShape, parallel: Parallel, phase: Phase, precision: str) -> float:
    """Bytes, roughly.

    Weights: 4 bytes each in fp32, else 2; of those that train also gradients and AdamW's state: 12 bytes in fp32, 16 in bf16-mixed
    (4 + main weight 4 + moments 8), 6 in bf16-true (2 each; Kahan's compensation 2 more); LionW and, inside layers, Muon have one moment
    less, those of adamw8bit take a byte, offloaded ones none, the distributed optimizer shares moments and main weights. Layers'
    matrices in fp8, as they are and transposed, 2 bytes more; of one layer at a time where layers are computed again. The logits
    twice in fp32; in slices those of one, three times, and the gradient of the hidden states. Activations: ``activation_bytes``.
    """
    sharers = parallel.data * parallel.context if parallel.distributed_optimizer else 1
    trained = parameters_per_rank(shape, parallel, patterns(phase))
    state = weight_bytes(precision) * (parameters_per_rank(shape, parallel) - trained)
    state += trained * state_bytes(phase.optimizer, precision, sharers)
    if phase.optimizer.type == "muon":  # rows of the vocabulary are AdamW's
        matrices = 1 if shape.tied or parallel.pipeline > 1 else 2
        state += matrices * shape.vocab_size * shape.hidden_size / parallel.tensor * (2 if precision in BF16_ALONE else 4)
    if precision in FP8 and phase.recompute in ("none", "selective"):
        state += 2 * layer_matrices(shape) / (parallel.tensor * parallel.pipeline)
    return state + activation_bytes(shape, parallel, phase, precision) + _logits_bytes(shape, parallel, phase)


@lru_cache(maxsize=64)
def layer_matrices(shape: ModelShape, train: str | tuple[str, ...] = "all") -> int:
    """Weights of the matrices of all layers, or of those among them that train."""
    sizes = (size for name, size in trained_shapes(shape, train).items() if name.startswith("decoder.layers."))
    return sum(math.prod(size) for size in sizes if len(size) == 2)


def layers_recomputed(recompute: str | int, shape: ModelShape, parallel: Parallel) -> int:
    """Of each rank, those that keep their input alone."""
    assert recompute != "auto", "chosen by what fits: recomputation.fewest"
    if isinstance(recompute, int):
        return recompute
    return shape.num_layers // parallel.pipeline if recompute == "full" else 0


def activation_bytes(shape: ModelShape, parallel: Parallel, phase: Phase, precision: str) -> float:
    """Activations of all micro-batches that a rank has under way, in bytes.

    The others of a rank's L layers keep all that ``layer_bytes`` counts, or without the inside of MLPs (``selective``; that of
    one layer is there while it is computed again), layers that are computed again their input of 2 bytes a unit. The first of a
    stage are: when their turn comes in the backward pass the later ones have freed theirs, so that nothing comes on top, unless
    all are computed again. The first stage of p has p micro-batches under way, 1 + (p - 1) / (p v) times as many with v stages a
    rank (Narayanan et al. 2021, section 2.2).

    Context parallelism leaves each rank its part of the positions, and gathers the layers' keys and values: kept of each are those
    that a rank's two chunks see, at most 1 + 1 / 2c of all positions.
    """
    positions = phase.sequence_length * phase.micro_batch_size / parallel.context
    wide = 2 if precision == "fp32" else 1
    whole, mlp, entry = (wide * positions * size for size in layer_bytes(shape, parallel, phase))
    layers = shape.num_layers / parallel.pipeline
    again = layers_recomputed(phase.recompute, shape, parallel)
    in_flight: float = min(parallel.pipeline, recipes.accumulation(phase, parallel))
    if parallel.virtual_pipeline > 1:
        in_flight *= 1 + (parallel.pipeline - 1) / (parallel.pipeline * parallel.virtual_pipeline)
    if phase.recompute == "selective":
        total = layers * in_flight * (whole - mlp) + mlp
    else:
        total = in_flight * ((layers - again) * whole + again * entry) + (whole if again >= layers else 0)
    if parallel.context > 1:
        at_once = max(1, (layers - again) * in_flight)
        total += at_once * gathered_bytes(shape, parallel, phase, 2 * wide) * (1 + 1 / (2 * parallel.context))
    return total


def layer_bytes(shape: ModelShape, parallel: Parallel, phase: Phase) -> tuple[float, float, float]:
    """Bytes of bf16 a position that a layer's backward pass needs on a tensor rank: (all, those inside the MLP, its input).

    By the count of Korthikanti et al. 2022, section 4.1, of this model's widths: 2 bytes for each unit of the inputs of both norms and
    of what reads them, and of norms behind sub-layers; queries, keys, values and attention's output, without the scores that its
    kernels compute again (eq. 4), which a model with capped scores has no kernels for (8 bytes each); gate, up and their product. What
    is h wide is divided by the tensor ranks only under sequence parallelism. A byte of each unit that dropout may drop. For a GPT of
    4 h feed-forward units that is their 34 h with dropout. In fp8 less is kept: that is not counted.
    """
    hidden, around = shape.hidden_size, parallel.tensor if parallel.sequence else 1
    outside = hidden * (12 if shape.norm_place == "around" else 8) + hidden * (2 if phase.dropout.hidden else 0)
    mlp = 2 * shape.ffn_hidden_size * (3 if shape.gated else 2)
    attention = 2 * (shape.qkv_size + shape.query_size)
    if shape.attention_softcap is not None:
        attention += 8 * shape.num_attention_heads * phase.sequence_length
    return outside / around + (attention + mlp) / parallel.tensor, mlp / parallel.tensor, 2 * hidden / around


def gathered_bytes(shape: ModelShape, parallel: Parallel, phase: Phase, width: int) -> float:
    """Bytes of a layer's keys and values of all positions, on one tensor rank, in numbers of ``width`` bytes."""
    units = shape.qkv_size - shape.query_size
    return width * phase.sequence_length * phase.micro_batch_size * units / parallel.tensor


def flops_per_token(shape: ModelShape, sequence_length: int) -> float:
    """Model FLOPs of one token's forward and backward pass (PaLM, Chowdhery et al. 2022, appendix B).

    6 per weight that multiplies (the input embedding does not, the head does) and 12 per layer, head dimension and
    position for attention, masks and windows not deducted.
    """
    looked_up = (0 if shape.tied else shape.vocab_size) + (shape.max_position_embeddings if shape.position == "learned" else 0)
    head_and_body = shape.num_parameters() - looked_up * shape.hidden_size
    return 6 * head_and_body + 12 * shape.num_layers * shape.query_size * sequence_length


def _logits_bytes(shape: ModelShape, parallel: Parallel, phase: Phase) -> float:
    positions = phase.sequence_length * phase.micro_batch_size // parallel.context
    rows = -(-shape.vocab_size // parallel.tensor)
    if not slices_logits(phase.logits, positions * rows):
        return 8 * positions * shape.vocab_size / parallel.tensor
    return 12 * min(LOGITS_OF_A_SLICE, positions * rows) + 4 * positions * shape.hidden_size


def checkpoint_bytes(shape: ModelShape, phase: Phase, precision: str) -> float:
    """Bytes of one checkpoint: all weights, and the optimizer's state of those that train."""
    weights = weight_bytes(precision) * shape.num_parameters()
    return weights + _kept_bytes(phase.optimizer, precision, _moments(phase.optimizer)) * trained_parameters(shape, phase.train)


def checkpoints_bytes(shape: ModelShape, phase: Phase, precision: str, steps: int | None) -> float:
    """Bytes of all checkpoints of a phase that lie on the disk at one time; ``steps`` None: not known yet, then without those
    of ``keep_every``."""
    count = phase.checkpoints(steps) if steps is not None else phase.keep_last + bool(phase.save_every)
    return count * checkpoint_bytes(shape, phase, precision)


BYTES_PER_TOKEN = 4  # of text, until a corpus is tokenized
UNPACKED = 4  # times the size of a compressed corpus


def text_bytes(files: Sequence[Path]) -> float:
    """Bytes of text in the files of a corpus, roughly."""
    return sum(file.stat().st_size * (UNPACKED if file.suffix in (".gz", ".zst", ".parquet") else 1) for file in files)


def corpus_bytes(files: Sequence[Path], vocab_size: int, held_out: float) -> float:
    """Bytes of a tokenized corpus and its held-out text; roughly, from the sizes of its files."""
    text = text_bytes(files)
    return text * (1 - held_out) / BYTES_PER_TOKEN * (2 if vocab_size <= 65536 else 4) + text * held_out


def _ramp_up(phase: Phase) -> str:
    ramp = phase.ramp_up
    return "" if ramp is None else f", from {ramp.start} in the first {ramp.over:,} steps"


def _memory(shape: ModelShape, parallel: Parallel, phase: Phase, precision: str) -> str:
    chosen = ("full", "none") if phase.recompute == "auto" else (phase.recompute,)
    found = [memory_per_rank(shape, parallel, phase.model_copy(update={"recompute": one}), precision) / 1e9 for one in chosen]
    return " to ".join(f"~{size:.2f}" for size in found) + " GB" + (", as the GPU has (recompute: auto)" if len(found) > 1 else "")


def rows(
    phases: list[tuple[str, Phase, ModelShape]], parallel: Parallel, precision: str, tokens: Mapping[str, Mapping[str, int]]
) -> list[dict[str, str]]:
    """One row of readable numbers for each (branch, phase, shape).

    ``tokens``: those of the corpora that are already tokenized, for the branch ``base`` and for all others (``adapted``).
    """
    table = []
    for branch, phase, shape in phases:
        per_step = recipes.tokens_per_step(phase)
        try:
            steps = recipes.steps(phase, tokens["base" if branch == "base" else "adapted"])
        except KeyError:
            steps = None  # epochs of a corpus that is not tokenized yet
        table.append(
            {
                "phase": f"{branch}/{phase.name}",
                "parameters": f"{shape.num_parameters():,}",
                "steps": f"{steps:,}" if steps is not None else f"{phase.epochs:g} epochs",
                "tokens": f"{phase.samples(steps) * phase.sequence_length:,}" if steps is not None else "known after preprocessing",
                "batch": f"{phase.batch_size} x {phase.sequence_length} = {per_step:,} tokens" + _ramp_up(phase),
                "split": f"{parallel.data} data ranks x {recipes.accumulation(phase, parallel)} micro-batches of "
                f"{phase.micro_batch_size}"
                + (f", sequences among {parallel.context} ranks" if parallel.context > 1 else ""),
                "memory per rank": _memory(shape, parallel, phase, phase.precision or precision),
            }
        )
    return table
