"""The command line: arguments -> one call below. Heavy imports happen inside the verbs.

A verb takes either a recipe (``megatron-adapt swap recipe.yaml [path=value ...]``: its steps of that recipe) or plain
paths (``megatron-adapt swap HF_DIR OUT --tokenizer DIR``). Exit codes: 0 done, 2 something the user can correct,
75 stopped on request (the same command continues), 1 a step failed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Callable, List, Optional

import typer

from megatron_adapt.errors import AdaptError, ConfigError

if TYPE_CHECKING:
    from megatron_adapt.plan import Plan

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Teach a pretrained language model a new language on Megatron Core: raw corpora in, a Hugging Face checkpoint out.",
)

Words = Annotated[List[str], typer.Argument(help="recipe.yaml ... [path=value ...]", metavar="RECIPE [PATH=VALUE]...")]
Either = Annotated[List[str], typer.Argument(help="recipe.yaml ... [path=value ...], or plain paths", metavar="RECIPE | PATHS")]
StepName = Annotated[Optional[str], typer.Option("--step", help="only the step of this name (see plan)")]


class Interrupted(BaseException):
    """SIGINT or SIGTERM while no step's ranks are there to answer it."""


def main() -> None:
    """Entry point: user errors become one message and exit code 2."""
    from megatron_adapt.launch import SIGNALS, STOPPED, StepFailed, under_torchrun

    prefix = f"[rank {os.environ['RANK']}] " if under_torchrun() else ""
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    try:
        app()
    except AdaptError as error:
        print(f"{prefix}error: {error}", file=sys.stderr)
        sys.exit(2)
    except StepFailed as error:
        print(f"{prefix}error: {error}", file=sys.stderr)
        sys.exit(1)
    except Interrupted:
        print(f"{prefix}stopped; the same command continues", file=sys.stderr)
        sys.exit(STOPPED)


def _interrupt(number: int, frame: object) -> None:
    raise Interrupted


# --------------------------------------------------------------------------------------------------- whole recipes


def _is_recipe(words: List[str]) -> bool:
    return any(word.endswith((".yaml", ".yml")) and "=" not in word for word in words)


def _load(words: List[str], ranks: Optional[int] = None) -> "Plan":
    from megatron_adapt import plan, recipe
    from megatron_adapt.vocab import methods

    files = [word for word in words if "=" not in word]
    overrides = [word for word in words if "=" in word]
    loaded = recipe.load(files, overrides, methods=methods.checks())
    if ranks is not None:
        model_ranks = loaded.parallel.tensor * loaded.parallel.pipeline
        if ranks % model_ranks:
            raise ConfigError(
                f"--nproc {ranks} is no multiple of parallel.tensor x parallel.pipeline = {model_ranks}: start a multiple."
            )
        loaded = recipe.load(files, [*overrides, f"parallel.data={ranks // model_ranks}"], methods=methods.checks())
    return plan.build(loaded)


@app.command()
def check(
    words: Words,
    picture: Annotated[
        Optional[Path], typer.Option("--schedule", metavar="PLOT.png", help="print the learning rates and draw them")
    ] = None,
) -> None:
    """Validate a recipe, print it with all defaults filled in, and what follows from it."""
    from megatron_adapt import checks, recipe

    plan = _load(words)
    print(recipe.dump(plan.recipe))
    for line in checks.summary(plan):
        print(line)
    if picture is not None:
        from megatron_adapt.analysis import plots

        if picture.suffix not in (".png", ".pdf", ".svg"):
            raise ConfigError(f"--schedule {picture}: a picture's name ends in .png, .pdf or .svg.")
        if not picture.parent.is_dir():
            raise ConfigError(f"--schedule {picture}: the folder {picture.parent} does not exist.")
        curves = checks.learning_rates(plan)
        for name, rates in curves:
            print(checks.describe_rates(name, rates))
        plots.draw_learning_rates(curves, picture)
        print(f"drawn in {picture}")


