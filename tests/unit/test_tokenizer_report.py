"""`tokenizer report`: what it counts, on tokenizers small enough to count by hand, and on real ones."""

from __future__ import annotations

import json

import pytest
from harness import ROOT, assets
from vocabularies import write_tokenizer

from megatron_adapt.errors import ConfigError, DataError
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.steps import tokenizer_report
from megatron_adapt.steps.tokenizer import files
from megatron_adapt.vocab.report import report


@pytest.fixture
def pair(tmp_path):
    """Without merges every character is a token: words like ▁ab are in the vocabulary and never made."""
    special = {"unk": "<unk>", "bos": "<s>", "eos": "</s>"}
    source = ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁ab", "1", "<0x0A>"]
    target = ["<|end|>", "Ġ", "a", "c", "b", "1", "2"]
    return (
        Tokenizer.load(write_tokenizer(tmp_path / "source", source, "sentencepiece", special)),
        Tokenizer.load(write_tokenizer(tmp_path / "target", target, "byte-level", {"eos": "<|end|>"})),
    )


def test_counts(pair):
    found = report(*pair, ["ab ab", "a1"], 10**6)
    assert found["text"] == {"documents": 2, "bytes": 7, "words": 3}
    source, target = found["tokenizers"]
    assert (source["tokens"], target["tokens"]) == (9, 7)  # sentencepiece puts a space in front of each document
    assert source["tokens_per_word"] == 3 and target["bytes_per_token"] == 1
    assert source["vocabulary_seen"] == round(4 / 9, 4) and source["byte_tokens"] == 0 and source["unknown_tokens"] == 0
    assert source["unreachable"] == 1 and source["unreachable_examples"] == ["▁ab"] and target["unreachable"] == 0
    assert source["duplicate_bytes"] == 0 and source["unused_ids"] == 0
    assert target["special"] == {"bos": None, "eos": "<|end|>", "unk": None, "pad": None}


def test_the_change(pair):
    change = report(*pair, ["ab ab", "a1c2"], 10**6)["change"]
    # of "Ġ a c b 1 2" the source has all but c and 2, and </s> has the role of <|end|>
    assert change["kept"] == {"same bytes": 4, "same byte": 0, "same role": 1, "same special token": 0, "total": 5}
    assert change["kept_of_vocabulary"] == round(5 / 7, 4) and change["kept_of_text"] == round(7 / 9, 4)
    assert change["new_tokens_without_pieces"] == 2 and change["pieces_per_new_token"] == 0
    assert {"role": "bos", "source": "<s>", "target": None} in change["special_differences"]
    assert {"role": "eos", "source": "</s>", "target": "<|end|>"} in change["special_differences"]


def test_text_that_does_not_come_back_is_shown(pair, tmp_path):
    (tmp_path / "text.txt").write_text("a☃b\n")
    path = tmp_path / "target"
    found = tokenizer_report.run([str(path)], files([str(tmp_path / "text.txt")], "text"), tmp_path / "report.json")
    (one,) = found["tokenizers"]
    assert one["changed_documents"] == 1 and "☃" in one["changed_example"]
    out = "\n".join(tokenizer_report.table(found))
    assert "tokenizer does not give back what it was given: 'a☃b' -> 'ab'" in out
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(found))


def test_only_so_much_text_is_read(pair):
    assert report(pair[0], None, iter(["ab"] * 100), 6)["text"] == {"documents": 3, "bytes": 6, "words": 3}


def test_nothing_to_measure(pair, tmp_path):
    with pytest.raises(DataError, match="tokenizer report: the corpus holds no text"):
        report(pair[0], None, [], 10)
    text = str(ROOT / "examples" / "quickstart" / "corpus" / "de.jsonl")
    for paths, corpora in (([], [text]), (["a", "b", "c"], [text]), (["a"], [])):
        with pytest.raises(ConfigError, match=r"expected: tokenizer report SOURCE \[TARGET\] --corpus FILE"):
            tokenizer_report.run(paths, files(corpora, "text") if corpora else [], None)


def test_real_tokenizers():
    paths = [str(assets("tokenizers", name)) for name in ("gpt2", "de-32k")]
    found = tokenizer_report.run(paths, files([str(assets("text", "de_ud_gsd.jsonl.gz"))], "text"), None, 50_000)
    source, target = found["tokenizers"]
    assert source["unreachable"] == target["unreachable"] == 0
    assert source["changed_documents"] == target["changed_documents"] == 0
    assert 2.3 < source["tokens_per_word"] < 2.9 and 1.3 < target["tokens_per_word"] < 1.6
    assert source["digits"] == ["123", "45", "67"] and len(target["digits"]) >= 7
    change = found["change"]
    assert change["kept"]["total"] == 8141 and 0.4 < change["kept_of_text"] < 0.8 and change["new_tokens_without_pieces"] == 0
    out = "\n".join(tokenizer_report.table(found))
    assert "numbers are cut in another way" in out and "pad: none in the source, <pad> in the target" in out
