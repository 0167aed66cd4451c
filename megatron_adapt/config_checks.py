"""What must hold between several keys of a recipe.

The checks also run on a recipe that has other problems, so that a user sees all of them at once: `salvage` keeps its
valid parts and puts `INVALID` where a value is missing or wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, get_origin

from pydantic import TypeAdapter, ValidationError

from megatron_adapt import config_chats, config_denoising, config_filters, config_idle, config_parallel, config_schedules
from megatron_adapt.config import (
    AUTO, BF16_ALONE, CALIBRATED, DEFAULT, Corpus, Evaluation, FromScratch, Model, Optimizer, Parallel, Phase, Probe, RampUp, Recipe,
    Schedule, Strict, TokenizerChoice, TokenizerTraining, Vocabulary, kinds, model_of, step_into,
)
from megatron_adapt.config_filters import Filters
from megatron_adapt.config_parallel import Found
from megatron_adapt.config_types import INVALID, did_you_mean

Methods = Mapping[str, Callable[[Mapping[str, Any]], "list[tuple[str, str]]"]]


def salvage(schema: Any, value: Any, metadata: Sequence[Any] = ()) -> Any:
    """`value` validated as `schema`, or the parts of it that are valid, INVALID where nothing is."""
    try:
        return TypeAdapter(Annotated[(schema, *metadata)] if metadata else schema).validate_python(value)
    except ValidationError:  # told to the user by the caller, who validated the whole
        return _valid_parts(schema, value)


def _valid_parts(schema: Any, value: Any) -> Any:
    model = model_of(schema)
    if model is not None and isinstance(value, dict):
        fields = model.model_fields
        given = {name: field for name, field in fields.items() if name in value}
        parts = {name: salvage(field.annotation, value[name], field.metadata) for name, field in given.items()}
        parts |= {name: INVALID for name, field in fields.items() if name not in given and field.is_required()}
        return model.model_construct(**parts)
    containers = [get_origin(kind) for kind in kinds(schema)]
    if isinstance(value, dict) and dict in containers:
        return {key: salvage(step_into(schema, key), item) for key, item in value.items()}
    if isinstance(value, list) and list in containers:
        return [salvage(step_into(schema, 0), item) for item in value]
    return INVALID


def check(recipe: Recipe, methods: Methods | None = None, filters: Filters | None = None) -> list[Found]:
    """All problems between the keys of a recipe, salvaged or whole; `methods` are the known vocabulary methods, each with
    what gives the problems of its options as (key, text), `filters` the filters of corpora."""
    found = [*_alternatives(recipe, ()), *_phase_names(recipe), *_corpora(recipe), *_vocabulary(recipe, methods)]
    for path, phase in _phases(recipe):
        found += _phase(phase, path, recipe.parallel, recipe.precision)
    found += [*_kept_states(recipe), *_shares(recipe), *_evaluations(recipe)]
    if isinstance(recipe.data, dict):
        found += config_chats.check(recipe.data, _named_corpora(recipe), _phases(recipe))
        found += config_denoising.check(recipe.data, _phases(recipe), getattr(recipe.parallel, "context", INVALID))
        found += config_filters.check({name: each for name, each in recipe.data.items() if isinstance(each, Corpus)}, filters)
    found += config_idle.check(recipe, list(_phases(recipe)))
    found += config_parallel.check(recipe)
    scratch = recipe.model.from_scratch if isinstance(recipe.model, Model) else None
    if isinstance(scratch, FromScratch) and isinstance(scratch.config, dict) and "vocab_size" in scratch.config:
        path = ("model", "from_scratch", "config", "vocab_size")
        found.append((path, "remove it: the size of the vocabulary comes from the tokenizer"))
    if isinstance(scratch, FromScratch) and isinstance(scratch.tokenizer, TokenizerChoice):
        for key in ("extend", "prune"):
            if getattr(scratch.tokenizer, key) is not None:
                path = ("model", "from_scratch", "tokenizer", key)
                found.append((path, "a new model has no tokenizer of its own to start from; give 'path' or 'train'"))
    for choice, path in _choices(recipe):
        found += [((*path, "tokenizer", "train", key), text) for key, text in training_problems(choice.train)]
    if isinstance(scratch, FromScratch) and scratch.phases and recipe.vocabulary is None:
        path = ("model", "from_scratch", "phases")
        found.append((path, "these phases precede a swap of the vocabulary, but there is none; move them to 'phases'"))
    return found


def _alternatives(value: Any, path: tuple[str | int, ...]) -> Iterator[Found]:
    """One of each model's alternatives, not none and not two, anywhere in the recipe."""
    if isinstance(value, Strict):
        names = value.alternatives
        # a held-out share of 0 is the same as none given, and a corpus need not hold anything out
        given = [name for name in names if getattr(value, name) is not None]
        given = [name for name in given if (name, getattr(value, name)) != ("held_out", 0)]
        listed = " and ".join(f"'{name}'" for name in given)
        if len(given) > 1:
            yield (*path, given[-1]), f"only one of {_or(names)} can be given, not {listed}"
        elif names and not given and not isinstance(value, Corpus):
            yield path, f"one of {_or(names)} is needed"
        for name in type(value).model_fields:
            yield from _alternatives(getattr(value, name), (*path, name))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _alternatives(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _alternatives(item, (*path, index))


def _or(names: Iterable[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    return f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def _phases(recipe: Recipe) -> Iterator[tuple[tuple[str | int, ...], Phase]]:
    """Every phase, those that pretrain a base first, with its path."""
    scratch = recipe.model.from_scratch if isinstance(recipe.model, Model) else None
    lists = [(("model", "from_scratch", "phases"), scratch.phases)] if isinstance(scratch, FromScratch) else []
    for path, phases in [*lists, (("phases",), recipe.phases)]:
        for index, phase in enumerate(phases if isinstance(phases, list) else []):
            if isinstance(phase, Phase):
                yield (*path, index), phase


def _phase_names(recipe: Recipe) -> Iterator[Found]:
    seen: set[str] = set()
    for path, phase in _phases(recipe):
        if phase.name is INVALID:
            continue
        if phase.name in seen:
            yield (*path, "name"), f"another phase is already named '{phase.name}'; names must differ"
        seen.add(phase.name)


def _shares(recipe: Recipe) -> Iterator[Found]:
    """A share is of the tokens of all phases: of the others these are known, and something is left for them."""
    lists: dict[tuple[str | int, ...], list[tuple[tuple[str | int, ...], Phase]]] = {}
    for path, phase in _phases(recipe):
        lists.setdefault(path[:-1], []).append((path, phase))
    for phases in lists.values():
        shares = [(path, phase.share) for path, phase in phases if phase.share not in (None, INVALID)]
        rest = [phase for _, phase in phases if phase.share is None]
        if shares and (not rest or sum(share for _, share in shares) >= 1):
            yield (*shares[-1][0], "share"), "the shares leave nothing for a phase with a length in tokens or steps"
        elif shares and any(phase.epochs is not None for phase in rest):
            yield (*shares[0][0], "share"), "needs the other phases' lengths in tokens or steps, not in epochs"


def _kept_states(recipe: Recipe) -> Iterator[Found]:
    """Before a phase that keeps optimizer state is one with the same kind of state."""
    before: dict[tuple[str | int, ...], Phase] = {}
    for path, phase in _phases(recipe):
        last, before[path[:-1]] = before.get(path[:-1]), phase
        if phase.init_state != "keep":
            continue
        if last is None:
            yield (*path, "init_state"), "this phase is the first: there is no optimizer state to keep"
        elif isinstance(last.optimizer, Optimizer) and isinstance(phase.optimizer, Optimizer):
            types = last.optimizer.type, phase.optimizer.type
            if types[0] != types[1] and INVALID not in types:
                yield (*path, "init_state"), f"phase '{last.name}' has the state of {types[0]}, not of {types[1]}"


def _phase(phase: Phase, path: tuple[str | int, ...], parallel: Any, precision: Any) -> Iterator[Found]:
    """The batch fits the ranks; optimizer and schedule have no key that would do nothing."""
    unit, sizes = config_parallel.unit(phase, parallel)
    if unit is not None and phase.batch_size is not INVALID and phase.batch_size % unit:
        below, above = phase.batch_size // unit * unit, -(-phase.batch_size // unit) * unit
        use = f"{below} or {above}" if below else above
        yield (*path, "batch_size"), f"{phase.batch_size} is not divisible by {sizes}; use {use}"
    if isinstance(phase.ramp_up, RampUp):
        yield from (((*path, "ramp_up", *key), text) for key, text in _ramp_up(phase, parallel))
    found = config_parallel.check_phase(phase, parallel, phase.precision or precision)
    yield from (((*path, key), text) for key, text in found)
    if phase.neftune_alpha == 0 and phase.neftune_per == "sequence":
        yield (*path, "neftune_per"), "is about the noise of neftune_alpha, and there is none; remove it"
    elif phase.packing == "chunks" and phase.neftune_alpha not in (0, INVALID) and phase.neftune_per == "document":
        why = "documents that see one another have no length of their own; use 'sequence', or packing 'documents'"
        yield (*path, "neftune_per"), why
    if phase.packing == "chunks" and phase.loss_per not in ("token", INVALID):
        yield (*path, "loss_per"), "belongs to packing 'documents': under 'chunks' every sequence has as many tokens; remove it"
    if phase.packing == "chunks" and phase.restart_positions is False:
        yield (*path, "restart_positions"), "belongs to packing 'documents', not to 'chunks'; remove it"
    if isinstance(phase.optimizer, Optimizer):
        for key, text in _optimizer(phase.optimizer, phase.precision or precision):
            yield (*path, "optimizer", key), text
        if isinstance(parallel, Parallel) and parallel.distributed_optimizer is True and phase.optimizer.type == "muon":
            why = "muon needs whole matrices, which parallel.distributed_optimizer cuts into parts; use 'adamw' or 'lionw'"
            yield (*path, "optimizer", "type"), why
    if (phase.precision or precision) not in ("fp8-delayed", "fp8-delayed-true", INVALID):
        for key in ("amax_history", "amax_choice"):
            if getattr(phase, key) not in (INVALID, Phase.model_fields[key].default):
                why = f"belongs to precision 'fp8-delayed', not to {phase.precision or precision!r}; remove it"
                yield (*path, key), why
    if phase.save_every is None and phase.async_save is True:
        yield (*path, "async_save"), "needs save_every: the checkpoint at a phase's end is waited for"
    if phase.keep_every not in (None, INVALID) and phase.save_every is not INVALID:
        if phase.save_every is None or phase.keep_every % phase.save_every:
            yield (*path, "keep_every"), f"{phase.keep_every} is no multiple of save_every = {phase.save_every or 'null'}"
    if isinstance(phase.schedule, Schedule):
        found = config_schedules.check(phase.schedule, _known_steps(phase))
        yield from (((*path, "schedule", key), text) for key, text in found)


def _ramp_up(phase: Phase, parallel: Any) -> Iterator[Found]:
    """From a smaller batch in whole intervals to the phase's, each of them a batch that fits the ranks."""
    ramp = phase.ramp_up
    assert ramp is not None
    if INVALID in (ramp.start, ramp.by, ramp.over, phase.batch_size):
        return
    if ramp.start >= phase.batch_size or (phase.batch_size - ramp.start) % ramp.by:
        yield ("by",), f"batch_size {phase.batch_size} is not reached from {ramp.start} in whole intervals of {ramp.by}"
    elif ramp.over < (phase.batch_size - ramp.start) // ramp.by:
        yield ("over",), f"{ramp.over} steps are fewer than the intervals from {ramp.start} to {phase.batch_size} by {ramp.by}"
    unit, sizes = config_parallel.unit(phase, parallel)
    for key in ("start", "by") if unit is not None else ():
        if getattr(ramp, key) % unit:
            yield (key,), f"{getattr(ramp, key)} is not divisible by {sizes}"


def _optimizer(optimizer: Optimizer, precision: Any) -> Iterator[tuple[str, str]]:
    default = Optimizer.model_fields
    if optimizer.type == "lionw" and optimizer.eps not in (INVALID, default["eps"].default):
        yield "eps", "belongs to 'adamw', 'adamw8bit' and 'muon', not to 'lionw'; remove it"
    if optimizer.type not in (INVALID, "muon") and optimizer.momentum not in (INVALID, default["momentum"].default):
        yield "momentum", f"belongs to 'muon', not to {optimizer.type!r}; remove it"
    if optimizer.type not in (INVALID, "adamw8bit") and optimizer.paged is True:
        yield "paged", f"belongs to 'adamw8bit', not to {optimizer.type!r}; remove it"
    if optimizer.type not in (INVALID, "adamw") and optimizer.offload is True:
        yield "offload", f"belongs to 'adamw', not to {optimizer.type!r}; remove it"
    elif optimizer.offload is True and precision in BF16_ALONE:
        yield "offload", f"updates float32 weights, which {precision!r} does without; use {_mixed(precision)!r}"
    if optimizer.type == "adamw8bit" and precision in BF16_ALONE:
        why = "adamw8bit rounds bf16 weights to the nearest, which loses most updates"
        yield "type", f"{why}; use 'adamw', or precision {_mixed(precision)!r}"
    if precision not in (*BF16_ALONE, INVALID) and optimizer.rounding not in (INVALID, default["rounding"].default):
        low = "'bf16-true' and 'fp8-...-true'"
        yield "rounding", f"weights are rounded under precisions {low} only, not under {precision!r}; remove it"


def _mixed(precision: str) -> str:
    """The same with float32 main weights."""
    return "bf16-mixed" if precision == "bf16-true" else precision.removesuffix("-true")


def _known_steps(phase: Phase) -> int | None:
    needed = (phase.steps, phase.tokens, phase.batch_size, phase.sequence_length, phase.ramp_up)
    if INVALID in needed or (phase.ramp_up is not None and INVALID in (phase.ramp_up.start, phase.ramp_up.by, phase.ramp_up.over)):
        return None
    return phase.known_steps


def _corpora(recipe: Recipe) -> Iterator[Found]:
    """Names of corpora exist; those of the evaluation have held-out text."""
    if not isinstance(recipe.data, dict):
        return
    for path, name in _named_corpora(recipe):
        if name is not INVALID and name not in recipe.data:
            yield path, f"unknown corpus '{name}'.{did_you_mean(name, recipe.data, 'Corpora under data')}"
    names = recipe.evaluation.corpora if isinstance(recipe.evaluation, Evaluation) else None
    for index, name in enumerate(names if isinstance(names, list) else []):
        corpus = recipe.data.get(name) if name is not INVALID else None
        if isinstance(corpus, Corpus) and not corpus.held_out and corpus.held_out_path is None:
            why = f"'{name}' has no held-out text; set data.{name}.held_out or data.{name}.held_out_path"
            yield ("evaluation", "corpora", index), why


def _evaluations(recipe: Recipe) -> Iterator[Found]:
    """A phase that is to be evaluated has something to be evaluated on; `evaluation.corpora: []` says that nothing is."""
    if not isinstance(recipe.data, dict) or not isinstance(recipe.evaluation, Evaluation):
        return
    held_out = [corpus for corpus in recipe.data.values() if not isinstance(corpus, Corpus) or corpus.held_out or corpus.held_out_path]
    if held_out or recipe.evaluation.corpora is not None:
        return
    for path, phase in _phases(recipe):
        if phase.evaluate_every not in (None, INVALID):
            why = "there is no held-out text to evaluate on; set held_out or held_out_path of a corpus, or remove it"
            yield (*path, "evaluate_every"), why


def _named_corpora(recipe: Recipe) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Every mention of a corpus, with its path."""
    for choice, path in _choices(recipe):
        for key in ("train", "extend", "prune"):
            making = getattr(choice, key)
            if isinstance(making, Strict) and isinstance(making.corpora, list):
                yield from (((*path, "tokenizer", key, "corpora", i), name) for i, name in enumerate(making.corpora))
    for path, phase in _phases(recipe):
        yield from (((*path, "data", name), name) for name in (phase.data if isinstance(phase.data, dict) else {}))
    for name, corpus in recipe.data.items() if isinstance(recipe.data, dict) else ():
        if isinstance(corpus, Corpus) and isinstance(corpus.against, list):
            yield from ((("data", name, "against", i), other) for i, other in enumerate(corpus.against))
    for key, holder in (("evaluation", recipe.evaluation), ("vocabulary", recipe.vocabulary)):
        if isinstance(holder, (Evaluation, Vocabulary)) and isinstance(holder.corpora, list):
            yield from (((key, "corpora", i), name) for i, name in enumerate(holder.corpora))


def _choices(recipe: Recipe) -> Iterator[tuple[TokenizerChoice, tuple[str | int, ...]]]:
    """The choices of a tokenizer, with the path of their holder."""
    scratch = recipe.model.from_scratch if isinstance(recipe.model, Model) else None
    for holder, path in ((scratch, ("model", "from_scratch")), (recipe.vocabulary, ("vocabulary",))):
        if isinstance(holder, (FromScratch, Vocabulary)) and isinstance(holder.tokenizer, TokenizerChoice):
            yield holder.tokenizer, path


def training_problems(training: Any) -> Iterator[tuple[str, str]]:
    """(key, what is wrong) of settings that do not go together."""
    if isinstance(training, TokenizerTraining) and training.digits == "three" and training.type in ("sentencepiece-bpe", "unigram"):
        yield "digits", f"sentencepiece cannot count digits: 'three' belongs to 'bpe', not to {training.type!r}"


def _vocabulary(recipe: Recipe, methods: Methods | None) -> Iterator[Found]:
    """Methods are known and each is run once, with options that it has."""
    if not isinstance(recipe.vocabulary, Vocabulary):
        return
    compare = recipe.vocabulary.compare if isinstance(recipe.vocabulary.compare, list) else []
    places: dict[Any, tuple[str | int, ...]] = {}
    paths = [("vocabulary", "method"), *(("vocabulary", "compare", index) for index in range(len(compare)))]
    for path, method in zip(paths, [recipe.vocabulary.method, *compare]):
        if method is INVALID:
            continue
        if methods is not None and method not in (DEFAULT, AUTO, *methods):
            yield path, f"unknown method '{method}'.{did_you_mean(method, methods, 'Known methods')}"
        elif method in places:
            yield path, f"'{method}' is already run; list each method once, without vocabulary.method"
        places.setdefault(method, path)
    options = recipe.vocabulary.options if isinstance(recipe.vocabulary.options, dict) else {}
    if AUTO in places and methods is not None:  # options may be of any method; only those given must be right
        places |= {method: ("vocabulary", "options", method) for method in options if method in methods and method not in places}
        tried = recipe.vocabulary.probe.methods if isinstance(recipe.vocabulary.probe, Probe) else INVALID
        tried = tried if isinstance(tried, list) else []
        for index, name in enumerate(tried):
            if isinstance(name, str) and name.removesuffix(CALIBRATED) not in methods:
                yield ("vocabulary", "probe", "methods", index), f"unknown method '{name}'.{did_you_mean(name, methods, 'Known methods')}"
    for method, given in options.items():
        if method not in places:
            hint = did_you_mean(method, places, "Methods run")
            yield ("vocabulary", "options", method), f"options of a method that is not run.{hint}"
    for method, place in places.items():
        given = options.get(method, {})
        if methods is None or method not in methods or not isinstance(given, dict):
            continue
        for key, text in methods[method](given):
            path = ("vocabulary", "options", method, key) if key in given else place
            yield path, text if key in given else f"option {key} of {method} is {text}"
