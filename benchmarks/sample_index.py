"""How fast the order of documents of an epoch is known, and in how much memory, against Megatron's C++ helper.

    python benchmarks/sample_index.py [--documents 20M] [--mean 600] [--length 2048] [--runs 3]

Claim: for 20 to 100 million documents (synthetic lengths) as fast as Megatron Core's `build_sample_idx`, with 64-bit
positions and no more memory. Ours shuffles the documents and finds the index; the helper is given documents that numpy
has shuffled, as Megatron does, which is timed by itself. Times are of the processor, of which both use one core. The
sides take turns, each in a process of its own, so that the peak of memory (beyond the lengths) is its own; both indices
are checked against the sum of all lengths. Exits with 1 when ours is slower than the helper alone or needs more memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


def lengths(documents: int, mean: int) -> np.ndarray:
    """Lognormal, as lengths of web pages roughly are; int32."""
    draw = np.random.default_rng(0)
    found = np.empty(documents, dtype=np.int32)
    for start in range(0, documents, 1 << 16):  # little at a time: what is measured is the growth of the peak
        part = found[start : start + (1 << 16)]
        part[:] = np.clip(draw.lognormal(np.log(mean) - 0.5, 1.0, len(part)), 1, 2**20)
    return found


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def ours(sizes: np.ndarray, total: int, length: int) -> dict[str, float]:
    from megatron_adapt import _C

    before, began = peak(), time.process_time()
    order = _C.DocumentOrder(sizes, 1, 1234, None, 0)
    starts = order.starts()
    seconds = time.process_time() - began
    memory = peak() - before
    assert starts[-1] == total
    began, samples = time.process_time(), range(0, total - length, max(1, total // 10_000))
    for begin in samples:
        order.pieces(starts, begin, begin + length + 1)
    each = (time.process_time() - began) / len(samples)
    return {"index": seconds, "shuffle": 0.0, "memory": memory, "stored": starts.nbytes, "sample": each}


def helper(sizes: np.ndarray, total: int, length: int) -> dict[str, float]:
    from megatron.core.datasets import helpers_cpp

    before, began = peak(), time.process_time()
    documents = np.arange(len(sizes), dtype=np.int32)
    np.random.RandomState(1234).shuffle(documents)
    shuffled = time.process_time()
    index = helpers_cpp.build_sample_idx_int32(sizes, documents, length, 1, total, True, 1)
    seconds = time.process_time() - shuffled
    assert len(index) == (total - 1) // length + 1
    stored = documents.nbytes + index.nbytes
    return {"index": seconds, "shuffle": shuffled - began, "memory": peak() - before, "stored": stored}


SIDES = {"ours": ours, "helper": helper}


def measure(side: str, arguments: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--side", side, "--documents", str(arguments.documents)]
    command += ["--mean", str(arguments.mean), "--length", str(arguments.length)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--documents", type=lambda text: int(float(text.replace("M", "e6"))), default=20_000_000)
    add("--mean", type=int, default=600, help="tokens a document")
    add("--length", type=int, default=2048, help="tokens a sample")
    add("--runs", type=int, default=3)
    add("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        sizes = lengths(arguments.documents, arguments.mean)
        print(json.dumps(SIDES[arguments.side](sizes, int(sizes.sum(dtype=np.int64)), arguments.length)))
        return
    runs = {side: [] for side in SIDES}
    for _ in range(arguments.runs):
        for side, results in runs.items():
            results.append(measure(side, arguments))
    median = {side: {key: statistics.median(r[key] for r in rs) for key in rs[0]} for side, rs in runs.items()}
    print(f"{arguments.documents:,} documents of {arguments.mean} tokens, samples of {arguments.length}")
    for side, found in median.items():
        print(
            f"{side:8} index {found['index']:.2f} s, shuffle before {found['shuffle']:.2f} s, "
            f"peak {found['memory'] / 1e6:,.0f} MB, kept {found['stored'] / 1e6:,.1f} MB"
        )
    mine, peer = median["ours"], median["helper"]
    whole = (peer["index"] + peer["shuffle"]) / mine["index"]
    alone = peer["index"] / mine["index"]
    print(f"ours is {alone:.2f}x the helper's speed, {whole:.2f}x with the shuffle that ours includes;")
    print(f"a sample is found in {mine['sample'] * 1e6:.1f} us")
    sys.exit(int(mine["index"] > peer["index"] or mine["memory"] > peer["memory"] or mine["stored"] > peer["stored"]))


if __name__ == "__main__":
    main()
