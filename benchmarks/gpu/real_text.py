"""Checks of first_call.py that need text: losses of a small model on the quickstart's German, in every precision."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import workload
from sections import CPU_SIZES, Setup, use

from megatron_adapt.data.corpus import read_documents
from megatron_adapt.data.preprocess import preprocess
from megatron_adapt.engine import backend
from megatron_adapt.engine.backend import Layout
from megatron_adapt.families.llama import FAMILY
from megatron_adapt.hf.directory import read_json
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.vocab.train import train_tokenizer

TEXT = Path(__file__).resolve().parents[2] / "examples" / "quickstart" / "corpus" / "de.jsonl"
SIZES = workload.llama(2048, 512, 1408, 6, 8, 2, tied=False)
LAST = 20  # steps at the end whose mean loss counts


class TextSetup(Setup):
    def __init__(self, tiny: bool, scratch: Path, steps: int) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=scratch))
        sizes = CPU_SIZES if tiny else SIZES
        texts = [document.text for document in read_documents([TEXT])]
        train_tokenizer(texts, sizes["vocab_size"], self.folder / "tokenizer")
        self.hf = workload.write_model(self.folder / "hf", sizes, tokenizer=self.folder / "tokenizer")
        self.shape = FAMILY.read_config(read_json(self.hf / "config.json"))
        length, batch = (64, 4) if tiny else (512, 16)
        self.phase = workload.phase(steps, length, batch, batch // 2, train="all")
        self.corpus = self.folder / "corpus"
        preprocess([TEXT], Tokenizer.load(self.hf), self.corpus)
        backend.start(Layout(), workload.SEED)


def tracking(tiny: bool, scratch: Path, precision: str, spec: str, allowed: float) -> dict:
    """200 steps in ``precision`` beside bf16-mixed: how far the losses are apart, and the mean of the last 20."""
    setup = TextSetup(tiny, scratch, 6 if tiny else 200)
    use(spec)
    mixed, other = setup.train("bf16-mixed", "mixed"), setup.train(precision, "other")
    last = statistics.mean(other[-LAST:]) / statistics.mean(mixed[-LAST:]) - 1
    found = {
        "first_loss": mixed[0], "last_loss": mixed[-1], "largest_difference": max(abs(b / a - 1) for a, b in zip(mixed, other)),
        "difference_at_the_end": last, "allowed": allowed,
    }  # fmt: skip
    assert mixed[-1] < mixed[0] and abs(last) <= allowed, found
    return found
