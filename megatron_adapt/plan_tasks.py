"""The steps of a recipe that ask a model the questions of evaluation.harness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_adapt.config import Recipe
from megatron_adapt.steps.receipt import Step
from megatron_adapt.steps.reporter import Reporter


def tasks_step(recipe: Recipe, when: str, model: Path) -> Step:
    """``when``: "before" or "after"; ``model``: a Hugging Face directory."""
    wanted = recipe.evaluation.harness
    assert wanted is not None

    def action(_output: Path, reporter: Reporter) -> dict[str, Any]:
        from megatron_adapt.steps import harness

        return harness.run(model, wanted, reporter)

    return Step(
        name=f"harness/{when}",
        verb="evaluate",
        output=Path(recipe.output) / "harness" / when,
        action=action,
        settings=wanted.model_dump(exclude={"folder", "batch_size"}),
        derived=when == "after",
        inputs={"model": model} | ({} if wanted.folder is None else {"tasks": Path(wanted.folder)}),
    )
