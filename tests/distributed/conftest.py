"""One world for all multi-process tests of a session."""

from __future__ import annotations

import pytest
from worlds import World


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))
