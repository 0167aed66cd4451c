"""Verbs on models: drawn, imported, trained, exported, measured, reported."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, List, Optional

import typer

from megatron_adapt.cli.application import app
from megatron_adapt.cli.directories import alone, byte_count, count, paths, produce
from megatron_adapt.cli.recipes import Either, StepName, Words, is_given, refuse, run_steps, takes_recipe
from megatron_adapt.errors import ConfigError


@app.command()
def initialize(words: Words, step: StepName = None) -> None:
    """Draw the weights of a recipe's model from scratch."""
    run_steps(words, "initialize", step)


Verify = Annotated[Optional[str], typer.Option(help="off | weights | logits; default: logits if the model fits into memory")]


@app.command("import")
def import_(context: typer.Context, words: Either, step: StepName = None, verify: Verify = None) -> None:
    """Hugging Face -> Megatron checkpoint, verified: a recipe's, or `import HF_DIR OUT`. What was stopped continues."""
    if takes_recipe(context, words):
        return run_steps(words, "import", step)
    from megatron_adapt.config_types import VERIFY, choice

    source, output = paths(words, "HF_DIR OUT")
    verify = choice("verify", verify, VERIFY)

    def work(folder: Path, reporter: Any) -> Any:
        from megatron_adapt.steps import import_hf

        return import_hf.run(source, folder, reporter, verify=verify)

    produce(output, work, keeps_parts=True)


@app.command()
def train(
    context: typer.Context, words: Words, step: StepName = None, nproc: Annotated[Optional[int], typer.Option("--nproc")] = None
) -> None:
    """Train a recipe's phases (those that remain, or --step)."""
    if not takes_recipe(context, words):
        raise ConfigError("train takes a recipe (.yaml): what to train on, and how, is more than plain paths can say.")
    run_steps(words, "train", step, nproc)


@app.command()
def export(
    context: typer.Context,
    words: Either,
    step: StepName = None,
    dtype: Annotated[str, typer.Option(help="bfloat16 | float32 | float16 | keep (config.json's)")] = "bfloat16",
    tie: Annotated[str, typer.Option(help="keep | untie (a head of its own) | tie (drop a head equal to the embedding)")] = "keep",
    max_shard_size: Annotated[str, typer.Option(help="largest size of a weight file")] = "5GB",
    verify: Verify = None,
    family: Annotated[Optional[str], typer.Option(help="of another program's checkpoint that fits several")] = None,
    hf_config: Annotated[Optional[Path], typer.Option(help="config.json (or its directory) for another program's checkpoint")] = None,
) -> None:
    """Megatron checkpoint -> Hugging Face, verified: a recipe's, or `export CHECKPOINT OUT`. What was stopped continues."""
    if takes_recipe(context, words):
        return run_steps(words, "export", step)
    from megatron_adapt.config_types import DTYPES, TIES, VERIFY, choice, size_option

    source, output = paths(words, "CHECKPOINT OUT")
    dtype, tie, verify = choice("dtype", dtype, DTYPES), choice("tie", tie, TIES), choice("verify", verify, VERIFY)
    shard = size_option("max-shard-size", max_shard_size)

    def work(folder: Path, reporter: Any) -> Any:
        from megatron_adapt.steps import export_hf

        return export_hf.run(source, folder, reporter, dtype, shard, None, verify, tie, family, hf_config)

    produce(output, work, keeps_parts=True)


@app.command()
def evaluate(
    context: typer.Context,
    words: Either,
    step: StepName = None,
    data: Annotated[Optional[List[Path]], typer.Option("--data", help="text to measure on (repeat the option)")] = None,
    text_key: Annotated[str, typer.Option(help="key of the text in JSON lines")] = "text",
    on_error: Annotated[str, typer.Option(help="at a bad line: stop | skip")] = "stop",
    max_bytes: Annotated[Optional[int], typer.Option(parser=byte_count, metavar="BYTES", help="use only so much text of each file")] = None,
    sequence_length: Annotated[
        Optional[int], typer.Option(parser=count, metavar="N", help="window in tokens; default, and at most: the model's")
    ] = None,
    tasks: Annotated[Optional[List[str]], typer.Option("--task", help="of lm-evaluation-harness (repeat the option)")] = None,
    task_folder: Annotated[Optional[Path], typer.Option(help="folder with tasks of your own (.yaml)")] = None,
    num_fewshot: Annotated[Optional[int], typer.Option(min=0, help="examples before a question; default: the task's")] = None,
    limit: Annotated[Optional[int], typer.Option(min=1, help="only so many questions of each task")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="questions at a time")] = 8,
    apply_chat_template: Annotated[bool, typer.Option("--apply-chat-template", help="put questions as chats")] = False,
) -> None:
    """Bits per byte and tasks: a recipe's stages, or `evaluate HF_DIR_OR_CHECKPOINT --data FILE --task NAME`."""
    if takes_recipe(context, words):
        return run_steps(words, "evaluate", step)
    (model,) = paths(words, "HF_DIR_OR_CHECKPOINT")
    from megatron_adapt.config import Harness
    from megatron_adapt.data.arguments import check_reading
    from megatron_adapt.data.corpus import check_on_error

    if not data and not tasks:
        raise ConfigError("evaluate HF_DIR_OR_CHECKPOINT needs --data FILE, or --task NAME, or both.")

    check_on_error(on_error)
    if not tasks:
        asking = ("task_folder", "num_fewshot", "limit", "batch_size", "apply_chat_template")
        refuse(context, asking, "about the questions of tasks, and there are none; name tasks with --task")
    if not data:
        refuse(context, ("text_key", "on_error", "max_bytes", "sequence_length"), "about text to measure on; name files with --data")
    else:
        check_reading(data, {"text_key": "--text-key"}, text_key if is_given(context, "text_key") else None)

    def work(reporter: Any) -> None:
        from megatron_adapt.steps import evaluate as measure, harness

        if tasks:
            folder = None if task_folder is None else str(task_folder)
            more = {"num_fewshot": num_fewshot, "limit": limit, "batch_size": batch_size, "apply_chat_template": apply_chat_template}
            harness.run(model, Harness(tasks=tasks, folder=folder, **more), reporter)
        if data:
            texts = {str(path): path for path in data}
            measure.run(model, texts, reporter, length=sequence_length, max_bytes=max_bytes, text_key=text_key, on_error=on_error)

    alone(work)


@app.command()
def report(words: Words, step: StepName = None) -> None:
    """Table, report.md and report.png of a recipe's run."""
    run_steps(words, "report", step)


@app.command()
def doctor(
    model: Annotated[Optional[Path], typer.Option(help="a Hugging Face directory: what its layers would be built of")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """What this machine and this installation can do, and what is missing. Exit code 2 where something cannot work."""
    import json

    from megatron_adapt.steps import doctor as work

    findings = work.run(model)
    print(json.dumps(work.as_json(findings), indent=2) if as_json else "\n".join(work.table(findings)))
    if any(finding.kind == "problem" for finding in findings):
        sys.exit(2)