@app.command()
def plan(
    words: Words,
    nodes: Annotated[int, typer.Option("--nnodes", min=1, help="nodes that share a step's ranks")] = 1,
    nproc: Annotated[Optional[int], typer.Option("--nproc", help="ranks in all; default: as the recipe says")] = None,
) -> None:
    """Print the commands that remain, one a line, in order."""
    from megatron_adapt import checks, pipeline

    plan = _load(words, nproc)
    if plan.recipe.parallel.world_size % nodes:
        raise ConfigError(f"{plan.recipe.parallel.world_size} ranks cannot be spread over --nnodes {nodes}.")
    extra = [] if nproc is None else [f"parallel.data={plan.recipe.parallel.data}"]
    checks.check(plan)
    for step in pipeline.remaining(plan):
        print(pipeline.command(step, [*words, *extra], nodes))


@app.command()
def run(
    words: Words,
    nproc: Annotated[Optional[int], typer.Option("--nproc", help="ranks of this machine; default: as the recipe says")] = None,
    launcher: Annotated[str, typer.Option(help="fork | torchrun | auto (torchrun where there is a GPU)")] = "auto",
) -> None:
    """Do everything that remains of a recipe on this machine; the same command continues an interrupted run."""
    _run(words, None, None, nproc, launcher)


def _run(
    words: List[str], verb: Optional[str], name: Optional[str], nproc: Optional[int] = None, launcher: str = "fork"
) -> None:
    from megatron_adapt import checks, launch, pipeline

    if launcher not in ("auto", "fork", "torchrun"):
        raise ConfigError(f"--launcher {launcher}: choose auto, fork or torchrun.")
    plan = _load(words, nproc)
    checks.check(plan)
    view = pipeline.View()
    undone = pipeline.remaining(plan)
    if name is not None:
        step = plan.step(name)
        if verb is not None and step.verb != verb:
            raise ConfigError(f"step '{name}' belongs to the verb '{step.verb}', not to '{verb}'.")
        steps = [step] if step in undone else []
    else:
        steps = [step for step in undone if verb in (None, step.verb)]
    steps = pipeline.ready(steps, undone)
    if not steps:
        view.finished(plan, verb, name)
        return
    gpus = pipeline.gpus() if launcher == "auto" else 0
    if 0 < gpus < plan.recipe.parallel.world_size:
        raise ConfigError(
            f"the recipe asks for {plan.recipe.parallel.world_size} ranks, and this machine has {gpus} GPU(s): lower parallel.tensor, "
            f"parallel.pipeline or parallel.data (parallel.tensor=1 on the command line), or hide the GPUs and say "
            f"--launcher fork to use the CPU."
        )
    use_torchrun = launcher == "torchrun" or gpus > 0
    extra = [] if nproc is None else [f"parallel.data={plan.recipe.parallel.data}"]
    outcome = pipeline.run(steps, view, (lambda step: pipeline.interpreter_command(step, [*words, *extra])) if use_torchrun else None)
    if outcome.stopped:
        # Under torchrun every code but 0 would look like a failure and kill the other ranks before they have saved.
        sys.exit(0 if launch.under_torchrun() else launch.STOPPED)
    if verb is None:
        view.finished(plan)


# ------------------------------------------------------------------------------------- verbs on plain paths, too


def _alone(work: Callable[[Any], Any]) -> None:
    """Run work on plain paths in a process of its own, so that Ctrl-C and errors end it like a step."""
    from megatron_adapt import launch, pipeline
    from megatron_adapt.steps.reporter import PipeReporter

    view = pipeline.View()
    outcome = launch.fork(1, lambda: work(PipeReporter(int(os.environ["MEGATRON_ADAPT_MESSAGES"]))), receive=view.message)
    if outcome.stopped:
        sys.exit(launch.STOPPED)


def _paths(words: List[str], names: str) -> List[Path]:
    if len(words) != len(names.split()):
        raise ConfigError(f"expected a recipe (.yaml), or the paths {names}; got {' '.join(words)}.")
    return [Path(word) for word in words]


def _fresh(output: Path) -> None:
    if output.exists():
        raise ConfigError(f"{output} exists already; choose another output or remove it.")


