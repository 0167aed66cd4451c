"""Import and export against copying the same bytes, and their memory against the promised bound.

    python benchmarks/conversion.py --shape 1b --repeat 3 --folder /some/disk
    python benchmarks/conversion.py --shape 1b --stored float32 --folder /some/disk     # the export rounds to bfloat16
    python benchmarks/conversion.py --shape 7b --folder /some/disk

Synthetic weights in the shapes of Llama 3.2 1B (tied) and Llama 2 7B. The peers, in the same run on the same disk: `cp` and
fsync of the files, and transformers' from_pretrained + save_pretrained. Every command is a process of its own, its start
included; processor seconds are those of all its processes and threads. `--verify off` reads and writes, as cp does;
`--verify weights` reads what was written once more and compares every bit with the source. Takes three times the size of
the model on the disk, and leaves nothing there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Sequence

import numpy as np

from megatron_adapt import launch
from megatron_adapt.families import ModelShape, family_named
from megatron_adapt.families.rules import expand
from megatron_adapt.hf import writer
from megatron_adapt.streams.bits import WIDTHS
from megatron_adapt.vocab.train import train_tokenizer

ROOT = Path(__file__).resolve().parent.parent
SHAPES = {
    "tiny": {
        "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 4, "vocab_size": 8192, "tie_word_embeddings": False,
    },
    "1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True,
    },
    "7b": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 32000, "tie_word_embeddings": False,
    },
}  # fmt: skip
TRANSFORMERS = """
import sys
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto").save_pretrained(sys.argv[2])
"""
TEXTS = ["The quick brown fox jumps over the lazy dog.", "Der Nebel liegt über den Wiesen am Morgen."] * 20


class Synthetic:
    """Weights for a shape: one block of random numbers, repeated; made when asked for."""

    def __init__(self, shape: ModelShape, dtype: str) -> None:
        rules = expand(family_named(shape.family), shape)
        self.sizes = {name: size for rule in rules for name, size in zip(rule.hf, rule.hf_shapes(shape))}
        self.dtype = dtype
        numbers = np.random.default_rng(0).standard_normal(2**20, np.float32).view(np.uint32)
        self.block = numbers if dtype == "float32" else (numbers >> 16).astype(np.uint16)

    def names(self) -> list[str]:
        return list(self.sizes)

    def info(self, name: str) -> tuple[tuple[int, ...], str]:
        return self.sizes[name], self.dtype

    def read(self, name: str, first: int, out: np.ndarray) -> None:
        start = first * math.prod(out.shape[1:])
        flat = out.reshape(-1)
        for at in range(0, len(flat), len(self.block)):
            part = flat[at : at + len(self.block)]
            part[:] = np.roll(self.block, -(start + at))[: len(part)]


def make(shape: ModelShape, dtype: str, source: Path) -> None:
    writer.write(Synthetic(shape, dtype), source)


@dataclass(frozen=True)
class Measured:
    seconds: float
    processor: float  # seconds
    peak: float  # bytes, of the largest process


def measure(command: Sequence[str]) -> Measured:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"failed: {' '.join(command)}")
    return Measured(time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024.0)


def flush(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def copied(source: Path, target: Path) -> Measured:
    began = time.perf_counter()
    found = measure(["cp", "-r", str(source), str(target)])
    flush(target)
    return replace(found, seconds=time.perf_counter() - began)


def through_transformers(source: Path, target: Path) -> Measured:
    began = time.perf_counter()
    found = measure([sys.executable, "-c", TRANSFORMERS, str(source), str(target)])
    flush(target)
    return replace(found, seconds=time.perf_counter() - began)


def once(folder: Path, source: Path, verify: str, dtype: str, with_transformers: bool) -> dict[str, Measured]:
    """One round of all; what each leaves is removed before the next needs the room."""
    ours = [sys.executable, "-m", "megatron_adapt"]
    copies = []

    def copy() -> None:
        copies.append(copied(source, folder / "copy"))
        shutil.rmtree(folder / "copy")

    copy()
    found = {"cp + fsync": copies[0]}
    found["import"] = measure([*ours, "import", str(source), str(folder / "megatron"), "--verify", verify])
    # Again before the export: who writes first into memory full of other files' pages pays for making room.
    copy()
    found["cp + fsync"] = Measured(*(statistics.mean(getattr(each, what.name) for each in copies) for what in fields(Measured)))
    found["export"] = measure([*ours, "export", str(folder / "megatron"), str(folder / "hf"), "--verify", verify])
    if dtype == "bfloat16":
        for file in sorted(source.glob("*.safetensors")):
            subprocess.run(["cmp", str(file), str(folder / "hf" / file.name)], check=True)
    for name in ("megatron", "hf"):
        shutil.rmtree(folder / name)
    if with_transformers:
        found["transformers"] = through_transformers(source, folder / "copy")
        shutil.rmtree(folder / "copy")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--folder", type=Path, help="a disk with room for three times the model; default: the temporary folder")
    parser.add_argument("--verify", choices=("off", "weights"), nargs="+", default=["off", "weights"])
    parser.add_argument("--stored", choices=("bfloat16", "float32"), default="bfloat16", help="dtype of the source; exports are bfloat16")
    parser.add_argument("--no-transformers", action="store_true", help="leave out what holds the whole model in memory")
    parser.add_argument("--repeat", type=int, default=1)
    given = parser.parse_args()
    family = family_named("llama")
    config = family.complete_config(SHAPES[given.shape] | {"dtype": given.stored}, SHAPES[given.shape]["vocab_size"], 0, 1)
    shape = family.read_config(config)
    width = WIDTHS[given.stored]
    size = width * shape.num_parameters()
    largest = width * max(math.prod(each) for each in shape.parameter_shapes().values())
    bound = 2 * largest + 1.5e9
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="conversion-") as name:
        folder = Path(name)
        if (free := shutil.disk_usage(folder).free) < 3.1 * size:
            sys.exit(f"{folder} has {free / 1e9:.0f} GB free; {3.1 * size / 1e9:.0f} GB are needed")
        source = folder / "source"
        # In processes of their own: a child's peak begins with the memory of this one.
        launch.fork(1, lambda: make(shape, given.stored, source))
        (source / "config.json").write_text(json.dumps(config))
        launch.fork(1, lambda: train_tokenizer(TEXTS, 300, folder / "tokenizer"))
        shutil.copytree(folder / "tokenizer", source, dirs_exist_ok=True)
        print(f"{given.shape} in {given.stored}: {shape.num_parameters():,} parameters, {size / 1e9:.2f} GB, largest tensor {largest / 1e9:.2f} GB")
        for verify in given.verify:
            rounds = [once(folder, source, verify, given.stored, not given.no_transformers) for _ in range(given.repeat)]
            print(f"\n--verify {verify}, median of {given.repeat}\n")
            print("| | seconds | times cp | processor seconds | peak GB | bound GB |\n|---|---|---|---|---|---|")
            seconds, processor = (
                {each: statistics.median(getattr(found[each], what) for found in rounds) for each in rounds[0]}
                for what in ("seconds", "processor")
            )
            for each in rounds[0]:
                ratio = seconds[each] / seconds["cp + fsync"]
                peak = max(found[each].peak for found in rounds) / 1e9
                limit = f"{bound / 1e9:.2f}" if each in ("import", "export") else ""
                print(f"| {each} | {seconds[each]:.1f} | {ratio:.2f} | {processor[each]:.1f} | {peak:.2f} | {limit} |", flush=True)


if __name__ == "__main__":
    main()
