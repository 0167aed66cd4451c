"""Checks of first_call.py of the commands as users type them, on the machine with the GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHORT = ("model.from_scratch.phases.pretrain.steps=40", "phases.embeddings.steps=10", "phases.full.steps=20", "vocabulary.compare=[]", "parallel.tensor=1")


def command(*words: str) -> str:
    """Output of ``megatron-adapt`` with these words; raises when it fails."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-m", "megatron_adapt", *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    print(done.stdout, done.stderr, sep="\n", flush=True)
    assert done.returncode == 0, f"{' '.join(words)} ended with exit code {done.returncode}: {(done.stdout + done.stderr)[-1500:]}"
    return done.stdout


def doctor(tiny: bool, scratch: Path) -> dict:
    """What it says of layers and optimizer; it ends with 0 where nothing is missing."""
    lines = [" ".join(line.split()) for line in command("doctor").splitlines()]
    return {"said": [line for line in lines if any(word in line for word in ("GPU", "layers", "AdamW", "NCCL"))]}


def quickstart(tiny: bool, scratch: Path) -> dict:
    """The README's main job, shortened, on one rank: each step a process of its own, import and export compared as always."""
    output = scratch / "quickstart"
    command("run", "examples/quickstart/recipe.yaml", f"output={output}", *SHORT)
    assert (output / "model" / "config.json").exists() and (output / "report" / "report.md").exists()
    receipts = {str(path.parent.relative_to(output)): json.loads(path.read_text()) for path in output.rglob("receipt.json")}
    return {"steps": len(receipts), "report": (output / "report" / "report.md").read_text()[:1500].split("\n\n")[-1]}
