"""Checksums of the blocks of files: zlib's numbers, taken in passing, compared before any byte is given out."""

from __future__ import annotations

import json
import os
import random
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_adapt import _C
from megatron_adapt.errors import CheckpointError
from megatron_adapt.streams import checksums as streams
from megatron_adapt.streams.checksums import Changed, CheckedFile, Room, Running
from megatron_adapt.torch_dist import checksums

BLOCK = 64


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (checksums, streams):
        monkeypatch.setattr(module, "BLOCK", BLOCK)
    monkeypatch.setitem(checksums._HEADER, "block_bytes", BLOCK)


def expected(data: bytes) -> list[int]:
    return [zlib.crc32(data[at : at + BLOCK]) for at in range(0, len(data), BLOCK)]


def test_the_compiled_function_is_that_of_zlib():
    draw = random.Random(2)
    data = draw.randbytes(3000)
    sizes = [*range(0, 20), *range(120, 140), *range(250, 262), 3000]
    for size in sizes:
        for begin in (0, 1, 7):
            part = memoryview(data)[begin : begin + size]
            for value in (0, 1, draw.getrandbits(32)):
                assert _C.crc32(part, value) == zlib.crc32(part, value)
    with pytest.raises(ValueError, match="contiguous"):
        _C.crc32(np.zeros((4, 4))[:, 0])


def test_without_the_instruction_it_is_zlibs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_C, "crc32_is_fast", lambda: False)
    streams._function.cache_clear()
    try:
        assert streams._function() is zlib.crc32 and streams.of(b"a" * 100) == expected(b"a" * 100)
    finally:
        streams._function.cache_clear()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=150), max_size=6))
def test_of_bytes_that_pass_by(parts: list[bytes]):
    running = Running()
    for number, part in enumerate(parts):
        running.add([part, bytearray(part), np.frombuffer(part, np.uint8)][number % 3])
    assert running.blocks() == expected(b"".join(parts))
    assert streams.of(np.arange(60, dtype=np.int16).reshape(3, 20)) == expected(np.arange(60, dtype=np.int16).tobytes())


def outcome(file: CheckedFile, at: int, size: int) -> bytes | None:
    file.seek(at)
    try:
        return file.read(size)
    except Changed as error:
        begin, end = (int(word.replace(",", "")) for word in re.findall(r"[\d,]+", str(error))[:2])
        assert begin % BLOCK == 0 and begin <= end < begin + BLOCK
        return None


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_byte_of_a_changed_block_is_given_out(tmp_path_factory, data):
    content = data.draw(st.binary(min_size=1, max_size=400))
    changed = data.draw(st.integers(0, len(content) - 1) | st.none())
    path = tmp_path_factory.mktemp("file") / "file"
    found = bytearray(content)
    if changed is not None:
        found[changed] ^= data.draw(st.integers(1, 255))
    path.write_bytes(found)
    file = CheckedFile(path, expected(content), Room())
    for at, size in data.draw(st.lists(st.tuples(st.integers(0, 420), st.integers(0, 420)), min_size=1, max_size=8)):
        touches = changed is not None and size and at // BLOCK <= changed // BLOCK <= (at + size - 1) // BLOCK
        assert outcome(file, at, size) == (None if touches else content[at : at + size])
    file.close()


def test_files_that_share_the_room_for_a_block(tmp_path: Path):
    room, contents = Room(), [random.Random(number).randbytes(200) for number in range(2)]
    for number, content in enumerate(contents):
        (tmp_path / str(number)).write_bytes(content)
    opened = [CheckedFile(tmp_path / str(number), expected(content), room) for number, content in enumerate(contents)]
    for at in range(0, 200, 10):
        for file, content in zip(opened, contents):
            file.seek(at)
            assert file.read(10) == content[at : at + 10]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, size in enumerate((300, 64, 1, 0, 130)):
        (tmp_path / f"{number}.distcp").write_bytes(random.Random(number).randbytes(size))
    found = {path.name: expected(path.read_bytes()) for path in tmp_path.iterdir()}
    checksums.write(tmp_path, found)
    assert {name: list(blocks) for name, blocks in checksums.read(tmp_path).items()} == found
    return tmp_path


def test_parts_are_equal_and_all_there_is(folder: Path, monkeypatch: pytest.MonkeyPatch):
    for shares in (1, 2, 3, 20):
        seen: list[list[tuple[str, int]]] = []
        monkeypatch.setattr(CheckedFile, "check", lambda self, number: seen[-1].append((self._file.name, number)))
        for share in range(shares):
            seen.append([])
            assert checksums.damage(folder, None, share, shares) == []
        together = [each for part in seen for each in part]
        assert len(together) == len(set(together)) == 5 + 1 + 1 + 3 and max(map(len, seen)) <= -(-10 // shares)


def test_damage_is_told_by_file_and_place(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "0.distcp").write_bytes((folder / "0.distcp").read_bytes()[:256])
    content = bytearray((folder / "4.distcp").read_bytes())
    content[70] ^= 1
    content[129] ^= 1
    (folder / "4.distcp").write_bytes(content)
    (folder / "2.distcp").unlink()
    assert [str(each) for each in checksums.damage(folder)] == [
        "0.distcp: bytes 256 to 256 of the file changed since it was written",
        "2.distcp: cannot be read from byte 0 on (No such file or directory)",
        "4.distcp: bytes 64 to 127 of the file changed since it was written",
    ]

    def bad_sector(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", bad_sector)
    assert "1.distcp: cannot be read from byte 0 on (Input/output error)" in map(str, checksums.damage(folder))


@pytest.mark.parametrize("change", [{"algorithm": "md5"}, {"files": {"a": "xyz"}}, {"files": [1]}, {"files": {"a": "123456"}}])
def test_other_checksums_are_refused(folder: Path, change: dict):
    file = folder / checksums.NAME
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match="checksums.json is damaged, or another version of this program wrote it"):
        checksums.read(folder)
    file.unlink()
    assert checksums.read(folder) == {} and checksums.damage(folder) == []
