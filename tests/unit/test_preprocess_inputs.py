"""Every kind of input: what is read, and what is refused."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from harness import ROOT
from test_preprocess import EOS, ByteTokenizer, corpus, documents, word_tokenizer

from megatron_adapt.data import readers
from megatron_adapt.data.command import main
from megatron_adapt.data.corpus import read_documents
from megatron_adapt.data.preprocess import preprocess, preprocess_keys
from megatron_adapt.errors import ConfigError, DataError

TEXTS = ["eins", "zwei\nZeilen", "", "drei \U0001f600"]


def texts(prefix: Path) -> list[str]:
    return [bytes(ids[:-1]).decode() for ids in documents(prefix)]


def test_zstandard(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    frames = compressor.compress(lines[:30]) + compressor.compress(lines[30:])
    (tmp_path / "a.jsonl.zst").write_bytes(frames)
    assert [document.text for document in read_documents(tmp_path / "a.jsonl.zst")] == TEXTS
    for damaged in (frames[:-5], frames[:20] + b"\0\0\0\0" + frames[24:], b"plain"):
        (tmp_path / "b.jsonl.zst").write_bytes(damaged)
        with pytest.raises(DataError, match="cannot decompress .*b.jsonl.zst: it is truncated or damaged"):
            list(read_documents(tmp_path / "b.jsonl.zst"))


@pytest.mark.parametrize("kind", ["string", "large_string", "binary", "dictionary"])
def test_parquet(tmp_path, kind):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    column = pyarrow.array(TEXTS, pyarrow.string())
    column = column.dictionary_encode() if kind == "dictionary" else column.cast(getattr(pyarrow, kind)())
    parquet.write_table(pyarrow.table({"id": range(4), "text": column}), tmp_path / "a.parquet", row_group_size=2)
    stats = preprocess(tmp_path, ByteTokenizer(), tmp_path / "c", workers=2, chunk_bytes=1)
    assert texts(tmp_path / "c") == [text for text in TEXTS if text]
    assert (stats["empty"], len(stats["shards"])) == (1, 2)
    with pytest.raises(DataError, match=r"a.parquet has no column 'content'; its columns are 'id', 'text'"):
        preprocess(tmp_path, ByteTokenizer(), tmp_path / "d", text_key="content")
    with pytest.raises(DataError, match=r"a.parquet: the column 'id' holds int64, not text"):
        preprocess(tmp_path, ByteTokenizer(), tmp_path / "d", text_key="id")


def test_bad_rows_of_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    values = [b"a", None, b"b", b"caf\xe9", b"\xc3", b"\xa9", b"c"]
    parquet.write_table(pyarrow.table({"text": values}), tmp_path / "a.parquet", row_group_size=3)
    for chunk_bytes in (1, None):
        with pytest.raises(DataError, match="a.parquet:2: the value of 'text' is null; correct it or skip"):
            preprocess(tmp_path / "a.parquet", ByteTokenizer(), tmp_path / "c", chunk_bytes=chunk_bytes)
        skipped: list[str] = []
        preprocess(
            tmp_path / "a.parquet", ByteTokenizer(), tmp_path / "c", chunk_bytes=chunk_bytes, on_error="skip",
            on_skip=skipped.append,
        )  # fmt: skip
        assert texts(tmp_path / "c") == ["a", "b", "c"]
        rows = [message.split(".parquet:")[1] for message in skipped]
        assert rows[0] == "2: the value of 'text' is null" and rows[1] == "4: not UTF-8 (byte 4 is 0xe9)"
        assert [row[0] for row in rows] == ["2", "4", "5", "6"]
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="cannot read .*b.parquet: "):
        preprocess(tmp_path / "b.parquet", ByteTokenizer(), tmp_path / "d")


def test_whole_files_as_documents(tmp_path):
    for name, data in (("a", b"\xef\xbb\xbfeins\r\n\r\nzwei\r\n"), ("b", b""), ("c", b"drei\0")):
        (tmp_path / f"{name}.txt").write_bytes(data)
    stats = preprocess(tmp_path, ByteTokenizer(), tmp_path / "out" / "c", text_documents="files")
    assert texts(tmp_path / "out" / "c") == ["eins\n\nzwei", "drei\0"] and stats["empty"] == 1
    assert preprocess(tmp_path, ByteTokenizer(), tmp_path / "out" / "c")["documents"] == 3
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"b.txt: not UTF-8 \(byte 4 is 0xe9\); correct it"):
        preprocess(tmp_path, ByteTokenizer(), tmp_path / "out" / "c", text_documents="files")


def test_standard_input(tmp_path):
    tokenizer = word_tokenizer(tmp_path / "tok")
    command = [sys.executable, str(ROOT / "tools" / "preprocess_data.py"), "--input", "-", "--append-eod"]
    command += ["--output-prefix", str(tmp_path / "c"), "--tokenizer-model", str(tokenizer)]
    command += ["--workers", "2", "--partitions", "3"]
    lines = [b'{"text": "ein Satz"}\n', b'{"text": "ein"}\n', b'{"no": 1}\n']
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    good = subprocess.run(command, input=b"".join(lines[:2]), capture_output=True, env=environment)
    assert good.returncode == 0 and documents(tmp_path / "c_text_document") == [[2, 3, 1], [2, 1]], good.stderr
    assert b"--partitions changes nothing: large files are cut by themselves, and" in good.stderr
    bad = subprocess.run(command, input=b"".join(lines), capture_output=True, env=environment)
    assert bad.returncode == 2 and b"-:3: no key 'text'; the keys are 'no'" in bad.stderr


def test_refused_combinations(tmp_path, monkeypatch, capsys):
    source = corpus(tmp_path, "a")
    with pytest.raises(ConfigError, match="standard input can be read once, not for each of the keys a, b: save it to a file"):
        preprocess_keys("-", ByteTokenizer(), tmp_path / "c", ["a", "b"])
    with pytest.raises(DataError, match="the corpus - is named twice; name it once"):
        preprocess(["-", source, "-"], ByteTokenizer(), tmp_path / "c")
    with pytest.raises(SystemExit):
        main(["--input", str(source), "--output-prefix", "c", "--tokenizer-model", "t", "--shard", "1-4"])
    assert "argument --shard: '1-4' is not I/N, like 0/4" in capsys.readouterr().err
    monkeypatch.setattr(readers, "MAX_BYTES", 1 << 20)
    (tmp_path / "long.txt").write_bytes(b"x" * (2 << 20))
    with pytest.raises(DataError, match="long.txt: the file is longer than 1 MiB, which is too long for one document$"):
        preprocess(tmp_path / "long.txt", ByteTokenizer(), tmp_path / "c", text_documents="files")


class FakeDataset:
    """What of a data set of the hub is used here."""

    def __init__(self, table):
        self.table, self.num_rows, self.dataset_size = table, table.num_rows, table.nbytes
        self.features = type("Features", (), {"arrow_schema": table.schema})

    def select_columns(self, names):
        return FakeDataset(self.table.select(names))

    def with_format(self, kind):
        assert kind == "arrow"
        return self

    def __getitem__(self, rows):
        return self.table.slice(rows.start, rows.stop - rows.start)


def test_data_sets_of_the_hub(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    from megatron_adapt.data import tables

    tables._hub.cache_clear()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"hf:org/name needs the library datasets: pip install 'megatron_adapt\[datasets\]'"):
        preprocess("hf:org/name", ByteTokenizer(), tmp_path / "c")
    asked = []

    def load_dataset(*arguments, split):
        asked.append((*arguments, split))
        if split == "none":
            raise ValueError("no such\nsplit")
        return FakeDataset(pyarrow.table({"text": [*TEXTS, *["x"] * 5000]}))

    monkeypatch.setitem(sys.modules, "datasets", type("Module", (), {"load_dataset": staticmethod(load_dataset)}))
    stats = preprocess("hf:org/name@de:validation", ByteTokenizer(), tmp_path / "c", chunk_bytes=1)
    assert asked == [("org/name", "de", "validation")]
    assert texts(tmp_path / "c")[:3] == [text for text in TEXTS if text] and stats["documents"] == 5003
    assert len(stats["shards"]) == 3
    with pytest.raises(DataError, match="cannot load hf:org/name:none: no such split"):
        preprocess("hf:org/name:none", ByteTokenizer(), tmp_path / "c")
    with pytest.raises(ConfigError, match="hf: does not name a data set; write hf:NAME"):
        preprocess("hf:", ByteTokenizer(), tmp_path / "c")
    with pytest.raises(DataError, match="the corpus org/name does not exist .for a data set of the .* hub write hf:org/name"):
        preprocess("org/name", ByteTokenizer(), tmp_path / "c")


def test_a_real_data_set(tmp_path, monkeypatch):
    """The library itself, on a folder of parquet files, without network."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    from megatron_adapt.data import tables
    from megatron_adapt.data.corpus import read_documents

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    tables._hub.cache_clear()
    folder = tmp_path / "set"
    datasets.Dataset.from_dict({"text": [*TEXTS, *(f"number {n}" for n in range(5000))]}).to_parquet(folder / "train.parquet")
    datasets.Dataset.from_dict({"text": ["one", "two"]}).to_parquet(folder / "test.parquet")
    stats = preprocess(f"hf:{folder}", ByteTokenizer(), tmp_path / "c", chunk_bytes=1, workers=2)
    expected = [*filter(None, TEXTS), *(f"number {n}" for n in range(5000))]
    assert texts(tmp_path / "c") == expected and len(stats["shards"]) == 3
    assert [document.text for document in read_documents(f"hf:{folder}:test")] == ["one", "two"]
    with pytest.raises(DataError, match=f"cannot load hf:{folder}:none: "):
        preprocess(f"hf:{folder}:none", ByteTokenizer(), tmp_path / "c")
    with pytest.raises(DataError, match=f"hf:{folder} has no column 'body'; its columns are 'text'"):
        preprocess(f"hf:{folder}", ByteTokenizer(), tmp_path / "c", text_key="body")


