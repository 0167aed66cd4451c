"""The throughput table of first_call.py: real shapes with random weights, each row a process, its peers in the same process.

A step is what the engine's loop does in one: forward and backward passes of its micro-batches, clipping, the update; without
reading data or writing metrics. Token ids are those of text (``token_ids``). What a GPU's memory cannot hold has fewer layers,
or computes some of them again, and says so.
"""

from __future__ import annotations

import gc
import itertools
import math
import statistics
import time
from pathlib import Path
from typing import Any, Callable, Iterator

import fitting
import token_ids
import torch
import workload
from megatron.core.distributed import finalize_model_grads

from megatron_adapt.analysis import estimate
from megatron_adapt.config import Parallel, Phase
from megatron_adapt.config_phases import BF16_ALONE
from megatron_adapt.engine import backend, chunks, fp8, losses, model as models, optimizer as optimizers
from megatron_adapt.engine.backend import Layout
from megatron_adapt.engine.batches import Batch
from megatron_adapt.families.family import ModelShape
from megatron_adapt.families.llama import FAMILY

WARM_UP, STEPS = 3, 20
SHAPES = {
    "llama-8b": workload.llama(128_256, 4096, 14336, 32, 32, 8, tied=False),
    "llama-1b": workload.llama(128_256, 2048, 8192, 16, 32, 8),
    "mistral-7b": workload.llama(32_000, 4096, 14336, 32, 32, 8, tied=False),
    "tiny": workload.llama(640, 64, 176, 4, 4, 2, tied=False),
}


def family_config(sizes: dict[str, Any], length: int) -> dict[str, Any]:
    given = {key: value for key, value in sizes.items() if key != "vocab_size"}
    return FAMILY.complete_config({**given, "max_position_embeddings": max(length, 4096)}, sizes["vocab_size"], bos=0, eos=1)


class Engine:
    """One rank's training as ``loop`` sets it up, with weights drawn on the device."""

    def __init__(self, sizes: dict[str, Any], phase: Phase, precision: str, spec: str) -> None:
        from sections import use

        use(spec)
        forget()
        backend.start(Layout(), workload.SEED)
        self.shape: ModelShape = FAMILY.read_config(family_config(sizes, phase.sequence_length))
        self.phase, self.precision = phase, precision
        bare = models.build(self.shape, Layout(), precision, phase.recompute, phase.logits)
        fp8.set_history(bare.config, phase.amax_history, phase.amax_choice)
        with torch.no_grad():
            for parameter in bare.parameters():
                parameter.normal_(0, 0.02) if parameter.dim() > 1 else parameter.fill_(1)
        models.freeze(bare, [phase.train] if isinstance(phase.train, str) else list(phase.train))
        losses.regularize(bare, phase.optimizer)
        self.model = models.wrap(bare, precision).train()
        self.optimizer = optimizers.build(phase.optimizer, self.model, precision, workload.SEED)
        bare.config.no_sync_func = self.model.no_sync
        bare.config.finalize_model_grads_func = finalize_model_grads
        bare.config.grad_scale_func = self.optimizer.scale_loss
        optimizers.set_learning_rate(self.optimizer, 1e-2)  # random weights: it is speed that counts
        self.forward = losses.language_model_loss(1)

    def step(self, batch: Batch) -> float:
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        count, rows, width = batch.tokens.shape
        size = (width - 1, rows) if batch.lengths is None else ((width - 1) * rows, 1)
        scale = None if batch.weights is None else count / float(batch.weights.sum())
        outputs = chunks.run(
            self.forward, self.model, lambda: losses.micro_batches(batch, scale), count, *size, forward_only=False
        )
        optimizers.prepare(self.optimizer)
        optimizers.clip(self.optimizer, self.phase.optimizer.clip_grad)
        optimizers.update(self.optimizer)
        total, targets, _ = sum(outputs).tolist()
        return total[0] / targets[0]


def forget() -> None:
    """Free what an earlier contestant of this process left."""
    gc.collect()
    backend.empty_cache()
    if backend.has_gpu():
        torch.cuda.reset_peak_memory_stats()


def held() -> int:
    return torch.cuda.memory_allocated() if backend.has_gpu() else 0


