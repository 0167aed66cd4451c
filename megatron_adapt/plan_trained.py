"""What a phase trains of its model, and keys of the phase that have nothing to act on there, for ``check``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from megatron_adapt.config import Optimizer, Phase
from megatron_adapt.families.family import ModelShape
from megatron_adapt.families.rules import EMBEDDING, OUTPUT
from megatron_adapt.families.selection import is_selected

_ROWS = {EMBEDDING, OUTPUT}


def problems(phases: Sequence[tuple[str, Phase, ModelShape]]) -> Iterator[str]:
    """In words, of phases in their order, each with its branch and its model."""
    before: dict[str, tuple[Phase, set[str]]] = {}
    for branch, phase, shape in phases:
        where = f"phase '{phase.name}'"
        patterns = [phase.train] if isinstance(phase.train, str) else phase.train
        selected = {pattern: _selected(pattern, shape) for pattern in patterns}
        for pattern, names in selected.items():
            if not names and pattern.startswith("regex:"):  # of layers it is told otherwise
                yield f"{where}: train: {pattern!r} selects nothing of the model, whose parameters have names such as {EMBEDDING}"
        trained = set().union(*selected.values())
        if trained:
            yield from (f"{where}: {key}: {text}" for key, text in _idle(phase.optimizer, trained, shape))
        last, kept = before.get(branch, (None, trained))
        if phase.init_state == "keep" and last is not None and trained and not trained & kept:
            yield f"{where}: init_state: phase '{last.name}' has trained nothing that this one trains, so there is no state to keep; use 'reset'"
        before[branch] = phase, trained


def _selected(pattern: str, shape: ModelShape) -> set[str]:
    return {name for name in shape.parameter_shapes() if is_selected(name, pattern, shape.num_layers, shape.tied)}


def _idle(optimizer: Optimizer, trained: set[str], shape: ModelShape) -> Iterator[tuple[str, str]]:
    """(key, why it does nothing) of an optimizer that updates these parameters."""
    default = {key: field.default for key, field in Optimizer.model_fields.items()}
    matrices = {name for name in trained if len(shape.parameter_shapes()[name]) == 2}
    if not trained & _ROWS:
        for key in ("embedding_lr", "decay_embeddings"):
            if getattr(optimizer, key) != default[key]:
                yield f"optimizer.{key}", "is about embedding and output rows, of which this phase trains none; remove it"
    if optimizer.embedding_gradient < 1 and not any(name.startswith("embedding.") for name in trained):
        yield "optimizer.embedding_gradient", "is about the input embedding, which this phase does not train; remove it"
    inside = {name for name in matrices if name.startswith("decoder.layers.")}
    if optimizer.type == "muon" and not inside:
        yield "optimizer.type", "'muon' is for the matrices inside layers, of which this phase trains none; use 'adamw'"
    elif optimizer.type == "muon" and inside == trained:
        for key in ("beta1", "beta2", "eps"):
            if getattr(optimizer, key) != default[key]:
                yield f"optimizer.{key}", "is about what 'muon' leaves to AdamW, and this phase trains matrices inside layers alone; remove it"
    if not matrices:
        for key in ("weight_decay", "decay_by"):
            if getattr(optimizer, key) not in (0, default[key]):
                yield f"optimizer.{key}", "is about matrices, of which this phase trains none; remove it"
