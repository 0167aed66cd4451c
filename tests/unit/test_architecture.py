"""The house keeps its shape: imports go down, one door to Megatron, one file that says "cuda", small files."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from functools import lru_cache
from pathlib import Path
from typing import Iterator

import pytest
from harness import ROOT

PACKAGE = ROOT / "megatron_adapt"
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "config", "config_phases", "config_strict", "config_types", "config_chats", "config_denoising", "config_filters", "config_idle", "config_parallel", "config_schedules", "config_checks", "options", "recipe", "recipe_files", "schedule"),
    ("streams",),
    ("families", "hf", "torch_dist", "launch"),
    ("vocab", "data", "analysis"),
    ("engine",),
    ("steps",),
    ("plan", "plan_corpora", "plan_denoising", "plan_learnt", "plan_mup", "plan_phase", "plan_tasks", "plan_trained", "plan_vocabulary", "pipeline", "checks", "nodes"),
    ("cli",),
    ("__main__",),
)
# Files that stand side by side and know each other: one topic in several files (floor 0), one floor in three (floor 5).
TOGETHER = [{"config", "config_phases", "config_strict", "config_types", "config_chats", "config_denoising", "config_filters", "config_idle", "config_parallel", "config_schedules", "config_checks", "options", "recipe", "recipe_files", "schedule", "errors"}, {"plan", "plan_corpora", "plan_denoising", "plan_learnt", "plan_mup", "plan_phase", "plan_tasks", "plan_trained", "plan_vocabulary", "pipeline", "checks", "nodes"}]
HEAVY = ("torch", "transformers", "megatron", "transformer_engine")
HEAVY_ROOMS = ("engine",)  # import some of these at once; steps do through them
FORBIDDEN_FOLDERS = {"utils", "util", "common", "core", "configs", "callbacks", "helpers", "misc"}
LONGEST = 400  # lines


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the package, the package's own ``__init__`` aside."""
    found = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name != "megatron_adapt":
            found[name] = file
    return found


MODULES = modules()


@lru_cache(maxsize=None)
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def room(module: str) -> str:
    """'megatron_adapt.vocab.methods.copy' -> 'vocab'"""
    return module.split(".")[1]


def floor(module: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room(module) in rooms)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def nodes(parent: ast.AST, at_import: bool) -> Iterator[ast.AST]:
    """All nodes below; ``at_import``: only what runs when the module is imported."""
    for node in ast.iter_child_nodes(parent):
        if at_import and (is_type_checking(node) or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))):
            continue
        yield node
        yield from nodes(node, at_import)


@lru_cache(maxsize=None)
def imports(module: str, at_import: bool = False) -> list[tuple[str, int]]:
    """(dotted name, line) of everything that a module imports; relative imports made absolute."""
    return list(found_imports(module, at_import))


def found_imports(module: str, at_import: bool) -> Iterator[tuple[str, int]]:
    file = MODULES[module]
    for node in nodes(tree(file), at_import):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            # `from package import module` imports the module; of other names the package alone counts.
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield (full if full in MODULES else str(node.module)), node.lineno


def within(module: str, at_import: bool = False) -> Iterator[tuple[str, int]]:
    """Imports of this package's own modules."""
    for name, line in imports(module, at_import):
        if name in MODULES:
            yield name, line


def test_every_module_has_a_floor() -> None:
    rooms = {name for rooms in FLOORS for name in rooms}
    assert {room(module) for module in MODULES} == rooms
    assert len(MODULES) > 50  # the walk found the package


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    for name, line in within(module):
        here, there = room(module), room(name)
        friends = here == there or any({here, there} <= group for group in TOGETHER)
        place = f"{MODULES[module].relative_to(ROOT)}:{line}"
        assert friends or floor(name) < floor(module), f"{place}: floor {floor(module)} imports {name} (floor {floor(name)})"


