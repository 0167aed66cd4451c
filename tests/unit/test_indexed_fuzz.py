"""The reader against Megatron's on random corpora, and against 100,000 damaged indices: an error or correct data."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_merge import sequences, write_sequences

from megatron_adapt.data.indexed import IndexedReader
from megatron_adapt.errors import DataError

TYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
MUTANTS = 100_000


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents=st.lists(sequences, max_size=8), dtype=st.sampled_from([np.uint16, np.int32, np.uint8, np.int64, np.int16]))
def test_reads_what_megatron_reads(tmp_path, documents, dtype):
    module = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    write_sequences(tmp_path / "c", documents, dtype)
    ours = IndexedReader(tmp_path / "c")
    index = module._IndexReader(str(tmp_path / "c.idx"), multimodal=False)
    borders = index.document_indices.tolist()
    # Megatron cannot map the .bin file of a corpus without tokens.
    theirs = module.IndexedDataset(str(tmp_path / "c")) if ours.num_tokens else []
    pieces = [[] if not ours.num_tokens else theirs[i].tolist() for i in range(len(index.sequence_lengths))]
    assert [ours[i].tolist() for i in range(len(ours))] == [
        sum(pieces[first:last], []) for first, last in zip(borders, borders[1:])
    ]
    assert ours.dtype == index.dtype and (ours.num_documents, ours.num_sequences) == (len(borders) - 1, len(pieces))
    assert ours.sizes.tolist() == [sum(map(len, pieces[first:last])) for first, last in zip(borders, borders[1:])]
    for suffix in ("bin", "idx"):
        os.unlink(tmp_path / f"c.{suffix}")


def mutants(valid: bytes, count: int) -> list[bytes]:
    """Damaged copies: bits, bytes and whole fields replaced, most of them in the header; some cut or lengthened."""
    rng = np.random.default_rng(0)
    interesting = [0, 1, 2, 3, 4, 5, 6, 8, 127, 255, 2**31 - 1, 2**31, 2**32, 2**62, 2**63, 2**64 - 1, 2**64 - 2]
    fields = [(9, 8), (17, 1), (18, 8), (26, 8)]  # version, type, sequences, boundaries
    fields += [(at, 4) for at in range(34, 34 + 16, 4)] + [(at, 8) for at in range(50, len(valid), 8)]
    kinds, places = rng.integers(0, 8, count), rng.integers(0, 34, count)
    anywhere, values = rng.integers(0, len(valid), count), rng.integers(0, 256, count)
    chosen, numbers = rng.integers(0, len(fields), count), rng.integers(0, len(interesting), count)
    made = []
    for kind, place, other, value, field, number in zip(
        *(array.tolist() for array in (kinds, places, anywhere, values, chosen, numbers))
    ):
        mutant = bytearray(valid)
        if kind <= 2:
            mutant[place] = value
        elif kind == 3:
            mutant[other] ^= 1 << (value % 8)
        elif kind <= 5:
            at, size = fields[field if kind == 4 else field % 4]
            mutant[at : at + size] = (interesting[number] % 2 ** (8 * size)).to_bytes(size, "little")
        elif kind == 6:
            del mutant[other:]
        else:
            mutant[place], mutant[other] = value, place
            mutant += bytes(value % 3 * 4)
        made.append(bytes(mutant))
    return made


def described(index: bytes, data: bytes) -> list[list[int]]:
    """What an index says, read field by field; any exception: nothing that makes sense."""
    magic, version, code, count, borders = struct.unpack_from("<9sQBQQ", index)
    sizes = struct.unpack_from(f"<{count}i", index, 34)
    pointers = struct.unpack_from(f"<{count}q", index, 34 + 4 * count)
    documents = struct.unpack_from(f"<{borders}q", index, 34 + 12 * count)
    width = np.dtype(TYPES[code]).itemsize
    assert magic == b"MMIDIDX\0\0" and version == 1 and len(index) == 34 + 12 * count + 8 * borders
    assert all(pointer == width * sum(sizes[:i]) and sizes[i] >= 0 for i, pointer in enumerate(pointers))
    assert documents[0] == 0 and documents[-1] == count and sorted(documents) == list(documents)
    ids = np.frombuffer(data, dtype=TYPES[code]).tolist()
    assert len(ids) == sum(sizes)
    starts = [sum(sizes[:i]) for i in range(count + 1)]
    return [ids[starts[first] : starts[last]] for first, last in zip(documents, documents[1:])]


def test_damaged_indices_are_errors_or_correct(tmp_path: Path):
    sizes, borders = [3, 0, 1, 2], [0, 1, 2, 4]
    data = struct.pack("<6H", 1, 2, 3, 4, 5, 6)
    valid = struct.pack("<9sQBQQ4i4q4q", b"MMIDIDX\0\0", 1, 8, 4, 4, *sizes, 0, 6, 6, 8, *borders)
    (tmp_path / "c.bin").write_bytes(data)
    refused = opened = unchanged = 0
    with (tmp_path / "c.idx").open("wb", buffering=0) as stream:
        for mutant in mutants(valid, MUTANTS):
            stream.seek(0)
            stream.write(mutant)
            stream.truncate()
            try:
                reader = IndexedReader(tmp_path / "c")
            except DataError as error:
                assert "c.idx" in str(error) or "c.bin" in str(error)
                refused += 1
                continue
            opened += 1
            unchanged += mutant == valid
            assert [reader[i].tolist() for i in range(len(reader))] == described(mutant, data)
            assert reader.sizes.tolist() == [len(document) for document in described(mutant, data)]
    assert refused + opened == MUTANTS and refused > 90_000 and opened > unchanged + 300


def test_what_is_refused_makes_no_sense(tmp_path: Path):
    """The other way round, on fewer: nothing valid is refused."""
    data = struct.pack("<6H", 1, 2, 3, 4, 5, 6)
    valid = struct.pack("<9sQBQQ4i4q4q", b"MMIDIDX\0\0", 1, 8, 4, 4, 3, 0, 1, 2, 0, 6, 6, 8, 0, 1, 2, 4)
    (tmp_path / "c.bin").write_bytes(data)
    for mutant in set(mutants(valid, 3000)):
        (tmp_path / "c.idx").write_bytes(mutant)
        try:
            described(mutant, data)
        except (AssertionError, KeyError, IndexError, ValueError, OverflowError, MemoryError, struct.error):
            with pytest.raises(DataError):
                IndexedReader(tmp_path / "c")
        else:
            IndexedReader(tmp_path / "c")
