"""Tokenizing that fails: in which words, and that it leaves nothing half-written."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from harness import ROOT
from test_preprocess import ByteTokenizer, corpus, files, held_out

from megatron_adapt.data.preprocess import open_corpus, preprocess
from megatron_adapt.errors import ConfigError, DataError


def test_one_folder_holds_one_held_out_text(tmp_path):
    source = corpus(tmp_path / "in", "a", "b")
    out = tmp_path / "out"
    preprocess(source, ByteTokenizer(), out / "german", held_out=0.5)
    preprocess(source, ByteTokenizer(), out / "german", held_out=0.5)
    preprocess(source, ByteTokenizer(), out / "english")
    with pytest.raises(ConfigError, match="held_out.jsonl belongs to the corpus german; give english a folder of"):
        preprocess(source, ByteTokenizer(), out / "english", held_out=0.5)
    assert held_out(out) == ["b"]


def test_failure_leaves_the_former_corpus(tmp_path):
    source = corpus(tmp_path / "in", "a", "b", "c", "d")
    out = tmp_path / "out"
    preprocess(source, ByteTokenizer(), out / "c", held_out=0.5)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with source.open("a") as stream:
        stream.write('{"text": 1}\n')
    with pytest.raises(DataError, match=r"in.jsonl:5: the value of 'text' is a JSON number instead of a string"):
        preprocess(source, ByteTokenizer(), out / "c", held_out=0.25)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_interruption_leaves_nothing(tmp_path):
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    source = corpus(tmp_path / "in", *"abcdef")
    with pytest.raises(KeyboardInterrupt):
        preprocess(source, ByteTokenizer(), tmp_path / "out" / "c", held_out=0.5, on_progress=interrupt)
    assert files(tmp_path / "out") == []


@pytest.mark.parametrize("file", ["data", "index"])
def test_disk_that_fails_at_the_end(tmp_path, monkeypatch, file):
    """Tokens and index reach the disk at the same time: neither failure is lost, and nothing gets its final name."""
    fsync = os.fsync

    def fail(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(f".parts/{file}"):
            raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    out = tmp_path / "out"
    with pytest.raises(DataError, match=f"cannot write .*c.parts/{file}: Input/output error"):
        preprocess(corpus(tmp_path / "in", "a", "b"), ByteTokenizer(), out / "c")
    assert files(out) == ["c.parts"]
    monkeypatch.undo()
    assert preprocess(corpus(tmp_path / "in", "a", "b"), ByteTokenizer(), out / "c")["documents"] == 2


@pytest.mark.parametrize("blocked", ["c.json.tmp", "held_out.jsonl.tmp", "held_out.jsonl"])
def test_file_that_cannot_be_written(tmp_path, blocked):
    out = tmp_path / "out"
    (out / blocked).mkdir(parents=True)
    with pytest.raises(DataError, match=f"cannot write .*{re.escape(blocked)}.*: Is a directory"):
        preprocess(corpus(tmp_path / "in", "a", "b"), ByteTokenizer(), out / "c", held_out=0.5)
    assert not (out / "c.json").exists() and not list(out.glob("*.[bi]??.tmp"))
    with pytest.raises(DataError, match="c.json is missing: the corpus .*c does not exist or is unfinished"):
        open_corpus(out / "c")


def test_folder_that_cannot_be_made(tmp_path):
    source = corpus(tmp_path, "a")
    with pytest.raises(DataError, match="cannot write .*in.jsonl: (File exists|Not a directory)"):
        preprocess(source, ByteTokenizer(), source / "c")


def limited(limit: int, source: Path, prefix: Path, options: str) -> str:
    """What preprocess raises where no file may grow beyond ``limit`` bytes: the same calls fail as on a full disk."""
    code = (
        "import resource, sys; sys.path[:0] = sys.argv[1:3]\n"
        "from test_preprocess import ByteTokenizer, DataError, preprocess\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit},) * 2)\n"
        f"try: preprocess(sys.argv[3], ByteTokenizer(), sys.argv[4], {options})\n"
        "except DataError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(ROOT / "tests"), str(ROOT / "tests" / "unit"), str(source), str(prefix)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize(
    "options, file",
    [
        ("held_out=0.9, chunk_bytes=1 << 24", "00000000.held"),
        ("chunk_bytes=1 << 24", "data"),
        ("workers=2, chunk_bytes=1500000", "data"),
    ],
)
def test_full_disk(tmp_path, options, file):
    source = corpus(tmp_path / "in", *("x" * 100_000 for _ in range(40)))
    message = limited(1 << 20, source, tmp_path / "out" / "c", options)
    assert message == f"cannot write {tmp_path}/out/c.parts/{file}: File too large"
    assert files(tmp_path / "out") == []


def test_full_disk_at_the_end_leaves_the_former_corpus(tmp_path):
    source = corpus(tmp_path / "in", *("x" for _ in range(20_000)))
    out = tmp_path / "out"
    preprocess(source, ByteTokenizer(), out / "c")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    message = limited(1 << 18, source, out / "c", "append_eod=False")
    assert message == f"cannot write {out}/c.parts/index: File too large"
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    # What was encoded waits for a larger disk.
    assert files(out / "c.parts") == ["00000000.json", "00000000.sizes", "data", "index", "lock", "plan.json"]
    assert preprocess(source, ByteTokenizer(), out / "c", append_eod=False)["tokens"] == 20_000
    assert files(out) == ["c.bin", "c.idx", "c.json"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"held_out": 1.0}, "held_out is a share of the documents, at least 0 and below 1, not 1.0"),
        ({"held_out": -0.1}, "held_out is a share of the documents, at least 0 and below 1, not -0.1"),
        ({"held_out": float("nan")}, "held_out is a share of the documents, at least 0 and below 1, not nan"),
        ({"held_out": 0.1, "held_out_path": "valid.jsonl"}, "give either held_out, a share of the corpus, or held_out"),
        ({"max_documents": 0}, "max_documents must be at least 1, not 0"),
        ({"workers": 0, "chunk_bytes": 0}, "workers must be at least 1, not 0; chunk_bytes must be at least 1, not 0"),
        ({"shard": (2, 2)}, "a shard is i/n with 0 <= i < n, not 2/2"),
        ({"shard": (0, 2), "held_out": 0.1}, "held_out and max_documents count the documents of a whole corpus: leave"),
        ({"keep_newlines": True}, "keep_newlines is about sentences: it needs split_sentences"),
        ({"paths": "-", "max_documents": 2}, "standard input can be read once, and held_out and max_documents read twi"),
        ({"text_documents": "words"}, "text_documents must be one of blocks, lines, files, not 'words'"),
        ({"tokenizer_backend": "fast"}, "the tokenizer backend is one of auto, compiled, gigatoken, tokenizers, senten"),
        ({"tokenizer_backend": "sentencepiece"}, "byte-tokenizer is read by tokenizers, not by sentencepiece"),
        ({"output_prefix": "."}, "the output prefix '.' has no file name; name it like corpus"),
        ({"held_out_path": "in.jsonl"}, "in.jsonl is both training and held-out text; name another file for one"),
        ({"paths": "c.json"}, "c.json is an input and would be overwritten; choose another prefix than c"),
        ({"paths": "held_out.jsonl", "held_out": 0.5}, "held_out.jsonl is an input and would be overwritten"),
        ({"held_out_path": "held_out.jsonl"}, "held_out.jsonl is an input and would be overwritten"),
    ],
)
def test_bad_arguments(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    for name in ("in.jsonl", "valid.jsonl", "c.json", "held_out.jsonl"):
        corpus(Path(), "a", "b", name=name)
    before = files(tmp_path)
    with pytest.raises(ConfigError, match=message):
        preprocess(**{"paths": "in.jsonl", "tokenizer": ByteTokenizer(), "output_prefix": "c", **options})
    assert files(tmp_path) == before


def test_bad_data(tmp_path):
    source = corpus(tmp_path, "abc", "d")
    for tokenizer, options, message in (
        (ByteTokenizer(eos_id=None), {}, r"the tokenizer byte-tokenizer has no EOD \(end-of-text\) token to append"),
        (ByteTokenizer(bos_id=None), {"append_bos": True}, "the tokenizer byte-tokenizer has no BOS token to append"),
        (
            ByteTokenizer(vocab_size=99), {"append_eod": False},
            "the tokenizer byte-tokenizer: a document contains the token id 99, but the vocabulary has the ids 0 to 98",
        ),
    ):
        with pytest.raises(DataError, match=message):
            preprocess(source, tokenizer, tmp_path / "out" / "c", **options)
    source.write_text('{"text": ""}\n{"text": " "}\nbad\n')
    message = r"the corpus .*in.jsonl is empty: no text becomes a token \(1 bad lines were skipped, 2 documents are"
    with pytest.raises(DataError, match=message):
        preprocess(source, ByteTokenizer(), tmp_path / "out" / "c", on_error="skip")
    assert files(tmp_path / "out") == []
