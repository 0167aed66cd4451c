"""Documents from files: what is read, what is refused, and in which words."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pytest
from harness import assets

from megatron_adapt.data import readers
from megatron_adapt.data.corpus import Document, read_documents
from megatron_adapt.data.documents import Task
from megatron_adapt.data.sources import find_files
from megatron_adapt.errors import ConfigError, DataError


def write(path: Path, data: str | bytes) -> Path:
    data = data.encode() if isinstance(data, str) else data
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def texts(*paths: Path, **options) -> list[str]:
    return [document.text for document in read_documents(paths, **options)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.gz"])
def test_json_lines(tmp_path, name):
    file = write(tmp_path / name, '{"text": "eins\\nzwei", "id": 1}\n\n{"text": "drei"}')
    assert list(read_documents(file)) == [Document("eins\nzwei", file, 1), Document("drei", file, 3)]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_plain_text_blocks(tmp_path, name):
    file = write(tmp_path / name, "\n\neins\nzwei\n \t\n\ndrei\n")
    assert list(read_documents(file)) == [Document("eins\nzwei", file, 3), Document("drei", file, 7)]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_lines_of_plain_text(tmp_path, name):
    file = write(tmp_path / name, "\n\ufeffeins\r\n  zwei \n \t\n\ndrei")
    expected = [Document("\ufeffeins", file, 2), Document("  zwei ", file, 3), Document("drei", file, 6)]
    assert list(read_documents(file, text_documents="lines")) == expected


def test_whole_files(tmp_path):
    file = write(tmp_path / "a.txt", "\neins\n\nzwei\n")
    assert texts(file, text_documents="files") == ["\neins\n\nzwei"]
    with pytest.raises(ConfigError, match="text_documents must be one of blocks, lines, files, not 'words'"):
        texts(file, text_documents="words")


def test_windows_files(tmp_path):
    bom = b"\xef\xbb\xbf"
    assert texts(write(tmp_path / "a.jsonl", bom + b'{"text": "a\\r\\nb"}\r\n\r\n{"text": "c"}\r\n')) == ["a\r\nb", "c"]
    assert texts(write(tmp_path / "a.txt", bom + b"eins\r\nzwei\r\n\r\ndrei\r\n")) == ["eins\nzwei", "drei"]


@pytest.mark.parametrize("cuts", [(1,), (2,), (1, 2), (3,), (4,)])
def test_a_byte_order_mark_that_comes_in_parts(tmp_path, monkeypatch, cuts):
    data = b"\xef\xbb\xbf" + b'{"text": "a"}\n'
    monkeypatch.setattr(readers, "_open", lambda file: Pieces([data[begin:end] for begin, end in zip((0, *cuts), (*cuts, None))]))
    assert texts(write(tmp_path / "a.jsonl", data)) == ["a"]


class Pieces(io.BytesIO):
    """A stream whose reads end where its writer's did."""

    def __init__(self, pieces: list[bytes]) -> None:
        super().__init__()
        self.pieces = pieces

    def read(self, size: int | None = -1) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""


def test_unusual_characters_stay(tmp_path):
    text = "NUL \0, separators \u2028 \u2029 \x85 \x0b, \U0001f600, e\u0301"
    assert texts(write(tmp_path / "a.jsonl", json.dumps({"text": text}))) == [text]
    assert texts(write(tmp_path / "b.jsonl", json.dumps({"text": text}, ensure_ascii=False))) == [text]


def test_lone_surrogate_is_replaced_and_counted(tmp_path):
    file = write(tmp_path / "a.jsonl", '{"text": "\\ud83d\\ude00 \\ud83d \\udc00"}\n{"text": "ok"}')
    first, second = read_documents(file)
    assert (first.text, first.replaced) == ("\U0001f600 \ufffd \ufffd", 2)
    assert second.replaced == 0


def test_folder_glob_and_order(tmp_path):
    for name in ("b.jsonl", "a.txt", "deep/c.jsonl.gz", "notes.json", "README.md", ".hidden/d.jsonl"):
        write(tmp_path / name, '{"text": "x"}')
    assert [file.name for file in find_files(tmp_path)] == ["a.txt", "b.jsonl", "c.jsonl.gz"]
    assert [file.name for file in find_files(str(tmp_path / "*.json*"))] == ["b.jsonl", "notes.json"]
    assert [file.name for file in find_files([tmp_path / "b.jsonl", tmp_path / "a.txt"])] == ["b.jsonl", "a.txt"]
    odd = write(tmp_path / "odd[1].jsonl", '{"text": "x"}')
    assert find_files(odd) == [odd]


