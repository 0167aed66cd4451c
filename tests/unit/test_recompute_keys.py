"""`recompute` of a phase: what it may be, and what it says to anything else."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipe_samples import BASE, edited, problems, write

from megatron_adapt.recipe import load


@pytest.mark.parametrize("written, value", [
    ("none", "none"), ("selective", "selective"), ("full", "full"), ("auto", "auto"), ("12", 12), ("'12'", 12), ("1e1", 10),
])  # fmt: skip
def test_values(tmp_path: Path, written: str, value: str | int) -> None:
    found = load([write(tmp_path, BASE)], [f"phases[1].recompute={written}"]).phases[1].recompute
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("written, expected", [
    ("ful", "expected none, selective, full, auto or a number of layers, got 'ful'. Did you mean 'full'?"),
    ("blocks", "expected none, selective, full, auto or a number of layers, got 'blocks'"),
    ("true", "expected none, selective, full, auto or a number of layers, got true"),
    ("1.5", "expected none, selective, full, auto or a number of layers, got the number 1.5"),
    ("0", "a number of layers is at least 1, got the number 0; to keep everything say 'none'"),
    ("auto\n    precision: fp8-delayed-true", "what is computed again counts in fp8-delayed's history, so that losses would hang on the "
     "GPU's memory; use none, full or a number of layers"),
])  # fmt: skip
def test_messages(tmp_path: Path, written: str, expected: str) -> None:
    text = edited(("steps: 100\n", f"steps: 100\n    recompute: {written}\n"))
    assert problems(tmp_path, text) == [f"recipe.yaml:24: phases[1].recompute: {expected}"]
