"""Laws of repeated data on models trained here: which form predicts runs that it was not fitted to.

    python benchmarks/scaling_law.py --corpus FILE [--output FOLDER] [--small]

Trains tiny Llamas from scratch on nested subsets of a corpus, each read 1 to 16 times, every run a recipe through the
engine (the same held-out text, one tokenizer, a cosine to a tenth of the rate over each run). Then `law fit` on the runs'
outputs. Finished runs in the folder are kept: the same command continues. --small: a few runs, to see it work.

Claim: a form that knows of repetition predicts runs better than Chinchilla's, which takes every token for new: those of a
fifth held out, five times, and the fifth of the most FLOPs from the others. Exits with 1 when it does not hold.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from megatron_adapt import pipeline, plan, recipe as recipes
from megatron_adapt.analysis import fit_tables, law_runs
from megatron_adapt.analysis.scaling_law import FORMS, readable
from megatron_adapt.errors import DataError
from megatron_adapt.steps import receipt
from megatron_adapt.steps.trained_runs import read_run

SIZES = {16: (2, 1.2e-2), 32: (3, 8e-3), 48: (3, 6e-3), 80: (4, 4e-3)}  # width: layers, learning rate
PASSES = {65_536: (1, 2, 4, 8, 16), 196_608: (1, 2, 4), 393_216: (1, 2)}  # unique tokens: epochs
SMALL = ({16: (2, 1.2e-2), 32: (2, 8e-3), 48: (2, 6e-3)}, {8_192: (1, 4), 16_384: (1, 2, 4), 32_768: (1,)})
VOCABULARY, LENGTH, BATCH = 512, 128, 8
VERBS = ("tokenizer", "preprocess", "initialize", "import", "train", "evaluate")


def recipe(corpus: Path, output: Path, tokenizer: Any, width: int, layers: int, rate: float, unique: int, epochs: int) -> dict:
    return {
        "name": output.name, "output": str(output), "precision": "fp32", "seed": 1234,
        "model": {"from_scratch": {
            "config": {
                "architectures": ["LlamaForCausalLM"], "hidden_size": width, "intermediate_size": 8 * width // 3, "num_hidden_layers": layers,
                "num_attention_heads": max(1, width // 16), "num_key_value_heads": max(1, width // 16), "max_position_embeddings": LENGTH,
                "tie_word_embeddings": True,
            },
            "tokenizer": tokenizer,
        }},
        "data": {"text": {"path": str(corpus), "held_out": 0.05, "unique_tokens": unique}},
        "phases": [{
            "name": "pretraining", "data": {"text": 1}, "tokens": unique * epochs, "sequence_length": LENGTH, "batch_size": BATCH,
            "micro_batch_size": BATCH, "optimizer": {"lr": rate}, "schedule": {"type": "cosine", "warmup": 0.1, "min_lr_ratio": 0.1},
        }],
        "evaluation": {"max_bytes": "100K"},
    }  # fmt: skip


def train(folder: Path, settings: dict) -> None:
    """Everything up to the evaluation after training; what is done already is kept."""
    file = folder / f"{settings['name']}.yaml"
    file.write_text(yaml.safe_dump(settings))
    steps = plan.build(recipes.load(file)).steps
    wanted = [step for step in steps if step.verb in VERBS and step.name != "evaluation/base"]
    for step in wanted:
        if receipt.read(step.output) is None and pipeline.execute(step, lambda message: None).stopped:
            sys.exit("stopped; the same command continues")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="text to train on: .jsonl, .jsonl.gz, .txt, ...")
    parser.add_argument("--output", type=Path, help="keep the runs here")
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    if given.output is None:
        with tempfile.TemporaryDirectory() as scratch:
            sys.exit(measure(given.corpus.resolve(), Path(scratch), given.small))
    given.output.mkdir(parents=True, exist_ok=True)
    sys.exit(measure(given.corpus.resolve(), given.output.resolve(), given.small))


def measure(corpus: Path, folder: Path, small: bool) -> int:
    sizes, passes = SMALL if small else (SIZES, PASSES)
    tokenizer: Any = {"train": {"corpora": ["text"], "vocab_size": VOCABULARY}}
    found, began, preloaded = [], time.monotonic(), False
    for width, (layers, rate) in sizes.items():
        for unique, counts in passes.items():
            for epochs in counts:
                output = folder / f"{width}-{unique}-{epochs}"
                settings = recipe(corpus, output, tokenizer, width, layers, rate, unique, epochs)
                if not preloaded:
                    pipeline.preload(plan.build(_loaded(folder, settings)).steps)
                    preloaded = True
                train(folder, settings)
                if isinstance(tokenizer, dict):
                    tokenizer = str(output / "tokenizers" / "base")
                run, _ = read_run(output)
                found.append(run)
                size, corpus_size = readable(run.parameters), readable(unique)
                print(f"{size:>6} parameters, {corpus_size:>6} unique tokens, {epochs:2} epochs: {run.loss:.4f}", flush=True)
    with open(folder / "runs.csv", "w") as file:
        file.write("name,parameters,tokens,unique_tokens,loss\n")
        file.writelines(f"{run.name},{run.parameters},{run.tokens},{run.unique_tokens},{run.loss:.6f}\n" for run in found)
    try:
        lines, values, _ = fit_tables.run(law_runs.gather(found), list(FORMS), "measured", {}, False, 200, 0)
    except DataError as error:
        print(error)
        return 1
    print("", *lines, "", sep="\n")
    (folder / "law.json").write_text(json.dumps(values, indent=1))
    print(f"{len(found)} runs, {time.monotonic() - began:.0f} s")
    chosen = values["law"]["form"]
    scores = {each["form"]: each for each in values["forms"]}
    if not FORMS[chosen].sees_repeats:
        print(f"{chosen} predicts held-out runs best")
        return 1
    missed = False
    for part in ("folds", "largest"):
        ours, theirs = (scores[form][part] for form in (chosen, "chinchilla"))
        if ours is None or theirs is None:
            print(f"{part}: too few runs to tell")
            missed = True
            continue
        ratio = ours["log_rmse"] / theirs["log_rmse"]
        print(f"{part}: error of {chosen} {ours['log_rmse']:.2%}, of chinchilla {theirs['log_rmse']:.2%}: {ratio:.2f} times")
        missed |= ratio >= 1
    return int(missed)


def _loaded(folder: Path, settings: dict) -> Any:
    file = folder / "first.yaml"
    file.write_text(yaml.safe_dump(settings))
    return recipes.load(file)


if __name__ == "__main__":
    main()
