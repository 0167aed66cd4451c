""".bin/.idx: equal to Megatron's builder byte for byte, and nothing damaged is ever written or read."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_adapt.data import indexed
from megatron_adapt.data.indexed import IndexedReader, IndexedWriter
from megatron_adapt.errors import DataError

DOCUMENTS = [[1, 2, 3], [], [4], [5, 6]]


def write(prefix: Path, documents: list[list[int]], vocab_size: int = 100) -> Path:
    with IndexedWriter(prefix, vocab_size) as writer:
        writer.add(np.array(sum(documents, []), dtype=np.int64), np.array([len(d) for d in documents]))
    return prefix


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_with_megatron(prefix: Path, documents: list[list[int]], vocab_size: int) -> None:
    builder_module = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    dtype = builder_module.DType.optimal_dtype(vocab_size)
    builder = builder_module.IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in documents:
        builder.add_document(np.array(document, dtype=np.int64), [len(document)])
    builder.finalize(f"{prefix}.idx")


def test_known_bytes(tmp_path):
    write(tmp_path / "c", [[1, 2, 3], [4], [5, 6]])
    assert (tmp_path / "c.bin").read_bytes() == struct.pack("<6H", 1, 2, 3, 4, 5, 6)
    assert (tmp_path / "c.idx").read_bytes() == b"MMIDIDX\0\0" + struct.pack(
        "<QBQQ3i3q4q", 1, 8, 3, 4, 3, 1, 2, 0, 6, 8, 0, 1, 2, 3
    )
    assert files(tmp_path) == ["c.bin", "c.idx"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), vocab_size=st.sampled_from([1, 257, 65_499, 65_500, 150_000, 2**31]))
def test_same_bytes_as_megatron(tmp_path, data, vocab_size):
    ids = st.integers(0, vocab_size - 1) | st.just(vocab_size - 1)
    documents = data.draw(st.lists(st.lists(ids, max_size=20), max_size=12))
    cut = data.draw(st.integers(0, len(documents)))
    dtype = data.draw(st.sampled_from([np.int64, np.uint32, np.uint64]))
    with IndexedWriter(tmp_path / "ours", vocab_size) as writer:
        for part in (documents[:cut], documents[cut:]):
            writer.add(np.array(sum(part, []), dtype=dtype), np.array([len(d) for d in part], dtype=np.int32))
        assert (writer.num_documents, writer.num_tokens) == (len(documents), sum(map(len, documents)))
    write_with_megatron(tmp_path / "theirs", documents, vocab_size)
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"ours.{suffix}").read_bytes() == (tmp_path / f"theirs.{suffix}").read_bytes()
    reader = IndexedReader(tmp_path / "ours")
    assert [list(reader[i]) for i in range(len(reader))] == documents
    assert reader.tokens.tolist() == sum(documents, []) and reader.sizes.tolist() == [len(d) for d in documents]
    assert reader.dtype == (np.uint16 if vocab_size < 65_500 else np.int32)


@pytest.mark.parametrize("vocab_size", [65_000, 70_000])
def test_more_than_the_buffers_hold(tmp_path, vocab_size):
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 60, size=150_000)
    ids = rng.integers(0, vocab_size, size=lengths.sum()).astype(np.int32)
    cuts = [0, 1, 77, 100_000, 150_000]
    with IndexedWriter(tmp_path / "c", vocab_size) as writer:
        for begin, end in zip(cuts, cuts[1:]):
            writer.add(ids[lengths[:begin].sum() : lengths[:end].sum()], lengths[begin:end])
    reader = IndexedReader(tmp_path / "c")
    assert np.array_equal(reader.tokens, ids) and np.array_equal(reader.sizes, lengths)


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", ">i4", ">u2"])
def test_every_integer_type(tmp_path, dtype):
    ids = np.arange(0, 200, 2).astype(dtype) if dtype not in ("i1",) else np.arange(0, 100).astype(dtype)
    with IndexedWriter(tmp_path / "c", 256) as writer:
        writer.add(ids, [len(ids)])
        writer.add(ids[::-3], [len(ids[::-3])])
        writer.add(np.frombuffer(b"\0" + ids.tobytes(), dtype=dtype, offset=1), [len(ids)])  # unaligned
    reader = IndexedReader(tmp_path / "c")
    for document, expected in enumerate((ids, ids[::-3], ids)):
        assert np.array_equal(reader[document], expected)


def test_wrong_arrays_are_defects(tmp_path):
    with IndexedWriter(tmp_path / "c", 256) as writer:
        for ids, lengths in (([0.5], [1]), ([True], [1]), ([1], [1.0])):
            with pytest.raises(TypeError, match="must be integers"):
                writer.add(np.array(ids), np.array(lengths))
        with pytest.raises(DataError, match="must be one-dimensional"):
            writer.add(np.array([[1]]), np.array([1]))
        with pytest.raises(DataError, match="c: the lengths add up to 3 but there are 2 ids"):
            writer.add(np.array([1, 2]), np.array([3]))
        with pytest.raises(DataError, match="c: document 0 has -1 tokens; the format holds 0 to 2147483647"):
            writer.add(np.array([1]), np.array([-1, 2]))
    with pytest.raises(RuntimeError, match="is closed"):
        writer.add(np.array([1]), [1])


@pytest.mark.parametrize(
    "vocab_size, document, value",
    [(60_000, [1, 70_000], 70_000), (60_000, [60_000], 60_000), (60_000, [5, -1], -1), (70_000, [2**40], 2**40)],
)
def test_id_that_does_not_fit(tmp_path, vocab_size, document, value):
    with IndexedWriter(tmp_path / "c", vocab_size) as writer:
        writer.add(np.array([7]), [1])
        message = f"c: document 3 contains the token id {value}, but the vocabulary has the ids 0 to {vocab_size - 1}"
        with pytest.raises(DataError, match=message):
            writer.add(np.array([1, 2] + document), np.array([2, 0, len(document)]))
        writer.add(np.array([8]), [1])  # the refused documents left no trace
    assert IndexedReader(tmp_path / "c").tokens.tolist() == [7, 8]


@pytest.mark.parametrize("vocab_size", [0, 2**31 + 1])
def test_impossible_vocabulary(tmp_path, vocab_size):
    with pytest.raises(DataError, match=f"a vocabulary of {vocab_size} ids cannot be stored"):
        IndexedWriter(tmp_path / "c", vocab_size)
    assert files(tmp_path) == []


def test_nothing_under_the_final_name_before_the_end(tmp_path):
    with IndexedWriter(tmp_path / "c", 100) as writer:
        writer.add(np.array([1]), [1])
        assert files(tmp_path) == ["c.bin.tmp", "c.idx.tmp"]
    assert files(tmp_path) == ["c.bin", "c.idx"]


def test_abandoned_writer_leaves_the_former_corpus(tmp_path):
    write(tmp_path / "c", DOCUMENTS)
    with pytest.raises(KeyboardInterrupt), IndexedWriter(tmp_path / "c", 100) as writer:
        writer.add(np.array([9]), [1])
        raise KeyboardInterrupt
    IndexedWriter(tmp_path / "c", 100)  # forgotten without a word
    assert files(tmp_path) == ["c.bin", "c.idx"]
    assert IndexedReader(tmp_path / "c").num_documents == 4


def test_killed_writer_is_replaced(tmp_path):
    for suffix in ("bin", "idx"):
        (tmp_path / f"c.{suffix}.tmp").write_bytes(b"x" * 1000)
    write(tmp_path / "c", DOCUMENTS)
    assert IndexedReader(tmp_path / "c").tokens.tolist() == [1, 2, 3, 4, 5, 6]


def test_second_writer_is_refused(tmp_path):
    with IndexedWriter(tmp_path / "c", 100) as writer:
        with pytest.raises(DataError, match="c: another process is writing this corpus; wait for it or choose"):
            IndexedWriter(tmp_path / "c", 100)
        writer.add(np.array([1]), [1])
    assert IndexedReader(tmp_path / "c").tokens.tolist() == [1]


def test_forked_child_does_not_remove_the_files(tmp_path):
    writer = IndexedWriter(tmp_path / "c", 100)
    child = os.fork()
    if child == 0:
        writer.abandon()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    writer.add(np.array([1]), [1])
    writer.finish()
    assert IndexedReader(tmp_path / "c").num_tokens == 1


def test_cannot_write(tmp_path):
    with pytest.raises(DataError, match="cannot write .*none/c.bin.tmp: No such file or directory; .*c was not com"):
        IndexedWriter(tmp_path / "none" / "c", 100)
    (tmp_path / "c.idx").mkdir()
    with pytest.raises(DataError, match="cannot write .*c.idx: Is a directory"):
        write(tmp_path / "c", DOCUMENTS)
    assert files(tmp_path) == ["c.idx"]


FULL_DISK = """
import resource, sys
import numpy as np
from megatron_adapt.data.indexed import IndexedWriter
from megatron_adapt.errors import DataError
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    with IndexedWriter(sys.argv[1], 100) as writer:
        try:
            for _ in range(int(sys.argv[3])):
                writer.add(np.zeros(1 << 20, dtype=np.int32), np.ones(1 << 20, dtype=np.int64))
        except DataError:
            try:
                writer.finish()
            except RuntimeError as error:
                print(error)
            raise
