"""The step of a recipe that exchanges the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_adapt import options
from megatron_adapt.config import AUTO, DEFAULT, Recipe
from megatron_adapt.errors import ConfigError
from megatron_adapt.plan_corpora import Sources
from megatron_adapt.steps.receipt import Step
from megatron_adapt.steps.reporter import Reporter
from megatron_adapt.vocab import methods


def _reads_text(recipe: Recipe, method: str) -> bool:
    """Whether a branch of this method looks at text in the target language where it is given some."""
    vocabulary = recipe.vocabulary
    assert vocabulary is not None
    if method == DEFAULT:  # of the model's own tokens, changed, new ones are made without text
        return bool(vocabulary.calibrate) or not (vocabulary.tokenizer.extend or vocabulary.tokenizer.prune)
    if method == AUTO or vocabulary.calibrate:
        return True
    return methods.reads_text(method, methods.read_options(method, vocabulary.options.get(method, {})))


def unread_corpora(recipe: Recipe) -> Iterator[str]:
    """Corpora for methods, in words, where none of the methods reads text."""
    vocabulary = recipe.vocabulary
    if vocabulary is None or not vocabulary.corpora:
        return
    named = [vocabulary.method, *vocabulary.compare]
    if not any(_reads_text(recipe, method) for method in named):
        how = "" if vocabulary.tokenizer.making is None or named != [DEFAULT] else " of a tokenizer derived from the model's own"
        yield f"vocabulary.corpora: method {', '.join(named)}{how} reads no text, unless vocabulary.calibrate is true; remove it"


def swap_step(
    recipe: Recipe, texts: Sources, method: str, base: Path, tokenizer: Path, tokenizer_files: Path | tuple[Path, ...]
) -> Step:
    """
    Args:
        base: the model, a Hugging Face directory.
        tokenizer_files: what of the tokenizer counts as input.
    """
    vocabulary, seed = recipe.vocabulary, recipe.seed
    assert vocabulary is not None
    is_contest, is_default = method == AUTO, method == DEFAULT
    given = vocabulary.options if is_contest else {} if is_default else {method: vocabulary.options.get(method, {})}
    chosen = {name: methods.read_options(name, values) for name, values in given.items()}
    making = vocabulary.tokenizer.making
    names = vocabulary.corpora or (making.corpora if making else [])
    if not (is_default or _reads_text(recipe, method)):
        names = []
    elif not names and (vocabulary.calibrate or not is_default):
        what = "vocabulary.calibrate" if vocabulary.calibrate else f"vocabulary method {method}"
        raise ConfigError(f"{what} reads text in the target language: name corpora under vocabulary.corpora.")
    sources = {name: texts[name] for name in names}
    corpora = [source.corpus for source in sources.values()]

    def action(output: Path, reporter: Reporter) -> dict[str, Any]:
        from megatron_adapt.steps import compare, swap

        if is_contest:
            contest = compare.Contest(corpora, given, seed, vocabulary.pad_to_multiple, vocabulary.calibrate, vocabulary.probe)
            return compare.run(base, tokenizer, output, contest, reporter)
        choice = swap.Choice(method, given.get(method, {}), seed, vocabulary.pad_to_multiple, corpora, vocabulary.calibrate)
        return swap.run(base, tokenizer, output, choice, reporter)

    settings = {name: options.settings(values) for name, values in chosen.items()}
    paths = {name: options.paths(values) for name, values in chosen.items()}
    if is_contest:
        settings = {"calibrate": vocabulary.calibrate, "options": settings, "probe": vocabulary.probe.model_dump()}
        inputs = {f"{name}.{key}": path for name, found in paths.items() for key, path in found.items()}
    else:
        calibrate = vocabulary.calibrate if is_default else bool(vocabulary.calibrate)
        settings = {"calibrate": calibrate, "options": settings.get(method, {})}
        inputs = dict(paths.get(method, {}))
    return Step(
        name=f"{method}/swap",
        verb="swap",
        output=Path(recipe.output) / method / "swapped",
        action=action,
        settings={"method": method, "seed": seed, "pad_to_multiple": vocabulary.pad_to_multiple}
        | settings
        | {"corpora": {name: source.reading for name, source in sources.items()}},
        inputs={"model": base, "tokenizer": tokenizer_files, **inputs}
        | {f"corpus {name}": source.place for name, source in sources.items()},
        keeps_parts=is_contest,
    )
