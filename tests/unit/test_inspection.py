"""`megatron-adapt inspect`: what it says of a corpus is what the corpus holds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_indexed import write
from test_merge import write_sequences
from vocabularies import write_tokenizer

from megatron_adapt import cli
from megatron_adapt.data import inspection
from megatron_adapt.data.preprocess import preprocess
from megatron_adapt.errors import ConfigError, DataError
from megatron_adapt.hf.tokenizer import Tokenizer

LETTERS = ["<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three documents, one token a letter and an end each."""
    folder = tmp_path_factory.mktemp("corpus")
    tokenizer = write_tokenizer(folder / "tokenizer", LETTERS, "byte-level", {"bos": "<s>", "eos": "</s>"})
    (folder / "text.txt").write_text("abc\n\nde\n\nfghijklmn\n")
    preprocess([folder / "text.txt"], Tokenizer.load(tokenizer), folder / "c", append_eod=True)
    return folder / "c"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 70) | st.integers(0, 2**31 - 1), max_size=30))
def test_histogram(sizes):
    inspection._CHUNK, chunk = 7, inspection._CHUNK
    try:
        rows = inspection.histogram(np.array(sizes, dtype=np.int32))
    finally:
        inspection._CHUNK = chunk
    for row, next_row in zip(rows, rows[1:]):
        assert row["to"] < next_row["from"]
    for row in rows:
        inside = [size for size in sizes if row["from"] <= size <= row["to"]]
        assert (row["documents"], row["tokens"]) == (len(inside), sum(inside)) and inside
        assert row["from"] == row["to"] in (0, 1) or row["to"] + 1 == 2 * row["from"]
    assert sum(row["documents"] for row in rows) == len(sizes)


def test_facts(corpus):
    facts = inspection.describe(corpus)
    assert facts["description"] == json.loads(Path(f"{corpus}.json").read_text())
    assert {key: value for key, value in facts.items() if key not in ("description", "histogram", "prefix")} == {
        "dtype": "uint16", "version": 1, "documents": 3, "sequences": 3, "tokens": 17, "bin_bytes": 34,
        "idx_bytes": 34 + 3 * 12 + 4 * 8, "mean": 17 / 3, "shortest": 3, "longest": 10,
    }  # fmt: skip


def test_corpora_of_others(tmp_path):
    write_sequences(tmp_path / "split", [[[1, 2], [3]], [], [[4]]], np.int32)
    facts = inspection.describe(tmp_path / "split")
    assert (facts["documents"], facts["sequences"], facts["description"]) == (3, 3, None)
    assert [(row["from"], row["documents"], row["tokens"]) for row in facts["histogram"]] == [(0, 1, 0), (1, 1, 1), (2, 1, 3)]
    assert inspection.describe(write(tmp_path / "none", []))["histogram"] == []


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["megatron-adapt", "inspect", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    printed = capsys.readouterr()
    return int(end.value.code or 0), printed.out, printed.err


def test_the_verb(corpus, capsys, monkeypatch):
    code, out, _ = run(capsys, monkeypatch, corpus, "--document", "-1")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert code == 0
    assert lines[1:6] == [
        "format Megatron indexed dataset, version 1, ids uint16",
        "documents 3",
        "tokens 17 (5.7 a document, 3 to 10)",
        "size 34 bytes of ids, 102 of index",
        "text 14 bytes, 0.82 a token",
    ]
    assert "│ 2 - 3 │ 1 │ 33.3% │ 3 │ 17.6% │" in lines and "│ 8 - 15 │ 1 │ 33.3% │ 10 │ 58.8% │" in lines
    assert lines[-2:] == [f"document 2, 10 tokens, by {corpus.parent}/tokenizer:", "fghijklmn</s>"]


def test_the_verb_as_json(corpus, capsys, monkeypatch):
    code, out, _ = run(capsys, monkeypatch, corpus, "--document", "1", "--json")
    found = json.loads(out)
    assert code == 0 and found["documents"] == 3
    assert found["document"] == {"number": 1, "ids": [5, 6, 1], "text": "de</s>", "tokenizer": f"{corpus.parent}/tokenizer"}
    assert "document" not in json.loads(run(capsys, monkeypatch, corpus, "--json")[1])


def test_what_it_refuses(corpus, tmp_path, capsys, monkeypatch):
    assert run(capsys, monkeypatch, tmp_path / "nowhere")[::2] == (
        2, f"error: cannot open {tmp_path}/nowhere.idx: No such file or directory; a corpus is PREFIX.bin and PREFIX.idx, "
        "named by PREFIX\n",
    )  # fmt: skip
    with pytest.raises(ConfigError, match="c has the documents 0 to 2, none of number 3"):
        inspection.read_document(corpus, 3)
    other = write_tokenizer(tmp_path / "other", LETTERS[:5], "byte-level", {"bos": "<s>", "eos": "</s>"})
    with pytest.raises(DataError, match="c was made with another tokenizer than .*other; .*c.json names .*tokenizer"):
        inspection.read_document(corpus, 0, other)
    bare = write(tmp_path / "bare", [[3, 4], [20]])
    with pytest.raises(ConfigError, match="bare.json does not say which tokenizer made this corpus; name it with --tokenizer"):
        inspection.read_document(bare, 0)
    assert inspection.read_document(bare, 0, other)["text"] == "bc"
    with pytest.raises(DataError, match="document 1 of .*bare has ids of 20 to 20, the tokenizer .*other has 0 to 4: another"):
        inspection.read_document(bare, 1, other)
    Path(f"{bare}.json").write_text('{"tokenizer_path": "moved"}')
    with pytest.raises(ConfigError, match="the tokenizer moved does not exist; name the one that made .*bare with --tok"):
        inspection.read_document(bare, 0)
    with pytest.raises(ConfigError, match="none has no document, none of number 0"):
        inspection.read_document(write(tmp_path / "none", []), 0)
    for content, message in (("[]", "bare.json is not a description"), ("{", r"cannot read .*bare.json \(Expecting")):
        Path(f"{bare}.json").write_text(content)
        with pytest.raises(DataError, match=message):
            inspection.describe(bare)
