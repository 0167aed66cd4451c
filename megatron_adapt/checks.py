"""What follows from a recipe, for ``check``: problems that only the model's config shows, and derived numbers."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Iterator, Sequence

from megatron_adapt import plan_denoising, recipe as recipes, schedule
from megatron_adapt.analysis import allocation, cluster as clusters, estimate, recomputation, wandb_run
from megatron_adapt.config import Dropout, Parallel, Phase, Recipe, TokenizerChoice
from megatron_adapt.config_types import selected_layers
from megatron_adapt.data import filters
from megatron_adapt.data.sources import HUB, find_files
from megatron_adapt.errors import CheckpointError, ConfigError, DataError
from megatron_adapt.families import find_family
from megatron_adapt.families.family import ModelShape
from megatron_adapt.families.rules import header_problems
from megatron_adapt.hf.directory import HFDirectory
from megatron_adapt.hf.weights import weights_file
from megatron_adapt.plan import Plan
from megatron_adapt.plan_corpora import reading_problems
from megatron_adapt.plan_mup import mup_problems, mup_table
from megatron_adapt.plan_trained import problems as trained_problems
from megatron_adapt.plan_vocabulary import unread_corpora
from megatron_adapt.steps import harness
from megatron_adapt.steps.receipt import read
from megatron_adapt.vocab.specials import denoising_tokens
from megatron_adapt.vocab.surgery import check_tokenizer


def shapes(recipe: Recipe) -> tuple[ModelShape, ModelShape]:
    """(before, after) the vocabulary swap; the same twice without one.

    Raises ``ConfigError`` for unsupported models, and a tokenizer with more ids than its model has rows.
    """
    scratch = recipe.model.from_scratch
    if scratch is not None:
        family = find_family(scratch.config, "model.from_scratch.config")
        before = family.read_config(family.complete_config(scratch.config, vocabulary_size(scratch.tokenizer, 1), None, None))
    else:
        directory = HFDirectory.open(str(recipe.model.source))
        where = str(directory.config_path)
        before = find_family(directory.config, where).read_config(directory.config, where)
        check_tokenizer(directory.path, before.vocab_size)
    if recipe.vocabulary is None:
        return before, before
    choice, multiple = recipe.vocabulary.tokenizer, recipe.vocabulary.pad_to_multiple
    return before, replace(before, vocab_size=vocabulary_size(choice, multiple, before.vocab_size))


def vocabulary_size(choice: TokenizerChoice, multiple: int, own: int = 0) -> int:
    """Rows for a tokenizer; ``own``: the model's. Rows that an extension can reuse, and tokens that pruning will keep
    without a limit, are known only when it is done: the most that it can be."""
    if choice.train is not None:
        size = -(-choice.train.vocab_size // choice.train.multiple) * choice.train.multiple
    elif choice.extend is not None:
        size = own + choice.extend.tokens + len(denoising_tokens(choice.extend.sentinels or 0))
    elif choice.prune is not None:
        size = min(own, choice.prune.keep or own)
    else:
        from megatron_adapt.hf.tokenizer import Tokenizer

        size = Tokenizer.load(str(choice.path)).vocab_size
    return -(-size // multiple) * multiple


def check(plan: Plan) -> list[tuple[str, Phase, ModelShape]]:
    """The phases with their shapes, base first; ``ConfigError`` names everything that does not fit the model."""
    recipe, parallel = plan.recipe, plan.recipe.parallel
    before, after = shapes(recipe)
    scratch = recipe.model.from_scratch
    phases = [("base", phase, before) for phase in (scratch.phases if scratch else [])]
    phases += [(_branch(recipe), phase, after) for phase in recipe.phases]
    problems = []
    for shape in dict.fromkeys(shape for _, _, shape in phases):
        problems += shape.layout_problems(parallel.tensor, parallel.pipeline, parallel.virtual_pipeline)
    for _, phase, shape in phases:
        problems += _phase_problems(phase, shape)
        if why := recomputation.problem(phase.recompute, shape, parallel.pipeline, parallel.virtual_pipeline):
            problems.append(f"phase '{phase.name}': {why}")
        narrow = shape.fp8_problems(phase.precision or recipe.precision, parallel.tensor)
        problems += [f"phase '{phase.name}': {text}" for text in narrow]
    if recipe.evaluation.harness is not None:
        problems += harness.problems(recipe.evaluation.harness)
    if recipe.wandb is not None:
        problems += wandb_run.problems()
    problems += _filter_problems(plan)
    problems += mup_problems(recipe, phases)
    problems += trained_problems(phases)
    problems += unread_corpora(recipe)
    problems += reading_problems(recipe)
    problems += _template_problems(plan)
    problems += plan_denoising.problems(recipe)
    problems += _weight_problems(recipe, before)
    length = recipe.evaluation.sequence_length
    if length is not None and length > after.max_position_embeddings:
        problems.append(
            f"evaluation.sequence_length {length} exceeds the model's max_position_embeddings {after.max_position_embeddings}"
        )
    if problems:
        text = ";\n".join(dict.fromkeys(problems))
        raise ConfigError(text if text.endswith("?") else f"{text}.")
    return phases


def _branch(recipe: Recipe) -> str:
    """The first folder of the phases that end in the recipe's model."""
    return recipe.vocabulary.method if recipe.vocabulary else "adapted"


