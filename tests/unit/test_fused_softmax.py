"""The Triton kernels of cross-entropy against float64 and against torch's operations, in Triton's interpreter or on a GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
from harness import ROOT

CHECKS = ROOT / "tests" / "unit" / "fused_softmax_checks.py"


def run_checks(device: str, **environment: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), **environment}
    found = subprocess.run([sys.executable, str(CHECKS), device], capture_output=True, text=True, timeout=300, env=environment)
    assert found.returncode == 0, found.stderr[-3000:]
    assert found.stdout.split() == ["statistics", "gradients", "losses"]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton, which is not installed")
def test_the_kernels_in_tritons_interpreter() -> None:
    run_checks("cpu", TRITON_INTERPRET="1")


@pytest.mark.gpu
def test_the_kernels_on_a_gpu() -> None:
    run_checks("cuda")
