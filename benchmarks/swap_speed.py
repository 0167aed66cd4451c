"""Swapping a model's vocabulary against copying the same files, and its memory against the promised bound.

    python benchmarks/swap_speed.py --old TOKENIZER --new TOKENIZER --shape 3b --repeat 3 --folder /some/disk
    python benchmarks/swap_speed.py --old mistral-7b-v0.1 --new de-32k --shape 7b --folder /some/disk

Synthetic bfloat16 weights in files of at most 2 GB (3b) and 5 GB (7b). The peer, in the same run on the same disk: `cp`
and fsync of the files. `megatron-adapt swap` is a process of its own, its start included. Needs twice the size of the model
and the disk's speed varies: take the median of several rounds. Leaves nothing there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from conversion import SHAPES, Measured, Synthetic, copied, measure

from megatron_adapt import launch
from megatron_adapt.families import family_named
from megatron_adapt.hf import writer
from megatron_adapt.hf.tokenizer import Tokenizer

OWN = {
    "3b": {
        "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 24,
        "num_key_value_heads": 8, "tie_word_embeddings": False,
    },
}  # fmt: skip
SHARD = {"7b": 5e9, "3b": 2e9}


def once(folder: Path, source: Path, given: argparse.Namespace) -> dict[str, Measured]:
    """One round of both; what each leaves is removed before the next needs the room."""
    found = {"cp + fsync": copied(source, folder / "copy")}
    shutil.rmtree(folder / "copy")
    words = ["swap", str(source), str(folder / "swapped"), "--tokenizer", str(given.new), "--method", given.method]
    found["swap"] = measure([sys.executable, "-m", "megatron_adapt", *words])
    shutil.rmtree(folder / "swapped")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, required=True, help="directory of the model's tokenizer")
    parser.add_argument("--new", type=Path, required=True, help="directory of the new tokenizer")
    parser.add_argument("--shape", choices=[*OWN, *SHAPES], default="3b")
    parser.add_argument("--method", default="subwords")
    parser.add_argument("--folder", type=Path, help="a disk with room for twice the model; default: the temporary folder")
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    tokenizer, family = Tokenizer.load(given.old), family_named("llama")
    settings = {**SHAPES, **OWN}[given.shape] | {"dtype": "bfloat16", "vocab_size": tokenizer.vocab_size}
    config = family.complete_config(settings, tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id)
    shape = family.read_config(config)
    size = 2 * shape.num_parameters()
    matrices = (1 if shape.tied else 2) * 2 * shape.vocab_size * shape.hidden_size
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="swap-") as name:
        folder = Path(name)
        if (free := shutil.disk_usage(folder).free) < 2.1 * size:
            sys.exit(f"{folder} has {free / 1e9:.0f} GB free; {2.1 * size / 1e9:.0f} GB are needed")
        source = folder / "source"
        # In a process of its own: its memory is not to count as a child's.
        launch.fork(1, lambda: writer.write(Synthetic(shape, "bfloat16"), source, SHARD.get(given.shape, 1e9)))
        (source / "config.json").write_text(json.dumps(config))
        for file in tokenizer.files:
            shutil.copyfile(file, source / file.name)
        files = len(list(source.glob("*.safetensors")))
        print(f"{given.shape}: {shape.num_parameters():,} parameters, {size / 1e9:.2f} GB in {files} files, --method {given.method}")
        rounds = [once(folder, source, given) for _ in range(given.repeat)]
        seconds = {each: statistics.median(found[each].seconds for found in rounds) for each in rounds[0]}
        ratio = statistics.median(found["swap"].seconds / found["cp + fsync"].seconds for found in rounds)
        peak = max(found["swap"].peak for found in rounds)
        print("\n| | seconds | peak GB | bound GB |\n|---|---|---|---|")
        print(f"| cp + fsync | {seconds['cp + fsync']:.1f} | | |")
        print(f"| swap | {seconds['swap']:.1f} | {peak / 1e9:.2f} | {(matrices + 1e9) / 1e9:.2f} |")
        print(f"\nswap / cp, median of {given.repeat} rounds: {ratio:.2f} (goal: at most 1.5)")


if __name__ == "__main__":
    main()
