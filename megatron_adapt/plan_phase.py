"""The step of a recipe that trains a phase."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_adapt import recipe as recipes, schedule
from megatron_adapt.analysis import wandb_run
from megatron_adapt.config import ADJUSTABLE, Parallel, Phase, Recipe
from megatron_adapt.errors import ConfigError
from megatron_adapt.plan_learnt import learns
from megatron_adapt.plan_mup import mup_base, mup_fields
from megatron_adapt.steps.receipt import Step, beside
from megatron_adapt.steps.reporter import Reporter

if TYPE_CHECKING:
    from megatron_adapt.engine.backend import Layout

# Of a phase: what may be another in another run without making it another phase.
FREE = frozenset({
    "evaluate_every", "save_every", "keep_last", "keep_every", "async_save", "log_every", "micro_batch_size", "recompute", "logits",
})  # fmt: skip
LENGTH = frozenset({"name", "tokens", "steps", "epochs", "sequence_length", "batch_size", "ramp_up"})


@dataclass(frozen=True)
class PhasePlace:
    """Where a phase stands among the steps."""

    branch: str
    data: Path  # folder of the corpora under the phase's tokenizer
    start: Path  # folder of the checkpoint to begin from
    held_out: dict[str, Path]  # texts to measure while it trains
    length: int  # sequence length that they are measured at


def layout(parallel: Parallel, backend: str) -> Layout:
    from megatron_adapt.engine.backend import Layout

    return Layout(
        parallel.tensor, parallel.pipeline, parallel.sequence, parallel.distributed_optimizer, backend,
        parallel.virtual_pipeline, parallel.context,
    )  # fmt: skip


def phase_step(recipe: Recipe, place: PhasePlace, phases: list[Phase], number: int) -> Step:
    """``number``: which of ``phases``, those of the recipe or those of its base from scratch."""
    phase, output = phases[number], Path(recipe.output)
    precision = phase.precision or recipe.precision
    spanned = phases if phase.schedule.over == "run" else [phase]
    folders = {name: place.data / name for each in spanned for name in each.data}
    passes = {name: recipe.data[name].model_dump(include={"unique_tokens", "shuffled_epochs"}) for name in folders}

    def action(directory: Path, reporter: Reporter) -> dict[str, Any]:
        from megatron_adapt.data.sampling import Passes
        from megatron_adapt.engine.job import Job
        from megatron_adapt.steps import train
        from megatron_adapt.steps.preprocess import PREFIX, epoch_tokens

        found = {
            name: epoch_tokens(folder, recipe.seed, name, recipe.data[name], any(each.denoises(name) for each in spanned))
            for name, folder in folders.items()
        }
        tokens = recipes.tokens_per_epoch(recipe, found)
        lengths = [recipes.steps(each, tokens) for each in spanned]
        if why := schedule.problem(phase.schedule, sum(lengths)):
            raise ConfigError(f"phase '{phase.name}': schedule: {why}; shorten them or lengthen the phase.")
        job = Job(
            phase=phase,
            steps=recipes.steps(phase, tokens),
            tokens=recipes.tokens(phase, tokens),
            run=(sum(lengths[: spanned.index(phase)]), sum(lengths)),
            layout=layout(recipe.parallel, recipe.backend),
            precision=precision,
            seed=recipe.seed,
            start=place.start,
            output=directory,
            corpora={name: folders[name] / PREFIX for name in phase.data},
            passes={name: Passes(**passes[name]) for name in phase.data},
            held_out=place.held_out,
            evaluation_length=place.length,
            evaluation_bytes=recipe.evaluation.max_bytes,
            tensorboard=output / "tensorboard" / place.branch / phase.name,
            wandb=_wandb(recipe, place.branch, phase, precision),
            mup=mup_fields(recipe),
            learns=learns(recipe, [phase]),
        )
        return train.run(job, reporter)

    settings = phase.model_dump(exclude=set(FREE))
    if (base := mup_base(recipe)) is not None:
        settings["mup"] = base
    if phase.schedule.over == "run":
        settings["run"] = [each.model_dump(include=set(LENGTH)) for each in phases]
    return Step(
        name=f"{place.branch}/{phase.name}",
        verb="train",
        output=output / place.branch / phase.name,
        action=action,
        settings=settings | {"seed": recipe.seed, "precision": precision, "number": number, "corpora": passes},
        inputs=beside({"start": place.start}, folders),
        ranks=recipe.parallel.world_size,
        resumable=True,
        adjustable=frozenset({*ADJUSTABLE, "run"}),
    )


def _wandb(recipe: Recipe, branch: str, phase: Phase, precision: str) -> wandb_run.Run | None:
    wanted = recipe.wandb
    if wanted is None:
        return None
    settings = {
        "phase": phase.model_dump(), "parallel": recipe.parallel.model_dump(), "precision": precision,
        "seed": recipe.seed, "model": recipe.model.source,
    }  # fmt: skip
    name = f"{recipe.name}/{branch}/{phase.name}"
    return wandb_run.Run(wanted.project, wanted.entity, wanted.group or recipe.name, name, Path(recipe.output), settings)
