"""Verbs on whole recipes, and what every verb needs to take one."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Iterable, List, Optional

import typer

from megatron_adapt.cli.application import app
from megatron_adapt.errors import ConfigError

if TYPE_CHECKING:
    from megatron_adapt.plan import Plan

Words = Annotated[List[str], typer.Argument(help="recipe.yaml ... [path=value ...]", metavar="RECIPE [PATH=VALUE]...")]
Either = Annotated[List[str], typer.Argument(help="recipe.yaml ... [path=value ...], or plain paths", metavar="RECIPE | PATHS")]
StepName = Annotated[Optional[str], typer.Option("--step", help="only the step of this name (see plan)")]


def is_recipe(words: List[str]) -> bool:
    return any(word.endswith((".yaml", ".yml")) and "=" not in word for word in words)


def takes_recipe(context: typer.Context, words: List[str]) -> bool:
    """Whether a verb is to work on a recipe. Options of its other form are refused: the recipe says what they would say."""
    recipe = is_recipe(words)
    given = [option for option in context.command.params if is_given(context, str(option.name))]
    mistaken = [option.opts[0] for option in given if option.name != "words" and (option.name in ("step", "nproc")) != recipe]
    if mistaken and recipe:
        raise ConfigError(
            f"{', '.join(mistaken)}: for plain paths only, and without effect on a recipe. Remove it; what can be chosen is a key of the "
            "recipe, which PATH=VALUE changes (check prints all keys)."
        )
    if mistaken:
        raise ConfigError(f"{', '.join(mistaken)}: for recipes only, and {' '.join(words)} names none (.yaml).")
    return recipe


def refuse(context: typer.Context, names: Iterable[str], why: str) -> None:
    """Options that would do nothing beside the others: ``ConfigError`` with those of these names that are given, and why."""
    given = [option.opts[0] for option in context.command.params if option.name in set(names) and is_given(context, str(option.name))]
    if given:
        raise ConfigError(f"{', '.join(given)}: {why}.")


def is_given(context: typer.Context, name: str) -> bool:
    return context.get_parameter_source(name).name == "COMMANDLINE"


def load(words: List[str], ranks: Optional[int] = None) -> "Plan":
    from megatron_adapt import plan, recipe
    from megatron_adapt.data import filters
    from megatron_adapt.vocab import methods

    files = [word for word in words if "=" not in word]
    overrides = [word for word in words if "=" in word]
    known = {"methods": methods.checks(), "filters": filters.kinds()}
    loaded = recipe.load(files, overrides, **known)
    if ranks is not None:
        model_ranks = loaded.parallel.model_ranks
        if ranks % model_ranks:
            raise ConfigError(
                f"--nproc {ranks} is no multiple of parallel.tensor x parallel.context x parallel.pipeline = {model_ranks}: "
                "start a multiple."
            )
        loaded = recipe.load(files, [*overrides, f"parallel.data={ranks // model_ranks}"], **known)
    return plan.build(loaded)


@app.command()
def check(
    words: Words,
    picture: Annotated[
        Optional[Path], typer.Option("--schedule", metavar="PLOT.png", help="print the learning rates and draw them")
    ] = None,
) -> None:
    """Validate a recipe, print it with all defaults filled in, and what follows from it."""
    from megatron_adapt import checks, recipe

    plan = load(words)
    print(recipe.dump(plan.recipe))
    for line in checks.summary(plan):
        print(line)
    if picture is not None:
        from megatron_adapt.analysis import plots
        from megatron_adapt.steps.receipt import writing

        if picture.suffix not in (".png", ".pdf", ".svg"):
            raise ConfigError(f"--schedule {picture}: a picture's name ends in .png, .pdf or .svg.")
        if not picture.parent.is_dir():
            raise ConfigError(f"--schedule {picture}: the folder {picture.parent} does not exist.")
        curves = checks.learning_rates(plan)
        for name, rates in curves:
            print(checks.describe_rates(name, rates))
        with writing("--schedule", picture):
            plots.draw_learning_rates(curves, picture)
        print(f"drawn in {picture}")


@app.command()
def plan(
    context: typer.Context,
    words: Words,
    nodes: Annotated[int, typer.Option("--nnodes", min=1, help="nodes that share a step's ranks")] = 1,
    nproc: Annotated[Optional[int], typer.Option("--nproc", help="ranks in all; default: as the recipe says")] = None,
    cluster: Annotated[
        Optional[str], typer.Option(metavar="nodes=N,gpus=N,gpu=NAME", help="advise on the layout for a cluster instead, and predict tokens/s")
    ] = None,
    measured: Annotated[
        Optional[Path], typer.Option(metavar="results.json", help="of benchmarks/gpu/first_call.py: what one GPU reaches (for --cluster)")
    ] = None,
) -> None:
    """Print the commands that remain, one a line, in order; or which layout suits a cluster."""
    from megatron_adapt import checks, pipeline

    if measured is not None and cluster is None:
        raise ConfigError("--measured is for --cluster.")
    if cluster is not None:
        refuse(context, ("nodes", "nproc"), "--cluster says what there is, and advises on the layout; leave one of them out")
    plan = load(words, nproc)
    if cluster is not None:
        for line in checks.advice(plan, cluster, measured):
            print(line)
        return
    _check_spread(plan, nodes)
    extra = [] if nproc is None else [f"parallel.data={plan.recipe.parallel.data}"]
    checks.check(plan)
    for step in pipeline.remaining(plan):
        print(pipeline.command(step, [*words, *extra], pipeline.Nodes(nodes)))


def _check_spread(plan: Plan, nodes: int) -> None:
    if plan.recipe.parallel.world_size % nodes:
        raise ConfigError(f"{plan.recipe.parallel.world_size} ranks cannot be spread over --nnodes {nodes}.")


@app.command()
def run(
    words: Words,
    nodes: Annotated[int, typer.Option("--nnodes", min=1, help="nodes that share the ranks; start it on each of them")] = 1,
    nproc: Annotated[Optional[int], typer.Option("--nproc", help="ranks in all; default: as the recipe says")] = None,
    launcher: Annotated[str, typer.Option(help="fork | torchrun | auto (torchrun where there is a GPU)")] = "auto",
) -> None:
    """Do everything that remains of a recipe; the same command continues an interrupted run."""
    run_steps(words, None, None, nproc, launcher, nodes)


def run_steps(
    words: List[str],
    verb: Optional[str],
    name: Optional[str],
    nproc: Optional[int] = None,
    launcher: str = "fork",
    nodes: int = 1,
) -> None:
    from megatron_adapt import checks, launch, nodes as several, pipeline

    if launcher not in ("auto", "fork", "torchrun"):
        raise ConfigError(f"--launcher {launcher}: choose auto, fork or torchrun.")
    if launcher == "fork" and nodes > 1:
        raise ConfigError(f"--launcher fork starts the ranks of one machine; --nnodes {nodes} needs torchrun.")
    here = pipeline.Nodes.from_environment(nodes)
    plan = load(words, nproc)
    output = Path(plan.recipe.output)
    first = None if here.is_first else several.FirstNode(output)
    _check_spread(plan, nodes)
    checks.check(plan)
    view = pipeline.View() if here.is_first else pipeline.NodeView(here)
    undone = pipeline.remaining(plan)
    if name is not None:
        step = plan.step(name)
        if verb is not None and step.verb != verb:
            raise ConfigError(f"step '{name}' belongs to the verb '{step.verb}', not to '{verb}'.")
        steps = [step] if step in undone else []
    else:
        steps = [step for step in undone if verb in (None, step.verb)]
    steps = pipeline.ready(steps, undone)
    if not steps:
        view.finished(plan, verb, name)
        return
    gpus = pipeline.gpus() if launcher == "auto" else 0
    ranks = plan.recipe.parallel.world_size // nodes
    if 0 < gpus < ranks:
        raise ConfigError(
            f"the recipe asks for {ranks} ranks{' a node' if nodes > 1 else ''}, and this machine has {gpus} GPU(s): lower parallel.tensor, "
            f"parallel.context, parallel.pipeline or parallel.data (parallel.tensor=1 on the command line), or hide the GPUs and say "
            f"--launcher fork to use the CPU."
        )
    use_torchrun = launcher == "torchrun" or gpus > 0 or nodes > 1
    extra = [] if nproc is None else [f"parallel.data={plan.recipe.parallel.data}"]
    arguments = [*words, *extra]
    torchrun = (lambda step: pipeline.interpreter_command(step, arguments, here)) if use_torchrun else None
    with several.heard(output) if nodes > 1 and here.is_first else contextlib.nullcontext(lambda outcome: None) as end:
        outcome = pipeline.run(steps, view, torchrun, first)
        end(outcome)
    if outcome.stopped:
        # Under torchrun every code but 0 would look like a failure and kill the other ranks before they have saved.
        sys.exit(0 if launch.under_torchrun() else launch.STOPPED)
    if verb is None:
        view.finished(plan)
