"""Loss from slices of the vocabulary against whole logits: time, peak memory and differences, in one run.

    python benchmarks/linear_cross_entropy.py [--positions N] [--hidden N] [--vocabulary N] [--dtype float32|bfloat16]

One output layer with cross-entropy, forward and backward, on a GPU or on a CPU. "whole" is what the engine does otherwise:
Megatron's vocabulary-parallel cross-entropy on the matrix of logits. Peak memory: on a GPU above what was there before; on
a CPU that of a process of its own, above one that computes nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Sequence

import torch
from megatron.core import tensor_parallel
from torch import Tensor

from megatron_adapt.engine import backend
from megatron_adapt.engine.backend import Layout
from megatron_adapt.engine.cross_entropy import LinearCrossEntropy


def whole(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return tensor_parallel.vocab_parallel_cross_entropy((hidden @ weight.t())[:, None], labels[:, None])[:, 0]


def sliced(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return LinearCrossEntropy.apply(hidden, weight, labels, 0, None, 0.0)


WAYS = {"whole": whole, "sliced": sliced}


def example(positions: int, hidden: int, vocabulary: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator(backend.device()).manual_seed(0)
    options = {"generator": draw, "device": backend.device()}
    states = torch.randn(positions, hidden, **options).to(dtype).requires_grad_()
    weight = (torch.randn(vocabulary, hidden, **options) / hidden**0.5).to(dtype).requires_grad_()
    return states, weight, torch.randint(vocabulary, (positions,), **options)


def once(way: Callable, states: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    states.grad = weight.grad = None
    losses = way(states, weight, labels)
    losses.mean().backward()
    return losses.detach()


def differences(dtype: torch.dtype, allowed: float) -> dict[str, float]:
    """Of losses and gradients, by the largest; raises where they are more than allowed."""
    backend.start(Layout(), 0)
    states, weight, labels = example(300, 64, 1000, dtype)
    results = {}
    for name, way in WAYS.items():
        results[name] = [once(way, states, weight, labels), states.grad, weight.grad]
    name = str(dtype).removeprefix("torch.")
    found = {
        f"{what} {name}": ((a.float() - b.float()).abs().max() / b.float().abs().max()).item()
        for what, a, b in zip(("loss", "hidden gradient", "weight gradient"), results["sliced"], results["whole"])
    }
    assert max(found.values()) <= allowed, found
    return found


def measure(
    positions: int, hidden: int, vocabulary: int, dtype: torch.dtype, repeats: int, ways: Sequence[str] = tuple(WAYS)
) -> dict[str, float]:
    """Seconds (wall) and peak bytes of both ways, or of these."""
    backend.start(Layout(), 0)
    found = {}
    for name in ways:
        way = WAYS[name]
        states, weight, labels = example(positions, hidden, vocabulary, dtype)
        once(way, states, weight, labels)
        backend.synchronize()
        before = 0
        if backend.has_gpu():
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        began = time.perf_counter()
        for _ in range(repeats):
            once(way, states, weight, labels)
        backend.synchronize()
        found[f"{name}_ms"] = (time.perf_counter() - began) / repeats * 1e3
        if backend.has_gpu():
            found[f"{name}_peak_gb"] = (backend.peak_memory() - before) / 1e9
    if len(ways) == len(WAYS):
        found["sliced_to_whole_time"] = found["sliced_ms"] / found["whole_ms"]
    return found


def peak_of(way: str, positions: int, hidden: int, vocabulary: int, dtype: str) -> float:
    """GB of a fresh process, on a CPU; ``nothing`` stops before the first product."""
    words = [way, str(positions), str(hidden), str(vocabulary), dtype]
    found = subprocess.run([sys.executable, __file__, "--alone", *words], capture_output=True, text=True, check=True)
    return float(found.stdout)


def alone(way: str, positions: str, hidden: str, vocabulary: str, dtype: str) -> None:
    backend.start(Layout(), 0)
    given = example(int(positions), int(hidden), int(vocabulary), getattr(torch, dtype))
    if way in WAYS:
        once(WAYS[way], *given)
    # getrusage counts what the process that started this one held.
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    print(int(line.split()[1]) * 1024 / 1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--positions", type=int, default=8192)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--vocabulary", type=int, default=50_304)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--alone", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        return alone(*given.alone)
    sizes = (given.positions, given.hidden, given.vocabulary)
    found = {"device": backend.name(), **differences(torch.float32, 1e-5), **measure(*sizes, getattr(torch, given.dtype), given.repeats)}
    if not backend.has_gpu():
        nothing = peak_of("nothing", *sizes, given.dtype)
        found |= {f"{way}_peak_gb": peak_of(way, *sizes, given.dtype) - nothing for way in WAYS}
    found["sliced_to_whole_memory"] = found["sliced_peak_gb"] / found["whole_peak_gb"]
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
