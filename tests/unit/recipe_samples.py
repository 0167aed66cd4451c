"""A recipe with two phases, and what tests of recipes do with it."""

from __future__ import annotations

from pathlib import Path

from megatron_adapt.errors import ConfigError
from megatron_adapt.recipe import load

BASE = """\
name: german
output: runs/german
model:
  source: base
vocabulary:
  tokenizer: tok/german
data:
  german: {path: de.jsonl.gz, held_out: 0.01}
  english: {path: [en-1.txt, en-2.txt]}
phases:
  - name: embeddings
    train: [embedding, output]
    data: {german: 1}
    tokens: 500M
    sequence_length: 2K
    batch_size: 64
    optimizer:
      lr: 1e-3
  - name: full
    data:
      german: 3
      english: 1
    steps: 100
    sequence_length: 128
    batch_size: 8
    optimizer: {lr: 1e-4}
"""
SCRATCH = """\
  from_scratch:
    config: {model_type: llama, rms_norm_eps: 1e-5, rope_scaling: null}
    tokenizer: {train: {corpora: [english], vocab_size: 2K}}
"""
BASE_PHASE = """\
    phases:
    - {name: base, data: {english: 1}, steps: 1, sequence_length: 8, batch_size: 1, optimizer: {lr: 1}}
"""


def write(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def edited(*changes: tuple[str, str]) -> str:
    text = BASE
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def problems(folder: Path, text: str = BASE, overrides: list[str] | None = None, **options) -> list[str]:
    """The lines of the error, without the folder; an empty list where the recipe is fine."""
    try:
        load([write(folder, text)], overrides or [], **options)
    except ConfigError as error:
        return str(error).replace(f"{folder}/", "").splitlines()
    return []
