"""analysis/wandb_run.py with a stand-in for the library, and the recipe's key."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from harness import ROOT
from stand_ins.weights_and_biases import Library

from megatron_adapt import checks, plan, recipe as recipes
from megatron_adapt.analysis import wandb_run
from megatron_adapt.errors import ConfigError
from megatron_adapt.vocab import methods


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    module = Library()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_run.importlib.util, "find_spec", lambda name: None)


def a_run(folder: Path) -> wandb_run.Run:
    return wandb_run.Run("lab", "us", "german", "german/adapted/full", folder, {"seed": 1})


def test_a_phase_is_one_run(library: Library, tmp_path: Path) -> None:
    for step in (1, 2):
        writer = wandb_run.Writer(a_run(tmp_path / "out"), tmp_path / "phase")
        writer.add(step, {"loss": 1.0 / step})
        writer.close()
    first, second = library.named("init")
    assert first["id"] == second["id"] == (tmp_path / "phase" / "wandb_id").read_text().strip()
    assert {key: first[key] for key in ("project", "entity", "group", "name", "dir", "config", "resume")} == {
        "project": "lab", "entity": "us", "group": "german", "name": "german/adapted/full", "dir": str(tmp_path / "out"),
        "config": {"seed": 1}, "resume": "allow",
    }  # fmt: skip
    assert first["settings"].values == {"silent": True, "finish_timeout": 60.0}
    assert library.named("log") == [{"loss": 1.0, "step": 1}, {"loss": 0.5, "step": 2}]
    assert ("*", {"step_metric": "step"}) in library.named("define_metric")  # a step may be trained again
    assert len(library.named("finish")) == 2


def test_another_phase_is_another_run(library: Library, tmp_path: Path) -> None:
    for name in ("embeddings", "full"):
        wandb_run.Writer(a_run(tmp_path), tmp_path / name)
    first, second = library.named("init")
    assert first["id"] != second["id"]


def test_versions_that_know_no_patience(library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Library.Settings, "model_fields", {})
    wandb_run.Writer(a_run(tmp_path), tmp_path)
    assert library.named("init")[0]["settings"].values == {"silent": True}


def test_it_cannot_be_reached(library: Library, tmp_path: Path) -> None:
    library.error = library.errors.Error("no API key\nconfigured")
    with pytest.raises(ConfigError, match=r"\(no API key configured\): run `wandb login`, or set WANDB_MODE=offline and send .*wandb sync"):
        wandb_run.Writer(a_run(tmp_path), tmp_path)


def test_it_is_not_installed(absent: None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not installed: pip install 'megatron_adapt\[wandb\]'\.$"):
        wandb_run.Writer(a_run(tmp_path), tmp_path)


def built(folder: Path, **changes: Any) -> plan.Plan:
    tiny.corpora(folder)
    return plan.build(recipes.load([tiny.write(folder, tiny.recipe(**changes))], [], methods=methods.checks()))


def test_check_tells_that_it_is_not_installed(absent: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checks.check(built(tmp_path))
    with pytest.raises(ConfigError, match="Weights & Biases is not installed"):
        checks.check(built(tmp_path, wandb="lab"))


def test_it_may_be_added_to_a_finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    without, used = built(tmp_path), built(tmp_path, wandb={"project": "lab", "group": "all"})
    assert used.recipe.wandb.group == "all"
    assert [(step.name, step.settings) for step in without.steps] == [(step.name, step.settings) for step in used.steps]


def test_the_extra_is_declared() -> None:
    assert "\nwandb = [" in (ROOT / "pyproject.toml").read_text()