@pytest.fixture
def punkt(tmp_path, monkeypatch) -> Path:
    """nltk's data folder with an empty English model: sentences end at ". "."""
    nltk = pytest.importorskip("nltk")
    folder = tmp_path / "nltk" / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True)
    for name in ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt"):
        (folder / name).write_text("")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk")])
    return folder


def test_sentences(tmp_path, punkt):
    source = corpus(tmp_path / "in", "One is here. Two\n\nare. Three", "", "Single")
    stats = preprocess(source, ByteTokenizer(), tmp_path / "c", split_sentences="english", append_bos=True)
    builder = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    theirs = builder.IndexedDataset(str(tmp_path / "c"))
    sentences = [bytes(theirs[i].astype(np.uint8).tolist()).decode("latin-1") for i in range(len(theirs))]
    assert [sentence.strip("\x00\x01") for sentence in sentences] == ["One is here.", "Two\n\nare.", "Three", "Single"]
    assert theirs.document_indices.tolist() == [0, 3, 4]
    assert [theirs[0][0], theirs[2][-1], theirs[3][0], theirs[3][-1]] == [256, EOS, 256, EOS] and theirs[0][-1] == ord(".")
    assert (stats["documents"], stats["sequences"], stats["empty"], stats["split_sentences"]) == (2, 4, 1, "english")
    preprocess(source, ByteTokenizer(), tmp_path / "d", split_sentences="english", keep_newlines=True)
    assert bytes(documents(tmp_path / "d")[0][:-1]).decode() == "One is here.Two\n\nare.Three"  # the tokenizer strips
    with pytest.raises(ConfigError, match="nltk has no punkt model for 'german': run `python -m nltk.downloader punkt_tab`"):
        preprocess(source, ByteTokenizer(), tmp_path / "e", split_sentences="german")