except DataError as error:
    print(error)
"""


@pytest.mark.parametrize("limit, batches, file", [(5 << 20, 8, "bin"), (10 << 20, 4, "idx")])
def test_full_disk(tmp_path, limit, batches, file):
    """A limit on file sizes fails the same calls as a full disk: among the ids, or at the end in the index."""
    write(tmp_path / "c", DOCUMENTS)
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "c"), str(limit), str(batches)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert f"cannot write {tmp_path}/c.{file}.tmp: File too large; {tmp_path}/c was not completed" in result.stdout
    assert ("has failed before" in result.stdout) == (file == "bin") and result.stderr == ""
    assert files(tmp_path) == ["c.bin", "c.idx"]
    assert IndexedReader(tmp_path / "c").num_documents == 4


def test_device_without_space(tmp_path):
    if not os.access("/dev/full", os.W_OK):
        pytest.skip("needs /dev/full")
    (tmp_path / "c.bin.tmp").symlink_to("/dev/full")
    with pytest.raises(DataError, match="cannot write .*c.bin.tmp: No space left on device; .*c was not completed"):
        write(tmp_path / "c", DOCUMENTS)
    assert files(tmp_path) == [] and os.path.exists("/dev/full")


def test_reader(tmp_path):
    reader = IndexedReader(write(tmp_path / "c", DOCUMENTS))
    assert (len(reader), reader.num_documents, reader.num_tokens, reader.dtype) == (4, 4, 6, np.uint16)
    assert reader[-1].tolist() == [5, 6] and reader[np.int64(0)].tolist() == [1, 2, 3] and reader[1].size == 0
    assert reader.tokens[2:5].tolist() == [3, 4, 5]
    with pytest.raises(IndexError):
        reader[4]
    with pytest.raises(ValueError, match="read-only"):
        reader.tokens[0] = 1


def test_reader_of_empty_corpora(tmp_path):
    assert IndexedReader(write(tmp_path / "none", [])).num_documents == 0
    reader = IndexedReader(write(tmp_path / "empty", [[], []]))
    assert reader.sizes.tolist() == [0, 0] and reader.tokens.size == 0


def test_reader_of_split_sentences(tmp_path, monkeypatch):
    monkeypatch.setattr(indexed, "_CHUNK", 2)
    sizes, boundaries = [3, 0, 1, 2], [0, 0, 2, 4, 4]  # documents of 0, 2, 2 and 0 sequences
    index = struct.pack("<9sQBQQ4i4q5q", b"MMIDIDX\0\0", 1, 4, 4, 5, *sizes, 0, 12, 12, 16, *boundaries)
    (tmp_path / "c.idx").write_bytes(index)
    (tmp_path / "c.bin").write_bytes(struct.pack("<6i", 1, 2, 3, 4, 5, 6))
    reader = IndexedReader(tmp_path / "c")
    assert [reader[i].tolist() for i in range(4)] == [[], [1, 2, 3], [4, 5, 6], []]
    assert reader.sizes.tolist() == [0, 3, 3, 0] and reader.dtype == np.int32
