"""Verbs on vocabularies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, List, Optional

import typer

from megatron_adapt.cli.application import app
from megatron_adapt.cli.directories import count, paths, produce
from megatron_adapt.cli.recipes import Either, StepName, is_given, refuse, run_steps, takes_recipe
from megatron_adapt.errors import ConfigError


NewTokens = Annotated[Optional[int], typer.Option(parser=count, metavar="N", help="extend: number of new tokens")]
MinCount = Annotated[Optional[int], typer.Option(min=1, help="how often a pair (extend: 2) or a token (prune: 1) has to come")]
Reuse = Annotated[bool, typer.Option("--reuse", help="extend: take ids first that nothing uses")]
Keep = Annotated[Optional[int], typer.Option(parser=count, metavar="N", help="prune: keep at most so many tokens")]
TextKey = Annotated[str, typer.Option("--text-key", help="key of the text in JSON lines")]
OnError = Annotated[str, typer.Option("--on-error", help="at a bad line of the text: stop | skip")]
TOKENIZER_USAGE = (
    "expected a recipe (.yaml), or: tokenizer train --input FILE... --vocab-size N OUT, or: tokenizer extend SOURCE OUT --input FILE "
    "--tokens N, or: tokenizer prune SOURCE OUT --input FILE, or: tokenizer report SOURCE [TARGET] --corpus FILE"
)


def _corpora(context: typer.Context, files: Optional[List[str]], text_key: str, on_error: str) -> list[Any]:
    from megatron_adapt.data.arguments import check_reading
    from megatron_adapt.steps import tokenizer as work

    if not files:
        refuse(context, ("text_key", "on_error"), "about text that is read, and there is none; name files with --corpus")
        return []
    found = work.files(files, text_key, on_error)
    check_reading(files, {"text_key": "--text-key"}, text_key if is_given(context, "text_key") else None)
    return found


@app.command()
def tokenizer(
    context: typer.Context,
    words: Annotated[
        List[str], typer.Argument(metavar="RECIPE [PATH=VALUE]... | train OUT | extend SOURCE OUT | prune SOURCE OUT | report SOURCE [TARGET]")
    ],
    step: StepName = None,
    input: Annotated[Optional[List[str]], typer.Option("--input", help="corpus files (repeat the option)")] = None,
    vocab_size: Annotated[Optional[int], typer.Option(parser=count, metavar="N", help="train: exact number of ids, such as 32K")] = None,
    kind: Annotated[str, typer.Option("--type", help="train: bpe | sentencepiece-bpe | unigram")] = "bpe",
    digits: Annotated[str, typer.Option(help="train: a token holds digits in runs | three | single")] = "runs",
    whitespace: Annotated[str, typer.Option(help="train: a token holds spaces in runs | single")] = "runs",
    multiple: Annotated[int, typer.Option(min=1, help="train: reserved tokens are added up to a multiple of this")] = 1,
    like: Annotated[Optional[Path], typer.Option(help="train: take over special tokens and chat template of this tokenizer")] = None,
    sentinels: Annotated[
        Optional[int], typer.Option(min=1, help="train, extend: special tokens for denoising, so many <extra_id_N>, and [R], [S], [X]")
    ] = None,
    tokens: NewTokens = None,
    min_count: MinCount = None,
    reuse: Reuse = False,
    keep: Keep = None,
    max_bytes: Annotated[Optional[str], typer.Option(help="read at most this much text, such as 500MB")] = None,
    text_key: TextKey = "text",
    on_error: OnError = "stop",
    corpus: Annotated[Optional[List[str]], typer.Option(help="report: text to measure on (repeat)")] = None,
    json: Annotated[Optional[Path], typer.Option(help="report: write it here, too")] = None,
) -> None:
    """Train a tokenizer; extend a model's own with tokens of a text; prune it to a text; or measure (report)."""
    if takes_recipe(context, words):
        return run_steps(words, "tokenizer", step)
    from megatron_adapt.config_types import size_option

    if words[0] == "report":
        from megatron_adapt.steps import tokenizer_report

        making = ("input", "vocab_size", "kind", "digits", "whitespace", "multiple", "like", "sentinels", "tokens", "min_count", "reuse", "keep")
        refuse(context, making, "for a tokenizer that is made; a report only measures")
        size = {} if max_bytes is None else {"max_bytes": size_option("max-bytes", max_bytes)}
        found = tokenizer_report.run(words[1:], _corpora(context, corpus, text_key, on_error), json, **size)
        return print(*tokenizer_report.table(found), sep="\n")
    from megatron_adapt.steps import tokenizer as work

    refuse(context, ("corpus", "json"), "for a report; what a tokenizer is made of is named with --input")
    # `--input A B OUT` arrives as input [A] and words [train, B, OUT].
    own, more, output = None, words[1:-1], Path(words[-1])
    if words[0] in ("extend", "prune") and more:
        own, *more = more
    given = {
        "vocab_size": vocab_size, "type": kind, "digits": digits, "whitespace": whitespace, "multiple": multiple, "like": like,
        "tokens": tokens, "min_count": min_count, "reuse": reuse, "keep": keep, "max_bytes": max_bytes, "sentinels": sentinels,
    }  # fmt: skip
    if words[0] not in work.HOW or not input or len(words) < 2 or (words[0] != "train" and own is None):
        raise ConfigError(TOKENIZER_USAGE)
    making = work.making(words[0], given)
    files = _corpora(context, [*input, *more], text_key, on_error)
    produce(output, lambda folder, reporter: work.make(making, own and Path(own), files, folder, reporter))