def _weight_problems(recipe: Recipe, shape: ModelShape) -> Iterator[str]:
    """What the import would refuse of the source's weights, from the headers of safetensors; pickles need torch to be opened."""
    if recipe.model.source is None:
        return
    directory = HFDirectory.open(recipe.model.source)
    if "safetensors" not in str(weights_file(directory.path)):
        return
    try:
        with directory.weights() as reader:
            found = header_problems(find_family(directory.config), shape, reader)
    except CheckpointError as error:
        found = str(error)
    if found:
        yield found.removesuffix(".")


def _filter_problems(plan: Plan) -> Iterator[str]:
    """Filters that cannot run on this machine: before those in front of them have run for hours."""
    for name in [step.output.name for step in plan.steps if step.verb == "filter"]:
        for number, one in enumerate(plan.recipe.data[name].filters):
            if lack := filters.missing(one.name):
                yield f"data.{name}.filters[{number}]: {lack}"


def _template_problems(plan: Plan) -> Iterator[str]:
    """Chats without a template that can be used; of a tokenizer that is trained for them more is known when it is made."""
    for step in plan.steps:
        if step.verb != "preprocess":
            continue
        _, kind, name = step.name.split("/")
        corpus, source = plan.recipe.data[name], _template_source(plan.recipe, kind)
        if corpus.messages is None:
            continue
        if source is None and corpus.chat_template is None:
            yield f"data.{name}: a trained tokenizer has no chat template; give data.{name}.chat_template, or tokenizer.train.like"
        elif source is not None:
            from megatron_adapt.hf.tokenizer import Tokenizer
            from megatron_adapt.steps.preprocess import chats

            try:
                chats(corpus, Tokenizer.load(source))
            except ConfigError as error:
                yield f"data.{name}: {error}"


def _template_source(recipe: Recipe, kind: str) -> str | None:
    """The tokenizer that is used, or whose template one takes over that is yet to be made."""
    scratch, vocabulary = recipe.model.from_scratch, recipe.vocabulary
    choice = vocabulary.tokenizer if vocabulary and kind == "target" else scratch.tokenizer if scratch else None
    if choice is None or choice.extend is not None or choice.prune is not None:
        return recipe.model.source
    return choice.train.like if choice.train is not None else choice.path


def _has_gpu() -> bool:
    """Found without torch, which takes seconds to import."""
    return any(Path("/dev").glob("nvidia[0-9]*"))


def _phase_problems(phase: Phase, shape: ModelShape) -> Iterator[str]:
    if phase.optimizer.type == "adamw8bit" and importlib.util.find_spec("bitsandbytes") is None:
        yield f"phase '{phase.name}': optimizer.type: adamw8bit needs bitsandbytes; pip install 'megatron_adapt[adamw8bit]'"
    for key in ("paged", "offload"):
        if getattr(phase.optimizer, key) and not _has_gpu():
            yield f"phase '{phase.name}': optimizer.{key} needs a GPU, and there is none here; remove it"
    if phase.denoising is not None and phase.denoising.decoder == "prefix" and (shape.windows or shape.position == "alibi"):
        what = "ALiBi" if shape.position == "alibi" else "windows of attention"
        yield f"phase '{phase.name}': denoising.decoder: 'prefix' has no meaning for {what}, which this model has; use 'causal'"
    if phase.sequence_length > shape.max_position_embeddings:
        yield (
            f"phase '{phase.name}': sequence_length {phase.sequence_length} exceeds the model's "
            f"max_position_embeddings {shape.max_position_embeddings}"
        )
    if not phase.restart_positions and shape.position != "learned":
        yield (
            f"phase '{phase.name}': restart_positions: false is for learned positions; this model's are relative "
            f"({shape.position}), so it changes nothing: remove it"
        )
    for part in [phase.train] if isinstance(phase.train, str) else phase.train:
        layers = selected_layers(part, shape.num_layers)
        if layers is not None and not layers:
            yield f"phase '{phase.name}': train: {part} selects none of the model's {shape.num_layers} layers"