def test_no_cycles() -> None:
    """Whenever the import happens; what a function imports for types only does not count, it never runs."""
    graph = {module: {name for name, _ in within(module) if not only_for_types(module, name)} for module in MODULES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a cycle: {' -> '.join([*path[path.index(module):], module])}"
        if module not in done:
            for name in graph[module]:
                visit(name, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def only_for_types(module: str, name: str) -> bool:
    """Whether every import of ``name`` in a module is below ``if TYPE_CHECKING``."""
    return all(line in guarded(module) for found, line in within(module) if found == name)


@lru_cache(maxsize=None)
def guarded(module: str) -> set[int]:
    """Lines of the imports below ``if TYPE_CHECKING``."""
    return {
        inner.lineno
        for node in ast.walk(tree(MODULES[module]))
        if is_type_checking(node)
        for inner in ast.walk(node)
        if isinstance(inner, (ast.Import, ast.ImportFrom))
    }


@pytest.mark.parametrize("module", [module for module in MODULES if room(module) != "engine"])
def test_only_the_engine_imports_megatron(module: str) -> None:
    for name, line in imports(module):
        assert name.split(".")[0] != "megatron", f"{MODULES[module]}:{line} imports {name}"


@pytest.mark.parametrize("module", [module for module in MODULES if room(module) not in (*HEAVY_ROOMS, "steps")])
def test_light_floors_import_no_heavy_library(module: str) -> None:
    """Nor anything of this package that does, at the time of import."""
    for name, line in imports(module, at_import=True):
        place = f"{MODULES[module].relative_to(ROOT)}:{line}"
        assert name.split(".")[0] not in HEAVY, f"{place} imports {name} when it is imported itself"
        assert room(name) not in HEAVY_ROOMS if name in MODULES else True, f"{place} imports {name} when it is imported itself"


def code_words(file: Path) -> Iterator[tuple[str, int]]:
    """Names and strings of a file in lower case, with lines; without comments and docstrings."""
    source = file.read_text(encoding="utf-8")
    documented = [ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef]
    docstrings = {
        node.body[0].lineno for node in ast.walk(tree(file)) if type(node) in documented and ast.get_docstring(node) is not None
    }
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        is_docstring = token.type == tokenize.STRING and token.start[0] in docstrings
        if token.type != tokenize.COMMENT and not is_docstring:
            yield token.string.lower(), token.start[0]


@pytest.mark.parametrize("module", [module for module in MODULES if module != "megatron_adapt.engine.backend"])
def test_only_the_backend_says_cuda(module: str) -> None:
    for word, line in code_words(MODULES[module]):
        # /dev/nvidia0 is how the pipeline sees a GPU without touching its driver.
        assert not re.search("cuda|nccl", word), f"{MODULES[module].relative_to(ROOT)}:{line}: {word}"


def test_the_backend_says_cuda() -> None:
    """The search above finds what it is meant to find."""
    words = {word for word, _ in code_words(MODULES["megatron_adapt.engine.backend"])}
    assert {"cuda", '"cuda"', '"nccl"'} <= words


def python_files() -> list[Path]:
    folders = [PACKAGE, ROOT / "tests", ROOT / "tools", ROOT / "benchmarks", ROOT / "examples", ROOT / "csrc"]
    found = [file for folder in folders for kind in ("*.py", "*.cpp", "*.h") for file in folder.rglob(kind)]
    # The sentences of the quickstart's corpora are data that happen to be written in Python.
    return [file for file in found if "texts" not in file.parts and "__pycache__" not in file.parts]


def test_files_are_small() -> None:
    lengths = {str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines()) for file in python_files()}
    assert len(lengths) > 80
    assert not {name: length for name, length in lengths.items() if length >= LONGEST}


def unused_imports(source: str) -> list[str]:
    """Names that a file imports and neither reads nor hands on; an import for its effect says ``noqa: F401`` in its first line."""
    parsed, lines = ast.parse(source), source.splitlines()
    read = {node.id for node in ast.walk(parsed) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    read |= {node.value for node in ast.walk(parsed) if isinstance(node, ast.Constant)}  # __all__
    return [
        f"{node.lineno}: {alias.asname or alias.name}"
        for node in ast.walk(parsed)
        if isinstance(node, (ast.Import, ast.ImportFrom)) and "noqa: F401" not in lines[node.lineno - 1]
        for alias in node.names
        if getattr(node, "module", "") != "__future__" and (alias.asname or alias.name.split(".")[0]) not in read
    ]


def test_imports_are_used() -> None:
    assert unused_imports("import a.b, c\nfrom d import e as f, g\nimport h  # noqa: F401\nc.x = g()\nf = 1") == ["1: a.b", "2: f"]
    files = [file for file in python_files() if file.suffix == ".py" and file.name != "__init__.py" and "benchmarks" not in file.parts]
    unused = {str(file.relative_to(ROOT)): unused_imports(file.read_text(encoding="utf-8")) for file in files}
    assert not {name: found for name, found in unused.items() if found}


def test_no_folder_for_everything_else() -> None:
    folders = {path.name for path in PACKAGE.rglob("*") if path.is_dir()}
    assert "steps" in folders
    assert not folders & FORBIDDEN_FOLDERS


LIGHT = ["import megatron_adapt.cli", "import megatron_adapt.pipeline, megatron_adapt.checks, megatron_adapt.plan"]


@pytest.mark.parametrize("statement", LIGHT)
def test_the_command_line_imports_no_torch(statement: str) -> None:
    found = subprocess.run(
        [sys.executable, "-c", f"{statement}; import sys; print(*sys.modules)"],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
    ).stdout.split()  # fmt: skip
    assert "megatron_adapt.errors" in found
    assert not [name for name in found if name.split(".")[0] in (*HEAVY, "matplotlib", "tokenizers")]
