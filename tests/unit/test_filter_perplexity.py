"""The perplexity filter: with KenLM, where it is installed, on a model that is written here; and what is said without it."""

from __future__ import annotations

import math
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_adapt.data import filters
from megatron_adapt.data.filters import perplexity
from megatron_adapt.data.texts import Outcome, Texts
from megatron_adapt.errors import ConfigError, DataError

# log10 probabilities of a bigram model; <s> has but a back-off weight.
UNIGRAMS = {
    "<unk>": (-2.0, 0.0), "<s>": (-99.0, -0.3), "</s>": (-1.0, 0.0), "das": (-0.7, -0.2), "haus": (-1.1, -0.1), "ist": (-0.9, -0.4),
    "00": (-1.5, 0.0),
}  # fmt: skip
BIGRAMS = {("<s>", "das"): -0.2, ("das", "haus"): -0.3, ("haus", "ist"): -0.25, ("ist", "</s>"): -0.6}


def arpa(file: Path) -> Path:
    rows = [f"{value}\t{word}\t{weight}" for word, (value, weight) in UNIGRAMS.items()]
    pairs = [f"{value}\t{' '.join(pair)}" for pair, value in BIGRAMS.items()]
    head = f"\\data\\\nngram 1={len(rows)}\nngram 2={len(pairs)}\n\n\\1-grams:\n"
    file.write_text(head + "\n".join(rows) + "\n\n\\2-grams:\n" + "\n".join(pairs) + "\n\n\\end\\\n", encoding="utf-8")
    return file


def score(words: list[str]) -> float:
    """log10 probability of a line with its end, by the definition of the format."""
    total, before = 0.0, "<s>"
    for word in [*(word if word in UNIGRAMS else "<unk>" for word in words), "</s>"]:
        total += BIGRAMS[before, word] if (before, word) in BIGRAMS else UNIGRAMS[before][1] + UNIGRAMS[word][0]
        before = word
    return total


def expected(lines: list[list[str]]) -> float:
    return 10 ** (-sum(map(score, lines)) / sum(len(words) + 1 for words in lines))


def run(documents: list[str], model: Path, threads: int = 1, **options) -> Outcome:
    chosen = filters.read_options("perplexity", {"model": str(model), **options})
    return filters.run("perplexity", Texts.of(documents), chosen, threads)


@pytest.fixture
def model(tmp_path) -> Path:
    pytest.importorskip("kenlm")
    return arpa(tmp_path / "tiny.arpa")


def test_the_formula(model):
    """Each line with its own begin and end, in the model's normalisation."""
    documents = ["Das Haus ist", "das\nhäus IST fern 42", "  \n\u0300 \n", "Das\thaus"]
    outcome = run(documents, model, max=1000.0)
    values = [expected([["das", "haus", "ist"]]), expected([["das"], ["haus", "ist", "fern", "00"]]), math.nan, expected([["das", "haus"]])]
    np.testing.assert_allclose(outcome.values, values, rtol=1e-5)  # KenLM adds in 32 bits
    assert outcome.reasons.tolist() == [-1, -1, 2, -1]
    raw = run(documents[:1], model, max=1000.0, normalize="none")
    np.testing.assert_allclose(raw.values, [expected([["Das", "Haus", "ist"]])], rtol=1e-5)


def test_percentiles_and_bounds(model):
    documents = ["das haus ist" + " fern" * number for number in range(40)] + ["das haus ist fern"] * 9
    values = run(documents, model, max=1e9).values
    low, high = np.percentile(values, [25, 75])
    outcome = run(documents, model, from_percentile=25, to_percentile=75)
    assert ((outcome.reasons < 0) == ((low <= values) & (values <= high))).all()
    assert outcome.reasons[0] == 0 and outcome.reasons[39] == 1
    assert (outcome.facts["kept_from"], outcome.facts["kept_to"]) == (low, high)
    assert outcome.facts["percentiles"]["50"] == np.percentile(values, 50) and len(outcome.facts["model_sha256"]) == 64
    outcome = run(documents, model, min=float(values[3]), max=float(values[9]), to_percentile=90)
    assert ((outcome.reasons < 0) == ((values >= values[3]) & (values <= values[9]))).all()


