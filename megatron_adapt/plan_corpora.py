"""What the steps of a recipe read of its corpora: the files that it names, or the text that filters have left of them.

    filtered/CORPUS                   text.jsonl, of a corpus with filters
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_adapt import options
from megatron_adapt.config import Corpus, Phase, Recipe
from megatron_adapt.data import filters
from megatron_adapt.data.sources import data_sets, files_of, idle_keys, reading
from megatron_adapt.errors import ConfigError, DataError
from megatron_adapt.steps import filter_corpus
from megatron_adapt.steps.receipt import Step
from megatron_adapt.steps.reporter import Reporter

# All that a step which has begun may change: what it has read and found is kept with what it was made of.
_TEXT = ("text_key", "text_documents", "on_error", "max_documents", "data_sets")  # what of a corpus a filter sees anything of
_ADJUSTABLE = frozenset({"filters", "against", *_TEXT})


@dataclass(frozen=True)
class Source:
    """A corpus for those that read it; nobody else asks the recipe where its text is.

    Attributes:
        corpus: with the path at which its text is when the step runs.
        place: what of it is a step's input.
        reading: what of it decides which text is read, for a step's settings.
    """

    corpus: Corpus
    place: Path | tuple[Path, ...]
    reading: dict[str, Any]


class Sources:
    """The corpora of a recipe by name. Asking for one with filters adds their step to the plan, in front of the one that asks."""

    def __init__(self, recipe: Recipe, take: Callable[[Step], Path]) -> None:
        """``take`` adds a step to the plan and gives its output."""
        self.recipe, self._take = recipe, take
        self.filtered: dict[str, Path] = {}  # directories of those that have been asked for
        self._found: dict[str, Source] = {}

    def __getitem__(self, name: str) -> Source:
        if name not in self._found:
            corpus = self.recipe.data[name]
            found = self._left_of(name, corpus) if corpus.filters else Source(corpus, files_of(corpus.path), reading(corpus))
            self._found[name] = found
        return self._found[name]

    def _left_of(self, name: str, corpus: Corpus) -> Source:
        folder = self.filtered[name] = self._take(self._step(name, corpus))
        clean = {"path": str(folder / filter_corpus.TEXT), "text_documents": "blocks", "on_error": "stop", "max_documents": None}
        left = corpus.model_copy(update={**clean, "filters": [], "against": []})
        return Source(left, folder, reading(left, sets=()))

    def _step(self, name: str, corpus: Corpus) -> Step:
        chosen = [(one.name, filters.read_options(one.name, one.options)) for one in corpus.filters]
        others = {other: self[other] for other in corpus.against}
        inputs: dict[str, Path | tuple[Path, ...]] = {"corpus": files_of(corpus.path)}
        inputs |= {f"against {other}": source.place for other, source in others.items()}
        held_out = {f"held out of {other}": source.corpus.held_out_path for other, source in others.items()}
        if filter_corpus.compares(corpus):
            held_out["held_out"] = corpus.held_out_path
        inputs |= {label: Path(path) for label, path in held_out.items() if path}
        for number, (kind, values) in enumerate(chosen):
            inputs |= {f"filters.{number}.{kind}.{key}": path for key, path in options.paths(values).items()}

        def action(output: Path, reporter: Reporter) -> dict[str, Any]:
            return filter_corpus.run(corpus, [source.corpus for source in others.values()], output, reporter)

        return Step(
            name=f"filtered/{name}",
            verb="filter",
            output=Path(self.recipe.output) / "filtered" / name,
            action=action,
            settings=corpus.model_dump(include={"text_key", "text_documents", "on_error", "max_documents"})
            | {"filters": {str(number): {kind: options.settings(values)} for number, (kind, values) in enumerate(chosen)}}
            | ({"against": {other: _told(source) for other, source in others.items()}} if others else {})
            | ({"data_sets": sets} if (sets := data_sets(corpus.path)) else {}),
            inputs=inputs,
            resumable=True,
            adjustable=_ADJUSTABLE,
        )


def _told(source: Source) -> str:
    return ", ".join(f"{key} {value}" for key, value in sorted(source.reading.items()) if key in _TEXT)


def reading_problems(recipe: Recipe) -> Iterator[str]:
    """Keys of corpora, in words, that say how files are read of which there are none."""
    for name, corpus in recipe.data.items():
        paths = [corpus.path] if isinstance(corpus.path, str) else [*corpus.path]
        paths += [corpus.held_out_path] if corpus.held_out_path else []
        given = [key for key in ("text_key", "text_documents") if getattr(corpus, key) != Corpus.model_fields[key].default]
        if corpus.messages is None and given:
            with contextlib.suppress(DataError):  # files that are missing are told where they are read
                yield from (f"data.{name}.{key}: {why}; remove it" for key, why in idle_keys(paths, given))


def corpora_of_phase(recipe: Recipe, name: str | None) -> tuple[Phase, dict[str, Path]]:
    """A phase, and the directories of its tokenized corpora by name. Raises ``ConfigError`` with the names that there are."""
    scratch = recipe.model.from_scratch
    kinds = {phase.name: ("base", phase) for phase in (scratch.phases if scratch else [])}
    kinds |= {phase.name: ("target" if recipe.vocabulary else "base", phase) for phase in recipe.phases}
    if name not in kinds:
        what = "--phase is missing" if name is None else f"--phase {name}: there is no such phase"
        raise ConfigError(f"{what}; the recipe's phases are: {', '.join(kinds)}.")
    kind, phase = kinds[name]
    return phase, {each: Path(recipe.output) / "data" / kind / each for each in phase.data}
