"""A tiny recipe on a few kilobytes of the quickstart's corpora, and what tests of plans and commands do with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness import ROOT

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
CORPUS_BYTES = 60_000


def phase(name: str, steps: int | None, **changes: Any) -> dict[str, Any]:
    settings = {
        "name": name, "data": {"german": 1}, "steps": steps, "sequence_length": 32, "batch_size": 4,
        "micro_batch_size": 2, "optimizer": {"lr": 3e-3}, "log_every": 3,
    }  # fmt: skip
    return {**settings, **changes}


def recipe(**changes: Any) -> dict[str, Any]:
    """From scratch in English, then German in two phases: the quickstart in small. None removes a key."""
    tree: dict[str, Any] = {
        "name": "tiny",
        "output": "out",
        "precision": "fp32",
        "parallel": {"tensor": 2},
        "model": {
            "from_scratch": {
                "config": CONFIG,
                "tokenizer": {"train": {"corpora": ["english"], "vocab_size": 400}},
                "phases": [phase("pretrain", 4, data={"english": 1})],
            }
        },
        "vocabulary": {"tokenizer": {"train": {"corpora": ["german"], "vocab_size": 400}}, "method": "copy"},
        "data": {"english": {"path": "en.jsonl", "held_out": 0.05}, "german": {"path": "de.jsonl", "held_out": 0.05}},
        "phases": [
            phase("embeddings", 6, train=["embedding", "output"], evaluate_every=3),
            phase("full", 8, data={"german": 0.8, "english": 0.2}, save_every=3),
        ],
        "evaluation": {"max_bytes": "2K"},
        "export": {"dtype": "float32"},
    }
    return {key: value for key, value in {**tree, **changes}.items() if value is not None}


def corpora(folder: Path) -> None:
    """Write de.jsonl and en.jsonl."""
    for language in ("de", "en"):
        text = (ROOT / "examples" / "quickstart" / "corpus" / f"{language}.jsonl").read_text(encoding="utf-8")
        kept = text[:CORPUS_BYTES].rsplit("\n", 1)[0] + "\n"
        (folder / f"{language}.jsonl").write_text(kept, encoding="utf-8")


def write(folder: Path, tree: dict[str, Any], name: str = "recipe.yaml") -> Path:
    """JSON is YAML."""
    path = folder / name
    path.write_text(json.dumps(tree, indent=1), encoding="utf-8")
    return path