def chunked(phase: Phase, text: Path) -> Batch:
    """Text of ``token_ids.corpus``, cut into samples."""
    shape = (phase.batch_size // phase.micro_batch_size, phase.micro_batch_size, phase.sequence_length + 1)
    tokens = token_ids.read(text, math.prod(shape)).view(shape)
    return Batch(tokens, torch.zeros(shape[:2], dtype=torch.int64))


def packed(phase: Phase, text: Path, lengths: Iterator[int]) -> Batch:
    """Documents of these lengths laid one after the other, cut where a sample ends."""
    batch = chunked(phase, text)
    batch.weights = torch.ones(*batch.tokens.shape[:2], phase.sequence_length)
    batch.lengths = []
    for weights in batch.weights:
        found: list[int] = []
        for row in weights:
            place = 0
            while place < len(row):
                length = min(next(lengths), len(row) - place)
                found.append(length)
                place += length
                row[place - 1] = 0
        batch.lengths.append(tuple(found))
    return batch


def document_lengths(median: float, spread: float, most: int) -> Iterator[int]:
    """Log-normal lengths, for ever the same."""
    draw = torch.Generator().manual_seed(workload.SEED)
    while True:
        yield int((median * torch.randn((), generator=draw).mul(spread).exp()).clamp(8, most))


def median_seconds(step: Callable[[], float], tiny: bool) -> tuple[float, list[float]]:
    """(seconds of a step after warming up, losses)"""
    seconds, found = [], []
    for _ in range(3 if tiny else WARM_UP + STEPS):
        backend.synchronize()
        began = time.perf_counter()
        found.append(step())
        backend.synchronize()
        seconds.append(time.perf_counter() - began)
    assert all(value == value and value < 50 for value in found), f"losses {found}"
    return statistics.median(seconds[1 if tiny else WARM_UP :]), found


def fitted(sizes: dict[str, Any], phase: Phase, precision: str) -> fitting.Fit:
    """How much of the shape this GPU's memory holds."""

    def shape_of(layers: int) -> ModelShape:
        return FAMILY.read_config(family_config({**sizes, "num_hidden_layers": layers}, phase.sequence_length))

    memory = torch.cuda.mem_get_info()[1] if backend.has_gpu() else math.inf
    return fitting.first(shape_of, sizes["num_hidden_layers"], phase, precision, memory)


def measure(name: str, tiny: bool, text: Path, phase: Phase, precision: str, spec: str, batch: Batch | None = None) -> dict[str, Any]:
    """One contestant: its speed, memory, and what ``check`` would have said of it."""
    from throughput import matmul_peak

    whole, asked, too_much = SHAPES["tiny" if tiny else name], phase.recompute, []
    fit = fitted(whole, phase, precision)
    batch = batch or chunked(phase, text)
    while True:
        sizes, phase = {**whole, "num_hidden_layers": fit.layers}, phase.model_copy(update={"recompute": fit.recompute})
        try:
            engine = Engine(sizes, phase, precision, spec)
            seconds, found = median_seconds(lambda: engine.step(batch), tiny)
            break
        except torch.OutOfMemoryError:
            too_much.append(list(fit))
        # Out of the handler: the error holds on to what was being computed with.
        engine, less = None, fitting.after_out_of_memory(fit, asked)
        assert less is not None, f"not one layer fits into the memory of {backend.name()}"
        fit = less
    shape, length = engine.shape, phase.sequence_length
    tokens = batch.tokens[..., 1:].numel()
    tflops = tokens / seconds * estimate.flops_per_token(shape, length) / 1e12
    memory, guess = backend.peak_memory(), estimate.memory_per_rank(shape, Parallel(), phase, precision)
    state, parameters = held(), shape.num_parameters()
    del engine
    forget()
    peak = matmul_peak(tiny)
    full = FAMILY.read_config(family_config(whole, length))
    return {
        "precision": "fp8" if precision.startswith("fp8") else "bf16", "mode": precision, "spec": spec,
        "tokens_per_second": tokens / seconds, "tflops": tflops, "matmul_tflops": peak, "share_of_matmul": tflops / peak,
        "step_seconds": seconds, "memory_gb": memory / 1e9, "estimated_gb": guess / 1e9, "estimated_to_measured": guess / memory,
        "state_bytes_per_parameter": state / parameters, "parameters": parameters, "recompute": phase.recompute,
        "layers": sizes["num_hidden_layers"], "of_layers": whole["num_hidden_layers"], "too_much": too_much,
        "tokens_per_second_at_full_depth": tflops * 1e12 / estimate.flops_per_token(full, length),
        "first_loss": found[0], "last_loss": found[-1], "ids": token_ids.described(text),
        # What it was, for predictions of the same: ``plan --cluster``.
        "config": family_config(sizes, length), "phase": phase.model_dump(mode="json", exclude_defaults=True),
    }  # fmt: skip


def phase_of(tiny: bool, length: int, batch: int, micro: int, **changes: Any) -> Phase:
    return workload.phase(1000, 64 if tiny else length, 4 if tiny else batch, 2 if tiny else micro, **changes)


# ---------------------------------------------------------------------------------------------------------------- rows


def llama_8b(tiny: bool, scratch: Path, spec: str, precision: str) -> dict:
    """Full parameters at 8,192 tokens; with bf16 alone they are to take at most 10 bytes each."""
    phase = phase_of(tiny, 8192, 4, 1, recompute="auto")
    found = measure("llama-8b", tiny, text(tiny, scratch, "llama-8b"), phase, precision, spec)
    if precision in BF16_ALONE:
        assert found["state_bytes_per_parameter"] <= 10, found
    return found


def documents(tiny: bool, scratch: Path) -> tuple[Phase, Path, Batch]:
    """What ``llama_1b_packed`` and its peer train on."""
    phase, ids = phase_of(tiny, 4096, 8, 2, packing="documents"), text(tiny, scratch, "llama-1b")
    return phase, ids, packed(phase, ids, document_lengths(400, 1.0, phase.sequence_length))


def llama_1b_packed(tiny: bool, scratch: Path, spec: str) -> dict:
    """Packed documents, kept apart."""
    phase, ids, batch = documents(tiny, scratch)
    return measure("llama-1b", tiny, ids, phase, "bf16-mixed", spec, batch)


def llama_1b_transformers(tiny: bool, scratch: Path) -> dict:
    """Its peer: plain transformers, eager and compiled, on the same ids without keeping documents apart."""
    from importlib.util import find_spec

    from transformers import AutoConfig, AutoModelForCausalLM

    phase, _, batch = documents(tiny, scratch)
    backend.start(Layout(), workload.SEED)
    config = family_config(SHAPES["tiny" if tiny else "llama-1b"], phase.sequence_length)
    attention = "flash_attention_2" if find_spec("flash_attn") and backend.has_gpu() else "sdpa"
    found: dict[str, Any] = {"peer_attention": attention}
    for name in ("eager", "compiled"):
        forget()
        with backend.device():  # a billion random numbers are a matter of seconds there, of a minute on a CPU
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), attn_implementation=attention)
        peer = workload.TransformersLoop(model, phase.optimizer, "bf16", fused=True)
        if name == "compiled":
            # What is compiled has to be one graph for all: CPU's compiler takes minutes, and proves nothing here.
            peer.model.compile(backend="eager" if tiny else "inductor")
        seconds, _ = median_seconds(lambda: peer.step(batch.tokens), tiny)
        found[f"{name}_tokens_per_second"] = batch.tokens[..., 1:].numel() / seconds
        found[f"{name}_memory_gb"] = backend.peak_memory() / 1e9
        del model, peer
    return found


