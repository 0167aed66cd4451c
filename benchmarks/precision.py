"""What training in pure bf16 costs: `bf16-true` with each rounding against `bf16-mixed`, and `fp32`.

    python benchmarks/precision.py [--model quickstart DIR ...] [--seeds 0 1 2] [--set KEY=VALUE ...]

Claim: with stochastic rounding the final loss of `bf16-true` (8 bytes per parameter) is within 0.3 % of `bf16-mixed`;
rounding to the nearest is shown beside it. Models: the quickstart's own (an English Llama trained from scratch) and any
Hugging Face directories. Each is taught German as the quickstart does: vocabulary swapped, embeddings first, then
everything; the same data in the same order for every precision, one run for each seed.

Loss: bits per byte of held-out German after the last step, computed in the precision of the run. Bytes per parameter:
weights, gradients and optimizer state together, as they lie in memory. Exits with 1 when the claim does not hold.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from megatron_adapt import launch, pipeline, plan, recipe as recipes
from megatron_adapt.engine import backend, loop, optimizer as optimizers, optimizer_state
from megatron_adapt.steps.preprocess import PREFIX

RECIPE = Path(__file__).resolve().parent.parent / "examples" / "quickstart" / "recipe.yaml"
VARIANTS = {  # precision, rounding
    "fp32": ("fp32", None),
    "bf16-mixed": ("bf16-mixed", None),
    "bf16-true, stochastic": ("bf16-true", "stochastic"),
    "bf16-true, kahan": ("bf16-true", "kahan"),
    "bf16-true, nearest": ("bf16-true", "nearest"),
}
WITHIN = 0.003


def prepare(folder: Path, source: str, overrides: list[str]) -> tuple[Any, Path]:
    """(recipe, checkpoint after the swap); runs the steps before the phases."""
    changes = [f"output={folder}", "parallel.tensor=1", "vocabulary.compare=[]", *overrides]
    if source != "quickstart":
        changes += [f"model.source={source}"]
    recipe = recipes.load(RECIPE, changes)
    steps = plan.build(recipe).steps
    start = next(step for step in steps if step.verb == "import" and step.name.startswith(f"{recipe.vocabulary.method}/"))
    before = [step for step in steps[: steps.index(start) + 1] if step.verb != "evaluate"]
    data = [step for step in steps if step.verb == "preprocess" and step not in before]
    for step in [*data, *before]:
        pipeline.execute(step, lambda message: None)
    return recipe, start.output


def train(recipe: Any, start: Path, folder: Path, variant: str, seed: int) -> dict[str, float]:
    """All phases in one forked process; the last step's metrics, and bytes per parameter."""
    precision, rounding = VARIANTS[variant]
    data = Path(recipe.output) / "data" / "target"

    def work() -> None:
        previous, found = start, {}
        for phase in recipe.phases:
            optimizer = phase.optimizer.model_copy(update={"rounding": rounding} if rounding else {})
            phase = phase.model_copy(update={"optimizer": optimizer, "save_every": None, "evaluate_every": phase.steps})
            job = loop.Job(
                phase=phase, steps=phase.steps, layout=backend.Layout(), precision=precision, seed=seed, start=previous,
                output=folder / phase.name, corpora={name: data / name / PREFIX for name in phase.data},
                held_out={"german": data / "german" / "held_out.jsonl"}, evaluation_bytes=20_000,
            )  # fmt: skip
            with backend.session(job.layout, job.seed):
                run = loop._Run(job, lambda line: None, lambda done, total: None)
                found = run.run() | {"bytes": bytes_per_parameter(run)}
            previous = job.output
        rate = statistics.median(line["tokens_per_second"] for line in loop_lines(folder / recipe.phases[-1].name))
        last = recipe.phases[-1]
        found["steps_per_second"] = rate / last.batch_size / last.sequence_length
        (folder / "result.json").write_text(json.dumps({key: value for key, value in found.items() if key != "events"}))

    folder.mkdir(parents=True)
    launch.fork(1, work, threads=torch.get_num_threads())
    return json.loads((folder / "result.json").read_text())


def loop_lines(folder: Path) -> list[dict[str, float]]:
    from megatron_adapt.engine.metrics import read_lines

    return read_lines(folder / "metrics.jsonl")


def bytes_per_parameter(run: loop._Run) -> float:
    single = optimizers.base(run.optimizer)
    total = sum(buffer.grad_data.nbytes for buffer in run.model.buffers)
    for slot in optimizer_state.slots(single):
        tensors = [slot.parameter, *single.optimizer.state[slot.updated].values()]
        tensors += [slot.updated] * (slot.updated is not slot.parameter)
        total += sum(tensor.nbytes for tensor in tensors if tensor.dim())
    return total / sum(parameter.numel() for parameter in run.bare.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["quickstart"], help="'quickstart' and Hugging Face directories")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes of the quickstart's recipe")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    given = parser.parse_args()
    missed, results = [], {}
    for source in given.model:
        with tempfile.TemporaryDirectory() as scratch:
            recipe, start = prepare(Path(scratch) / "run", source, given.set)
            found: dict[str, list[dict]] = {variant: [] for variant in given.variants}
            for seed in given.seeds:  # variants take turns, so that a busy machine hits all alike
                for variant in given.variants:
                    folder = Path(scratch) / f"{variant}-{seed}"
                    found[variant].append(train(recipe, start, folder, variant, seed))
        results[source] = found
        missed += show(Path(source).name, found)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1))
    sys.exit(f"not within {WITHIN:.1%}: {', '.join(missed)}" if missed else 0)


def show(name: str, found: dict[str, list[dict]]) -> list[str]:
    """Print a model's table; the claims that do not hold."""
    print(f"\n{name}, {len(next(iter(found.values())))} seeds\n")
    print("| | held-out bits per byte | against bf16-mixed | weights changed a step | bytes per parameter | steps/s |")
    print("|---|---|---|---|---|---|", flush=True)
    key, missed = "held_out/german", []
    mixed = [run[key] for run in found.get("bf16-mixed", [])]
    for variant, runs in found.items():
        losses = [run[key] for run in runs]
        spread = f" ±{statistics.stdev(losses):.4f}" if len(losses) > 1 else ""
        ratio = statistics.mean(losses) / statistics.mean(mixed) - 1 if mixed else float("nan")
        changed = [run["changed_weights"] for run in runs if "changed_weights" in run]
        cells = [
            f"{statistics.mean(losses):.4f}{spread}", f"{ratio:+.2%}",
            f"{statistics.mean(changed):.1%}" if changed else "", f"{runs[0]['bytes']:.1f}",
            f"{statistics.median(run['steps_per_second'] for run in runs):.2f}",
        ]  # fmt: skip
        print(f"| {variant} | {' | '.join(cells)} |", flush=True)
        if variant == "bf16-true, stochastic" and ratio > WITHIN:
            missed.append(f"{name} {ratio:+.2%}")
    return missed


if __name__ == "__main__":
    main()
