"""Tokens per second of the engine's optimizer step against a plain transformers + AdamW loop.

    python benchmarks/engine_overhead.py [--size 260k|20m] [--length 512 --batch 8 --micro-batch 8] [--peer-fused]

Claim: the engine, with everything a real run does around a step (data, schedule, metrics file, agreement on signals),
is at least as fast as the loop one writes by hand, and computes the same losses. Both train the same random Llama on
the same batches in float32 with gradients clipped to 1, each in a process of its own. They take turns, step by step, so
that whatever else the machine does hits both alike. What the engine's step spends outside forward, backward and the
optimizer is measured in the same run: at most 5 %. Exits with 1 when the ratio is below 1, the losses differ or the
share is above.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Iterator

WARM_UP = 5
OUTSIDE = 0.05  # of the step's processor time, at most
PARTS = ("forward and backward", "optimizer")
AGREEMENT = 1e-5  # relative, float32, over all steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=("260k", "20m"), default="260k", help="parameters of the model")
    parser.add_argument("--steps", type=int, default=30, help=f"measured steps, after {WARM_UP} to warm up")
    parser.add_argument("--length", type=int, default=512, help="tokens per sequence")
    parser.add_argument("--batch", type=int, default=8, help="sequences per step")
    parser.add_argument("--micro-batch", type=int, default=8, help="sequences per forward pass")
    parser.add_argument("--threads", type=int, default=None, help="threads of torch; default: one per core")
    parser.add_argument("--peer-fused", action="store_true", help="give the peer torch's fused AdamW, not its default")
    parser.add_argument("--side", choices=("engine", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        return run_side(arguments)
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(compare(arguments, folder))


def compare(arguments: argparse.Namespace, folder: str) -> int:
    """Let both sides take turns, print what they needed; the exit code."""
    sides, results = {}, {}
    for name in ("engine", "peer"):  # the engine's side makes model and corpus, so it has to have started first
        command = [sys.executable, __file__, *sys.argv[1:], "--side", name, "--folder", folder]
        sides[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        results[name] = [read(sides[name])]  # each takes its first step unasked
    for _ in range(1, arguments.steps + WARM_UP):
        for name, side in sides.items():
            side.stdin.write("step\n")
            side.stdin.flush()
            results[name].append(read(side))
    for side in sides.values():
        side.stdin.close()
        side.wait()
    tokens = arguments.batch * arguments.length
    seconds = {name: [step["seconds"] for step in steps[WARM_UP:]] for name, steps in results.items()}
    processor = {name: statistics.median(step["processor"] for step in results[name][WARM_UP:]) for name in results}
    for name, values in seconds.items():
        low, median, high = statistics.quantiles(values)
        print(
            f"{name:8} {tokens / median:8,.0f} tokens/s   median {median:.4f} s of {len(values)} steps "
            f"of {tokens:,} tokens, quartiles {low:.4f} to {high:.4f}, processor time {processor[name]:.4f} s"
        )
    ratio = statistics.median(seconds["peer"]) / statistics.median(seconds["engine"])
    pairs = statistics.median(peer / ours for ours, peer in zip(*seconds.values()))
    losses = [(ours["loss"], peer["loss"]) for ours, peer in zip(*results.values())]
    difference = max(abs(ours / peer - 1) for ours, peer in losses)
    used = processor["peer"] / processor["engine"]
    print(f"engine / peer {ratio:.2f}x tokens/s ({pairs:.2f}x over neighbouring steps, {used:.2f}x by processor time)")
    parts = {name: statistics.median(step[name] for step in results["engine"][WARM_UP:]) for name in PARTS}
    outside = 1 - sum(parts.values()) / processor["engine"]
    shares = ", ".join(f"{name} {value / processor['engine']:.1%}" for name, value in parts.items())
    print(f"processor time of the engine's step: {shares}, all else {outside:.1%}")
    print(f"losses {losses[0][0]:.6f} -> {losses[-1][0]:.6f}, largest relative difference {difference:.1e}")
    return 0 if ratio >= 1 and difference < AGREEMENT and outside <= OUTSIDE else 1


def read(side: subprocess.Popen) -> dict:
    """The next message of a side, which may print other things as well."""
    for line in side.stdout:
        if line.startswith("{"):
            return json.loads(line)
    raise SystemExit(f"a side ended early with exit code {side.wait()}")


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def send(began: tuple[float, float], ended: tuple[float, float], loss: float, **more: float) -> None:
    seconds, processor = (after - before for before, after in zip(began, ended))
    print(json.dumps({"seconds": seconds, "processor": processor, "loss": loss, **more}), flush=True)


def run_side(arguments: argparse.Namespace) -> None:
    import torch
    import workload

    from megatron_adapt import launch
    from megatron_adapt.engine import backend

    torch.set_num_threads(arguments.threads or launch.cores())
    steps, folder = arguments.steps + WARM_UP, arguments.folder
    phase = workload.phase(steps, arguments.length, arguments.batch, arguments.micro_batch)
    hf, corpus = folder / "hf", folder / "corpus"
    if arguments.side == "peer":
        peer = workload.TransformersLoop(hf, phase.optimizer, fused=arguments.peer_fused or None)
        batches = workload.batches(phase, hf, corpus)
        for number in range(steps):
            if number:
                sys.stdin.readline()
            began = clocks()
            loss = peer.step(next(batches))
            send(began, clocks(), loss)
        return
    workload.write_model(hf, workload.SIZES[arguments.size])
    workload.write_corpus(folder, hf, phase.batch_size * phase.sequence_length * (steps + 1))
    backend.start(workload.Layout(), workload.SEED)
    start = workload.import_model(folder / "start", hf, "fp32")
    run_engine(workload.job(phase, "fp32", start, folder / "out", corpus))


@contextlib.contextmanager
def timed_parts() -> Iterator[dict[str, float]]:
    """Processor seconds of the parts of a step that any loop has, added up while the loop runs."""
    from megatron_adapt.engine import loop

    used = dict.fromkeys(PARTS, 0.0)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            began = time.process_time()
            try:
                return function(*arguments, **keywords)
            finally:
                used[name] += time.process_time() - began

        return call

    timed_ones = [(loop, "run", PARTS[0]), (loop.optimizers, "clip", PARTS[1]), (loop.optimizers, "update", PARTS[1])]
    old = [getattr(module, name) for module, name, _ in timed_ones]
    for (module, name, part), function in zip(timed_ones, old):
        setattr(module, name, timed(part, function))
    try:
        yield used
    finally:
        for (module, name, _), function in zip(timed_ones, old):
            setattr(module, name, function)


def run_engine(job) -> None:
    from megatron_adapt.engine import loop, metrics

    began = clocks()

    def turn(_: str) -> None:
        # The engine logs after every step: its time is all that passes from one of these calls to the next.
        nonlocal began
        ended = clocks()
        send(began, ended, metrics.read_lines(job.output / "metrics.jsonl")[-1]["loss"], **used)
        used.update(dict.fromkeys(used, 0.0))
        sys.stdin.readline()
        began = clocks()

    with timed_parts() as used:
        loop.train(job, log=turn)


if __name__ == "__main__":
    main()
