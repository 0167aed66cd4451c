"""What the phases of a recipe teach a model that its weights do not say."""

from __future__ import annotations

from pathlib import Path

from megatron_adapt.config import Phase, Recipe
from megatron_adapt.config_chats import learnt_last
from megatron_adapt.torch_dist.directory import Learnt


def learns(recipe: Recipe, phases: list[Phase]) -> Learnt:
    """What phases teach a model beside its weights; of a template in a file its text."""
    chats = learnt_last(recipe, phases)
    both_ways = [phase.name for phase in phases if phase.denoising is not None and phase.denoising.decoder == "prefix"]
    if chats is None:
        return Learnt(both_ways=tuple(both_ways))
    template = Path(chats.chat_template).read_bytes().decode("utf-8") if chats.chat_template else None
    return Learnt(dict(chats.chat_template_kwargs), template, tuple(both_ways))
