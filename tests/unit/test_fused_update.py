"""The Triton kernel of bf16 updates against the torch path and against its random numbers reckoned by hand.

Triton's interpreter runs it on a CPU, in a process of its own: it has to be chosen before Triton is imported.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from harness import ROOT

from megatron_adapt.engine import updates

CHECKS = ROOT / "tests" / "unit" / "fused_update_checks.py"


def run_checks(device: str, **environment: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), **environment}
    found = subprocess.run([sys.executable, str(CHECKS), device], capture_output=True, text=True, timeout=300, env=environment)
    assert found.returncode == 0, found.stderr[-3000:]
    assert found.stdout.split() == ["nearest", "kahan", "stochastic", "parts", "together", "rows", "optimizer", "optimizer_of_parts"]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton, which is not installed")
def test_the_kernel_in_tritons_interpreter() -> None:
    run_checks("cpu", TRITON_INTERPRET="1")


@pytest.mark.gpu
def test_the_kernel_on_a_gpu() -> None:
    run_checks("cuda")


@pytest.mark.parametrize("installed", [True, False])
def test_only_gpus_use_it(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "_has_triton", lambda: installed)
    assert not updates.is_fused(torch.zeros(2))
    assert updates.is_fused(torch.zeros(2, device="meta")) == installed  # like a GPU, it is not the CPU
