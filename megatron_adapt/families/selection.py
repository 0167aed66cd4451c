"""Which parameters of a model a phase trains, by their canonical names."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from megatron_adapt.config_types import selected_layers
from megatron_adapt.families.family import ModelShape
from megatron_adapt.families.rules import EMBEDDING, OUTPUT, Shape


def is_selected(name: str, pattern: str, num_layers: int, tied: bool) -> bool:
    """Whether a phase that says ``train: pattern`` trains the parameter of this canonical name."""
    if pattern == "all":
        return True
    if pattern == "embedding":
        return name == EMBEDDING
    if pattern == "output":
        return name == (EMBEDDING if tied else OUTPUT)
    if pattern == "norms":
        return re.search(r"norm[._](weight|bias)$", name) is not None
    if pattern.startswith("regex:"):
        return re.search(pattern.removeprefix("regex:"), name) is not None
    layers = selected_layers(pattern, num_layers)
    assert layers is not None, f"the recipe let an unknown pattern through: {pattern}"
    here = re.match(r"decoder\.layers\.(\d+)\.", name)
    return here is not None and int(here[1]) in layers


def trained_shapes(shape: ModelShape, train: str | Sequence[str]) -> dict[str, Shape]:
    """Canonical name -> unsharded shape of what a phase's ``train`` selects."""
    patterns, sizes = [train] if isinstance(train, str) else train, shape.parameter_shapes().items()

    def trains(name: str) -> bool:
        return any(is_selected(name, pattern, shape.num_layers, shape.tied) for pattern in patterns)

    return {name: size for name, size in sizes if trains(name)}


def trained_parameters(shape: ModelShape, train: str | Sequence[str]) -> int:
    """Weights that a phase's ``train`` selects."""
    return sum(math.prod(size) for size in trained_shapes(shape, train).values())
