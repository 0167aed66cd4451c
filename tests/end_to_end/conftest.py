"""The tiny recipe, run once in a process of its own, for all end-to-end tests."""

from __future__ import annotations

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
def first_run(shop: Shop) -> Result:
    """What the first ``run`` of the recipe printed; ``out`` holds everything that it made."""
    return shop.fresh("python", "-m", "megatron_adapt", "run", "recipe.yaml").succeeded()


@pytest.fixture(scope="session")
def model(shop: Shop, first_run: Result) -> Path:
    """A small model with its tokenizer: the German one."""
    return shop / "out/model"
