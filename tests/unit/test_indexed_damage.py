"""A damaged, truncated or missing .bin or .idx is refused when it is opened, with sizes and names."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from test_indexed import DOCUMENTS, write

from megatron_adapt.data.indexed import IndexedReader
from megatron_adapt.errors import DataError


def damage(path: Path, offset: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)


INDEX_BYTES = 34 + 4 * 4 + 8 * 4 + 8 * 5


@pytest.mark.parametrize(
    "offset, data, message",
    [
        (0, b"TNTIDX", "c.idx is not a Megatron corpus index"),
        (9, b"\2", "c.idx has format version 2; only version 1 is known"),
        (17, b"\7", "c.idx has the type code 7, not one of integers"),
        (18, b"\5", rf"c.idx has {INDEX_BYTES} bytes but its header describes {INDEX_BYTES + 12} \(5 sequences\)"),
        (18, b"\xff" * 16, rf"c.idx has {INDEX_BYTES} bytes but its header describes \d+ \(18446744073709551615 seq"),
        (34, b"\4", "c.idx is damaged: sequence 1 does not follow on the one before"),
        (34, b"\xff" * 4, "c.idx is damaged: sequence 0 does not follow on the one before"),
        (50, b"\2", "c.idx is damaged: sequence 0 does not follow"),
        (46, b"\3", r"c.bin has 12 bytes but c.idx describes 14 \(7 tokens of 2 bytes\): it is truncated or belongs"),
        (82, b"\1", "c.idx is damaged: its document boundaries do not ascend from 0 to 4"),
        (98, b"\0", "c.idx is damaged: its document boundaries do not ascend from 0 to 4"),
        (114, b"\3", "c.idx is damaged: its document boundaries do not ascend from 0 to 4"),
    ],
)
def test_damaged_index(tmp_path, offset, data, message):
    write(tmp_path / "c", DOCUMENTS)
    damage(tmp_path / "c.idx", offset, data)
    with pytest.raises(DataError, match=message):
        IndexedReader(tmp_path / "c")


def test_truncated_index(tmp_path):
    write(tmp_path / "c", DOCUMENTS)
    for length in reversed(range(INDEX_BYTES)):
        os.truncate(tmp_path / "c.idx", length)
        with pytest.raises(DataError, match=r"c.idx (is truncated|is not a Megatron|has \d+ bytes but its header)"):
            IndexedReader(tmp_path / "c")


@pytest.mark.parametrize("length", [0, 1, 11, 13])
def test_truncated_or_longer_data(tmp_path, length):
    write(tmp_path / "c", DOCUMENTS)
    os.truncate(tmp_path / "c.bin", length)
    with pytest.raises(DataError, match=rf"c.bin has {length} bytes but c.idx describes 12 \(6 tokens of 2 bytes\)"):
        IndexedReader(tmp_path / "c")


def test_no_boundaries(tmp_path):
    (tmp_path / "c.idx").write_bytes(struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 4, 0, 0))
    (tmp_path / "c.bin").write_bytes(b"")
    with pytest.raises(DataError, match="c.idx is damaged: it has no document boundaries"):
        IndexedReader(tmp_path / "c")


def test_missing_files(tmp_path):
    with pytest.raises(DataError, match="cannot open .*c.idx: No such file or directory; a corpus is PREFIX.bin and"):
        IndexedReader(tmp_path / "c")
    write(tmp_path / "c", DOCUMENTS)
    (tmp_path / "c.bin").unlink()
    with pytest.raises(DataError, match="cannot open .*c.bin: No such file or directory"):
        IndexedReader(tmp_path / "c")
    (tmp_path / "d.idx").mkdir()
    with pytest.raises(DataError, match="cannot open .*d.idx: Is a directory"):
        IndexedReader(tmp_path / "d")