@pytest.mark.parametrize(
    "line, message",
    [
        (b'{"text": "a"', "not JSON (Expecting"),
        (b"\x00\x00", "not JSON ("),
        (b"[" * 100_000, "not JSON (maximum recursion"),
        (b'{"text": "\xff"}', "not UTF-8 (byte 11 is 0xff)"),
        (b'"text"', "a JSON string instead of an object with the key 'text'"),
        (b"null", "a JSON null instead of an object with the key 'text'"),
        (b'{"content": "a", "id": 1}', "no key 'text'; the keys are 'content', 'id'"),
        (b"{}", "no key 'text'; the keys are none"),
        (b'{"text": 1.5}', "the value of 'text' is a JSON number instead of a string"),
        (b'{"text": true}', "the value of 'text' is a JSON boolean instead of a string"),
        (b'{"text": null}', "the value of 'text' is a JSON null instead of a string"),
        (b'{"text": ["a"]}', "the value of 'text' is a JSON array instead of a string"),
        (b'{"text": {}}', "the value of 'text' is a JSON object instead of a string"),
    ],
)
def test_bad_line(tmp_path, line, message):
    file = write(tmp_path / "a.jsonl", b'{"text": "good"}\n' + line + b'\n{"text": "also"}\n')
    with pytest.raises(DataError) as caught:
        texts(file)
    assert str(caught.value).startswith(f"{file}:2: {message}")
    assert str(caught.value).endswith("; correct it or skip bad lines (on_error 'skip')")
    skipped: list[str] = []
    assert texts(file, on_error="skip", on_skip=skipped.append) == ["good", "also"]
    assert texts(file, on_error="skip") == ["good", "also"]
    assert len(skipped) == 1 and skipped[0].startswith(f"{file}:2: {message}")


def test_other_text_key(tmp_path):
    assert texts(write(tmp_path / "a.jsonl", '{"content": "a"}'), text_key="content") == ["a"]


def test_bad_block_of_plain_text(tmp_path):
    file = write(tmp_path / "a.txt", b"one\n\ntwo\ncaf\xe9\n\nthree")
    with pytest.raises(DataError, match=r"a.txt:3: not UTF-8 \(byte 8 is 0xe9\)"):
        texts(file)
    assert texts(file, on_error="skip") == ["one", "three"]


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_damaged_gzip(tmp_path, on_error):
    data = gzip.compress(b'{"text": "a"}\n' * 1000)
    for name, damaged in (("a.jsonl.gz", data[:-10]), ("b.txt.gz", data[:20] + b"\0\0\0\0" + data[24:])):
        with pytest.raises(DataError, match=rf"(cannot decompress|cannot read) .*{name}: "):
            texts(write_raw(tmp_path / name, damaged), on_error=on_error)
    with pytest.raises(DataError, match=r"cannot read .*c.jsonl.gz: Not a gzipped file"):
        texts(write_raw(tmp_path / "c.jsonl.gz", b'{"text": "a"}\n'), on_error=on_error)


def write_raw(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_endless_line_and_block(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_BYTES", 1 << 20)
    long = write(tmp_path / "a.jsonl", b'{"text": "good"}\n' + b"x" * (1 << 21))
    with pytest.raises(DataError, match="a.jsonl:2: the line is longer than 1 MiB; is this text?"):
        texts(long)
    block = write(tmp_path / "a.txt", b"good\n\n" + b"line\n" * (1 << 18))
    with pytest.raises(DataError, match="a.txt:3: no blank line in 1 MiB; blank lines separate the documents"):
        texts(block)
    assert len(texts(block, text_documents="lines")) == (1 << 18) + 1
    line = write(tmp_path / "b.txt", b"good\n" + b"x" * (1 << 21))
    with pytest.raises(DataError, match="b.txt:2: the line is longer than 1 MiB; is this text?"):
        texts(line, text_documents="lines")


def test_bad_paths(tmp_path):
    (tmp_path / "empty").mkdir()
    file = write(tmp_path / "a.jsonl", "")
    odd = write(tmp_path / "a.csv", "")
    for paths, message in (
        ([], "no corpus file was given"),
        (tmp_path / "none.jsonl", "the corpus .*none.jsonl does not exist"),
        (tmp_path / "none*.jsonl", r"the corpus .*none\*.jsonl does not exist"),
        (tmp_path / "empty", r"empty contains no corpus file \(.jsonl, "),
        (odd, r"a.csv is of an unknown kind; a corpus file ends in .jsonl, "),
        ([file, tmp_path], "the corpus file .*a.jsonl is named twice"),
    ):
        with pytest.raises(DataError, match=message):
            texts(*paths) if isinstance(paths, list) else texts(paths)
    with pytest.raises(ConfigError, match="on_error must be 'stop' or 'skip', not 'ignore'"):
        texts(file, on_error="ignore")


def test_unreadable_file(tmp_path):
    (tmp_path / "loop.jsonl").mkdir()
    link = tmp_path / "link.jsonl"
    link.symlink_to(tmp_path / "loop.jsonl")
    with pytest.raises(DataError, match="contains no corpus file"):
        texts(link)
    with pytest.raises(DataError, match="cannot read .*loop.jsonl: Is a directory"):
        list(readers.read(Task(0, "json", (str(tmp_path / "loop.jsonl"),)), "text"))


def test_real_text():
    documents = list(read_documents(assets("text", "de_ud_gsd.jsonl.gz")))
    assert documents[0].text == "Manasse ist ein einzigartiger Parfümeur."
    assert len(documents) == documents[-1].line == 1776
