"""Recipes: YAML files and overrides in, one validated `Recipe` or all problems at once out; numbers derived from it.

    recipe = load(["recipe.yaml", "cluster.yaml"], ["phases.full.optimizer.lr=1e-4", "model.source=models/base"])

How files and overrides merge is described in `recipe_files`, the schema in `config`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from megatron_adapt.config import Parallel, Phase, Recipe, model_of, step_into
from megatron_adapt.config_checks import Found, Methods, check, salvage
from megatron_adapt.config_filters import Filters
from megatron_adapt.config_types import did_you_mean, got
from megatron_adapt.errors import ConfigError
from megatron_adapt.recipe_files import Loader, Problem, Tree, apply_override, merge, read_file

# Tokens of an epoch of a corpus; by phase of chats, and of what some phase denoises: they are packed.
Size = int | Callable[[Phase], int]
_LIMITS = {
    "greater_than": ("greater than", "gt"), "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"), "less_than_equal": ("at most", "le"),
}


def load(paths: Sequence[Path | str] | Path | str, overrides: Sequence[str] = (),
         methods: Methods | None = None, filters: Filters | None = None) -> Recipe:
    """The recipe of several YAML files, later ones over earlier ones, and `path=value` overrides over the files.

    `methods`: the known vocabulary methods, with what checks the options of each, `filters`: the filters of corpora (None: not checked). Raises ConfigError with one line for each problem.
    """
    problems: list[Problem] = []
    files = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not files:
        raise ConfigError("No recipe is given; name at least one YAML file.")
    trees = [read_file(path, layer, problems) for layer, path in enumerate(files)]
    merged: Tree | None = None
    for tree in trees:
        if tree is not None:
            merged = merge(merged, tree, Recipe) if merged is not None else tree
    if merged is None or None in trees:  # a file is unreadable: what its keys would have been is not worth guessing
        raise _error(problems)
    for layer, text in enumerate(overrides, start=len(files)):
        merged = apply_override(merged, text, layer, problems)
    return _validate(merged, problems, methods, filters)


def _validate(tree: Tree, problems: list[Problem], methods: Methods | None, filters: Filters | None) -> Recipe:
    raw = tree.plain()
    found: list[Found] = []
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        found += _explain(error)
        recipe = salvage(Recipe, raw)
    found += check(recipe, methods, filters)
    problems = problems + [(tree.origin_of(path), f"{dotted(path)}: {text}" if path else text) for path, text in found]
    if problems:
        raise _error(problems)
    scratch = recipe.model.from_scratch
    if scratch is not None:
        scratch = scratch.model_copy(update={"phases": _without_shares(scratch.phases)})
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"from_scratch": scratch})})
    return recipe.model_copy(update={"phases": _without_shares(recipe.phases)})


def _without_shares(phases: list[Phase]) -> list[Phase]:
    """Lengths that are shares of all phases' tokens, in tokens."""
    shares = sum(Fraction(repr(phase.share)) for phase in phases if phase.share is not None)
    if not shares:
        return phases
    known = sum(phase.samples(phase.known_steps) * phase.sequence_length for phase in phases if phase.share is None)
    return [
        phase
        if phase.share is None
        else phase.model_copy(update={"tokens": max(1, round(Fraction(repr(phase.share)) * known / (1 - shares))), "share": None})
        for phase in phases
    ]


def _error(problems: list[Problem]) -> ConfigError:
    ordered = sorted(problems, key=lambda problem: problem[0])
    return ConfigError("\n".join(dict.fromkeys(f"{origin.text}: {text}" for origin, text in ordered)))


def dotted(path: Sequence[str | int]) -> str:
    """A path as messages and overrides write it: phases[1].optimizer.lr"""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")


def _explain(error: ValidationError) -> list[Found]:
    """Every problem of the schema in plain words; a key that is missing because it was misspelt is told once."""
    found: list[Found] = []
    missing: list[tuple[str | int, ...]] = []
    misspelt: set[tuple[str | int, ...]] = set()
    for detail in error.errors(include_url=False):
        path = tuple(step for step in detail["loc"] if step != "[key]")
        if detail["type"] == "missing":
            missing.append(path)
        elif detail["type"] == "extra_forbidden":
            hint = _unknown_key(path)
            found.append((path, f"unknown key.{hint}"))
            misspelt.add((*path[:-1], *re.findall(r"Did you mean '(.*)'", hint)))
        else:
            found.append((path, _in_words(detail)))
    return found + [(path, f"missing; {_description(path)}") for path in missing if path not in misspelt]


def _schema(path: Sequence[str | int]) -> Any:
    schema: Any = Recipe
    for step in path:
        schema = step_into(schema, step)
    return schema


