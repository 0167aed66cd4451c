"""FOCUS against the package of its authors: the same vectors, the same rows, and how long both take.

The Mistral tokenizer is exchanged for a German one of 32,768 pieces, with a synthetic source matrix and synthetic vectors of the
target's tokens. Both sides start with two loaded tokenizers, the vectors in memory, and end with the new
matrix in float32. Peer: ``deepfocus`` (vectors are handed to it as the dictionary that it uses a fastText model as).

    pip install deepfocus    # into an environment that has megatron_adapt
    python benchmarks/focus_speed.py --source mistral-7b-v0.1 --target de-32k --width 4096

Prints seconds, processor seconds, peak memory beyond the start and the largest relative difference, and with --json writes them.
Each side runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

OURS, PEER = "megatron_adapt", "deepfocus"
SPECIAL = 4  # ids at the front: <unk>, <s>, </s>, <pad>


def vectors(size: int, dim: int, seed: int) -> np.ndarray:
    """Vectors with the cosines that learned ones have: each is a topic's, with noise of its own; float32 [size, dim]."""
    generator = np.random.default_rng(seed)
    topics = generator.normal(size=(max(1, size // 40), dim))
    found = (topics[generator.integers(len(topics), size=size)] + generator.normal(size=(size, dim))).astype(np.float32)
    found[:SPECIAL] = 0  # the peer takes special tokens for words
    return found


def source_matrix(rows: int, width: int, seed: int) -> Any:
    import torch

    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 0.02


def ours(given: argparse.Namespace) -> tuple[np.ndarray, float, float, int]:
    from megatron_adapt.hf.tokenizer import Tokenizer
    from megatron_adapt.vocab.material import Material
    from megatron_adapt.vocab.methods import focus, read_options

    source, target = Tokenizer.load(given.source), Tokenizer.load(given.target)
    known, matrix = vectors(target.vocab_size, given.dim, given.seed), source_matrix(source.vocab_size, given.width, given.seed)
    options = read_options("focus", {"variant": "original", "vectors": "in memory"})

    def work() -> np.ndarray:
        maps = focus.from_vectors(Material(target, source), options, known)
        return maps.input.apply(matrix, given.seed).numpy()

    return measured(work)


def peer(given: argparse.Namespace) -> tuple[np.ndarray, float, float, int]:
    from transformers import PreTrainedTokenizerFast

    import deepfocus.focus as package

    source, target = (PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json")) for path in (given.source, given.target))
    known, matrix = vectors(len(target), given.dim, given.seed), source_matrix(len(source), given.width, given.seed)
    by_token = dict(zip(target.convert_ids_to_tokens(range(len(target))), known))
    package.load_target_token_embedding = lambda **_: by_token

    def work() -> np.ndarray:
        rows = package.FOCUS(target, source, matrix, fasttext_model_path="in memory", verbosity="silent")
        return rows.numpy()

    return measured(work)


def measured(work: Any) -> tuple[np.ndarray, float, float, int]:
    """The rows; seconds; processor seconds; bytes of memory beyond what was held before."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, spent = time.perf_counter(), time.process_time()
    rows = work()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return rows, time.perf_counter() - began, time.process_time() - spent, (peak - before) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="directory of the old tokenizer")
    parser.add_argument("--target", type=Path, required=True, help="directory of the new tokenizer")
    parser.add_argument("--width", type=int, default=4096, help="of the source matrix")
    parser.add_argument("--dim", type=int, default=100, help="of the vectors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeat", type=int, default=3, help="runs of each, of which the median counts")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    parser.add_argument("--side", choices=(OURS, PEER), help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        rows, seconds, processor, memory = (ours if given.side == OURS else peer)(given)
        with given.rows.open("wb") as stream:
            np.save(stream, rows)
            stream.flush()
            os.fsync(stream.fileno())  # else half a gigabyte is written while the next run is timed
        print(json.dumps({"seconds": seconds, "processor_seconds": processor, "peak_bytes": memory}))
        return
    with tempfile.TemporaryDirectory() as folder:
        files = {side: Path(folder) / f"{side}.npy" for side in (OURS, PEER)}
        runs: dict[str, list[dict[str, float]]] = {OURS: [], PEER: []}
        for _ in range(given.repeat):  # in turn: the machine's speed is not the same for ever
            for side, found in runs.items():
                found.append(one_side(side, files[side]))
        mine, theirs = (np.load(files[side], mmap_mode="r") for side in (OURS, PEER))
        difference, compared = largest_difference(given, mine, theirs)
    middle = {side: {key: statistics.median(run[key] for run in found) for key in found[0]} for side, found in runs.items()}
    for side, run in middle.items():
        print(f"{side:<16}{run['seconds']:9.2f} s {run['processor_seconds']:9.2f} s of processors {run['peak_bytes'] / 1e9:7.2f} GB beyond the start")
    ratio = middle[PEER]["seconds"] / middle[OURS]["seconds"]
    print(f"{ratio:.1f} times as fast; {compared:,} rows, largest difference {difference:.1e} of the largest value")
    if given.json:
        given.json.write_text(json.dumps({"runs": runs, "ratio": ratio, "difference": difference, "rows": compared}, indent=1))


def one_side(side: str, rows: Path) -> dict[str, float]:
    command = [sys.executable, *sys.argv, "--side", side, "--rows", str(rows)]
    quiet = subprocess.DEVNULL if side == PEER else None  # its progress bars
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=quiet, text=True).stdout.splitlines()[-1])


def largest_difference(given: argparse.Namespace, mine: np.ndarray, theirs: np.ndarray) -> tuple[float, int]:
    """Relative to the largest value; and the number of rows compared, which are those that neither side has drawn."""
    from megatron_adapt.hf.tokenizer import Tokenizer
    from megatron_adapt.vocab.material import Material
    from megatron_adapt.vocab.methods import focus, read_options

    source, target = Tokenizer.load(given.source), Tokenizer.load(given.target)
    options = read_options("focus", {"variant": "original", "vectors": "in memory"})
    known = vectors(target.vocab_size, given.dim, given.seed)
    fixed = ~focus.from_vectors(Material(target, source), options, known).input.drawn
    rows = np.flatnonzero(fixed)
    rows = rows[rows >= SPECIAL]
    largest = max(float(np.abs(mine[block] - theirs[block]).max()) for block in np.array_split(rows, 16))
    return largest / float(np.abs(theirs).max()), len(rows)


if __name__ == "__main__":
    main()
