"""Tokens per second of the engine's optimizer step against a plain transformers + AdamW loop, in one process.

    python benchmarks/engine_overhead.py [--size 260k|20m] [--steps 30] [--peer-fused]

Claim: the engine, with everything a real run does around a step (data, schedule, metrics file, agreement on signals),
is at least as fast as the loop one writes by hand, and computes the same losses. Both train the same random Llama on the
same batches in float32 with gradients clipped to 1; engine step and peer step alternate, so that whatever else the
machine does hits both alike. Exits with 1 when the ratio is below 1 or the losses differ.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from megatron_adapt import launch

WARM_UP = 5
AGREEMENT = 1e-5  # relative, float32, after `steps` optimizer steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=("260k", "20m"), default="260k", help="parameters of the model")
    parser.add_argument("--steps", type=int, default=30, help=f"measured steps, after {WARM_UP} to warm up")
    parser.add_argument("--length", type=int, default=512, help="tokens per sequence")
    parser.add_argument("--batch", type=int, default=8, help="sequences per step")
    parser.add_argument("--micro-batch", type=int, default=8, help="sequences per forward pass")
    parser.add_argument("--threads", type=int, default=launch.cores(), help="threads of torch")
    parser.add_argument("--peer-fused", action="store_true", help="give the peer torch's fused AdamW, not its default")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        launch.fork(1, lambda: measure(arguments, Path(folder)))


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    # Imported in the forked process: torch's threads do not survive a fork.
    import torch
    import workload

    from megatron_adapt.engine import backend, loop, metrics

    torch.set_num_threads(arguments.threads)
    steps = arguments.steps + WARM_UP
    phase = workload.phase(steps, arguments.length, arguments.batch, arguments.micro_batch)
    tokens = phase.batch_size * phase.sequence_length
    hf = workload.write_model(folder / "hf", workload.SIZES[arguments.size])
    corpus = workload.write_corpus(folder, hf, tokens * (steps + 1))
    backend.start(workload.Layout(), workload.SEED)
    start = workload.import_model(folder / "start", hf, "fp32")
    peer = workload.TransformersLoop(hf, phase.optimizer, fused=arguments.peer_fused or None)
    stream = workload.batches(phase, hf, corpus)
    ours, theirs, peer_losses = [], [], []
    clock = time.perf_counter()

    def peer_step(_: str) -> None:
        # The engine logs after every step. Its time is all that passes between two of these calls.
        nonlocal clock
        ours.append(time.perf_counter() - clock)
        began = time.perf_counter()
        peer_losses.append(peer.step(next(stream)))
        clock = time.perf_counter()
        theirs.append(clock - began)

    loop.train(workload.job(phase, "fp32", start, folder / "out", corpus), log=peer_step)
    losses = [line["loss"] for line in metrics.read_lines(folder / "out" / "metrics.jsonl")]
    difference = max(abs(a / b - 1) for a, b in zip(losses, peer_losses))
    ratios = [b / a for a, b in zip(ours[WARM_UP:], theirs[WARM_UP:])]
    print(f"{sum(p.numel() for p in peer.model.parameters()):,} parameters, {tokens:,} tokens a step, {backend.name()}")
    for name, seconds in (("this engine", ours), ("transformers + AdamW" + " (fused)" * arguments.peer_fused, theirs)):
        seconds = seconds[WARM_UP:]
        print(
            f"{name:30} {tokens / statistics.median(seconds):10,.0f} tokens/s   median {statistics.median(seconds):.4f} s "
            f"of {len(seconds)} steps, quartiles {' to '.join(f'{q:.4f}' for q in statistics.quantiles(seconds)[::2])}"
        )
    ratio = statistics.median(theirs[WARM_UP:]) / statistics.median(ours[WARM_UP:])
    print(f"ratio {ratio:.2f}x (median of the ratios of neighbouring steps {statistics.median(ratios):.2f}x)")
    print(f"losses {losses[0]:.6f} -> {losses[-1]:.6f}, largest relative difference over {steps} steps {difference:.1e}")
    if ratio < 1 or not difference < AGREEMENT:
        sys.exit(1)


if __name__ == "__main__":
    main()
