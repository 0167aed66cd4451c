"""gigatoken beside the library that defines the ids: used where it gives the same, and found out where it does not."""

from __future__ import annotations

import sys
import time
from random import Random

import numpy as np
import pytest
from harness import assets
from test_preprocess import corpus, documents, files, word_tokenizer

from megatron_adapt.data import encoder
from megatron_adapt.data.command import main
from megatron_adapt.data.encoder import Difference, choose
from megatron_adapt.data.preprocess import preprocess
from megatron_adapt.errors import ConfigError
from megatron_adapt.hf.compiled_bpe import CompiledBPE
from megatron_adapt.hf.tokenizer import Tokenizer


def test_special_tokens_in_the_text(tmp_path):
    tokenizer = Tokenizer.load(assets("tokenizers", "gpt2"))
    source = corpus(tmp_path, "a<|endoftext|>b", "x<|endoftext|>")
    for backend in ("tokenizers", "gigatoken"):
        options = {"append_eod": True, "tokenizer_backend": backend}
        preprocess(source, tokenizer, tmp_path / backend, **options)
        assert all(ids.count(50256) == 1 for ids in documents(tmp_path / backend))
        assert tokenizer.decode(documents(tmp_path / backend)[0]) == "a<|endoftext|>b<|endoftext|>"
        stats = preprocess(source, tokenizer, tmp_path / backend, parse_special_tokens=True, **options)
        assert [ids.count(50256) for ids in documents(tmp_path / backend)] == [2, 1] and stats["parse_special_tokens"]
    sentencepiece = Tokenizer.load(assets("tokenizers", "de-32k") / "tokenizer.model")
    with pytest.raises(ConfigError, match="sentencepiece never finds special tokens in text; use a tokenizer.json"):
        preprocess(source, sentencepiece, tmp_path / "s", parse_special_tokens=True)


def test_a_difference_stops_the_run_or_falls_back(tmp_path, monkeypatch):
    tokenizer = Tokenizer.load(assets("tokenizers", "gpt2"))
    source = corpus(tmp_path, *(f"number {number}" for number in range(200)))
    honest = CompiledBPE.encode

    def wrong(self, text, offsets, parallel):
        ids, starts = honest(self, text, offsets, parallel)
        return (np.where(ids == tokenizer.encode([" 7"])[0][0], 5, ids) if len(offsets) > 100 else ids), starts

    monkeypatch.setattr(CompiledBPE, "encode", wrong)
    monkeypatch.setattr(encoder, "_SMALL_CORPUS", 1)
    monkeypatch.setattr(encoder, "_SAMPLE_BYTES", 1)  # all are compared
    message = r"compiled and tokenizers give different ids for 'number 7\d*' with the tokenizer .*gpt2: at token 1 \[5"
    with pytest.raises(Difference, match=message):
        preprocess(source, tokenizer, tmp_path / "c", chunk_bytes=4096, workers=2)
    stats = preprocess(source, tokenizer, tmp_path / "c", tokenizer_backend="auto")
    assert stats["tokenizer_backend"] == "tokenizers"
    assert documents(tmp_path / "c")[7] == [*tokenizer.encode(["number 7"])[0], 50256]
    monkeypatch.setattr(CompiledBPE, "encode", lambda self, text, offsets, parallel: (np.zeros(0, np.uint32), offsets * 0))
    with pytest.raises(Difference, match="give different ids for ' '"):  # before any document: odd strings
        preprocess(source, tokenizer, tmp_path / "c")
    assert preprocess(source, tokenizer, tmp_path / "c", tokenizer_backend="auto")["tokenizer_backend"] == "tokenizers"


def test_what_differs_is_never_kept(tmp_path, monkeypatch):
    """A part is finished only after its sample was compared: a run that goes on after a kill would keep wrong ids."""
    tokenizer = Tokenizer.load(assets("tokenizers", "de-32k"), deferred=True)
    source = corpus(tmp_path, *(f"Satz {number}" for number in range(400)))
    honest, compare = CompiledBPE.encode, encoder.Reference.compare

    def wrong(self, text, offsets, parallel):
        ids, starts = honest(self, text, offsets, parallel)
        return (ids + 1 if b"Satz 150" in text.tobytes() else ids), starts

    def late(self, sample):
        time.sleep(0.05)  # the workers are done before
        compare(self, sample)

    monkeypatch.setattr(CompiledBPE, "encode", wrong)
    monkeypatch.setattr(encoder.Reference, "compare", late)
    monkeypatch.setattr(encoder, "_SMALL_CORPUS", 1)
    monkeypatch.setattr(encoder, "_SAMPLE_BYTES", 1)
    with pytest.raises(Difference, match="compiled and tokenizers give different ids for 'Satz 1"):
        preprocess(source, tokenizer, tmp_path / "c", chunk_bytes=1024, workers=2)
    parts = sorted(path.name for path in (tmp_path / "c.parts").glob("*[0-9].json")) if (tmp_path / "c.parts").exists() else []
    assert len(parts) < 8  # of some 12: none from the wrong one on


def test_what_gigatoken_does_not_support(tmp_path):
    tokenizer = Tokenizer.load(word_tokenizer(tmp_path / "tok"))  # a model of whole words
    with pytest.raises(ConfigError, match="gigatoken cannot be used with the tokenizer .*tok: "):
        choose(tokenizer, "gigatoken", 1 << 30, False, False, False)
    assert choose(tokenizer, None, 1 << 30, False, False, False).backend == "tokenizers"
    assert files(tmp_path) == ["tok"]


@pytest.mark.parametrize("name", ["gpt2", "mistral-7b-v0.1", "de-32k", "ar-32k", "de-bpe-50k"])
def test_long_documents_are_compared_by_an_excerpt(name):
    found = choose(Tokenizer.load(assets("tokenizers", name)), "gigatoken", 0, False, True, False)
    found.samples = 1.0  # all of them
    text = "Ein längerer Text, مرحبا بالعالم. " * 1000
    data = np.frombuffer((text + "kurz").encode(), np.uint8)
    offsets = np.array([0, len(text.encode()), len(data)])
    ids, starts = found.encode(data, offsets)
    assert np.array_equal(ids[starts[1] :], found.tokenizer.encode(["kurz"])[0])
    short, excerpt = found.sample(data, offsets, ids, starts, Random(0))
    assert short.text.tobytes() == b"kurz" and 16_000 < len(excerpt.text) <= 16_384 and len(excerpt.offsets) == 2
    for sample in (short, excerpt, found.odd()):
        found.reference.compare(sample)
    with pytest.raises(Difference, match="give different ids for 'kurz'"):
        found.reference.compare(short._replace(ids=short.ids + 1))


def test_a_bar_on_a_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    source = corpus(tmp_path, *["ein Satz"] * 50)
    with source.open("a") as stream:
        stream.write("bad\n")
    arguments = ["--input", str(source), "--output-prefix", str(tmp_path / "c"), "--on-error", "skip"]
    assert main([*arguments, "--tokenizer-model", str(word_tokenizer(tmp_path / "tok"))]) == 0
    error = capsys.readouterr().err
    assert "100% 50 documents (" in error and "MB/s, 100 tokens" in error and "skipped " in error
