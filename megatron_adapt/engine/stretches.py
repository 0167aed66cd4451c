"""What a run has been trained on: stretches of a phase with one mix of corpora, batch, length and schedule each.

A recipe may change these for what is left of a phase. The history of it is kept in every checkpoint and told in the report:

    {"phase": name, "steps": [begin, end], "tokens": [begin, end], "samples": {corpus: drawn}, "settings": {...}}
"""

from __future__ import annotations

import json
from typing import Any

from megatron_adapt.config import ADJUSTABLE, Phase
from megatron_adapt.torch_dist.directory import Learnt, Position


def begin(phase: Phase, position: Position, learns: Learnt = Learnt()) -> list[str]:
    """Open a stretch if the phase's settings are not those of the last one; what was changed, in words.

    With another mix its proportions count from here; each corpus goes on where it stopped.

    Args:
        learns: what the phase teaches the model beside its weights.
    """
    last = learns if learns.chats is not None else position.learnt
    both_ways = dict.fromkeys((*position.learnt.both_ways, *learns.both_ways))
    position.learnt = Learnt(last.chats, last.chat_template, tuple(both_ways))
    settings = json.loads(phase.model_dump_json(include=ADJUSTABLE))
    last = position.trained[-1] if position.trained and position.trained[-1]["phase"] == phase.name else None
    if last is not None and last["settings"] == settings:
        return []
    changes = []
    if last is not None:
        changes = [f"{key} was {last['settings'].get(key)}, is now {settings[key]}" for key in settings if last["settings"].get(key) != settings[key]]
        if last["settings"]["data"] != settings["data"]:
            position.drawn.clear()
    place = {"steps": [position.step] * 2, "tokens": [position.tokens] * 2, "before": dict(position.drawn), "samples": {}}
    position.trained = [*position.trained, {"phase": phase.name, **place, "settings": settings}]
    return changes


def advance(position: Position) -> None:
    """Count a step that was just taken."""
    last = position.trained[-1]
    last["steps"][1], last["tokens"][1] = position.step, position.tokens
    last["samples"] = {name: drawn - last["before"].get(name, 0) for name, drawn in position.drawn.items()}


def spanned(position: Position, planned: tuple[int, int], more: int) -> tuple[int, int]:
    """What a schedule over the whole run counts: (steps of the phases before, steps of all).

    Args:
        planned: both as the recipe's settings give them. Phases that were trained with others had other numbers of steps.
        more: steps of the present phase beyond those planned; it may be below 0.
    """
    before = sum(stretch["steps"][1] - stretch["steps"][0] for stretch in position.trained if stretch["phase"] != position.phase)
    before = before or planned[0]  # of which older checkpoints say nothing
    return before, planned[1] + before - planned[0] + more


def rewind(position: Position, ahead: Position) -> None:
    """After going back to a checkpoint: the stretches so far, as long as they now are. The data has been drawn anyway."""
    position.trained = ahead.trained
    for stretch in position.trained:
        if stretch["phase"] == position.phase:
            stretch["steps"] = [min(step, position.step) for step in stretch["steps"]]
            stretch["tokens"] = [min(tokens, position.tokens) for tokens in stretch["tokens"]]


def of_phase(position: Position) -> list[dict[str, Any]]:
    """Stretches of the present phase, for its receipt."""
    kept = ("phase", "steps", "tokens", "samples", "settings")
    return [{key: stretch[key] for key in kept} for stretch in position.trained if stretch["phase"] == position.phase]
