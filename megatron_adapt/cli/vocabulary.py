"""Verbs on vocabularies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, List, Optional

import typer

from megatron_adapt.cli.application import app
from megatron_adapt.cli.directories import paths, produce
from megatron_adapt.cli.recipes import Either, StepName, is_recipe, run_steps
from megatron_adapt.errors import ConfigError


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
    if is_recipe(words):
        return run_steps(words, "tokenizer", step)
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
    produce(Path(output), lambda folder, reporter: work.run([corpus], vocab_size, kind, folder, reporter))


Tokenizer = Annotated[Optional[Path], typer.Option("--tokenizer", help="directory of the new tokenizer")]
Seed = Annotated[int, typer.Option("--seed", help="of everything random")]
Files = Annotated[Optional[List[str]], typer.Option("--corpus", help="text in the target language (repeat)")]
TextKey = Annotated[str, typer.Option("--text-key", help="key of the text in JSON lines")]
Settings = Annotated[
    Optional[List[str]], typer.Option("--option", help="KEY=VALUE of the method; METHOD.KEY=VALUE of several (repeat)", metavar="KEY=VALUE")
]
Calibrate = Annotated[
    Optional[bool], typer.Option("--calibrate/--no-calibrate", help="fit the output to how often tokens come; auto does where it can")
]
Multiple = Annotated[int, typer.Option("--pad-to-multiple", help="grow the vocabulary to a multiple of this")]
Candidates = Annotated[
    Optional[List[str]], typer.Option("--methods", help="whom to try, NAME or NAME+calibrate (repeat); default: all that apply")
]
Steps = Annotated[int, typer.Option("--probe-steps", min=0, help="steps that train the rows alone before measuring again")]


@app.command()
def swap(
    words: Either,
    step: StepName = None,
    tokenizer: Tokenizer = None,
    method: Annotated[str, typer.Option(help="how new rows start; auto: try all, keep the best")] = "subwords",
    seed: Seed = 1234,
    option: Settings = None,
    corpus: Files = None,
    text_key: TextKey = "text",
    calibrate: Calibrate = None,
    pad_to_multiple: Multiple = 1,
    candidates: Candidates = None,
    probe_steps: Steps = 50,
) -> None:
    """Exchange a model's vocabulary: a recipe's, or `swap HF_DIR OUT --tokenizer DIR --method subwords`."""
    if is_recipe(words):
        return run_steps(words, "swap", step)
    source, output = paths(words, "HF_DIR OUT")
    if tokenizer is None:
        raise ConfigError("swap HF_DIR OUT needs --tokenizer DIR.")
    from megatron_adapt.config import AUTO

    if method == AUTO:
        from megatron_adapt.steps import compare as contests

        contest = contests.contest(
            option or (), candidates or (), seed, pad_to_multiple, corpus or (), text_key, calibrate, probe_steps
        )
        return produce(output, lambda folder, reporter: contests.run(source, tokenizer, folder, contest, reporter), keeps_parts=True)
    if candidates:
        raise ConfigError("--methods goes with --method auto, or with compare.")
    from megatron_adapt.steps import swap as work

    choice = work.choice(method, option or (), seed, pad_to_multiple, corpus or (), text_key, bool(calibrate))
    produce(output, lambda folder, reporter: work.run(source, tokenizer, folder, choice, reporter))


@app.command()
def compare(
    words: Annotated[List[str], typer.Argument(metavar="HF_DIR OUT")],
    tokenizer: Tokenizer = None,
    candidates: Candidates = None,
    seed: Seed = 1234,
    option: Settings = None,
    corpus: Files = None,
    text_key: TextKey = "text",
    calibrate: Calibrate = None,
    pad_to_multiple: Multiple = 1,
    probe_steps: Steps = 50,
) -> None:
    """Try all vocabulary methods on held-out text; OUT gets comparison.json, comparison.png and the best model in OUT/best."""
    source, output = paths(words, "HF_DIR OUT")
    if tokenizer is None:
        raise ConfigError("compare HF_DIR OUT needs --tokenizer DIR.")
    from megatron_adapt.steps import compare as contests

    contest = contests.contest(option or (), candidates or (), seed, pad_to_multiple, corpus or (), text_key, calibrate, probe_steps)
    produce(output, lambda folder, reporter: contests.run(source, tokenizer, folder, contest, reporter, "best"), keeps_parts=True)
