"""Runs a plan: skips what is signed, does the rest, one process group for each step."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path
from typing import Callable, Sequence

from megatron_adapt import launch
from megatron_adapt.plan import Plan
from megatron_adapt.steps import receipt
from megatron_adapt.steps.receipt import Step
from megatron_adapt.steps.reporter import PipeReporter, Reporter

ENGINE = ("import", "train", "export", "evaluate")


def remaining(plan: Plan, verbs: Sequence[str] | None = None) -> list[Step]:
    """The steps still to do, in order. A step after an undone one that it needs is undone as well.

    Raises ``ConfigError`` for a signed step whose settings or inputs changed.
    """
    undone: set[Path] = set()
    steps = []
    for step in plan.steps:
        paths = {path for where in step.inputs.values() for path in (where if isinstance(where, tuple) else (where,))}
        if paths & undone or not receipt.is_done(step):
            undone.add(step.output)
            if verbs is None or step.verb in verbs:
                steps.append(step)
    return steps


def command(step: Step, recipe_arguments: Sequence[str], nodes: int = 1) -> str:
    """The shell line that runs one step: torchrun where it has several ranks."""
    tail = [step.verb, *recipe_arguments, "--step", step.name]
    if step.ranks == 1:
        return shlex.join(["megatron-adapt", *tail])
    # With several nodes the cluster's launcher starts this line once on each, with these variables set.
    several = (
        f" --nnodes {nodes} --node-rank $NODE_RANK --master-addr $MASTER_ADDR --master-port $MASTER_PORT" if nodes > 1 else ""
    )
    return f"torchrun --nproc-per-node {step.ranks // nodes}{several} -m {shlex.join(['megatron_adapt', *tail])}"


def interpreter_command(step: Step, recipe_arguments: Sequence[str]) -> list[str]:
    """The same as ``command``, with this very interpreter, for running it here."""
    tail = ["-m", "megatron_adapt", step.verb, *recipe_arguments, "--step", step.name]
    if step.ranks == 1:
        return [sys.executable, *tail]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(step.ranks), *tail]


def has_gpu() -> bool:
    """Without torch, and without touching the driver: this process is going to fork."""
    return os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/nvidia0")


def execute(step: Step, show: Callable[[dict], None]) -> launch.Outcome:
    """Do one step here: as this rank under torchrun, else as forked ranks of this machine."""
    if launch.under_torchrun():
        code = launch.run_rank(lambda: receipt.perform(step, Reporter(), os.environ["RANK"] == "0"))
        return launch.Outcome(stopped=code == launch.STOPPED)

    def rank() -> None:
        reporter = PipeReporter(int(os.environ["MEGATRON_ADAPT_MESSAGES"]))
        receipt.perform(step, reporter, os.environ["RANK"] == "0")

    return launch.fork(step.ranks, rank, receive=show)


def preload(steps: Sequence[Step]) -> None:
    """Import what forked ranks will need once, here, where several steps follow."""
    if any(step.verb in ENGINE for step in steps) and not launch.under_torchrun():
        import megatron_adapt.engine.loop
        import megatron_adapt.steps.train  # noqa: F401
        import transformers  # noqa: F401


def run(steps: Sequence[Step], view: View, torchrun: Callable[[Step], Sequence[str]] | None = None) -> launch.Outcome:
    """Do the steps in order; stops early (``Outcome.stopped``) when one was asked to stop.

    ``torchrun`` gives the command of a step with several ranks; without it they are forked.
    """
    if torchrun is None:
        preload(steps)
    for number, step in enumerate(steps, 1):
        view.begin(number, len(steps), step)
        began = time.perf_counter()
        if torchrun is not None and (step.ranks > 1 or step.verb in ENGINE):
            outcome = launch.child(torchrun(step))
        else:
            outcome = execute(step, view.message)
        if outcome.stopped or (torchrun is not None and not receipt.is_done(step)):
            view.stopped(step)
            return launch.Outcome(stopped=True)
        view.done(step, time.perf_counter() - began)
    return launch.Outcome()


class View:
    """Shows a run on a terminal: a heading and the lines of every step, and a bar where progress is known."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(highlight=False, soft_wrap=True)
        columns = (TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=self.console, transient=True, disable=not sys.stdout.isatty())
        self.task = None

    def begin(self, number: int, total: int, step: Step) -> None:
        ranks = f", {step.ranks} ranks" if step.ranks > 1 else ""
        self.console.print(f"[bold cyan][{number}/{total}] {step.name}[/] ({step.verb}{ranks})")

    def message(self, message: dict) -> None:
        if "log" in message:
            self.console.print(f"      {message['log']}", markup=False)
        if "progress" in message:
            done, total = message["progress"]
            if self.task is None:
                self.bar.start()
                self.task = self.bar.add_task("steps", total=total)
            self.bar.update(self.task, completed=done)

    def _end(self) -> None:
        if self.task is not None:
            self.bar.stop()
            self.bar.remove_task(self.task)
            self.task = None

    def done(self, step: Step, seconds: float) -> None:
        self._end()
        self.console.print(f"      [green]done[/] in {seconds:.1f} s -> {step.output}")

    def finished(self, plan: Plan, verb: str | None) -> None:
        """Where everything lies."""
        what = "everything" if verb is None else f"every '{verb}' step"
        self.console.print(f"[bold green]{what} of '{plan.recipe.name}' is done.[/]")
        root = Path(plan.recipe.output)
        for title, path in (
            ("model (Hugging Face)", root / "model"),
            ("report", root / "report" / "report.md"),
            ("curves", root / "report" / "report.png"),
            ("TensorBoard", root / "tensorboard"),
        ):
            if path.exists():
                self.console.print(f"  {title:<22}{path}")

    def stopped(self, step: Step) -> None:
        self._end()
        self.console.print(f"      [yellow]stopped[/]; {step.name} is saved, the same command continues it")