def text(tiny: bool, scratch: Path, name: str) -> Path:
    return token_ids.corpus(SHAPES[name]["vocab_size"], scratch, tiny)


def mistral_7b(tiny: bool, scratch: Path, spec: str) -> dict:
    """bf16-true against bf16-mixed, with as many layers as the latter allows."""
    phase = phase_of(tiny, 4096, 4, 2, recompute="full")
    sizes = SHAPES["tiny" if tiny else "mistral-7b"]
    SHAPES["fitted"] = {**sizes, "num_hidden_layers": fitted(sizes, phase, "bf16-mixed").layers}
    ids = text(tiny, scratch, "mistral-7b")
    found = {"bf16-mixed": measure("fitted", tiny, ids, phase, "bf16-mixed", spec)}
    SHAPES["fitted"]["num_hidden_layers"] = found["bf16-mixed"]["layers"]
    found["bf16-true"] = measure("fitted", tiny, ids, phase, "bf16-true", spec)
    ratio = found["bf16-true"]["tokens_per_second"] / found["bf16-mixed"]["tokens_per_second"]
    return found["bf16-true"] | {"of_layers": sizes["num_hidden_layers"], "times_bf16_mixed": ratio, "bf16_mixed": found["bf16-mixed"]}


def embedding_only(tiny: bool, scratch: Path, spec: str) -> dict:
    """A phase that trains embedding and output alone against one that trains everything."""
    found = {}
    for name, train in (("full", "all"), ("embedding", ["embedding", "output"])):
        phase = phase_of(tiny, 4096, 4, 2, recompute="full", train=train)
        found[name] = measure("mistral-7b", tiny, text(tiny, scratch, "mistral-7b"), phase, "bf16-true", spec)
    ratio = found["embedding"]["tokens_per_second"] / found["full"]["tokens_per_second"]
    # The model's FLOPs are those of full training: shares of a peak mean nothing for a phase that leaves gradients out.
    kept = ("tokens_per_second", "step_seconds", "memory_gb")
    return {"times_full": ratio} | {f"{name}_{key}": found[name][key] for name in found for key in kept} | {"full": found["full"]}


def packed_chat(tiny: bool, scratch: Path, spec: str) -> dict:
    """Conversations packed without seeing one another, against batches padded to their longest."""
    phase, ids = phase_of(tiny, 4096, 8, 4, packing="documents"), text(tiny, scratch, "llama-1b")
    most = phase.sequence_length
    draws = list(itertools.islice(document_lengths(most / 16, 0.9, most), 32))
    pack = packed(phase, ids, document_lengths(most / 16, 0.9, most))
    rows = measure("llama-1b", tiny, ids, phase, "bf16-mixed", spec, pack)
    useful = rows["tokens_per_second"] * float(pack.weights.mean())
    width, padded_phase = max(draws), phase_of(tiny, 4096, 8, 4)
    padded = chunked(padded_phase.model_copy(update={"sequence_length": width, "batch_size": len(draws)}), ids)
    plain = measure("llama-1b", tiny, ids, padded_phase, "bf16-mixed", spec, padded)
    share = (sum(draws) - len(draws)) / (len(draws) * width)
    padded_useful = plain["tokens_per_second"] * share
    return {
        "useful_tokens_per_second": useful, "padded_useful_tokens_per_second": padded_useful, "times_padded": useful / padded_useful,
        "padding_share": 1 - share, "packed": rows, "padded": plain,
    }  # fmt: skip
