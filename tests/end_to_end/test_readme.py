"""The documents tell the truth: commands run or are what the command line prints, links lead somewhere, keys exist.

Commands that need only this machine and seconds are executed as they stand, in a folder in which the names that
README.md declares (``my-model`` ...) and the quickstart's base model exist in small. Runs of whole recipes are planned
instead, and lines for clusters are compared with those that ``plan`` prints.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Annotated, Any, Iterator, Sequence

import literature
import pytest
import tiny
import typer
import yaml
from commands import Shop
from harness import ROOT
from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from megatron_adapt import cli, config, launch, plan as plans, recipe as recipes
from megatron_adapt.config import Recipe, model_of, step_into

README = ROOT / "README.md"
KEYS = ROOT / "examples" / "RECIPE.md"
WITH_COMMANDS = [README, ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("examples/*/README.md"))]
DOCUMENTS = [*WITH_COMMANDS, KEYS, ROOT / "CHANGELOG.md", *sorted((ROOT / "megatron_adapt").rglob("README.md"))]
MODEL = {**tiny.CONFIG, "num_key_value_heads": 4, "max_position_embeddings": 2048}  # fits the layout of README's recipe
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(document: Path, language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return [text for kind, text in FENCE.findall(document.read_text(encoding="utf-8")) if kind == language]


def commands(block: str) -> list[str]:
    """One line each, continued lines joined."""
    lines = re.sub(r"\\\n\s*", "", block).splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def table(heading: str, document: Path = README) -> Iterator[list[str]]:
    """The rows of a document's table whose header begins with these words."""
    lines = iter(document.read_text(encoding="utf-8").splitlines())
    assert any(line.startswith(heading) for line in lines), heading
    next(lines)
    for line in lines:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split("|")]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


