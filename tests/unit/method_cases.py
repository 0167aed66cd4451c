"""Everything that vocabulary methods may ask for, small: two trained tokenizers, texts, a helper, vectors, a dictionary."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from harness import ROOT

from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.hf.weights import WeightWriter
from megatron_adapt.vocab.material import Material
from megatron_adapt.vocab.train import train_tokenizer

CORPUS = ROOT / "examples" / "quickstart" / "corpus"
WORDS = [("the", "der"), ("and", "und"), ("is", "ist"), ("house", "Haus"), ("not", "nicht"), ("she", "sie"), ("water", "Wasser")]


@dataclass(frozen=True)
class World:
    """``folder`` holds source, target, helper, tied-helper, words.tsv, tokens.vec, en.vec and de.vec."""

    folder: Path
    source: Tokenizer
    target: Tokenizer
    german: list[str]

    def material(self, **changes: Any) -> Material:
        fields: dict[str, Any] = {"target": self.target, "source": self.source, "layers": 4, "texts": lambda: self.german}
        return Material(**(fields | changes))

    def options(self, method: str) -> dict[str, Any]:
        """Options without which a method cannot run."""
        helper, words = {"helper": self.folder / "helper"}, {"file": self.folder / "words.tsv"}
        vectors = {"source_vectors": self.folder / "en.vec", "target_vectors": self.folder / "de.vec"}
        return {"clp": helper, "omp": helper, "dictionary": words, "wechsel": words | vectors}.get(method, {})


@lru_cache(maxsize=None)
def world() -> World:
    folder = Path(mkdtemp(prefix="vocab-methods-"))
    english, german = ([json.loads(line)["text"] for line in open(CORPUS / f"{name}.jsonl")] for name in ("en", "de"))
    train_tokenizer(english, 700, folder / "source", "sentencepiece-bpe")
    train_tokenizer(german, 900, folder / "target", "bpe")
    german = german[:200]
    source, target = Tokenizer.load(folder / "source"), Tokenizer.load(folder / "target")
    write_helper(folder / "helper", folder / "target", tied=False)
    write_helper(folder / "tied-helper", folder / "target", tied=True)
    (folder / "words.tsv").write_text("# English\tGerman\n" + "".join(f"{a}\t{b}\n" for a, b in WORDS))
    generator = np.random.default_rng(5)
    write_vectors(folder / "en.vec", [a for a, _ in WORDS] + ["a", "of"], generator, dim=5)
    write_vectors(folder / "de.vec", [b for _, b in WORDS] + ["ein", "Baum"], generator, dim=5)
    write_vectors(folder / "tokens.vec", [token for token in target.tokens()[300:] if token], generator)
    return World(folder, source, target, german)


def write_helper(path: Path, tokenizer: Path, tied: bool, rows: int = 900, width: int = 24) -> None:
    """A directory with a tokenizer, a config and the matrices of a GPT-2-like model."""
    generator = torch.Generator().manual_seed(11)
    with WeightWriter(path) as writer:
        writer.add("transformer.wte.weight", torch.randn(rows, width, generator=generator) + 0.5)
        if not tied:
            writer.add("lm_head.weight", torch.randn(rows, width, generator=generator) + 0.5)
        writer.add("transformer.h.0.ln_1.weight", torch.ones(width))
    (path / "config.json").write_text(json.dumps({"model_type": "gpt2", "tie_word_embeddings": tied, "vocab_size": rows}))
    for file in tokenizer.iterdir():
        (path / file.name).write_bytes(file.read_bytes())


def write_vectors(path: Path, words: list[str], generator: np.random.Generator, dim: int = 12) -> None:
    rows = generator.normal(size=(len(words), dim)) + 0.3
    lines = [f"{len(words)} {dim}", *(f"{word} {' '.join(f'{value:.5f}' for value in row)}" for word, row in zip(words, rows))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def matrix(tokenizer: Tokenizer, width: int = 16, padding: int = 0) -> torch.Tensor:
    """Rows with a mean far from 0 and a different scale per dimension, and huge ones for padding."""
    generator = torch.Generator().manual_seed(7)
    rows = torch.randn(tokenizer.vocab_size, width, generator=generator) * torch.linspace(0.1, 2, width) + 3
    return torch.cat([rows, torch.full((padding, width), 1e4)])
