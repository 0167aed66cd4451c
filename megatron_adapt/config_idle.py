"""Keys of a recipe that would do nothing beside the others: what is measured without text, methods that nobody reads, passes of no phase."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron_adapt.config import AUTO, DEFAULT, Corpus, Evaluation, Phase, Probe, Recipe, TokenizerChoice, Vocabulary
from megatron_adapt.config_phases import Optimizer
from megatron_adapt.config_strict import Strict
from megatron_adapt.config_types import INVALID

_Path = tuple[str | int, ...]


def check(recipe: Recipe, phases: list[tuple[_Path, Phase]]) -> Iterator[tuple[_Path, str]]:
    """(path of a key, why it does nothing); ``phases``: all, with their paths."""
    if isinstance(recipe.vocabulary, Vocabulary):
        yield from ((("vocabulary", *key), text) for key, text in _vocabulary(recipe.vocabulary))
    if isinstance(recipe.data, dict):
        yield from _passes(recipe.data, [phase for _, phase in phases])
        if isinstance(recipe.evaluation, Evaluation):
            yield from _evaluation(recipe.evaluation, recipe.data)
    for path, phase in phases:
        if isinstance(phase.optimizer, Optimizer) and phase.optimizer.weight_decay == 0:
            for key in _given(phase.optimizer, "decay_by", "decay_embeddings"):
                yield (*path, "optimizer", key), "is about weight decay, and weight_decay is 0; remove it"


def _given(holder: Strict, *keys: str) -> list[str]:
    """Those that are not what they are by default."""
    fields = type(holder).model_fields
    return [key for key in keys if getattr(holder, key) not in (INVALID, fields[key].get_default(call_default_factory=True))]


def _vocabulary(vocabulary: Vocabulary) -> Iterator[tuple[_Path, str]]:
    compare: Any = vocabulary.compare if isinstance(vocabulary.compare, list) else [INVALID]
    methods = [vocabulary.method, *compare]
    if isinstance(vocabulary.probe, Probe) and not {AUTO, INVALID} & set(methods):
        for key in _given(vocabulary.probe, *Probe.model_fields):
            yield ("probe", key), f"belongs to method 'auto', and there is only {', '.join(map(repr, methods))}; remove it"
    choice = vocabulary.tokenizer
    if isinstance(choice, TokenizerChoice) and choice.prune is not None:
        why = "says how new rows start, and a pruned vocabulary has none: all its rows are the model's own; remove it"
        if vocabulary.method not in (DEFAULT, INVALID):
            yield ("method",), why
        if _given(vocabulary, "compare"):
            yield ("compare",), why


def _passes(data: dict[str, Any], phases: list[Phase]) -> Iterator[tuple[_Path, str]]:
    if any(not isinstance(phase.data, dict) for phase in phases):
        return
    read = {name for phase in phases for name in phase.data}
    for name, corpus in data.items():
        if isinstance(corpus, Corpus) and name not in read:
            for key in _given(corpus, "unique_tokens", "shuffled_epochs"):
                yield ("data", name, key), "says how phases read this corpus, and none does; remove it"


def _evaluation(evaluation: Evaluation, data: dict[str, Any]) -> Iterator[tuple[_Path, str]]:
    held_out = [corpus for corpus in data.values() if not isinstance(corpus, Corpus) or corpus.held_out or corpus.held_out_path]
    if not held_out and evaluation.corpora is None:  # `corpora: []` says that nothing is measured for now
        for key in _given(evaluation, "max_bytes", "sequence_length"):
            yield ("evaluation", key), "is about held-out text, of which none is evaluated; remove it"
