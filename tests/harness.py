"""What several tests need: real assets, and a world of forked gloo ranks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def assets(*parts: str) -> Path:
    """A path below the folder of real test data; skips the calling test where the folder is absent.

    The folder is named by ``MEGATRON_ADAPT_ASSETS`` and defaults to ``../shared/data`` beside the project.
    """
    folder = Path(os.environ.get("MEGATRON_ADAPT_ASSETS", ROOT.parent / "shared" / "data"))
    path = folder.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs real test data: {path} does not exist (set MEGATRON_ADAPT_ASSETS)")
    return path
