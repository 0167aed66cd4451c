"""The layers of a machine with Transformer Engine, on one without: in a process of its own, with a stand-in for its kernels."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
STAND_INS = HERE.parent / "stand_ins"
# What plain torch's layers pass for these families, those of Transformer Engine have to pass, too.
FAMILIES = "(gpt_neox or mpt) and not PP2 or (llama or gemma2 or olmo2) and SP"
PARITY = f"(test_logits_and_gradients and ({FAMILIES})) or (test_every_document and (neox or mpt or llama)) or (test_the_same_is_dropped and (parallel or mpt or llama)) or (test_two_ranks and (mpt or llama))"


def test_layers_of_transformer_engine():
    """As of Megatron's own wrappers: parity with transformers in every layout, packing, dropout, checkpoints, where fp8 is on."""
    path = os.pathsep.join([str(STAND_INS), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "-W", "ignore", "-p", "with_transformer_engine", "-p", "no:cacheprovider"]
    names = ("transformer_engine_checks.py", "test_family_parity.py", "test_packing.py", "test_noise_parity.py", "test_family_context.py")
    files = [HERE / name for name in names]
    command += ["-k", f"transformer_engine_checks or {PARITY}", *map(str, files)]
    ran = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, cwd=HERE.parents[1], capture_output=True, text=True)
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert ran.returncode == 0 and passed, ran.stdout[-8000:] + ran.stderr[-2000:]
    assert int(passed[1]) == 46, ran.stdout[-2000:]
