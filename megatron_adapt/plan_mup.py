"""What muP makes of a recipe: the base that its phases scale from, what does not go, and the table of ``check``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from megatron_adapt.analysis.report import columns
from megatron_adapt.config import Optimizer, Phase, Recipe
from megatron_adapt.families import find_family, mup
from megatron_adapt.families.family import ModelShape, family_named
from megatron_adapt.families.initial import initial_stds
from megatron_adapt.families.rules import EMBEDDING, OUTPUT, expand
from megatron_adapt.hf.directory import HFDirectory


def mup_base(recipe: Recipe) -> dict[str, Any] | None:
    """Keys of the base's config.json that differ; None without muP."""
    return recipe.model.mup.base if recipe.model.mup is not None else None


def mup_fields(recipe: Recipe) -> dict[str, Any]:
    """The base's fields of ``ModelShape``, empty without muP; ``ConfigError`` names keys and values that do not go."""
    base, scratch = mup_base(recipe), recipe.model.from_scratch
    if base is None:
        return {}
    config = scratch.config if scratch else HFDirectory.open(str(recipe.model.source)).config
    return mup.base_fields(find_family(config, "the model's configuration"), config, base)


def mup_problems(recipe: Recipe, phases: Sequence[tuple[str, Phase, ModelShape]]) -> Iterator[str]:
    """What the model and the phases' optimizers cannot do of it, in words."""
    if fields := mup_fields(recipe):
        for shape in dict.fromkeys(shape for _, _, shape in phases):
            yield from mup.problems(shape, fields)
        for _, phase, shape in phases:
            yield from (f"phase '{phase.name}': {text}" for text in mup.problems(shape, fields, phase.optimizer))


def mup_table(recipe: Recipe, phases: Sequence[tuple[str, Phase, ModelShape]]) -> Iterator[str]:
    """Lines: what is wider than in the base; of each kind of tensor initial values, learning rates and decay."""
    fields = mup_fields(recipe)
    if not fields:
        return
    shape, fresh = phases[0][2], recipe.model.from_scratch is not None
    names = {key: family_named(shape.family).names.get(key, key) for key in mup.WIDTHS}
    widths = [f"{key} {fields[name]} -> {getattr(shape, name)}" for name, key in names.items() if key]
    yield f"muP: {', '.join(widths)}"
    header = ["tensors", *(["initial std"] if fresh else []), *(f"{phase.name}: rate, decay" for _, phase, _ in phases)]
    kinds: dict[tuple[str, ...], list[str]] = {}
    for name, numbers in _numbers(shape, fields, [phase for _, phase, _ in phases], fresh).items():
        kinds.setdefault(numbers, []).append(name)
    yield from columns(header, [[", ".join(found), *numbers] for numbers, found in kinds.items()])


def _numbers(
    shape: ModelShape, fields: dict[str, Any], phases: Sequence[Phase], fresh: bool
) -> dict[str, tuple[str, ...]]:
    """By name, the same in all layers: the columns of the table; of several matrices in one tensor one after the other."""
    found: dict[str, tuple[str, ...]] = {}
    scalings = mup.scalings(shape, fields)
    stds = initial_stds(shape) | {"ones": 1.0, "zeros": 0.0}
    for rule in expand(family_named(shape.family), shape):
        scaling, is_vector = scalings[rule.megatron], len(rule.megatron_shape(shape)) == 1
        cells = [_shown([stds[rule.init] * factor for factor in scaling.std])] if fresh else []
        cells += [_rate_and_decay(phase.optimizer, rule.megatron, scaling, is_vector) for phase in phases]
        name = re.sub(r"^decoder\.(layers\.\d+\.(self_attention|mlp)\.)?|\.weight$", "", rule.megatron)
        found.setdefault(name, tuple(cells))
    return found


def _rate_and_decay(settings: Optimizer, name: str, scaling: mup.Scaling, is_vector: bool) -> str:
    is_row = name in (EMBEDDING, OUTPUT)
    by_muon = settings.type == "muon" and name.startswith("decoder.layers.") and not is_vector
    peak = (settings.embedding_lr if is_row else None) or settings.lr
    decays = not is_vector and (settings.decay_embeddings or not is_row)
    # Decay that goes by the schedule alone is no multiple of a learning rate that could be another one.
    factor = 1.0 if by_muon or settings.decay_by == "schedule" else scaling.rate
    rates = scaling.muon if by_muon else scaling.rates
    return f"{_shown([peak * factor for factor in rates])}, {settings.weight_decay * decays / factor:.4g}"


def _shown(values: Sequence[float]) -> str:
    texts = [f"{value:.4g}" for value in values]
    return texts[0] if len(set(texts)) == 1 else "/".join(texts)
