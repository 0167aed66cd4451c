"""How long the command line takes to answer.

    python benchmarks/startup.py [--runs 5]

Claim: `megatron-adapt --help` answers within 0.5 s and `megatron-adapt check examples/quickstart/recipe.yaml` within
1 s, wall clock, median of 5 with a warm file cache. Peer: `python -c 'import torch'`, which anything that touches a
model has to pay first. The commands take turns. Exits with 1 when a limit is exceeded.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PEER = "python -c 'import torch'"
COMMANDS = {  # shown as -> what runs, seconds allowed
    "megatron-adapt --help": (["-m", "megatron_adapt", "--help"], 0.5),
    "megatron-adapt check": (["-m", "megatron_adapt", "check", "examples/quickstart/recipe.yaml"], 1.0),
    PEER: (["-c", "import torch"], None),
}


def seconds(arguments: list[str]) -> float:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    began = time.perf_counter()
    output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, **output)
    elapsed = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"python {' '.join(arguments)} failed with exit code {done.returncode}:\n{done.stderr}")
    return elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="measured runs of each, after one to warm the file cache")
    runs = parser.parse_args().runs
    measured: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs + 1):
        for name, (arguments, _) in COMMANDS.items():
            measured[name].append(seconds(arguments))
    medians = {name: statistics.median(values[1:]) for name, values in measured.items()}
    slow = False
    for name, (_, limit) in COMMANDS.items():
        slow |= limit is not None and medians[name] > limit
        faster = medians[PEER] / medians[name]
        allowed = "" if limit is None else f", at most {limit} s; {faster:.1f}x faster than the peer"
        print(f"{name:26} {medians[name]:.2f} s (best {min(measured[name][1:]):.2f} s){allowed}")
    sys.exit(int(slow))


if __name__ == "__main__":
    main()
