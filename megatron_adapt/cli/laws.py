"""`law ...`: what laws of the loss say about models, repeated data and budgets, and their fit to runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, List, Optional, Tuple

import typer

from megatron_adapt.cli.application import app
from megatron_adapt.errors import ConfigError

law = typer.Typer(
    no_args_is_help=True,
    help="What laws of the loss say: `predict`, `epochs` (the worth of repeats), `allocate` (a budget), `unique` (data needed), `fit`.",
)
app.add_typer(law, name="law")

NameOfLaw = Annotated[
    str, typer.Option("--law", metavar="NAME|FILE.json", help="c4 | c4-penalty | massivetext, or what `law fit --output` wrote")
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Parameters = Annotated[str, typer.Option(metavar="N", help="parameters, embeddings included: 1.3B, 400M")]
Unique = Annotated[str, typer.Option(metavar="U", help="unique tokens: 25B")]
Picture = Annotated[Optional[Path], typer.Option("--plot", metavar="FILE.png", help="draw it (.png, .pdf or .svg)")]


def _number(option: str, value: str) -> float:
    from megatron_adapt.config_types import number

    try:
        found = number(value)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}.") from None
    if found <= 0:
        raise ConfigError(f"{option}: must be above 0, got {value}.")
    return found


def _share(option: str, value: str) -> float:
    return _number(option, value[:-1]) / 100 if value.endswith("%") else _number(option, value)


def _show(result: Tuple[List[str], Any], as_json: bool) -> None:
    lines, values = result
    print(json.dumps(values, indent=2) if as_json else "\n".join(lines))


@law.command()
def predict(
    parameters: Parameters,
    tokens: Annotated[str, typer.Option(metavar="D", help="tokens in all, repeated ones included: 100B")],
    unique: Annotated[Optional[str], typer.Option(metavar="U", help="unique tokens; default: all")] = None,
    epochs: Annotated[Optional[str], typer.Option(metavar="E", help="instead of --unique: how often the data comes")] = None,
    name: NameOfLaw = "c4",
    as_json: AsJson = False,
) -> None:
    """The loss of a model, what its repeated tokens are worth, and what twice as much of each thing would bring."""
    from megatron_adapt.analysis import allocation, law_tables, scaling_law

    if unique is not None and epochs is not None:
        raise ConfigError("give --unique or --epochs, not both.")
    size, length = _number("--parameters", parameters), _number("--tokens", tokens)
    different = length if unique is None else _number("--unique", unique)
    if epochs is not None and (count := _number("--epochs", epochs)) > 1:
        different = length / count
    found = scaling_law.find(name)
    _show(law_tables.predict(found, allocation.choice(found, size, length, different)), as_json)


@law.command()
def epochs(
    unique: Unique,
    counts: Annotated[Optional[str], typer.Option("--epochs", metavar="E,E,...", help="how often; default: 1 to 60")] = None,
    parameters: Annotated[Optional[str], typer.Option(metavar="N", help="parameters; then also the loss")] = None,
    name: NameOfLaw = "c4",
    picture: Picture = None,
    as_json: AsJson = False,
) -> None:
    """What reading a corpus again and again is worth, in new tokens."""
    from megatron_adapt.analysis import law_tables, scaling_law

    _check(picture)
    found = scaling_law.find(name)
    size = None if parameters is None else _number("--parameters", parameters)
    wanted = law_tables.EPOCHS if counts is None else [_number("--epochs", count) for count in counts.split(",")]
    corpus = _number("--unique", unique)
    _show(law_tables.epochs(found, corpus, wanted, size), as_json)
    if picture is not None:
        from megatron_adapt.analysis import plots

        _draw(picture, lambda: plots.draw_returns(found, corpus, max(wanted), size, picture), as_json)


@law.command()
def allocate(
    flops: Annotated[str, typer.Option(metavar="C", help="budget in FLOPs (6 N D): 1e22")],
    unique: Unique,
    name: NameOfLaw = "c4",
    picture: Picture = None,
    as_json: AsJson = False,
) -> None:
    """The parameters and epochs for a budget of computation and data, and what else costs as much."""
    from megatron_adapt.analysis import law_tables, scaling_law

    _check(picture)
    found, budget, corpus = scaling_law.find(name), _number("--flops", flops), _number("--unique", unique)
    _show(law_tables.allocate(found, budget, corpus), as_json)
    if picture is not None:
        from megatron_adapt.analysis import plots

        _draw(picture, lambda: plots.draw_contours(found, budget, corpus, picture), as_json)


@law.command("unique")
def needed(
    parameters: Parameters,
    tokens: Annotated[str, typer.Option(metavar="D", help="tokens in all, repeated ones included: 100B")],
    within: Annotated[str, typer.Option(metavar="SHARE", help="how far above the loss of all new tokens: 1% or 0.01")] = "1%",
    name: NameOfLaw = "c4",
    as_json: AsJson = False,
) -> None:
    """How many different tokens a run needs, the rest being repeats."""
    from megatron_adapt.analysis import law_tables, scaling_law

    size, length, share = _number("--parameters", parameters), _number("--tokens", tokens), _share("--within", within)
    _show(law_tables.unique(scaling_law.find(name), size, length, share), as_json)


@law.command()
def fit(
    runs: Annotated[
        List[Path],
        typer.Argument(metavar="RUNS...", help="tables (.csv, .jsonl) with parameters, tokens, unique_tokens, loss; or outputs of recipes"),
    ],
    form: Annotated[
        Optional[List[str]],
        typer.Option(help="chinchilla | repeated-data | data-constrained | penalty (repeat); default: all, the best chosen"),
    ] = None,
    corpus: Annotated[Optional[str], typer.Option(help="of outputs of recipes: whose held-out text the loss is on")] = None,
    fix: Annotated[Optional[List[str]], typer.Option(metavar="NAME=VALUE", help="hold a constant (repeat)")] = None,
    tie: Annotated[bool, typer.Option("--tie", help="one exponent for parameters and tokens (alpha = beta)")] = False,
    resamples: Annotated[int, typer.Option(min=0, help="of the runs, for the intervals; 0: none")] = 200,
    seed: Annotated[int, typer.Option(help="of the parts and resamples")] = 0,
    output: Annotated[
        Optional[Path], typer.Option(metavar="FILE.json", help="write the law there, for --law of the other verbs")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fit laws to runs, compare them on runs held out, and say how far the best can be trusted."""
    from megatron_adapt.analysis import fit_tables, law_runs, scaling_law
    from megatron_adapt.config_types import choice

    for each in form or ():
        choice("form", each, tuple(scaling_law.FORMS))
    if output is not None and (output.suffix != ".json" or not output.absolute().parent.is_dir()):
        raise ConfigError(f"--output {output}: a file that ends in .json, in a folder that exists.")
    forms = list(dict.fromkeys(form or scaling_law.FORMS))
    fixed = dict(_constant(text, forms) for text in fix or ())
    if corpus is not None and not any(place.is_dir() for place in runs):
        raise ConfigError("--corpus says whose held-out text the loss of a recipe's output is on, and there are only tables; leave it out.")
    gathered = law_runs.gather(_runs(runs, corpus))
    name = output.stem if output is not None else "fitted"
    lines, values, found = fit_tables.run(gathered, forms, name, fixed, tie, resamples, seed)
    if output is not None:
        from megatron_adapt.steps.receipt import write_json, writing

        with writing("--output", output):
            write_json(output, scaling_law.as_json(found))
        lines.append(f"written to {output}")
    _show((lines, values), as_json)


