"""Every kind of input and tokenizer: what is read, what is refused, and that Megatron's builder would write the same."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from harness import ROOT, assets
from hypothesis import given, settings
from hypothesis import strategies as st
from test_preprocess import EOS, ByteTokenizer, corpus, documents, files, word_tokenizer

from megatron_adapt import _C
from megatron_adapt.data import encoder, readers
from megatron_adapt.data.command import main
from megatron_adapt.data.corpus import read_documents
from megatron_adapt.data.encoder import Difference, choose
from megatron_adapt.data.parsing import BadLine, parse_json
from megatron_adapt.data.preprocess import preprocess
from megatron_adapt.errors import ConfigError, DataError
from megatron_adapt.hf.flat_encoding import Gigatoken
from megatron_adapt.hf.tokenizer import Tokenizer

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
    command += ["--output-prefix", str(tmp_path / "c"), "--tokenizer-model", str(tokenizer), "--workers", "2", "--partitions", "3"]
    lines = [b'{"text": "ein Satz"}\n', b'{"text": "ein"}\n', b'{"no": 1}\n']
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    good = subprocess.run(command, input=b"".join(lines[:2]), capture_output=True, env=environment)
    assert good.returncode == 0 and documents(tmp_path / "c_text_document") == [[2, 3, 1], [2, 1]], good.stderr
    assert b"--partitions changes nothing: large files are cut by themselves, and" in good.stderr
    bad = subprocess.run(command, input=b"".join(lines), capture_output=True, env=environment)
    assert bad.returncode == 2 and b"-:3: no key 'text'; the keys are 'no'" in bad.stderr


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
    stats = preprocess(source, ByteTokenizer(encode=lambda texts: [np.zeros(len(text) // 19 + 1, np.int32) for text in texts]), tmp_path / "c")
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


# --------------------------------------------------------------------------------------- the scanner against Python

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3))
records = st.dictionaries(st.sampled_from(["text", "id", "a\u00e9", "te\"xt"]), values | st.text(), max_size=4) | values
lines = st.builds(
    lambda record, ascii_only, pad: (pad + json.dumps(record, ensure_ascii=ascii_only) + pad).encode("utf-8", "surrogatepass"),
    records, st.booleans(), st.sampled_from(["", " ", "\t", "\r"]),
)  # fmt: skip
broken = st.builds(
    lambda line, at, byte: line[: at % (len(line) + 1)] + byte + line[at % (len(line) + 1) + 1 :],
    lines, st.integers(0, 200), st.binary(max_size=2),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(lines | broken | st.just(b"") | st.just(b'{"text": "' + b"xyz" * 20 + b'", "text": "last"}'), max_size=6))
def test_the_scanner_reads_lines_as_python_does(found):
    data = b"\n".join(line.replace(b"\n", b" ") for line in found)
    scanner, begin, texts, handed_over = _C.DocumentScanner(b"text", True), 0, [], 0
    while True:
        begin, end = scanner.scan(data, begin)
        if begin == len(data):
            break
        odd = data[begin:end]
        handed_over += 1
        try:
            text, _ = parse_json(odd, "text")
            scanner.push(text.encode())
        except BadLine:
            pass
        scanner.pass_(odd)
        begin = end
    text, offsets, numbers = scanner.take()
    texts = [text[a:b].tobytes().decode() for a, b in zip(offsets[:-1], offsets[1:])]
    expected = []
    for number, line in enumerate(data.split(b"\n")):
        if line.strip():
            try:
                expected.append((number, parse_json(line, "text")[0]))
            except BadLine:
                pass
    assert list(zip(numbers.tolist(), texts)) == expected
    assert scanner.lines == data.count(b"\n")


def test_the_scanner_decides_ordinary_lines_itself():
    text = "äöü \" \\ / \b\f\n\r\t \x7f \U0001f600 \u2028 مرحبا"
    for ascii_only in (True, False):
        record = {"id": -1.5e-3, "meta": {"a": [1, True, None, {}], "b": []}, "text": text, "url": "x"}
        line = json.dumps(record, ensure_ascii=ascii_only).encode()
        scanner = _C.DocumentScanner(b"text", True)
        assert scanner.scan(line, 0) == (len(line), len(line))
        assert scanner.take()[0].tobytes().decode() == text


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ab \t\r\n\x0b\u00e9", max_size=60))
def test_blocks_do_not_depend_on_how_a_file_is_read(text):
    def blocks(size: int) -> list[tuple[str, int]]:
        readers._READ_BYTES, old = size, readers._READ_BYTES
        try:
            batches = list(readers.read(readers.Task(0, "text", ("memory",)), "text"))
        finally:
            readers._READ_BYTES = old
        pieces = [(batch, a, b, n) for batch in batches for a, b, n in zip(batch.offsets[:-1], batch.offsets[1:], batch.lines)]
        return [(batch.text[a:b].tobytes().decode(), int(n)) for batch, a, b, n in pieces]

    opened, readers._open = readers._open, lambda file: io.BytesIO(text.encode())
    try:
        assert blocks(3) == blocks(1 << 20)
    finally:
        readers._open = opened


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(alphabet="abc \u00e4\n", max_size=20), min_size=1, max_size=20), st.sampled_from([300, 70_000]))
def test_the_files_are_those_of_megatrons_builder(tmp_path_factory, found, vocabulary):
    builder_module = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    if not any(text.strip() for text in found):
        found = [*found, "a"]
    folder = tmp_path_factory.mktemp("builder")
    preprocess(corpus(folder, *found), ByteTokenizer(vocab_size=vocabulary), folder / "ours", workers=1, chunk_bytes=100)
    builder = builder_module.IndexedDatasetBuilder(
        str(folder / "theirs.bin"), dtype=builder_module.DType.optimal_dtype(vocabulary)
    )
    for text in found:
        if ids := list(text.strip().encode()):
            builder.add_document([*ids, EOS], [len(ids) + 1])
    builder.finalize(str(folder / "theirs.idx"))
    for suffix in (".bin", ".idx"):
        assert (folder / f"ours{suffix}").read_bytes() == (folder / f"theirs{suffix}").read_bytes()


# ------------------------------------------------------------------------------------------------- the two libraries


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
    honest = Gigatoken.encode

    def wrong(self, text, offsets, parallel):
        ids, starts = honest(self, text, offsets, parallel)
        return (np.where(ids == tokenizer.encode([" 7"])[0][0], 5, ids) if len(offsets) > 100 else ids), starts

    monkeypatch.setattr(Gigatoken, "encode", wrong)
    monkeypatch.setattr(encoder, "_SMALL_CORPUS", 1)
    message = r"gigatoken and tokenizers give different ids for 'number 7\d*' with the tokenizer .*gpt2: at token 1 \[5"
    with pytest.raises(Difference, match=message):
        preprocess(source, tokenizer, tmp_path / "c", chunk_bytes=4096, workers=2)
    stats = preprocess(source, tokenizer, tmp_path / "c", tokenizer_backend="auto")
    assert stats["tokenizer_backend"] == "tokenizers"
    assert documents(tmp_path / "c")[7] == [*tokenizer.encode(["number 7"])[0], 50256]
    monkeypatch.setattr(Gigatoken, "encode", lambda self, text, offsets, parallel: (np.zeros(0, np.uint32), offsets * 0))
    with pytest.raises(Difference, match="give different ids for ' '"):
        choose(tokenizer, None, 1 << 30, False, False, False)
    assert choose(tokenizer, "auto", 1 << 30, False, False, False).backend == "tokenizers"


def test_what_gigatoken_does_not_support(tmp_path):
    tokenizer = Tokenizer.load(word_tokenizer(tmp_path / "tok"))  # a model of whole words
    with pytest.raises(ConfigError, match="gigatoken cannot be used with the tokenizer .*tok: "):
        choose(tokenizer, "gigatoken", 1 << 30, False, False, False)
    assert choose(tokenizer, None, 1 << 30, False, False, False).backend == "tokenizers"
    assert files(tmp_path) == ["tok"]


@pytest.mark.parametrize("name", ["gpt2", "mistral-7b-v0.1", "de-32k", "ar-32k", "de-bpe-50k"])
def test_long_documents_are_compared_by_an_excerpt(name):
    found = choose(Tokenizer.load(assets("tokenizers", name)), "gigatoken", 0, False, True, False)
    found.samples = 3
    text = "Ein längerer Text, مرحبا بالعالم. " * 1000
    data = np.frombuffer((text + "kurz").encode(), np.uint8)
    offsets = np.array([0, len(text.encode()), len(data)])
    ids, starts = found.encode(data, offsets, np.random.default_rng(0))
    assert np.array_equal(ids[starts[1] :], found.tokenizer.encode(["kurz"])[0])


def test_a_bar_on_a_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    source = corpus(tmp_path, *["ein Satz"] * 50)
    with source.open("a") as stream:
        stream.write("bad\n")
    arguments = ["--input", str(source), "--output-prefix", str(tmp_path / "c"), "--on-error", "skip"]
    assert main([*arguments, "--tokenizer-model", str(word_tokenizer(tmp_path / "tok"))]) == 0
    error = capsys.readouterr().err
    assert "100% 50 documents (" in error and "MB/s, 100 tokens" in error and "skipped " in error
