"""Runs a plan: skips what is signed, does the rest, one process group for each step."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Callable, Sequence

from megatron_adapt import launch
from megatron_adapt.errors import ConfigError
from megatron_adapt.nodes import SEEN_WITHIN, FirstNode, Nodes
from megatron_adapt.plan import Plan
from megatron_adapt.steps import receipt
from megatron_adapt.steps.receipt import Step
from megatron_adapt.steps.reporter import PipeReporter, Reporter

ENGINE = ("import", "train", "export", "evaluate")


def remaining(plan: Plan) -> list[Step]:
    """The steps still to do, in order.

    A signed step counts as done even where one before it has to be repeated, as long as that one is going to give the
    same again. Raises ``ConfigError`` with all steps that are signed, or begun, for other settings or inputs.
    """
    known: dict[Path, str] = {}
    undone, changed, reasons = [], [], []
    refused: list[Path] = []
    for step in plan.steps:
        state = receipt.state(step, known)
        known[step.output] = state.digest
        if state.differences:
            # What only follows from another change is not worth a word of its own.
            own = [text for text, places in state.differences if not (places or frozenset()).intersection(changed)]
            if own:
                reasons.append(f"step '{step.name}' was {state.word} with other settings or inputs: {'; '.join(own)}.")
            changed.append(step.output)
            again = step.derived and all(places is not None for _, places in state.differences)
            refused += [] if again else [step.output]
        if not state.done or state.differences:
            undone.append(step)
    if refused:
        apart = "\n" if len(reasons) > 1 else " "
        raise ConfigError(apart.join([*reasons, f"To redo it, delete these, or choose another output: {_listed(refused)}"]))
    return undone


def _listed(paths: Sequence[Path]) -> str:
    return " ".join(shlex.quote(str(path)) for path in paths)


def ready(steps: Sequence[Step], undone: Sequence[Step]) -> list[Step]:
    """Those of some steps that can be done now, one after the other; ``ConfigError`` when none of them can.

    The others take as input what another undone step is going to make.
    """
    found: list[Step] = []
    waiting: dict[Path, Step] = {step.output: step for step in undone}
    problems = []
    for step in steps:
        needed = [f"'{waiting[path].name}'" for path in step.places if path in waiting]
        if needed:
            problems.append(f"step '{step.name}' needs {' and '.join(needed)}, not done yet")
        else:
            found.append(step)
            del waiting[step.output]
    if problems and not found:
        raise ConfigError(f"{problems[0]}: do that first, or everything with run (plan prints the order).")
    return found


def command(step: Step, recipe_arguments: Sequence[str], nodes: Nodes = Nodes()) -> str:
    """The shell line that runs one step: torchrun where it has several ranks."""
    tail = [step.verb, *recipe_arguments, "--step", step.name]
    if step.ranks == 1:
        return shlex.join(["megatron-adapt", *tail])
    return f"torchrun {' '.join(nodes.torchrun(step.ranks))} -m {shlex.join(['megatron_adapt', *tail])}"


def interpreter_command(step: Step, recipe_arguments: Sequence[str], nodes: Nodes = Nodes()) -> list[str]:
    """The same as ``command``, with this very interpreter, for running it here."""
    tail = ["-m", "megatron_adapt", step.verb, *recipe_arguments, "--step", step.name]
    if step.ranks == 1:
        return [sys.executable, *tail]
    return [sys.executable, "-m", "torch.distributed.run", *nodes.torchrun(step.ranks), *tail]


def gpus() -> int:
    """How many there are, without torch, and without touching the driver: this process is going to fork."""
    return sum(path.name.removeprefix("nvidia").isdigit() for path in Path("/dev").glob("nvidia*"))


def execute(step: Step, show: Callable[[dict], None]) -> launch.Outcome:
    """Do one step here: as this rank under torchrun, else as forked ranks of this machine."""
    if launch.under_torchrun():
        if int(os.environ["WORLD_SIZE"]) != step.ranks:
            raise ConfigError(f"step '{step.name}' runs as {step.ranks} processes, but {os.environ['WORLD_SIZE']} were started.")
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
        import transformers.modeling_utils  # noqa: F401
        from transformers import AutoModelForCausalLM  # noqa: F401

        preload_files()
        if sum(step.verb in ("import", "export") for step in steps) > 1:
            preload_transformers()


def preload_files() -> None:
    """Import what a process imports when it first opens a model, a tokenizer or a corpus: 20 ms of each rank."""
    import megatron_adapt.families.conversion
    import tokenizers  # noqa: F401
    from megatron_adapt import _C  # noqa: F401

    megatron_adapt.families.families()


def preload_transformers() -> None:
    """Make what transformers makes when a process first loads or saves a model, so that forked ones need not: seconds."""
    with contextlib.suppress(ImportError):  # transformers 4 has no such table of compiled expressions
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping

        get_checkpoint_conversion_mapping("llama")


def run(
    steps: Sequence[Step], view: View, torchrun: Callable[[Step], Sequence[str]] | None = None, first: FirstNode | None = None
) -> launch.Outcome:
    """Do the steps in order; stops early (``Outcome.stopped``) when one was asked to stop.

    ``torchrun`` gives the command of a step with several ranks; without it they are forked. Steps of one rank are done by
    the first node, and the others, to which it is ``first``, wait for them.
    """
    if torchrun is None:
        preload(steps)
    for number, step in enumerate(steps, 1):
        view.begin(number, len(steps), step)
        began = time.perf_counter()
        if step.ranks == 1 and first is not None:
            outcome, done = launch.Outcome(), _is_signed(step, first)
        elif torchrun is not None and (step.ranks > 1 or step.verb in ENGINE):
            outcome = launch.child(torchrun(step))
            done = receipt.state(step).done if first is None else _is_signed(step, first, SEEN_WITHIN)
        else:
            outcome = execute(step, view.message)
            done = not outcome.stopped or receipt.state(step).done
        if done:
            view.done(step, time.perf_counter() - began)
        if outcome.stopped or not done:
            view.stopped(step, done)
            return launch.Outcome(stopped=True)
    return launch.Outcome()


def _is_signed(step: Step, first: FirstNode, within: float | None = None) -> bool:
    """Whether the first node signs a step, as long as that takes it; ``within``: whether it has signed it, once that can be seen,
    after so many seconds at the latest, or as soon as it says that it was stopped.

    A file rather than a collective: the step may take hours.
    """
    began = time.monotonic()
    while receipt.read(step.output) is None:
        if within is not None and time.monotonic() - began > within:
            return False
        if first.has_stopped():
            return receipt.read(step.output) is not None
        time.sleep(0.5)
    return True


class View:
    """Shows a run on a terminal: a heading and the lines of every step, and a bar where progress is known."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        is_first_rank = os.environ.get("RANK", "0") == "0"
        self.console = Console(highlight=False, soft_wrap=True, quiet=not is_first_rank)
        columns = (TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.escape = escape
        self.bar = Progress(*columns, console=self.console, transient=True, disable=not sys.stdout.isatty())
        self.task = None

    def begin(self, number: int, total: int, step: Step) -> None:
        ranks = f", {step.ranks} ranks" if step.ranks > 1 else ""
        self._heading(f"[bold cyan][{number}/{total}] {self.escape(step.name)}[/] ({step.verb}{ranks})")

    def _heading(self, text: str) -> None:
        if "MEGATRON_ADAPT_NESTED" not in os.environ:  # else the process that started this one has said it
            self.console.print(text)

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
        self._heading(f"      [green]done[/] in {seconds:.1f} s -> {self.escape(str(step.output))}")

    def finished(self, plan: Plan, verb: str | None = None, name: str | None = None) -> None:
        """Where everything lies."""
        what = f"step '{name}'" if name else f"every '{verb}' step" if verb else "everything"
        self.console.print(f"{what} of '{plan.recipe.name}' is done.", style="bold green", markup=False)
        root = Path(plan.recipe.output)
        for title, path in (
            ("model (Hugging Face)", root / "model"),
            ("report", root / "report" / "report.md"),
            ("curves", root / "report" / "report.png"),
            ("TensorBoard", root / "tensorboard"),
        ):
            if path.exists():
                self.console.print(f"  {title:<22}{path}", markup=False)

    def stopped(self, step: Step, done: bool) -> None:
        self._end()
        self._heading(f"      [yellow]stopped[/]; {self.escape(_going_on(step, done))}")


def _going_on(step: Step, done: bool) -> str:
    if done:
        return f"{step.name} is done, the same command goes on"
    if (step.output / receipt.BEGUN).is_file():
        return f"{step.name} continues from its last checkpoint with the same command"
    return f"{step.name} begins again with the same command"


class NodeView(View):
    """What a node beside the first one says of a run: a line for each step, whom it waits for or which ranks it runs, and one
    for the end. What the steps themselves say the first node shows."""

    def __init__(self, nodes: Nodes) -> None:
        super().__init__()
        self.nodes = nodes

    def _say(self, text: str) -> None:
        self.console.print(f"[node {self.nodes.rank}] {text}", markup=False)

    def begin(self, number: int, total: int, step: Step) -> None:
        doing = "waits for node 0"
        if step.ranks > 1:
            ranks = self.nodes.ranks(step.ranks)
            which = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
            doing = f"runs {which} of {step.ranks}"
        self._say(f"[{number}/{total}] {step.name} ({step.verb}): {doing}")

    def done(self, step: Step, seconds: float) -> None:
        """The next line says that it goes on."""

    def finished(self, plan: Plan, verb: str | None = None, name: str | None = None) -> None:
        self._say("done")

    def stopped(self, step: Step, done: bool) -> None:
        self._say(f"stopped; {_going_on(step, done)}")
