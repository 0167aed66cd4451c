"""hf/splice.py: replaced tensors are new, everything else is the same bytes, and neither is ever whole in memory."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from megatron_adapt.errors import CheckpointError
from megatron_adapt.hf import splice as module
from megatron_adapt.hf.splice import Replacement, exchange, splice
from megatron_adapt.hf.weights import WeightReader, WeightWriter

OLD = {name: torch.arange(rows * 4, dtype=torch.float32).reshape(rows, 4).to(kind) + number for number, (name, rows, kind) in enumerate(
    [("a", 3, torch.bfloat16), ("b", 5, torch.float32), ("c", 2, torch.float16), ("d", 7, torch.bfloat16), ("e", 1, torch.float32)]
)}  # fmt: skip
NEW = torch.full((9, 4), 0.5, dtype=torch.float32)


def write(path, shard=5e9):
    with WeightWriter(path, shard) as writer:
        for name, tensor in OLD.items():
            writer.add(name, tensor)
    return path


def run(path, output, **options):
    output.mkdir()
    with WeightReader(path) as reader:
        report = splice(reader, output, {"b": Replacement(9, lambda: NEW.split(4))}, **options)
    with WeightReader(output) as reader:
        return report, {name: reader.get(name) for name in reader.names()}


def check(new, dropped=()):
    assert set(new) == set(OLD) - set(dropped)
    for name, tensor in new.items():
        assert tensor.dtype == OLD[name].dtype and tensor.equal(NEW if name == "b" else OLD[name]), name


@pytest.mark.parametrize("shard", [5e9, 80, 1])
@pytest.mark.parametrize("kernel", [True, False])
def test_everything_else_stays(tmp_path, shard, kernel, monkeypatch):
    if not kernel:
        def refuse(*_):
            raise OSError(errno.EXDEV, "cross-device")
        monkeypatch.setattr(os, "copy_file_range", refuse)
    source = write(tmp_path / "old", shard)
    report, new = run(source, tmp_path / "new")
    check(new)
    files = sorted(file.name for file in source.glob("*.safetensors"))
    assert files == sorted(file.name for file in (tmp_path / "new").glob("*.safetensors"))
    assert report["copied_whole"] == len(files) - 1
    same = [name for name in files if (source / name).read_bytes() == (tmp_path / "new" / name).read_bytes()]
    assert len(same) == report["copied_whole"]
    assert report["bytes"] == sum(tensor.nbytes for tensor in new.values())
    if len(files) > 1:
        index = json.loads((tmp_path / "new" / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == report["bytes"] and set(index["weight_map"]) == set(OLD)


def test_dropped_tensors_leave_no_file(tmp_path):
    report, new = run(write(tmp_path / "old", 1), tmp_path / "new", dropped={"d"})
    check(new, {"d"})
    assert report["files"] == 4 and (tmp_path / "new" / "model-00004-of-00004.safetensors").is_file()


def test_pickle_files_become_safetensors(tmp_path):
    (tmp_path / "old").mkdir()
    torch.save(OLD, tmp_path / "old" / "pytorch_model.bin")
    report, new = run(tmp_path / "old", tmp_path / "new")
    check(new)
    assert report == {"files": 1, "copied_whole": 0, "bytes": sum(tensor.nbytes for tensor in new.values())}
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["model.safetensors"]


def test_libraries_read_the_result(tmp_path):
    from safetensors.torch import load_file

    run(write(tmp_path / "old"), tmp_path / "new")
    check(load_file(tmp_path / "new" / "model.safetensors"))


def test_a_source_that_shrinks(tmp_path):
    source = write(tmp_path / "old", 1)
    last = source / "model-00005-of-00005.safetensors"
    (tmp_path / "new").mkdir()
    (tmp_path / "copy").mkdir()
    with WeightReader(source) as reader:
        def blocks():
            os.truncate(last, last.stat().st_size - 4)
            return [NEW]
        with pytest.raises(CheckpointError, match="truncated: expected"):
            splice(reader, tmp_path / "new", {"b": Replacement(9, blocks)})
    with open(last, "rb") as old, open(tmp_path / "copy" / "x", "wb", buffering=0) as new:
        for copy in (module._copy_range, module._copy_through_memory):
            with pytest.raises(CheckpointError, match="00005.safetensors has become shorter since it was opened"):
                copy(old, new, 0, last.stat().st_size + 1)


def test_exchange_keeps_the_old_until_the_new_is_whole(tmp_path):
    source = write(tmp_path, 80)
    before = {file.name: file.read_bytes() for file in source.iterdir()}

    def broken():
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointError, match="could not write .*No space left"):
        exchange(source, {"b": Replacement(9, broken)})
    assert before == {file.name: file.read_bytes() for file in source.iterdir()}
    exchange(source, {"b": Replacement(9, lambda: [NEW])})
    with WeightReader(source) as reader:
        check({name: reader.get(name) for name in reader.names()})
    assert {file.name for file in source.iterdir()} == set(before)


def peak() -> int:
    """The most memory that this process has had since :func:`reset`, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def test_memory_is_a_block(tmp_path):
    """200 MB of other tensors in two files and 80 MB that are replaced, in the memory of a few blocks."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("the peak of memory cannot be reset here")
    size = 50_000_000
    header = {name: {"dtype": "U8", "shape": [size], "data_offsets": [k * size, (k + 1) * size]} for k, name in enumerate("xy")}
    for number, home in enumerate(("one", "two")):
        entries = {f"{home}.{name}": entry for name, entry in header.items()}
        if home == "two":
            entries["m"] = {"dtype": "BF16", "shape": [5000, 8000], "data_offsets": [2 * size, 2 * size + 80_000_000]}
        text = json.dumps(entries).encode()
        with open(tmp_path / f"{home}.safetensors", "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + 2 * size + (80_000_000 if home == "two" else 0))
    weight_map = {f"{home}.{name}": f"{home}.safetensors" for home in ("one", "two") for name in "xy"} | {"m": "two.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "new").mkdir()
    with WeightReader(tmp_path) as reader:
        Path("/proc/self/clear_refs").write_text("5")
        before = peak()
        blocks = (torch.ones(1000, 8000, dtype=torch.bfloat16) for _ in range(6))
        splice(reader, tmp_path / "new", {"m": Replacement(6000, lambda: blocks)})
        # Three blocks of 16 MB, and what else this long-lived process did meanwhile; everything would be 280 MB.
        assert peak() - before < 112 * 2**20
    with WeightReader(tmp_path / "new") as reader:
        assert reader.get("m").eq(1).all() and reader.info("m")[0] == (6000, 8000)
        assert not reader.get("two.y").any()
