"""Runs that several files compare with."""

from __future__ import annotations

from functools import lru_cache
from typing import Callable

import pytest
from worlds import LAYOUTS, STEPS, Outcome, World


@pytest.fixture(scope="session")
def uninterrupted(world: World, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Outcome]:
    """Six steps with checkpoints after 2, 4 and 6, trained once for each layout, precision and model."""

    @lru_cache
    def train(layout: str = "one", precision: str = "fp32", train: str = "all", start: str = "short") -> Outcome:
        folder = tmp_path_factory.mktemp("uninterrupted")
        return world.train(folder, *LAYOUTS[layout], precision=precision, train=train, start=start, **STEPS)

    return train