def test_the_same_for_any_number_of_workers(model, monkeypatch):
    monkeypatch.setattr(perplexity, "_TASK_BYTES", 50)
    documents = ["das haus ist" + " fern" * (number % 7) for number in range(60)]
    found = [run(documents, model, threads, to_percentile=50) for threads in (1, 3)]
    assert found[0].values.tolist() == found[1].values.tolist() and found[0].reasons.tolist() == found[1].reasons.tolist()
    assert len(run([], model, to_percentile=50).reasons) == 0


def test_pieces(model, tmp_path):
    """The words that are counted are those that sentencepiece cuts."""
    import sentencepiece

    lines = ["das haus ist fern", "ist das haus", "haus und das"] * 20
    prefix = tmp_path / "pieces"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(prefix), vocab_size=20, model_type="char", minloglevel=2, hard_vocab_limit=False
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=f"{prefix}.model").encode("das haus", out_type=str)
    outcome = run(["Das Haus"], model, max=1e9, pieces=f"{prefix}.model")
    np.testing.assert_allclose(outcome.values, [expected([pieces])], rtol=1e-5)
    assert len(pieces) == 9 and len(outcome.facts["pieces_sha256"]) == 64


@pytest.mark.parametrize("kind", ["model", "pieces"])
def test_damaged_models(model, tmp_path, kind):
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"\\data\\\nngram 1=oops\n" if kind == "model" else b"nothing")
    with pytest.raises(DataError, match="(KenLM|sentencepiece) cannot read .*damaged"):
        run(["das"], damaged if kind == "model" else model, max=9.0, **({"pieces": str(damaged)} if kind == "pieces" else {}))


def test_without_kenlm(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kenlm", None)
    with pytest.raises(ConfigError) as caught:
        run(["das"], arpa(tmp_path / "tiny.arpa"), max=9.0)
    assert str(caught.value) == "filter perplexity needs the library kenlm: pip install 'megatron_adapt[filter]'"


def test_wrong_options(tmp_path):
    file = str(arpa(tmp_path / "tiny.arpa"))
    for options, message in (
        ({}, "filter perplexity: option model: missing; KenLM's model, .arpa or .bin"),
        ({"model": file}, "filter perplexity: nothing would be dropped: give from_percentile, to_percentile, min or max"),
        ({"model": file, "from_percentile": 75, "to_percentile": 25}, "filter perplexity: from_percentile 75 is not below to_percentile 25"),
        ({"model": file, "min": 9, "max": 3}, "filter perplexity: min 9 is above max 3"),
        ({"model": file, "max": 3, "pieces": "nowhere"}, "filter perplexity: the pieces nowhere does not exist"),
    ):
        with pytest.raises(ConfigError) as caught:
            filters.read_options("perplexity", options)
        assert str(caught.value) == message


# ------------------------------------------------------------------------------------------------ normalisation


@pytest.mark.parametrize(
    ("line", "normal"),
    [
        ("  Ça VÄ „gut“ ", 'ca va "gut"'),
        ("١٢3 １", "000 0"),
        ("eins\tzwei\x07drei", "eins zweidrei"),
        ("ja — nein… 50％", "ja  -  nein... 00%"),
        ("مُحَمَّد، هُنا", "محمد، هنا"),
        ("漢字。", "漢字."),
    ],
)
def test_ccnet(line, normal):
    assert perplexity.ccnet(line) == normal


@given(st.text())
def test_ccnet_leaves_no_accents_digits_or_controls(line):
    found = perplexity.ccnet(line)
    assert not {"Mn", "Cc"} & {unicodedata.category(c) for c in found}
    assert not any(unicodedata.category(c) == "Nd" and c != "0" for c in found)
    assert perplexity.ccnet(found) == found.strip().lower()