class Checker:
    """Executes a command of a document, or compares it with ``plan``; ``AssertionError`` where it is wrong."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop

    def check(self, line: str) -> None:
        words = shlex.split(line, comments=True)
        checks = {"megatron-adapt": self.ours, "bash": self.script, "export": self.syntax, "sbatch": self.submitted}
        assert words[0] in checks, f"no way to check {words[0]!r}: write its command another way, or add one here"
        checks[words[0]](words[1:])

    def ours(self, words: Sequence[str]) -> None:
        verb, *arguments = words
        assert verb in typer.main.get_command(cli.app).commands, f"no verb {verb!r}"
        if verb in ("check", "plan") or not cli.recipes.is_recipe(arguments):
            self.shop.run(*words).succeeded()
            return
        given = self.parsed(verb, arguments)
        planned = self.plan([*given["words"], *(["--nproc", given["nproc"]] if given.get("nproc") else [])])
        if given.get("step"):
            line = shlex.join([verb, *given["words"], "--step", given["step"]])
            assert any(other.endswith(line) for other in planned), (line, planned)

    def parsed(self, verb: str, arguments: Sequence[str]) -> dict[str, Any]:
        """Options and words as the verb gets them."""
        try:
            return typer.main.get_command(cli.app).commands[verb].make_context(verb, list(arguments)).params
        except Exception as error:  # click's own, which typer may bring along under another name
            raise AssertionError(f"{verb} {arguments}: {error}") from error

    def plan(self, words: Sequence[str]) -> list[str]:
        return self.shop.run("plan", *words).succeeded().out.splitlines()

    def script(self, words: Sequence[str]) -> None:
        """Ours, which pass their arguments on; running them is the job of the quickstart and of this very suite."""
        path = ROOT / words[0]
        assert path.is_file(), f"no script {path}"
        assert subprocess.run(["bash", "-n", path]).returncode == 0
        started = re.search(r'^exec (.+) "\$@"$', path.read_text(), re.MULTILINE)
        assert started, f"{path} does not pass its arguments on"
        if started[1].startswith("megatron-adapt "):
            self.check(shlex.join([*shlex.split(started[1]), *words[1:]]))
        else:
            assert "pytest" in started[1] and all((ROOT / word).exists() for word in words[1:] if "/" in word), words

    def syntax(self, words: Sequence[str]) -> None:
        assert all(re.match(r"[A-Z_]+=", word) for word in words), words

    def submitted(self, words: Sequence[str]) -> None:
        """``sbatch --nodes N SCRIPT RECIPE ...``: what the script runs on each node has a plan for so many."""
        assert words[0] == "--nodes", words
        path = ROOT / words[2]
        assert path.is_file(), f"no script {path}"
        assert subprocess.run(["bash", "-n", path]).returncode == 0
        started = re.search(r'megatron-adapt run "\$@" --nnodes "\$SLURM_NNODES"', path.read_text())
        assert started, f"{path} does not pass its arguments on"
        assert any(f"--nnodes {words[1]} " in line for line in self.plan([*words[3:], "--nnodes", words[1]]))


def make_model(folder: Path) -> None:
    """A tiny Llama with a tokenizer of its own."""
    from megatron_adapt.config import Corpus, TokenizerTraining
    from megatron_adapt.steps import initialize, tokenizer
    from megatron_adapt.steps.reporter import Reporter

    tokenizer.make(TokenizerTraining(corpora=["en"], vocab_size=400), None, [Corpus(path="en.jsonl")], Path("tokenizer"), Reporter())
    initialize.run(MODEL, Path("tokenizer"), folder, seed=1)


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory) -> Checker:
    """A folder like a clone of the project after the quickstart, with what the table of names promises."""
    shop = Shop(tmp_path_factory.mktemp("clone"))
    (shop / "examples").symlink_to(ROOT / "examples")
    literature.write(shop.folder)
    tiny.corpora(shop.folder)
    shop.compute(lambda: make_model(Path("my-model")))
    shutil.copytree(shop / "my-model", shop / "runs/quickstart/base/model")
    (shop / "de.jsonl").rename(shop / "german.jsonl")
    (shop / "en.jsonl").rename(shop / "english.jsonl")
    for text in blocks(README, "yaml"):
        name = re.match(r"# (\w+\.yaml)\n", text)
        assert name, f"a recipe of README.md begins with a comment that names its file: {text[:40]}"
        (shop / name[1]).write_text(text, encoding="utf-8")
    return Checker(shop)


@pytest.mark.parametrize("document", WITH_COMMANDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command(checker: Checker, document: Path) -> None:
    lines = [line for block in blocks(document, "bash") for line in commands(block)]
    assert lines, "it has lost its commands"
    for line in lines:
        checker.check(line)


@pytest.mark.parametrize(
    "line",
    [
        "megatron-adapt trane german.yaml",
        "megatron-adapt run german.yaml --nprocs 4",
        "megatron-adapt run german.yaml phases.full.optimizer.lrr=1",
        "megatron-adapt check german.yaml --strict",
        "megatron-adapt train german.yaml --step copy/fool",
        "megatron-adapt swap my-model runs/other --tokeniser my-model",
        "megatron-adapt import their-model runs/other",
        "bash examples/quickstart/ran.sh",
        "bash examples/quickstart/run.sh phases.fool.steps=1",
        "bash tests/run.sh tests/unity",
        "sbatch --nodes 2 examples/slurm/jobs.sh german.yaml",
        "sbatch --nodes 3 examples/slurm/job.sh german.yaml",
        "sbatch --nodes 2 examples/quickstart/run.sh",
        "megatron-adopt run german.yaml",
    ],
)
def test_a_wrong_command_is_noticed(checker: Checker, line: str) -> None:
    with pytest.raises(AssertionError):
        checker.check(line)


def test_the_names_in_commands_are_those_of_the_table(checker: Checker) -> None:
    names = {name for row in table("| name in the commands") for name in quoted(row[0])}
    assert names == {"my-model", "german.jsonl", "english.jsonl"}
    assert all((checker.shop / name).exists() for name in names)


def test_the_two_commands_stand_at_the_top() -> None:
    text = README.read_text(encoding="utf-8")
    top = "\n".join(text.splitlines()[:20])
    assert "bash examples/quickstart/run.sh" in top and "bash tests/run.sh" in top
    assert len(text.splitlines()) < 250
    assert text.count("<!-- quickstart-output -->") == text.count("<!-- /quickstart-output -->") == 1


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    assert not [target for target in targets if not (document.parent / target).exists()]


def field_at(key: str) -> FieldInfo | None:
    """The schema of ``phases[].optimizer.lr``; None where there is no such key. NAME stands for any name."""
    *path, last = key.replace("[]", ".0").split(".")
    schema: Any = Recipe
    for step in path:
        schema = step_into(schema, step)
    model = model_of(schema)
    return model.model_fields.get(last) if model else None


def documented() -> Iterator[tuple[str, str]]:
    """(key, default) of every key in the table; a key that begins with a point stands beside the one before it."""
    for keys, defaults, _meaning in table("| key | default", KEYS):
        names = quoted(keys)
        values = [value.strip() for value in defaults.split(",")] if defaults else [""] * len(names)
        assert len(values) == len(names), (keys, defaults)
        for name, value in zip(names, values):
            yield (names[0].rpartition(".")[0] + name if name.startswith(".") else name), value


def test_keys_of_the_recipe_and_their_defaults() -> None:
    keys = list(documented())
    assert len(keys) > 40
    for key, shown in keys:
        field = field_at(key)
        assert field is not None, f"no key {key}"
        assert field.is_required() == (shown == ""), key
        if shown:
            default = field.get_default(call_default_factory=True)
            kind: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
            value = None if shown == "none" else TypeAdapter(kind).validate_python(yaml.safe_load(shown.strip("`")))
            assert value == default, (key, shown, default)


def test_no_key_of_the_recipe_is_forgotten() -> None:
    rows = " ".join(" ".join(row) for row in table("| key | default", KEYS))
    models = [model for model in config.Strict.__subclasses__() if model.__module__.startswith(config.__name__)]
    names = {name for model in models for name in model.model_fields} - {"path"}
    assert not [name for name in names if not re.search(rf"\b{name}\b", rows)]


def test_the_picture_shows_every_directory() -> None:
    recipe = recipes.load([ROOT / "examples" / "quickstart" / "recipe.yaml"])
    branches = [recipe.vocabulary.method, *recipe.vocabulary.compare]
    phases = [phase.name for phase in [*recipe.phases, *recipe.model.from_scratch.phases]]
    text = README.read_text(encoding="utf-8")
    for step in plans.build(recipe).steps:
        parts = list(step.output.relative_to(recipe.output).parts)
        parts[0] = "METHOD" if parts[0] in branches else parts[0]
        if parts[0] in ("data", "evaluation"):
            parts[-1] = "CORPUS" if parts[0] == "data" else "STAGE"
        shown = "/".join("PHASE" if part in phases else part for part in parts)
        assert re.search(rf"(?<![\w/]){re.escape(shown)}(?![\w/])", text), f"{shown} is nowhere in README.md"


def test_files_of_the_layout_exist() -> None:
    (layout,) = (block for block in blocks(README, "text") if block.startswith("megatron_adapt/"))
    names = re.findall(r"(?<![\w.])[\w.]+(?:/[\w.]+)*(?:/|\.py)(?=[\s,)])", layout)
    assert len(names) > 15
    files = {path.name for folder in ("megatron_adapt", "tools") for path in (ROOT / folder).rglob("*.py")}
    folders = {f"{path.name}/" for path in [*ROOT.iterdir(), *(ROOT / "megatron_adapt").iterdir()] if path.is_dir()}
    assert set(names) <= files | folders, set(names) - files - folders


def test_exit_codes() -> None:
    assert [row[0] for row in table("| exit code")] == ["0", "1", "2", str(launch.STOPPED)]
