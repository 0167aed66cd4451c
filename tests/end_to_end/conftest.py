"""The tiny recipe, run once in a process of its own, for all end-to-end tests."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import tiny
from commands import Result, Shop


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """A folder with the recipe and its corpora."""
    folder = tmp_path_factory.mktemp("shop")
    tiny.corpora(folder)
    tiny.write(folder, tiny.recipe())
    return Shop(folder)


@pytest.fixture(scope="session")
def first_run(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """What the first ``run`` of the recipe printed; ``out`` holds everything that it made.

    One of pytest-xdist's workers runs it, the others copy what it left.
    """
    base = tmp_path_factory.getbasetemp()
    kept = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "first_run"
    with open(kept.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (kept / "printed.json").exists():
            result = shop.fresh("python", "-m", "megatron_adapt", "run", "recipe.yaml").succeeded()
            shutil.copytree(shop / "out", kept / "out")
            (kept / "printed.json").write_text(json.dumps(asdict(result)))
            return result
    shutil.copytree(kept / "out", shop / "out")
    return Result(**json.loads((kept / "printed.json").read_text()))


@pytest.fixture(scope="session")
def model(shop: Shop, first_run: Result) -> Path:
    """A small model with its tokenizer: the German one."""
    return shop / "out/model"
