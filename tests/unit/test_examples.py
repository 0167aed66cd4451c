"""The recipes of the literature: each is one that ``check`` accepts, with the sizes, lengths and rates that its page tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import literature
import pytest
from harness import ROOT

from megatron_adapt import checks, plan, recipe
from megatron_adapt.recipe import load
from megatron_adapt.vocab import methods

EXAMPLES = ROOT / "examples"
BILLION = 10**9


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("literature")
    literature.write(folder)
    return folder


CASES: dict[str, dict[str, Any]] = {
    "mistral7b-german-tight-budget/main": {"steps": [7680], "tokens": 8.05, "peak": [4e-5], "last": [2e-6]},
    "mistral7b-german-tight-budget/main+hindsight": {"steps": [7680], "tokens": 8.05, "peak": [3e-5], "last": [2e-6]},
    "latxa-instruct/recipe": {"steps": [9060], "tokens": 19, "peak": [1e-5], "last": [3.3e-6]},
    "mistral7b-arabic-two-stage/recipe": {"steps": [100, 7680], "tokens": 8.16, "peak": [4e-4, 3e-5], "last": [1e-5, 2e-6]},
    "pythia410m-german-clp/recipe": {"steps": [6100, 54900], "tokens": 1.0, "peak": [1e-3, 3e-4], "last": [3e-5, 3e-5]},
    "pythia410m-german-clp/recipe+baseline": {"steps": [61000], "tokens": 1.0, "peak": [3e-4], "last": [3e-5]},
    "pythia410m-german-clp/recipe+variable-batch": {
        "steps": [195313, 27466], "tokens": 1.0, "peak": [1e-3, 3e-4], "last": [3e-5, 3e-5],
    },
    "mpt7b-czech-lionw/recipe": {
        "steps": [22347, 97653, 50000], "tokens": 356.5, "peak": [1e-4, 9.65e-5, 2.79e-5], "last": [9.65e-5, 2.79e-5, 1e-5],
    },
    "scratch-repeated-data/recipe": {"steps": [52453], "tokens": 55, "peak": [2e-4], "last": [2e-5]},
    "scratch-repeated-data/recipe+146m": {"steps": [11254], "tokens": 5.9, "peak": [2e-4], "last": [2e-5]},
}  # fmt: skip
PARAMETERS = {
    "latxa": 8.03e9,
    "mistral": 7.2e9, "pythia": 405e6, "mpt": 6.7e9, "scratch-repeated-data/recipe": 2.809e9, "scratch-repeated-data/recipe+146m": 146.5e6,
}  # fmt: skip


def loaded(place: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(place)
    folder, names = case.split("/")
    return load([EXAMPLES / folder / f"{name}.yaml" for name in names.split("+")], methods=methods.checks())


def test_every_recipe_is_here() -> None:
    found = {f"{file.parent.name}/{file.stem}" for file in EXAMPLES.glob("*/*.yaml") if file.parent.name != "quickstart"}
    named = {f"{case.split('/')[0]}/{name}" for case in CASES for name in case.split("/")[1].split("+")}
    assert found == named
    assert all((EXAMPLES / folder / "README.md").is_file() for folder in {case.split("/")[0] for case in CASES})


@pytest.mark.parametrize("case", CASES)
def test_check_accepts_it(place: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = CASES[case]
    built = plan.build(loaded(place, case, monkeypatch))
    lines = list(checks.summary(built))
    curves = checks.learning_rates(built)
    assert [len(rates) for _, rates in curves] == expected["steps"]
    assert [max(rates) for _, rates in curves] == pytest.approx(expected["peak"], rel=0.01)
    assert [rates[-1] for _, rates in curves] == pytest.approx(expected["last"], rel=0.01)
    tokens = sum(recipe.tokens_per_step(phase) * steps for phase, steps in zip(built.recipe.phases, expected["steps"]))
    assert tokens / BILLION == pytest.approx(expected["tokens"], rel=0.005)
    size = next(size for name, size in PARAMETERS.items() if case == name or case.startswith(name) and "/" not in name)
    (place / "dumped.yaml").write_text(recipe.dump(built.recipe), encoding="utf-8")
    assert load([place / "dumped.yaml"], methods=methods.checks()) == built.recipe
    parameters = int(lines[0].split("parameters ")[1].split(", steps")[0].replace(",", ""))
    assert parameters == pytest.approx(size, rel=0.02)
    repeats = [line for line in lines if " epochs of " in line]
    assert len(repeats) == ("scratch-repeated-data" in case)
    if repeats and "146m" not in case:
        told = "adapted: c4: 4 epochs of 13.8B tokens; the repeated 41.3B are worth 37.5B new ones, one more 0.82 (law fitted"
        assert repeats[0].startswith(told)