def summary(plan: Plan) -> Iterator[str]:
    """Readable lines: a block for each phase, then the steps."""
    recipe = plan.recipe
    phases = check(plan)
    for row in estimate.rows(phases, recipe.parallel, recipe.precision, _known_tokens(plan)):
        yield f"{row.pop('phase')}: " + ", ".join(f"{key} {value}" for key, value in row.items())
    yield from plan_denoising.lines(plan)
    yield from mup_table(recipe, phases)
    yield from _repeats(plan)
    yield from _dropout(recipe)
    yield from _disk(plan)
    yield f"{len(plan.steps)} steps, {recipe.parallel.world_size} ranks, output in {Path(recipe.output)}"


def _repeats(plan: Plan) -> Iterator[str]:
    """Corpora that are read more than once over all phases, as far as their tokens are known, and what that is worth."""
    recipe, known = plan.recipe, _known_tokens(plan)
    scratch = recipe.model.from_scratch
    before, after = ("base", known["base"], scratch.phases if scratch else []), (_branch(recipe), known["adapted"], recipe.phases)
    for branch, epoch, phases in (before, after):
        sizes = epoch | {name: corpus.unique_tokens for name, corpus in recipe.data.items() if corpus.unique_tokens}
        read: dict[str, float] = {}
        for phase in phases:
            try:
                steps = recipes.steps(phase, epoch)
            except KeyError:
                break  # epochs of a corpus that is not tokenized yet
            total = phase.samples(steps) * phase.sequence_length
            for name, weight in phase.data.items():
                share = plan_denoising.text_share(phase, name)
                read[name] = read.get(name, 0) + total * share * weight / sum(phase.data.values())
        else:
            for name, tokens in read.items():
                size = sizes.get(name)
                if isinstance(size, int) and tokens > 1.05 * size:  # of chats the size hangs on how they are packed
                    yield f"{branch}: {name}: {allocation.repeats(tokens, size)}"


def advice(plan: Plan, cluster: str, measured: Path | None) -> Iterator[str]:
    """Which layout suits a cluster, given as on the command line, and how fast it would be."""
    # The layout that the recipe has now is not asked about.
    recipe = plan.recipe.model_copy(update={"parallel": Parallel()})
    yield from clusters.lines(check(replace(plan, recipe=recipe)), recipe.precision, clusters.parse(cluster), measured)


def _dropout(recipe: Recipe) -> Iterator[str]:
    """Models are saved with the dropout of their own training, which no phase takes over by itself."""
    scratch = recipe.model.from_scratch
    config = scratch.config if scratch else HFDirectory.open(str(recipe.model.source)).config
    keys = ("embd_pdrop", "emb_pdrop", "resid_pdrop", "attn_pdrop", "hidden_dropout", "attention_dropout")
    asked = [f"{key} {each[key]}" for each in (config, config.get("attn_config") or {}) for key in keys if each.get(key)]
    phases = [phase.name for phase in [*(scratch.phases if scratch else []), *recipe.phases] if phase.dropout == Dropout()]
    if asked and phases:
        yield f"the model's config.json asks for dropout ({', '.join(asked)}), phases without 'dropout' have none: {', '.join(phases)}"


