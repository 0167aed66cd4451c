"""Make ``tests/harness.py`` importable from every test folder; one world for all multi-process tests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

if TYPE_CHECKING:
    from worlds import World


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    from worlds import World  # imports Megatron, which other tests need not wait for

    return World(tmp_path_factory.mktemp("world"))
