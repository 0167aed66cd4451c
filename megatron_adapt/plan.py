"""A recipe as a list of steps, in the order in which they run.

    filtered/CORPUS                   what filters have left of a corpus, where the recipe names some
    tokenizers/{base,target}          trained, where the recipe says so
    data/{base,target}/CORPUS         text.bin / .idx and held_out.jsonl under that tokenizer
    base/{initial,imported,PHASE,model}   a model from scratch and its pretraining
    METHOD/{swapped,imported,PHASE}   one branch for each vocabulary method; `adapted` where the vocabulary stays
    model                             the Hugging Face directory of the recipe's own method
    evaluation/STAGE                  bits per byte of every stage
    harness/{before,after}            answers to the questions of tasks, where the recipe names some
    report                            table, report.md, report.png
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_adapt import recipe as recipes
from megatron_adapt.config import FP8, Phase, Recipe, TokenizerChoice
from megatron_adapt.config_chats import learnt_last
from megatron_adapt.errors import ConfigError
from megatron_adapt.hf.tokenizer import COMPANIONS
from megatron_adapt.plan_corpora import Sources
from megatron_adapt.plan_learnt import learns
from megatron_adapt.plan_mup import mup_base
from megatron_adapt.plan_phase import PhasePlace, layout, phase_step
from megatron_adapt.plan_tasks import tasks_step
from megatron_adapt.plan_vocabulary import swap_step
from megatron_adapt.steps.receipt import Step, beside
from megatron_adapt.steps.reporter import Reporter


@dataclass(frozen=True)
class Stage:
    """A model worth measuring: its branch, a title for tables, where it is, and the step that measures it."""

    branch: str
    title: str
    model: Path
    step: str


@dataclass
class Plan:
    recipe: Recipe
    steps: list[Step] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)

    def step(self, name: str) -> Step:
        """``ConfigError`` with the known names when there is none of this name."""
        for step in self.steps:
            if step.name == name:
                return step
        raise ConfigError(f"no step '{name}' in this recipe; there are: {', '.join(step.name for step in self.steps)}.")


def build(recipe: Recipe) -> Plan:
    """All steps of a recipe, done or not; imports neither torch nor Megatron."""
    return _Builder(recipe).build()


class _Builder:
    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.output = Path(recipe.output)
        self.plan = Plan(recipe)
        self.sources = Sources(recipe, self._take)
        self.held_out: dict[str, Path] = {}
        self.asked: dict[str, Path] = {}  # steps that ask questions, by "before" and "after"
        self.evaluated = recipes.evaluated_corpora(recipe)
        phases = [*recipe.phases, *self._base_phases()]
        self.length = recipe.evaluation.sequence_length or max(phase.sequence_length for phase in phases)

    def _base_phases(self) -> list[Phase]:
        scratch = self.recipe.model.from_scratch
        return list(scratch.phases) if scratch else []

    def build(self) -> Plan:
        recipe = self.recipe
        scratch, vocabulary = recipe.model.from_scratch, recipe.vocabulary
        base_tokenizer = self._tokenizer("base", scratch.tokenizer) if scratch else Path(str(recipe.model.source))
        tokenizer = self._tokenizer("target", vocabulary.tokenizer, base_tokenizer) if vocabulary else base_tokenizer
        final = "target" if vocabulary else "base"
        in_phases = {name for phase in recipe.phases for name in phase.data}
        wanted = {"base": {name for phase in self._base_phases() for name in phase.data}}
        wanted[final] = wanted.get(final, set()) | in_phases | set(self.evaluated) - wanted["base"]
        for kind, folder in (("base", base_tokenizer), ("target", tokenizer)):
            for name in recipe.data:
                if name in wanted.get(kind, ()):
                    self._preprocess(kind, name, folder)
        base = self._base(base_tokenizer)
        self._evaluate(Stage("base", "before", base, "evaluation/base"))
        self._ask("before", base)
        branches = [vocabulary.method, *vocabulary.compare] if vocabulary else ["adapted"]
        for number, branch in enumerate(branches):
            last = self._branch(branch, base, tokenizer, final)
            if number == 0:
                self._ask("after", self._export("export", last, self.output / "model"))
        self._report()
        return self.plan

    def _add(self, **fields: Any) -> Path:
        return self._take(Step(**fields))

    def _take(self, step: Step) -> Path:
        for other in self.plan.steps:
            if step.name == other.name or step.output == other.output:
                names = sorted({Path(one.name).name for one in (step, other)} | {step.output.name, other.output.name})
                raise ConfigError(f"a phase cannot be called {' or '.join(names)}: that is a step of its own; rename the phase.")
        self.plan.steps.append(step)
        return step.output

    # ------------------------------------------------------------------------------------------- tokenizer and data

    def _tokenizer(self, kind: str, choice: TokenizerChoice, own: Path | None = None) -> Path:
        """``own``: the tokenizer that is extended or pruned."""
        if (making := choice.making) is None:
            return Path(str(choice.path))
        sources = {name: self.sources[name] for name in making.corpora}
        corpora = [source.corpus for source in sources.values()]
        read = own if choice.train is None else choice.train.like

        def action(output: Path, reporter: Reporter) -> dict[str, Any]:
            from megatron_adapt.steps import tokenizer

            return tokenizer.make(making, own, corpora, output, reporter)

        inputs = {} if read is None else {"tokenizer": self._tokenizer_input(Path(read))}
        settings = {"corpora": {name: source.reading for name, source in sources.items()}}
        return self._add(
            name=f"tokenizers/{kind}",
            verb="tokenizer",
            output=self.output / "tokenizers" / kind,
            action=action,
            settings=making.model_dump(exclude={"corpora", "like"}) | settings,
            inputs=beside(inputs, {name: source.place for name, source in sources.items()}),
        )

    def _preprocess(self, kind: str, name: str, tokenizer: Path) -> None:
        source = self.sources[name]
        corpus = source.corpus

        def action(output: Path, reporter: Reporter) -> dict[str, Any]:
            from megatron_adapt.steps import preprocess

            return preprocess.run(corpus, tokenizer, output, reporter, self.recipe.seed, name)

        inputs: dict[str, Any] = {"tokenizer": self._tokenizer_input(tokenizer), "corpus": source.place}
        if corpus.held_out_path:
            inputs["held_out"] = Path(corpus.held_out_path)
        if corpus.chat_template:
            inputs["chat_template"] = Path(corpus.chat_template)
        folder = self._add(
            name=f"data/{kind}/{name}",
            verb="preprocess",
            output=self.output / "data" / kind / name,
            action=action,
            settings=source.reading,
            inputs=inputs,
            resumable=True,
        )
        if corpus.held_out or corpus.held_out_path:
            self.held_out[name] = folder / "held_out.jsonl"

    def _tokenizer_input(self, folder: Path) -> Path | tuple[Path, ...]:
        """A model's directory counts with its tokenizer files only: its weights do not change a token."""
        if any(step.output == folder for step in self.plan.steps) or folder.is_file():
            return folder
        return tuple(folder / name for name in COMPANIONS if (folder / name).is_file())

    # --------------------------------------------------------------------------------------------------- the models

    def _base(self, tokenizer: Path) -> Path:
        """The Hugging Face directory that adaptation starts from."""
        scratch = self.recipe.model.from_scratch
        if scratch is None:
            return Path(str(self.recipe.model.source))
        seed, base = self.recipe.seed, mup_base(self.recipe)

        def action(output: Path, reporter: Reporter) -> dict[str, Any]:
            from megatron_adapt.steps import initialize

            made = initialize.run(scratch.config, tokenizer, output, seed, base)
            reporter.log(f"{made['parameters']:,} parameters, {made['vocab_size']:,} tokens")
            return made

        initial = self._add(
            name="base/initial",
            verb="initialize",
            output=self.output / "base" / "initial",
            action=action,
            settings={"config": scratch.config, "seed": seed} | ({} if base is None else {"mup": base}),
            inputs={"tokenizer": self._tokenizer_input(tokenizer)},
        )
        if not scratch.phases:
            return initial
        last = self._import("base", initial)
        for number in range(len(scratch.phases)):
            last = self._phase("base", "base", scratch.phases, number, last)
        return self._export("base/export", last, self.output / "base" / "model", own=False)

    def _branch(self, branch: str, base: Path, tokenizer: Path, data: str) -> Path:
        source = base
        if self.recipe.vocabulary is not None:
            source = self._swap(branch, base, tokenizer)
            self._evaluate(Stage(branch, "vocabulary swapped", source, f"evaluation/{branch}-swapped"))
        last = self._import(branch, source)
        for number, phase in enumerate(self.recipe.phases):
            last = self._phase(branch, data, self.recipe.phases, number, last)
            self._evaluate(Stage(branch, f"phase {phase.name}", last, f"evaluation/{branch}-{phase.name}"))
        return last

    def _swap(self, method: str, base: Path, tokenizer: Path) -> Path:
        return self._take(swap_step(self.recipe, self.sources, method, base, tokenizer, self._tokenizer_input(tokenizer)))

    def _import(self, branch: str, source: Path) -> Path:
        def action(output: Path, reporter: Reporter) -> dict[str, Any]:
            from megatron_adapt.steps import import_hf

            return import_hf.run(source, output, reporter, self._samples(), self.recipe.export.verify)

        return self._add(
            name=f"{branch}/import",
            verb="import",
            output=self.output / branch / "imported",
            action=action,
            inputs={"model": source},
            keeps_parts=True,
        )

    def _phase(self, branch: str, data: str, phases: list[Phase], number: int, start: Path) -> Path:
        held_out = {name: self.held_out[name] for name in self.evaluated}
        place = PhasePlace(branch, self.output / "data" / data, start, held_out, self.length)
        return self._take(phase_step(self.recipe, place, phases, number))

    def _export(self, name: str, source: Path, output: Path, own: bool = True) -> Path:
        """``own``: the recipe's model; else the base model, as its config.json says."""
        export = self.recipe.export
        dtype, tie = (export.dtype, export.tie) if own else ("keep", "keep")
        phases = self.recipe.phases if own else []
        chats = learnt_last(self.recipe, phases)
        template = {"chat_template": Path(chats.chat_template)} if chats and chats.chat_template else {}

        def action(directory: Path, reporter: Reporter) -> dict[str, Any]:
            from megatron_adapt.steps import export_hf

            learnt = learns(self.recipe, phases)
            return export_hf.run(source, directory, reporter, dtype, export.max_shard_size, self._samples(), export.verify, tie, learnt=learnt)

        # A model of other phases than those that it was made of does not take its place unasked, one of more phases does.
        branch = source.parent.name
        trained = {"trained": {str(number): f"{branch}/{phase.name}" for number, phase in enumerate(self.recipe.phases, 1)}} if own else {}
        return self._add(
            name=name,
            verb="export",
            output=output,
            action=action,
            settings={"dtype": dtype, "tie": tie, "max_shard_size": export.max_shard_size, **trained},
            growing="trained",
            inputs={"checkpoint": source, **template},
            keeps_parts=True,
            derived=own,
        )

    # ------------------------------------------------------------------------------------------------- measurements

    def _samples(self) -> list[str] | None:
        """Held-out text on which conversions are compared; None: there is none, use the built-in samples."""
        from megatron_adapt.engine.evaluate import sample

        return [sample(self.held_out[name], characters=2000) for name in self.evaluated] or None

    def _evaluate(self, stage: Stage) -> None:
        if not self.evaluated:
            return
        recipe = self.recipe
        texts = {name: self.held_out[name] for name in self.evaluated}
        precision = "bf16-mixed" if recipe.precision in FP8 else recipe.precision  # whatever the number of positions

        def action(_output: Path, reporter: Reporter) -> dict[str, Any]:
            from megatron_adapt.steps import evaluate

            return evaluate.run(
                stage.model, texts, reporter, layout=layout(recipe.parallel, recipe.backend), precision=precision,
                length=self.length, max_bytes=recipe.evaluation.max_bytes,
            )  # fmt: skip

        self._add(
            name=stage.step,
            verb="evaluate",
            output=self.output / stage.step,
            action=action,
            settings={"max_bytes": recipe.evaluation.max_bytes, "sequence_length": self.length, "precision": precision},
            inputs=beside({"model": stage.model}, {name: path.parent for name, path in texts.items()}),
            ranks=recipe.parallel.world_size,
        )
        self.plan.stages.append(stage)

    def _ask(self, when: str, model: Path) -> None:
        if self.recipe.evaluation.harness is not None:
            self.asked[when] = self._take(tasks_step(self.recipe, when, model))

    def _report(self) -> None:
        curves = {step.name: step.output for step in self.plan.steps if step.verb == "train"}
        filtered = self.sources.filtered

        def action(output: Path, reporter: Reporter) -> dict[str, Any]:
            from megatron_adapt.steps import report

            return report.run(self.recipe, self.plan.stages, self.output, curves, output, reporter, self.asked, filtered)

        inputs = {stage.step: self.output / stage.step for stage in self.plan.stages} | curves
        inputs |= {f"harness/{when}": folder for when, folder in self.asked.items()}
        inputs |= {f"filtered/{name}": folder for name, folder in filtered.items()}
        self._add(name="report", verb="report", output=self.output / "report", action=action, inputs=inputs, derived=True)