Tokenizer = Annotated[Optional[Path], typer.Option("--tokenizer", help="directory of the new tokenizer")]
Seed = Annotated[int, typer.Option("--seed", help="of everything random")]
Files = Annotated[Optional[List[str]], typer.Option("--corpus", help="text in the target language (repeat)")]
Settings = Annotated[
    Optional[List[str]], typer.Option("--option", help="KEY=VALUE of the method; METHOD.KEY=VALUE of several (repeat)", metavar="KEY=VALUE")
]
Calibrate = Annotated[
    Optional[bool], typer.Option("--calibrate/--no-calibrate", help="fit the output to when tokens come; default and auto do where it can be")
]
Multiple = Annotated[int, typer.Option("--pad-to-multiple", help="grow the vocabulary to a multiple of this")]
Candidates = Annotated[
    Optional[List[str]], typer.Option("--methods", help="whom to try, NAME or NAME+calibrate (repeat); default: all that apply")
]
Steps = Annotated[int, typer.Option("--probe-steps", min=0, help="steps that train the rows alone before measuring again")]


@app.command()
def swap(
    context: typer.Context,
    words: Either,
    step: StepName = None,
    tokenizer: Tokenizer = None,
    method: Annotated[
        str, typer.Option(help="how new rows start; default: focus, calibrated, with --corpus, else subwords; auto: try all, keep the best")
    ] = "default",
    seed: Seed = 1234,
    option: Settings = None,
    corpus: Files = None,
    text_key: TextKey = "text",
    on_error: OnError = "stop",
    calibrate: Calibrate = None,
    pad_to_multiple: Multiple = 1,
    candidates: Candidates = None,
    probe_steps: Steps = 50,
    extend: Annotated[
        Optional[int], typer.Option(parser=count, metavar="N", help="instead of --tokenizer: so many new tokens for --corpus")
    ] = None,
    prune: Annotated[bool, typer.Option("--prune", help="instead of --tokenizer: only the tokens that --corpus needs")] = False,
    min_count: MinCount = None,
    reuse: Reuse = False,
    keep: Keep = None,
) -> None:
    """Exchange, extend or prune a model's vocabulary: a recipe's, or `swap HF_DIR OUT --tokenizer DIR --corpus FILE`."""
    if takes_recipe(context, words):
        return run_steps(words, "swap", step)
    source, output = paths(words, "HF_DIR OUT")
    from megatron_adapt.config import AUTO
    from megatron_adapt.steps import tokenizer as tokenizers

    if prune:
        refuse(context, ("method", "option", "candidates", "probe_steps"), "says how new rows start, and a pruned vocabulary has none")
    changes = {"tokens": extend, "min_count": min_count, "reuse": reuse, "keep": keep}
    corpora = _corpora(context, corpus, text_key, on_error)
    target = tokenizers.target(source, tokenizer, prune, changes, corpora)
    if method == AUTO:
        from megatron_adapt.steps import compare as contests

        contest = contests.contest(
            option or (), candidates or (), seed, pad_to_multiple, corpora, calibrate, probe_steps
        )
        chosen = target.given_to(lambda made, folder, reporter: contests.run(source, made, folder, contest, reporter))
        return produce(output, chosen, keeps_parts=True)
    refuse(context, ("candidates", "probe_steps"), "goes with --method auto, or with compare")
    from megatron_adapt.steps import swap as work

    choice = work.choice(method, option or (), seed, pad_to_multiple, corpora, calibrate)
    if tokenizer is not None and not work.reads_text(choice):
        refuse(context, ("corpus",), f"method {method} reads no text, unless with --calibrate; leave it out")
    produce(output, target.given_to(lambda made, folder, reporter: work.run(source, made, folder, choice, reporter)))


@app.command()
def compare(
    context: typer.Context,
    words: Annotated[List[str], typer.Argument(metavar="HF_DIR OUT")],
    tokenizer: Tokenizer = None,
    candidates: Candidates = None,
    seed: Seed = 1234,
    option: Settings = None,
    corpus: Files = None,
    text_key: TextKey = "text",
    on_error: OnError = "stop",
    calibrate: Calibrate = None,
    pad_to_multiple: Multiple = 1,
    probe_steps: Steps = 50,
) -> None:
    """Try all vocabulary methods on held-out text; OUT gets comparison.json, comparison.png and the best model in OUT/best."""
    source, output = paths(words, "HF_DIR OUT")
    if tokenizer is None:
        raise ConfigError("compare HF_DIR OUT needs --tokenizer DIR.")
    from megatron_adapt.steps import compare as contests

    corpora = _corpora(context, corpus, text_key, on_error)
    contest = contests.contest(option or (), candidates or (), seed, pad_to_multiple, corpora, calibrate, probe_steps)
    produce(output, lambda folder, reporter: contests.run(source, tokenizer, folder, contest, reporter, "best"), keeps_parts=True)
