"""The compiled scanner against Python, and the files against Megatron's builder, on random corpora."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_preprocess import EOS, ByteTokenizer, corpus

from megatron_adapt import _C
from megatron_adapt.data import readers
from megatron_adapt.data.parsing import BadLine, parse_json
from megatron_adapt.data.preprocess import preprocess
from megatron_adapt.data.ranges import plan

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
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
    scanner, begin, texts, handed_over = _C.DocumentScanner(b"text", "json"), 0, [], 0
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
        scanner = _C.DocumentScanner(b"text", "json")
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


def plain_lines(data: bytes) -> tuple[list[tuple[int, str]], list[int]]:
    """What csrc/documents.h does, once more: (number, text) of documents, and the numbers of lines that are none."""
    found, bad = [], []
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n")):
        if line.strip(b" \t\r\n\x0b\x0c"):
            try:
                found.append((number, line.rstrip(b"\r").decode()))
            except UnicodeDecodeError:
                bad.append(number)
    return found, bad


pieces_of_text = st.sampled_from([b"a", b" ", b"\n", b"\n\n", b"\r", b"\r\n", b"\t", b"\x0c", b"\0", b"word" * 9])
pieces_of_text |= st.sampled_from([s.encode() for s in ("\u00e9", "\u2028", "\x85", "\ufeff", "\U0001f600")]) | st.binary(max_size=2)


@settings(max_examples=200, deadline=None)
@given(st.lists(pieces_of_text, max_size=40).map(b"".join), st.booleans(), st.integers(1, 60), st.sampled_from([3, 7, 1 << 20]))
def test_lines_of_text_are_those_of_python(tmp_path_factory, data, bom, chunk_bytes, size):
    """However a file is cut into byte ranges, and however these are read."""
    file = tmp_path_factory.getbasetemp() / "lines.txt"
    file.write_bytes(b"\xef\xbb\xbf" * bom + data)
    found, bad, before = [], [], 0
    readers._READ_BYTES, old = size, readers._READ_BYTES
    try:
        for task in plan([str(file)], "lines", chunk_bytes):
            passed = 0
            for batch in readers.read(task, "text"):
                text = batch.text.tobytes()
                parts = zip(batch.lines.tolist(), batch.offsets.tolist(), batch.offsets.tolist()[1:])
                found += [(before + line, text[begin:end].decode()) for line, begin, end in parts]
                bad += [before + one.line for one in batch.bad]
                passed = batch.passed
            before += passed
    finally:
        readers._READ_BYTES = old
    assert (found, bad) == plain_lines(file.read_bytes())


def test_kinds_that_the_scanner_does_not_know():
    with pytest.raises(ValueError, match="documents are of json, lines or text"):
        _C.DocumentScanner(b"text", "words")


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
