"""The quickstart's recipe on a really trained model and real German text, as a user would point it at them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import ROOT, assets

STEPS = ("phases.embeddings.steps=40", "phases.full.steps=260", "phases.full.schedule.decay=0.5")


@pytest.fixture(scope="module")
def adapted(tmp_path_factory) -> Path:
    """Output of the whole path: stories260K, adapted to German novels at TP2."""
    source, german = assets("models", "stories260K"), assets("text", "de_eltec_novels.jsonl.gz")
    output = tmp_path_factory.mktemp("stories-german")
    overrides = [
        f"output={output}",
        f"model.source={source}",
        f"data.german.path={german}",
        "vocabulary.tokenizer.train.vocab_size=2048",
        "vocabulary.tokenizer.train.max_bytes=3M",
        "vocabulary.compare=[]",
        "phases.full.data={german: 1, english: null}",
        "phases.full.optimizer.lr=6e-3",
        "phases.full.save_every=1000",
        "phases.embeddings.evaluate_every=null",  # the steps that evaluate say what the tests compare
        "phases.full.evaluate_every=null",
        "evaluation.max_bytes=60K",
        "evaluation.corpora=[german]",
        *STEPS,
    ]
    command = [sys.executable, "-m", "megatron_adapt", "run", "examples/quickstart/recipe.yaml", *overrides]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"})
    assert result.returncode == 0, result.stdout + result.stderr
    return output


def bits_per_byte(output: Path, stage: str) -> float:
    receipt = json.loads((output / "evaluation" / stage / "receipt.json").read_text())
    return receipt["metrics"]["german"]["bits_per_byte"]


def test_german_falls_from_above_7_to_below_2_4_bits_per_byte(adapted: Path) -> None:
    assert bits_per_byte(adapted, "base") > 7
    assert bits_per_byte(adapted, "copy-full") < 2.4


def test_exported_model_writes_german_looking_text(adapted: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(adapted / "model")
    tokenizer = AutoTokenizer.from_pretrained(adapted / "model")
    assert model.config.vocab_size == len(tokenizer) == 2048
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer("Es war ein", add_special_tokens=False).input_ids]])
    torch.manual_seed(0)
    text = tokenizer.decode(model.generate(ids, max_new_tokens=200, do_sample=True, top_k=20)[0], skip_special_tokens=True)
    words = text.lower().replace(",", " ").replace(".", " ").split()
    common = {"der", "die", "das", "und", "ich", "er", "sie", "nicht", "ein", "eine", "zu", "in", "mit", "den", "dem", "es", "war", "auf"}
    assert len(words) > 40 and sum(word in common for word in words) / len(words) > 0.15, text


def test_receipts_tell_what_was_verified(adapted: Path) -> None:
    for step, tensors in (("copy/imported", 47), ("model", 32)):  # those of Hugging Face, those of Megatron
        metrics = json.loads((adapted / step / "receipt.json").read_text())["metrics"]
        assert metrics["max_abs_difference"] <= 1e-4 and metrics["top1_agreement"] == 1.0 and metrics["tensors"] == tensors
