"""Verbs on corpora."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Callable, List, Optional

import typer

from megatron_adapt.cli.application import app
from megatron_adapt.cli.recipes import is_recipe, load, refuse, run_steps
from megatron_adapt.errors import ConfigError


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def preprocess(context: typer.Context) -> None:
    """Tokenize corpora: a recipe's, or files by Megatron's flags (--input ... --output-prefix ...; --help lists them)."""
    from megatron_adapt.data import command

    _run("preprocess", context.args, command.main)


def _run(verb: str, words: list[str], main: Callable[..., int]) -> None:
    """A recipe's steps of this verb, or ``main`` on other arguments."""
    if not is_recipe(words):
        sys.exit(main(words, prog=f"megatron-adapt {verb}"))
    from megatron_adapt.data.arguments import Parser

    parser = Parser(prog=f"megatron-adapt {verb}")
    parser.add_argument("words", nargs="+", metavar="RECIPE [PATH=VALUE]", help="recipe.yaml ... [path=value ...]")
    parser.add_argument("--step", help="only the step of this name (see plan)")
    given = parser.parse_intermixed_args(words)
    run_steps(given.words, verb, given.step)


@app.command("filter", context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def filter_(context: typer.Context) -> None:
    """Clean corpora of duplicates, repeated passages and poor text: a recipe's, or files (--input ... --filter NAME; --help lists all)."""
    from megatron_adapt.data import filter_command

    _run("filter", context.args, filter_command.main)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def merge(context: typer.Context) -> None:
    """Join tokenized corpora (--input FOLDER or PREFIX ... --output-prefix PREFIX)."""
    from megatron_adapt.data import merge_command

    sys.exit(merge_command.main(list(context.args), prog="megatron-adapt merge"))


@app.command()
def inspect(
    context: typer.Context,
    words: Annotated[
        List[str], typer.Argument(help="a tokenized corpus (PREFIX.bin and PREFIX.idx), or a recipe with --phase", metavar="PREFIX | RECIPE [PATH=VALUE]...")
    ],
    document: Annotated[Optional[int], typer.Option(help="show the text of this document, from 0 (-1: the last)")] = None,
    tokenizer: Annotated[Optional[Path], typer.Option(help="its tokenizer; default: what PREFIX.json names")] = None,
    phase: Annotated[Optional[str], typer.Option(help="of a recipe: show what this phase shows its model")] = None,
    sample: Annotated[int, typer.Option(min=0, help="of a phase: which of its samples, from 0")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Show what a tokenized corpus holds: type, counts, lengths, the text of a document; or a sample of a recipe's phase."""
    if is_recipe(words):
        refuse(context, ("document", "tokenizer"), "about a corpus; of a recipe's phase a --sample is shown")
        return _show_sample(words, phase, sample, as_json)
    refuse(context, ("phase", "sample"), f"about a recipe, and {' '.join(words)} names none (.yaml)")
    if len(words) != 1:
        raise ConfigError(f"expected one PREFIX, or a recipe (.yaml) with --phase NAME; got {' '.join(words)}.")
    (prefix,) = words
    from megatron_adapt.data import inspection

    if tokenizer is not None and document is None:
        raise ConfigError("--tokenizer shows the text of a document: say which with --document N, or leave it out.")
    facts = inspection.describe(prefix)
    shown = None if document is None else inspection.read_document(prefix, document, tokenizer)
    if as_json:
        print(json.dumps(facts if shown is None else facts | {"document": shown}, indent=2, ensure_ascii=False))
    else:
        inspection.show(facts, shown)


def _show_sample(words: list[str], name: Optional[str], number: int, as_json: bool) -> None:
    from megatron_adapt.plan_corpora import corpora_of_phase
    from megatron_adapt.steps import samples

    recipe = load(words).recipe
    found = samples.sample(recipe, *corpora_of_phase(recipe, name), number)
    if as_json:
        return print(json.dumps(found, indent=2, ensure_ascii=False))
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    for line, learnt in samples.lines(found):
        console.print(line, markup=False, style="green" if learnt else None)