def _constant(text: str, forms: List[str]) -> Tuple[str, float]:
    from megatron_adapt.analysis.scaling_law import FORMS
    from megatron_adapt.config_types import did_you_mean, number

    name, equals, value = text.partition("=")
    known = dict.fromkeys(constant for form in forms for constant in FORMS[form].constants)
    if not equals or name not in known:
        raise ConfigError(f"--fix {text}: expected NAME=VALUE of a constant.{did_you_mean(name, known, 'They are')}")
    try:
        return name, number(value)
    except ValueError as error:
        raise ConfigError(f"--fix {name}: {error}.") from None


def _runs(places: List[Path], corpus: Optional[str]) -> List[Any]:
    """The runs of all tables and folders; folders with one tokenizer, since tokens of two are not the same."""
    from megatron_adapt.analysis import law_runs
    from megatron_adapt.errors import DataError
    from megatron_adapt.steps.trained_runs import read_run

    found, digests, problems = [], {}, []
    for place in places:
        try:
            if place.is_dir():
                run, digest = read_run(place, corpus)
                found.append(run)
                digests.setdefault(digest, place)
            else:
                found += law_runs.read(place)
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    if len(digests) > 1:
        named = " and ".join(str(place) for place in digests.values())
        raise DataError(f"{named} have different tokenizers: their tokens and losses do not compare.")
    return found


def _check(picture: Optional[Path]) -> None:
    """Before anything is printed."""
    if picture is None:
        return
    if picture.suffix not in (".png", ".pdf", ".svg"):
        raise ConfigError(f"--plot {picture}: a picture's name ends in .png, .pdf or .svg.")
    if not picture.absolute().parent.is_dir():
        raise ConfigError(f"--plot {picture}: the folder {picture.parent} does not exist.")


def _draw(picture: Path, work: Any, as_json: bool) -> None:
    from megatron_adapt.steps.receipt import writing

    with writing("--plot", picture):
        work()
    if not as_json:
        print(f"drawn in {picture}")
