"""The speed measurements of first_call.py: one training step of a model of TinyLlama's shape (1.1B) in bfloat16.

Each contestant runs in a process of its own, which also measures the device's own matrix product, so that every figure
comes with the peak that the device reached in the same minutes.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import token_ids
import torch
import workload

from megatron_adapt.analysis import estimate
from megatron_adapt.config import Phase
from megatron_adapt.engine import backend, loop, metrics
from megatron_adapt.engine.backend import Layout
from megatron_adapt.families.llama import FAMILY
from megatron_adapt.hf.directory import read_json

WARM_UP, STEPS = 4, 12


class Enough(Exception):
    """Raised after the last measured step: the checkpoint at the end of a run would only cost time here."""


def sizes(tiny: bool) -> tuple[dict, int, int, int]:
    """Model, tokens per sequence, sequences per step, sequences per forward pass."""
    return (workload.SIZES["260k"], 64, 4, 2) if tiny else (workload.SIZES["1b"], 2048, 16, 4)


def matmul_peak(tiny: bool) -> float:
    """TFLOP/s of a square bfloat16 product (8192), the best of five runs of ten."""
    n = 256 if tiny else 8192
    a, b = (torch.randn(n, n, dtype=torch.bfloat16, device=backend.device()) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        backend.synchronize()
        began = time.perf_counter()
        for _ in range(10):
            torch.mm(a, b)
        backend.synchronize()
        best = min(best, (time.perf_counter() - began) / 10)
    return 2 * n**3 / best / 1e12


def report(tiny: bool, hf: Path, seconds: list[float], losses: list[float]) -> dict:
    _, length, batch, _ = sizes(tiny)
    shape = FAMILY.read_config(read_json(hf / "config.json"))
    median = statistics.median(seconds[WARM_UP:])
    memory = backend.peak_memory() / 1e9
    peak = matmul_peak(tiny)
    tflops = length * batch / median * estimate.flops_per_token(shape, length) / 1e12
    return {
        "tokens_per_second": length * batch / median,
        "tflops": tflops,
        "matmul_tflops": peak,
        "share_of_matmul": tflops / peak,
        "step_seconds": median,
        "memory_gb": memory,
        "parameters": shape.num_parameters(),
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }


def prepare(tiny: bool, scratch: Path) -> tuple[Path, Path, Phase]:
    """Model, corpus and phase of the measurements, made by the first of them; starts the backend."""
    model, length, batch, micro_batch = sizes(tiny)
    phase = workload.phase(WARM_UP + STEPS + 1, length, batch, micro_batch)
    shared = scratch / "speed"
    text = token_ids.corpus(model["vocab_size"], scratch, tiny)
    if not shared.exists():
        partial = Path(tempfile.mkdtemp(dir=scratch))
        workload.write_model(partial / "hf", model, "bfloat16", tokenizer=text / "tokenizer")
        partial.rename(shared)
    backend.start(Layout(), workload.SEED)
    return shared / "hf", text / "corpus", phase


def engine(tiny: bool, scratch: Path, spec: str) -> dict:
    """The engine's own loop; a step is all that passes between two of its log lines."""
    from sections import use

    use(spec)
    hf, corpus, phase = prepare(tiny, scratch)
    start = workload.import_model(scratch / f"{spec}_start", hf, "bf16-mixed")
    output = scratch / f"{spec}_output"
    moments = [time.perf_counter()]

    def turn(_: str) -> None:
        moments.append(time.perf_counter())
        if len(moments) > WARM_UP + STEPS:
            raise Enough

    try:
        loop.train(workload.job(phase, "bf16-mixed", start, output, corpus), log=turn)
    except Enough:
        losses = [line["loss"] for line in metrics.read_lines(output / "metrics.jsonl")]
    seconds = [after - before for before, after in zip(moments, moments[1:])]
    return {"precision": "bf16", **report(tiny, hf, seconds, losses)}


def transformers(tiny: bool, scratch: Path, precision: str) -> dict:
    """The loop written by hand, with torch's fused AdamW. "bf16" is the engine's arithmetic: autocast."""
    hf, corpus, phase = prepare(tiny, scratch)
    peer = workload.TransformersLoop(hf, phase.optimizer, precision, fused=True)
    stream = workload.batches(phase, hf, corpus)
    seconds, losses = [], []
    for _ in range(WARM_UP + STEPS):
        began = time.perf_counter()
        losses.append(peer.step(next(stream)))
        seconds.append(time.perf_counter() - began)
    return report(tiny, hf, seconds, losses)