def _disk(plan: Plan) -> Iterator[str]:
    """What a run writes, roughly, and whether the disk has room for the rest of it."""
    recipe, output = plan.recipe, Path(plan.recipe.output)
    before, after = shapes(recipe)
    scratch, vocabulary = recipe.model.from_scratch, recipe.vocabulary
    phases = [(phase, before, "base", 1) for phase in (scratch.phases if scratch else [])]
    branches = 1 + len(vocabulary.compare) if vocabulary else 1
    phases += [(phase, after, "adapted", branches) for phase in recipe.phases]
    tokens, sizes = _known_tokens(plan), {"checkpoints": 0.0, "corpora": 0.0, "models": 0.0}
    for phase, shape, branch, times in phases:
        try:
            steps = recipes.steps(phase, tokens[branch])
        except KeyError:
            steps = None  # epochs of a corpus that is not tokenized yet
        sizes["checkpoints"] += times * estimate.checkpoints_bytes(shape, phase, phase.precision or recipe.precision, steps)
    for step in plan.steps:
        if step.verb == "preprocess":
            _, kind, name = step.name.split("/")
            corpus = recipe.data[name]
            size = (before if kind == "base" else after).vocab_size
            sizes["corpora"] += estimate.corpus_bytes(_files(corpus.path), size, corpus.held_out)
        elif step.verb == "filter":
            sizes["corpora"] += estimate.text_bytes(_files(recipe.data[step.output.name].path))
        elif step.verb in ("initialize", "swap", "import", "export"):
            shape = before if step.name.startswith("base/") else after
            final = step.name == "export" and recipe.export.dtype != "keep"
            sizes["models"] += shape.num_parameters() * ((4 if recipe.export.dtype == "float32" else 2) if final else _width(recipe))
    there = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    place = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
    total, free = sum(sizes.values()), shutil.disk_usage(place).free
    parts = ", ".join(f"{name} {size / 1e9:.3g}" for name, size in sizes.items())
    yield f"disk: ~{total / 1e9:.3g} GB ({parts}), {there / 1e9:.3g} GB of it there, {free / 1e9:.3g} GB free"
    if (missing := total - there) > free:
        yield (
            f"the disk of {place} is too small: {missing / 1e9:.3g} GB more are needed, roughly, and {free / 1e9:.3g} GB are free; "
            "keep fewer checkpoints (keep_last, keep_every) or choose another output"
        )


def _files(paths: str | Sequence[str]) -> list[Path]:
    """A corpus's files, as far as they are here: those of the hub are not, and a missing one is told when it is read."""
    named = [path for path in ([paths] if isinstance(paths, str) else paths) if not path.startswith(HUB)]
    try:
        return find_files(named)
    except DataError:
        return []


def _width(recipe: Recipe) -> int:
    """Bytes of a weight in files before training."""
    scratch = recipe.model.from_scratch
    config = scratch.config if scratch else HFDirectory.open(str(recipe.model.source)).config
    return 4 if config.get("dtype", config.get("torch_dtype", "float32")) == "float32" else 2


def learning_rates(plan: Plan) -> list[tuple[str, list[float]]]:
    """(phase, learning rate of each step) of the phases, base first.

    Raises ``ConfigError`` for phases whose length is not known yet.
    """
    scratch, tokens = plan.recipe.model.from_scratch, _known_tokens(plan)
    curves, unknown = [], []
    for branch, phases in (("base", scratch.phases if scratch else []), ("adapted", plan.recipe.phases)):
        lengths = []
        for phase in phases:
            try:
                steps = recipes.steps(phase, tokens[branch])
            except KeyError:
                unknown.append(phase.name)
            else:
                lengths.append((phase.schedule, phase.optimizer.lr, steps))
        if len(lengths) == len(phases):
            curves += zip([phase.name for phase in phases], schedule.learning_rates(lengths))
    if unknown:
        raise ConfigError(
            f"the length of {', '.join(unknown)} is given in epochs of corpora that are not tokenized yet; run "
            "`megatron-adapt preprocess` with this recipe first, or give steps or tokens."
        )
    return curves


def describe_rates(name: str, rates: Sequence[float]) -> str:
    """'full: learning rate 1e-05 at step 1, 0.001 at step 10, ..., 2e-05 at step 160'"""
    last = len(rates) - 1
    peak = max(range(len(rates)), key=rates.__getitem__)
    shown = sorted({0, peak, last // 4, last // 2, last * 3 // 4, last})
    return f"{name}: learning rate " + ", ".join(f"{rates[step]:.4g} at step {step + 1:,}" for step in shown)


def _known_tokens(plan: Plan) -> dict[str, dict[str, recipes.Size]]:
    """For base and for the other branches: tokens an epoch of the corpora that are already tokenized."""
    final = "target" if plan.recipe.vocabulary else "base"
    from megatron_adapt.steps.preprocess import epoch_tokens

    tokens: dict[str, dict[str, recipes.Size]] = {"base": {}, "target": {}}
    scratch = plan.recipe.model.from_scratch
    for step in plan.steps:
        signed = read(step.output) if step.verb == "preprocess" else None
        if signed:
            _, kind, name = step.name.split("/")
            denoised = any(phase.denoises(name) for phase in [*plan.recipe.phases, *(scratch.phases if scratch else [])])
            tokens[kind][name] = epoch_tokens(step.output, plan.recipe.seed, name, plan.recipe.data[name], denoised)
    per_epoch = {kind: recipes.tokens_per_epoch(plan.recipe, found) for kind, found in tokens.items()}
    return {"base": per_epoch["base"], "adapted": per_epoch[final]}