def _description(path: Sequence[str | int]) -> str:
    model = model_of(_schema(path[:-1]))
    assert model is not None, f"only keys of models are required: {path}"
    return str(model.model_fields[str(path[-1])].description)


def _unknown_key(path: tuple[str | int, ...]) -> str:
    """A hint at the key that was meant: a similar one, or the same one in a mapping one level down."""
    model, key = model_of(_schema(path[:-1])), str(path[-1])
    assert model is not None, f"only models refuse keys: {path}"
    hint = did_you_mean(key, model.model_fields, "Known keys")
    if "Did you mean" not in hint:
        for name, field in model.model_fields.items():
            inner = model_of(field.annotation)
            if inner is not None and key in inner.model_fields:
                return f" Did you mean '{name}.{key}'?"
    return hint


def _in_words(detail: Any) -> str:
    kind, context, value = detail["type"], detail.get("ctx", {}), detail["input"]
    if kind == "value_error":
        return str(context["error"])
    if kind in ("model_type", "dict_type"):
        return f"expected a mapping (key: value lines), got {got(value)}"
    if kind == "list_type":
        return f"expected a list, got {got(value)}"
    if kind == "too_short":
        return "must not be empty"
    if kind in _LIMITS:
        word, key = _LIMITS[kind]
        return f"must be {word} {context[key]:g}, got {f'{value:g}' if isinstance(value, float) else value}"
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", context["expected"])
        hint = did_you_mean(value, choices, "") if isinstance(value, str) else ""
        return f"expected {context['expected']}, got {got(value)}" + (f".{hint}" if "Did you mean" in hint else "")
    raise AssertionError(f"no words for pydantic's {kind}: {detail['msg']}")


class _Dumper(yaml.SafeDumper):
    """Quotes text that either YAML 1.1 or our Loader would read as something else, such as 'no' and '1e-4'."""

    yaml_implicit_resolvers = {
        first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, []), *Loader.yaml_implicit_resolvers.get(first, [])]
        for first in {**yaml.SafeDumper.yaml_implicit_resolvers, **Loader.yaml_implicit_resolvers}
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def quote_unprintable(self, text: str) -> yaml.ScalarNode:
        """PyYAML reads some line breaks of Unicode back as newlines unless they are escaped."""
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.quote_unprintable)


def dump(recipe: Recipe) -> str:
    """The recipe as YAML with every default filled in; loading it gives an equal recipe."""
    return yaml.dump(recipe.model_dump(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def accumulation(phase: Phase, parallel: Parallel) -> int:
    """Micro-batches per optimizer step of each data-parallel rank."""
    return phase.batch_size // (phase.micro_batch_size * parallel.data)


def tokens_per_step(phase: Phase) -> int:
    """Tokens that one optimizer step trains on, over all ranks, the batch being as large as it gets."""
    return phase.batch_size * phase.sequence_length


def steps(phase: Phase, corpus_tokens: Mapping[str, Size] | None = None) -> int | None:
    """Optimizer steps of the phase, the last one possibly beyond its tokens (rounded up).

    An epoch is as many tokens as the phase's corpora have together, whatever their weights in the mix; it needs
    `corpus_tokens` (training tokens by corpus name), and the answer is None as long as they are not known.
    """
    if phase.known_steps is not None:
        return phase.known_steps
    assert phase.epochs is not None, "a loaded phase has one of tokens, steps, epochs"
    if corpus_tokens is None:
        return None
    return phase.steps_for(tokens(phase, corpus_tokens))


def tokens(phase: Phase, corpus_tokens: Mapping[str, Size]) -> int | None:
    """The phase's length in tokens; None where it is given in steps."""
    if phase.epochs is None:
        return phase.tokens
    sizes = (corpus_tokens[name] for name in phase.data)
    epoch = sum(size(phase) if callable(size) else size for size in sizes)
    return math.ceil(Fraction(repr(phase.epochs)) * epoch)


def tokens_per_epoch(recipe: Recipe, found: Mapping[str, Size]) -> dict[str, Size]:
    """What one pass over each corpus trains on: its `unique_tokens`, else all the tokens found in it."""
    return {name: tokens if callable(tokens) else recipe.data[name].unique_tokens or tokens for name, tokens in found.items()}


def evaluated_corpora(recipe: Recipe) -> list[str]:
    """Names of the corpora to evaluate on: those of the evaluation, else all that hold text out."""
    if recipe.evaluation.corpora is not None:
        return recipe.evaluation.corpora
    return [name for name, corpus in recipe.data.items() if corpus.held_out or corpus.held_out_path is not None]