def test_sentences_by_the_command(tmp_path, punkt, capsys):
    source = corpus(tmp_path / "in", "ein Satz. ein Satz")
    arguments = ["--input", str(source), "--output-prefix", str(tmp_path / "c"), "--split-sentences"]
    assert main([*arguments, "--tokenizer-model", str(word_tokenizer(tmp_path / "tok"))]) == 0
    assert documents(tmp_path / "c_text_sentence") == [[2, 3, 0, 2, 3]]


def test_one_long_document(tmp_path):
    """100 MB in one line: it is read, and costs a few times its size."""
    text = "Lorem ipsum dolor, " * (100_000_000 // 19)
    source = corpus(tmp_path, "a", text, "b")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tokenizer = ByteTokenizer(encode=lambda texts: [np.zeros(len(text) // 19 + 1, np.int32) for text in texts])
    stats = preprocess(source, tokenizer, tmp_path / "c")
    assert stats["documents"] == 3 and stats["bytes"] == len(text) + 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 900 << 10


def test_unreadable_file(tmp_path):
    source = corpus(tmp_path, "a")
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match="cannot read .*gone.jsonl: No such file"):
        preprocess([source, tmp_path / "gone.jsonl"], ByteTokenizer(), tmp_path / "c")
    source.chmod(0)
    if os.access(source, os.R_OK):
        pytest.skip("root reads everything")
    with pytest.raises(DataError, match="cannot read .*in.jsonl: Permission denied"):
        preprocess(source, ByteTokenizer(), tmp_path / "c")
