"""The Triton kernels of cross-entropy against float64 and against torch's operations, in Triton's interpreter or on a GPU; all
kernels compiled for one, and in the place of torch's operations where the engine trains."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import ROOT

CHECKS = ROOT / "tests" / "unit" / "fused_softmax_checks.py"


NEEDS_TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton, which is not installed")


def run(script: Path, *arguments: str, **environment: str) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), **environment}
    found = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, timeout=300, env=environment)
    assert found.returncode == 0, found.stderr[-3000:]
    return found.stdout.split()


@NEEDS_TRITON
def test_the_kernels_in_tritons_interpreter() -> None:
    assert run(CHECKS, "cpu", TRITON_INTERPRET="1") == ["statistics", "gradients", "losses"]


@pytest.mark.gpu
def test_the_kernels_on_a_gpu() -> None:
    assert run(CHECKS, "cuda") == ["statistics", "gradients", "losses"]


@NEEDS_TRITON
def test_phases_train_with_all_kernels() -> None:
    assert {"adamw", "kahan", "lionw"} <= set(run(CHECKS.with_name("kernel_training_checks.py"), TRITON_INTERPRET="1"))


@NEEDS_TRITON
def test_all_kernels_compile_for_a_gpu() -> None:
    assert run(CHECKS.with_name("kernel_compile_checks.py")) == ["softmax", "update"]
