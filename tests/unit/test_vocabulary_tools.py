"""tools/train_tokenizer.py and tools/swap_vocab.py: the verbs under the names that Megatron users look for."""

from __future__ import annotations

import json
import subprocess
import sys

from harness import ROOT
from method_cases import CORPUS, world


def tool(name: str, *words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tools" / name), *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


def test_train_tokenizer(tmp_path):
    done = tool("train_tokenizer.py", "--input", CORPUS / "de.jsonl", "--vocab-size", 300, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "receipt.json").read_text())["metrics"]["vocab_size"] == 300


def test_swap_vocab(tmp_path):
    failed = tool("swap_vocab.py", world().folder / "source", tmp_path / "out", "--tokenizer", world().folder / "target", "--method", "clp")
    assert failed.returncode == 2 and "clp: option helper: missing; Hugging Face directory of a model" in failed.stderr