def _produce(output: Path, work: Callable[[Path, Any], Any], keeps_parts: bool = False) -> None:
    """Let work fill a hidden directory and give it its name when it is whole."""
    from megatron_adapt.steps.receipt import Step, perform

    _fresh(output)
    settings = {"arguments": sys.argv[2:]}
    step = Step(output.name, verb=sys.argv[1], output=output, action=work, settings=settings, keeps_parts=keeps_parts)
    _alone(lambda reporter: perform(step, reporter))
    print(f"wrote {output}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def preprocess(context: typer.Context) -> None:
    """Tokenize corpora: a recipe's, or files by Megatron's flags (--input ... --output-prefix ...; --help lists them)."""
    words = list(context.args)
    if _is_recipe(words):
        import argparse

        parser = argparse.ArgumentParser(prog="megatron-adapt preprocess")
        parser.add_argument("words", nargs="+", metavar="RECIPE [PATH=VALUE]", help="recipe.yaml ... [path=value ...]")
        parser.add_argument("--step", help="only the step of this name (see plan)")
        given = parser.parse_intermixed_args(words)
        return _run(given.words, "preprocess", given.step)
    from megatron_adapt.data import command

    sys.exit(command.main(words, prog="megatron-adapt preprocess"))


@app.command()
def inspect(
    prefix: Annotated[str, typer.Argument(help="a tokenized corpus: PREFIX.bin and PREFIX.idx", metavar="PREFIX")],
    document: Annotated[Optional[int], typer.Option(help="show the text of this document, from 0 (-1: the last)")] = None,
    tokenizer: Annotated[Optional[Path], typer.Option(help="its tokenizer; default: what PREFIX.json names")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Show what a tokenized corpus holds: type, counts, lengths of its documents, the text of one."""
    from megatron_adapt.data import inspection

    facts = inspection.describe(prefix)
    shown = None if document is None else inspection.read_document(prefix, document, tokenizer)
    if as_json:
        print(json.dumps(facts if shown is None else facts | {"document": shown}, indent=2, ensure_ascii=False))
    else:
        inspection.show(facts, shown)


@app.command()
def tokenizer(
    words: Annotated[List[str], typer.Argument(metavar="RECIPE [PATH=VALUE]... | train OUT | report SOURCE [TARGET]")],
    step: StepName = None,
    input: Annotated[Optional[List[str]], typer.Option("--input", help="corpus files (repeat the option)")] = None,
    vocab_size: Annotated[Optional[int], typer.Option(help="exact number of ids")] = None,
    kind: Annotated[str, typer.Option("--type", help="bpe | sentencepiece-bpe | unigram")] = "bpe",
    text_key: Annotated[str, typer.Option(help="key of the text in JSON lines")] = "text",
    corpus: Annotated[Optional[List[str]], typer.Option(help="text for report (repeat)")] = None,
    json: Annotated[Optional[Path], typer.Option(help="write the report here, too")] = None,
) -> None:
    """Train tokenizers: a recipe's, or `tokenizer train --input FILE --vocab-size N OUT`; or measure: `tokenizer report`."""
    if _is_recipe(words):
        return _run(words, "tokenizer", step)
    if words[0] == "report":
        from megatron_adapt.steps import tokenizer_report

        return print(*tokenizer_report.table(tokenizer_report.run(words[1:], corpus or (), text_key, json)), sep="\n")
    if words[0] != "train" or len(words) < 2 or not input or vocab_size is None:
        raise ConfigError("expected a recipe (.yaml), or: tokenizer train --input FILE... --vocab-size N OUT, or: tokenizer report")
    from megatron_adapt.config import Corpus
    from megatron_adapt.steps import tokenizer as work

    # `--input A B OUT` arrives as input [A] and words [train, B, OUT].
    *more, output = words[1:]
    corpus = Corpus.model_construct(path=[*input, *more], text_key=text_key)
    _produce(Path(output), lambda folder, reporter: work.run([corpus], vocab_size, kind, folder, reporter))


@app.command()
def initialize(words: Words, step: StepName = None) -> None:
    """Draw the weights of a recipe's model from scratch."""
    _run(words, "initialize", step)


@app.command()
def swap(
    words: Either,
    step: StepName = None,
    tokenizer: Annotated[Optional[Path], typer.Option(help="directory of the new tokenizer")] = None,
    method: Annotated[str, typer.Option(help="how new rows start")] = "subwords",
    seed: Annotated[int, typer.Option(help="of the drawn rows")] = 1234,
    option: Annotated[Optional[List[str]], typer.Option(help="KEY=VALUE of the method (repeat)", metavar="KEY=VALUE")] = None,
    corpus: Annotated[Optional[List[str]], typer.Option(help="text for methods that read it (repeat)")] = None,
    text_key: Annotated[str, typer.Option(help="key of the text in JSON lines")] = "text",
    calibrate: Annotated[bool, typer.Option("--calibrate", help="fit the output to how often tokens come")] = False,
    pad_to_multiple: Annotated[int, typer.Option(help="grow the vocabulary to a multiple of this")] = 1,
) -> None:
    """Exchange a model's vocabulary: a recipe's, or `swap HF_DIR OUT --tokenizer DIR --method subwords`."""
    if _is_recipe(words):
        return _run(words, "swap", step)
    source, output = _paths(words, "HF_DIR OUT")
    if tokenizer is None:
        raise ConfigError("swap HF_DIR OUT needs --tokenizer DIR.")
    from megatron_adapt.steps import swap as work

    choice = work.choice(method, option or (), seed, pad_to_multiple, corpus or (), text_key, calibrate)
    _produce(output, lambda folder, reporter: work.run(source, tokenizer, folder, choice, reporter))


Verify = Annotated[Optional[str], typer.Option(help="off | weights | logits; default: logits if the model fits into memory")]


@app.command("import")
def import_(words: Either, step: StepName = None, verify: Verify = None) -> None:
    """Hugging Face -> Megatron checkpoint, verified: a recipe's, or `import HF_DIR OUT`."""
    if _is_recipe(words):
        return _run(words, "import", step)
    from megatron_adapt.config_types import VERIFY, choice

    source, output = _paths(words, "HF_DIR OUT")
    verify = choice("verify", verify, VERIFY)

    def work(folder: Path, reporter: Any) -> Any:
        from megatron_adapt.steps import import_hf

        return import_hf.run(source, folder, reporter, verify=verify)

    _produce(output, work)


@app.command()
def train(words: Words, step: StepName = None, nproc: Annotated[Optional[int], typer.Option("--nproc")] = None) -> None:
    """Train a recipe's phases (those that remain, or --step)."""
    if not _is_recipe(words):
        raise ConfigError("train takes a recipe (.yaml): what to train on, and how, is more than plain paths can say.")
    _run(words, "train", step, nproc)


@app.command()
def export(
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
    if _is_recipe(words):
        return _run(words, "export", step)
    from megatron_adapt.config_types import DTYPES, TIES, VERIFY, choice, size_option

    source, output = _paths(words, "CHECKPOINT OUT")
    dtype, tie, verify = choice("dtype", dtype, DTYPES), choice("tie", tie, TIES), choice("verify", verify, VERIFY)
    shard = size_option("max-shard-size", max_shard_size)

    def work(folder: Path, reporter: Any) -> Any:
        from megatron_adapt.steps import export_hf

        return export_hf.run(source, folder, reporter, dtype, shard, None, verify, tie, family, hf_config)

    _produce(output, work, keeps_parts=True)


@app.command()
def evaluate(
    words: Either,
    step: StepName = None,
    data: Annotated[Optional[List[Path]], typer.Option("--data", help="text to measure on (repeat the option)")] = None,
    text_key: Annotated[str, typer.Option(help="key of the text in JSON lines")] = "text",
    max_bytes: Annotated[Optional[int], typer.Option(min=1, help="use only so much text of each file")] = None,
    sequence_length: Annotated[Optional[int], typer.Option(min=1, help="window in tokens; default: the model's")] = None,
) -> None:
    """Bits per byte: a recipe's stages, or `evaluate HF_DIR_OR_CHECKPOINT --data FILE`."""
    if _is_recipe(words):
        return _run(words, "evaluate", step)
    (model,) = _paths(words, "HF_DIR_OR_CHECKPOINT")
    if not data:
        raise ConfigError("evaluate HF_DIR_OR_CHECKPOINT needs --data FILE.")

    def work(reporter: Any) -> None:
        from megatron_adapt.steps import evaluate as measure

        texts = {str(path): path for path in data}
        measure.run(model, texts, reporter, length=sequence_length, max_bytes=max_bytes, text_key=text_key)

    _alone(work)


@app.command()
def report(words: Words, step: StepName = None) -> None:
    """Table, report.md and report.png of a recipe's run."""
    _run(words, "report", step)
