"""streams/: bands of rows, bits that torch would make, files that continue; torch_dist/ in torch's own words."""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, load, save
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult

from megatron_adapt.errors import CheckpointError
from megatron_adapt.families.rules import FLOATS
from megatron_adapt.streams import bits, checksums as streamed, files
from megatron_adapt.torch_dist import checksums, container, pickles, writer
from megatron_adapt.torch_dist.encoding import Call, Made, Name, Pairs, dumps
from megatron_adapt.torch_dist.reader import TensorReader


class Tensors:
    """A source over torch tensors; counts what is read."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors, self.reads = tensors, 0

    def names(self) -> list[str]:
        return list(self.tensors)

    def info(self, name: str) -> bits.Info:
        return tuple(self.tensors[name].shape), str(self.tensors[name].dtype).removeprefix("torch.")

    def read(self, name: str, first: int, out: np.ndarray) -> None:
        rows = self.tensors[name][first : first + len(out)].contiguous()
        out[...] = rows.view(getattr(torch, f"int{8 * out.itemsize}")).numpy().view(out.dtype)
        self.reads += 1


def tensors(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {
        "matrix": torch.randn(37, 5, generator=draw).to(dtype),
        "vector": torch.randn(11, generator=draw).to(dtype),
        "wide": torch.randn(2, 300, generator=draw).to(dtype),
        "one": torch.ones(1, 1).to(dtype),
    }


def joined(source: bits.Source) -> dict[str, np.ndarray]:
    found: dict[str, list[np.ndarray]] = {}
    for name, band in bits.bands(source, source.names()):
        found.setdefault(name, []).append(band.copy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


@pytest.mark.parametrize("band", [1, 64, 4096])
def test_bands_are_the_rows_in_order(monkeypatch, band):
    monkeypatch.setattr(bits, "BAND", band)
    source = Tensors(tensors())
    found = joined(source)
    assert list(found) == source.names()
    assert all(np.array_equal(found[name], tensor.numpy().view(np.uint32)) for name, tensor in source.tensors.items())
    assert source.reads == {1: 37 + 11 + 2 + 1, 64: 13 + 1 + 2 + 1, 4096: 4}[band]


def test_an_error_of_the_reading_thread_reaches_the_user():
    class Broken(Tensors):
        def read(self, name: str, first: int, out: np.ndarray) -> None:
            raise CheckpointError("it is gone")

    with pytest.raises(CheckpointError, match="it is gone"):
        list(bits.bands(Broken(tensors()), ["vector"]))


NUMBERS = [0.0, -0.0, 1.0, -3.5e4, 6e-8, -1e-40, float("inf"), float("-inf"), float("nan"), -float("nan")]


@pytest.mark.parametrize("dtype", FLOATS)
@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.sampled_from(NUMBERS) | st.floats(width=16), max_size=9))
def test_finite_as_torch_says(dtype, values):
    tensor = torch.tensor(values, dtype=getattr(torch, dtype))
    unsigned = tensor.view(getattr(torch, f"int{8 * bits.WIDTHS[dtype]}")).numpy().view(f"u{bits.WIDTHS[dtype]}")
    assert bits.is_finite(unsigned, dtype) == bool(tensor.isfinite().all())


def test_differing_compares_bits():
    one = {"a": torch.tensor([0.0, torch.nan]), "b": torch.tensor([0.0]), "c": torch.ones(2), "d": torch.ones(2), "e": torch.ones(2)}
    other = {**one, "b": torch.tensor([-0.0]), "c": torch.ones(2).half(), "d": torch.ones(3)}
    assert bits.differing(Tensors(one), Tensors(other), list(one)) == ["b", "c", "d"]


def test_broken_tensors_are_named():
    values = {f"t{n}": torch.tensor([1.0, torch.inf if n < 8 else 1.0]) for n in range(10)}
    found = bits.broken(Tensors(values), values)
    assert found == [f"t{n}" for n in range(8)]
    with pytest.raises(CheckpointError, match="there: NaN or infinite values in 8 of the tensors: t0, t1, t2, t3, t4, t5 and 2 more"):
        bits.refuse_broken(found, "there")
    bits.refuse_broken([], "there")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("wanted", [*FLOATS, None])
def test_cast_rounds_as_torch_does(dtype, wanted):
    values = {"numbers": torch.cat([tensors()["matrix"].flatten(), torch.tensor(NUMBERS)]).to(getattr(torch, dtype))}
    view = bits.Cast(Tensors(values), wanted)
    expected = values["numbers"].to(getattr(torch, wanted or dtype))
    assert view.info("numbers") == ((195,), wanted or dtype)
    found = torch.from_numpy(bits.whole(view, "numbers")).view(expected.dtype)
    assert found.equal(expected) or torch.equal(found.nan_to_num(), expected.nan_to_num())


# ---------------------------------------------------------------------------------------------------------- files


def test_files_are_written_and_kept(tmp_path: Path):
    source, seen = Tensors(tensors()), []
    plan = {tmp_path / "a": [b"head", "matrix", b"", "vector"], tmp_path / "b": ["wide", b"tail"], tmp_path / "c": [b"alone"]}
    assert files.write(source, plan, lambda *given: seen.append(given)) == (0, [])
    raw = {name: tensor.numpy().tobytes() for name, tensor in source.tensors.items()}
    assert (tmp_path / "a").read_bytes() == b"head" + raw["matrix"] + raw["vector"]
    assert (tmp_path / "b").read_bytes() == raw["wide"] + b"tail" and (tmp_path / "c").read_bytes() == b"alone"
    assert seen[0] == (1, 3) and seen[-1] == (3, 3) and sorted(seen) == seen
    (tmp_path / "b").write_bytes((tmp_path / "b").read_bytes()[:-1] + b"?")
    (tmp_path / "c").write_bytes(b"longer")
    times = (tmp_path / "a").stat().st_mtime_ns
    assert files.write(source, plan) == (1, [])
    assert (tmp_path / "b").read_bytes() == raw["wide"] + b"tail" and (tmp_path / "c").read_bytes() == b"alone"
    assert (tmp_path / "a").stat().st_mtime_ns == times and len(list(tmp_path.iterdir())) == 3


def test_large_files_are_flushed_on_the_way(tmp_path: Path, monkeypatch):
    flushed = []
    monkeypatch.setattr(files, "FLUSHED", 100)
    monkeypatch.setattr(files.os, "fdatasync", flushed.append)
    files.write(Tensors(tensors()), {tmp_path / "a": ["matrix", "vector", "wide"]})
    assert flushed and (tmp_path / "a").stat().st_size == 4 * (37 * 5 + 11 + 600)


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write(Tensors(tensors()), {tmp_path / "a": ["matrix"]})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CheckpointError, match=r"could not write .* GB are free there\): .*No space left.* Free some space and run again"):
        writer.write(Tensors(tensors()), tmp_path / "b")


# ------------------------------------------------------------------------------------------- in torch's own words


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_torch_reads_what_is_written_and_the_other_way(tmp_path: Path, dtype):
    source = Tensors(tensors(dtype))
    result, broken = writer.write(source, tmp_path, file_bytes=100)
    assert result == {"files": 4, "kept": 0} and broken == []
    state = {name: torch.empty_like(tensor) for name, tensor in source.tensors.items()}
    load(state, storage_reader=FileSystemReader(tmp_path), no_dist=True)
    assert all(state[name].equal(tensor) for name, tensor in source.tensors.items())
    assert torch.load(tmp_path / "common.pt", weights_only=True) == {"content_metadata": writer.CONTENT}
    with TensorReader(tmp_path) as reader:
        assert reader.names() == source.names() and reader.objects() == []
        for name, tensor in source.tensors.items():
            out = bits.empty(*reader.info(name))
            reader.read(name, (0,) * tensor.dim(), out)
            assert torch.from_numpy(out).view(dtype).equal(tensor)
    assert writer.write(source, tmp_path, file_bytes=100)[0] == {"files": 4, "kept": 4}


def test_what_torch_saves_is_read(tmp_path: Path):
    """In one piece or none next to another in memory, any part of it."""
    base = torch.arange(60.0).reshape(6, 10)
    saved = {"plain": base, "transposed": base.t(), "columns": base[:, 2:5], "stack": base.reshape(3, 4, 5)}
    save(saved, storage_writer=FileSystemWriter(tmp_path), no_dist=True)
    with TensorReader(tmp_path) as reader:
        for name, tensor in saved.items():
            out = bits.empty((tensor.size(0) - 2, *tensor.shape[1:]), "float32")
            reader.read(name, (1,) + (0,) * (tensor.dim() - 1), out)
            assert torch.from_numpy(out).view(torch.float32).equal(tensor[1:-1]), name
        layer = bits.empty((1, 2, 5), "float32")
        reader.read("stack", (1, 2, 0), layer)
        assert torch.from_numpy(layer).view(torch.float32).equal(saved["stack"][1:2, 2:])


def test_the_table_is_torchs(tmp_path: Path):
    """What torch makes of it equals what torch itself would have written."""
    source = Tensors(tensors())
    writer.write(source, tmp_path)
    with open(tmp_path / ".metadata", "rb") as file:
        ours: Metadata = pickle.load(file)
    offset, results, entries = 0, [], {}
    for name, tensor in source.tensors.items():
        begin = torch.Size([0] * tensor.dim())
        place = ours.storage_data[MetadataIndex(name, begin)]
        assert place == _StorageInfo("__0_0.distcp", offset, place.length)
        offset += place.length
        entries[name] = TensorStorageMetadata(TensorProperties(tensor.dtype), tensor.size(), [ChunkStorageMetadata(begin, tensor.size())])
        results.append(WriteResult(MetadataIndex(name, begin, 0), place.length, place))
    assert offset == (tmp_path / "__0_0.distcp").stat().st_size
    (tmp_path / "theirs").mkdir()
    FileSystemWriter(tmp_path / "theirs").finish(Metadata(entries), [results])
    with open(tmp_path / "theirs" / ".metadata", "rb") as file:
        theirs: Metadata = pickle.load(file)
    assert ours.state_dict_metadata == theirs.state_dict_metadata and ours.storage_data == theirs.storage_data
    assert ours.version == theirs.version and type(ours) is Metadata
    read = [pickles.read_table(folder / ".metadata") for folder in (tmp_path, tmp_path / "theirs")]
    assert [list(table.state_dict_metadata) for table in read] == [list(source.tensors)] * 2


def test_archives_of_torch_are_found_wherever_they_lie():
    base = torch.arange(24.0).reshape(4, 6)
    cases = {
        "plain": base, "transposed": base.t(), "view": base[1:3, 2:], "parameter": torch.nn.Parameter(base), "half": base.half(),
    }  # fmt: skip
    for name, tensor in cases.items():
        for before in (b"", b"something else"):
            file = io.BytesIO(before)
            file.seek(0, io.SEEK_END)
            torch.save(tensor, file)
            found = container.locate(file, len(before), len(file.getvalue()) - len(before))
            values = np.frombuffer(file.getvalue(), f"u{tensor.itemsize}", found.count, found.offset)[found.first :]
            steps = [step * tensor.itemsize for step in found.strides]
            rows = np.lib.stride_tricks.as_strided(values, found.shape, steps).copy()
            assert torch.from_numpy(rows).view(tensor.dtype).equal(tensor.detach()), name
            assert found.is_contiguous == tensor.is_contiguous() or name == "view"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK", "it is no archive of one tensor"),
        (bytes(500), "it is no archive of one tensor"),
        ({"a": torch.ones(2)}, "it is no tensor"),
        ([torch.ones(2), torch.ones(3)], "it holds more than one tensor|it is no tensor"),
        (torch.ones(2, dtype=torch.int64), "it names torch.LongStorage, which no tensor of weights needs"),
        (print, "it names __builtin__.print, which"),
    ],
)
def test_archives_of_something_else_are_refused(content, message):
    file = io.BytesIO(content if isinstance(content, bytes) else b"")
    if not isinstance(content, bytes):
        torch.save(content, file)
    with pytest.raises(container.Unreadable, match=message):
        container.locate(file, 0, len(file.getvalue()))


def test_damaged_values_are_named(tmp_path: Path):
    writer.write(Tensors(tensors()), tmp_path)
    data = bytearray((tmp_path / "__0_0.distcp").read_bytes())
    at = data.index(b"PK\1\2")
    data[at + 10] = 8  # the directory says: deflated
    (tmp_path / "__0_0.distcp").write_bytes(data)
    (tmp_path / "checksums.json").unlink()
    with TensorReader(tmp_path) as reader, pytest.raises(CheckpointError, match=r"__0_0\.distcp: matrix cannot be read: it is compressed"):
        reader.read("matrix", (0, 0), bits.empty((37, 5), "float32"))


def test_no_changed_value_is_given_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also not of a file that an earlier call had finished."""
    for module in (streamed, checksums):
        monkeypatch.setattr(module, "BLOCK", 256)
    monkeypatch.setitem(checksums._HEADER, "block_bytes", 256)
    source = Tensors(tensors())
    writer.write(source, tmp_path, file_bytes=500)
    first = checksums.read(tmp_path)
    assert first.keys() == {path.name for path in tmp_path.glob("*.distcp")} and len(first) > 1
    (tmp_path / "__0_1.distcp").unlink()
    assert writer.write(source, tmp_path, file_bytes=500)[0]["kept"] == len(first) - 1
    for name, blocks in checksums.read(tmp_path).items():
        assert list(blocks) == list(first[name]) == streamed.of((tmp_path / name).read_bytes())
    tried = refused = 0
    for file in sorted(tmp_path.glob("*.distcp")):
        content = file.read_bytes()
        for at in range(0, len(content), 97):
            file.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
            tried, refused = tried + 1, refused + is_refused(tmp_path, source, file.name)
        file.write_bytes(content)
    assert tried > 50 and refused == tried and not is_refused(tmp_path, source, "")


def is_refused(folder: Path, source: Tensors, file: str) -> bool:
    """Whether a tensor cannot be read, as ``file`` is damaged; all others are right."""
    refused = False
    with TensorReader(folder) as reader:
        for name in source.names():
            out = bits.empty(*source.info(name))
            try:
                reader.read(name, (0,) * out.ndim, out)
                assert np.array_equal(out, bits.whole(source, name))
            except CheckpointError as error:
                refused = True
                assert re.search(rf"{file}: {name} cannot be read: bytes [\d,]+ to [\d,]+ of the file changed since it", str(error))
    return refused


def test_encoding_is_what_pickle_reads():
    value = {"a": [None, True, False, 0, -1, 2**31, -(2**40), 2**70, "ä"], (1, ("b",)): {}, "empty": [(), []]}
    assert pickle.loads(dumps(value)) == value
    assert pickle.loads(dumps(Pairs([((1,), 2)]))) == {(1,): 2}
    assert pickle.loads(dumps(Call(Name("builtins", "complex"), (1, 2)))) == 1 + 2j
    made = pickle.loads(dumps(Made(Name("argparse", "Namespace"), {"x": 3})))
    assert vars(made) == {"x": 3} and re.fullmatch(r"Namespace\(x=3\)", repr(made))
