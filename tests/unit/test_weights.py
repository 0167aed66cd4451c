"""hf/directory.py and hf/weights.py: what is read equals what was written, and damaged files are named at open."""

from __future__ import annotations

import json
import resource
import signal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_adapt.errors import CheckpointError, ConfigError
from megatron_adapt.hf.directory import HFDirectory
from megatron_adapt.hf.weights import WeightReader, WeightWriter


def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(5, 3, generator=generator),
        "b.weight": torch.randn(4, 4, generator=generator).bfloat16(),
        "c": torch.randn((), generator=generator).half(),
        "ids": torch.arange(7),
    }


def write(path, values, **options):
    with WeightWriter(path, **options) as writer:
        for name, tensor in values.items():
            writer.add(name, tensor)


@pytest.mark.parametrize("max_shard_bytes", [5e9, 70, 1])
def test_round_trip(tmp_path, max_shard_bytes):
    write(tmp_path, tensors(), max_shard_bytes=max_shard_bytes)
    with WeightReader(tmp_path) as reader:
        assert set(reader.names()) == set(tensors())
        for name, tensor in tensors().items():
            assert reader.info(name) == (tuple(tensor.shape), str(tensor.dtype).split(".")[1])
            assert reader.get(name).dtype == tensor.dtype and reader.get(name).equal(tensor)
    names = sorted(file.name for file in tmp_path.iterdir())
    if max_shard_bytes == 5e9:
        assert names == ["model.safetensors"]
    else:
        assert names[-1] == "model.safetensors.index.json" and names[0].startswith("model-00001-of-0000")


def test_transformers_reads_shards(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file

    write(tmp_path, tensors(), max_shard_bytes=70)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 60 + 32 + 2 + 56
    for name, file in index["weight_map"].items():
        assert load_file(tmp_path / file)[name].equal(tensors()[name])
        assert safe_open(tmp_path / file, "pt").metadata() == {"format": "pt"}


def test_views_of_one_tensor_can_be_written(tmp_path):
    base = torch.arange(12.0).reshape(4, 3)
    write(tmp_path, {"top": base[:2], "bottom": base[2:], "columns": base[:, 1]})
    with WeightReader(tmp_path) as reader:
        assert reader.get("columns").equal(base[:, 1]) and reader.get("bottom").equal(base[2:])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_truncation_is_noticed_at_open(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("weights")
    write(path, tensors())
    file = path / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*(truncated|header)"):
        WeightReader(path)


def test_truncation_names_both_sizes(tmp_path):
    write(tmp_path, tensors())
    file = tmp_path / "model.safetensors"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=f"truncated: expected {size} bytes, found {size - 10}"):
        WeightReader(tmp_path)
    with file.open("ab") as handle:
        handle.write(bytes(15))
    with pytest.raises(CheckpointError, match="longer than its header says"):
        WeightReader(tmp_path)


def rewrite_header(file, change):
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    raw = json.dumps(header).encode()
    file.write_bytes(len(raw).to_bytes(8, "little") + raw + content[8 + length :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["a.weight"].update(shape=[5, 4]), r"a\.weight, float32 \[5, 4\], should take 80 bytes"),
        (lambda h: h["a.weight"].update(dtype="F4"), "dtype F4, which is not supported"),
        (lambda h: h["a.weight"].pop("shape"), "broken header"),
        (lambda h: h["ids"].update(data_offsets=[4, 60]), "ids, int64"),
    ],
)
def test_inconsistent_headers(tmp_path, change, message):
    write(tmp_path, tensors())
    rewrite_header(tmp_path / "model.safetensors", change)
    with pytest.raises(CheckpointError, match=message):
        WeightReader(tmp_path)


def test_header_that_is_not_json(tmp_path):
    (tmp_path / "model.safetensors").write_bytes((4).to_bytes(8, "little") + b"oops")
    with pytest.raises(CheckpointError, match="broken header"):
        WeightReader(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\n")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        WeightReader(tmp_path)


def test_broken_indices(tmp_path):
    write(tmp_path, tensors(), max_shard_bytes=70)
    index = tmp_path / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    files = sorted(set(good["weight_map"].values()))

    def expect(weight_map, message):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(CheckpointError, match=message):
            WeightReader(tmp_path)

    expect({}, "no weight_map")
    index.write_text("{")
    with pytest.raises(CheckpointError, match=r"index\.json is not JSON"):
        WeightReader(tmp_path)
    expect({**good["weight_map"], "ghost": files[0]}, f"places ghost in {files[0]}, which does not hold it")
    expect({**good["weight_map"], "ghost": "../x.safetensors"}, "is not a file name")
    expect({k: v for k, v in good["weight_map"].items() if k != "c"}, "holds c, which")
    expect({**good["weight_map"], "ghost": "absent.safetensors"}, "absent.safetensors is missing")


def test_pickled_weights(tmp_path):
    values = {name: tensor for name, tensor in tensors().items() if name != "c"}
    torch.save(values, tmp_path / "pytorch_model.bin")
    with WeightReader(tmp_path) as reader:
        assert reader.info("b.weight") == ((4, 4), "bfloat16")
        assert reader.get("a.weight").equal(values["a.weight"])
    content = (tmp_path / "pytorch_model.bin").read_bytes()
    (tmp_path / "pytorch_model.bin").write_bytes(content[:300])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin cannot be read \(300 bytes\).*safetensors"):
        WeightReader(tmp_path)


def test_pickled_code_is_not_executed(tmp_path):
    torch.save({"a": torch.zeros(2), "b": print}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is refused: reading it would run print, which makes no tensor"):
        WeightReader(tmp_path)


def test_an_error_while_writing_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), WeightWriter(tmp_path, max_shard_bytes=1) as writer:
        for name, tensor in tensors().items():
            writer.add(name, tensor)
        raise RuntimeError("stopped")
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="could not write the weights to"):
            write(tmp_path, {"small": torch.zeros(4), "large": torch.zeros(100_000)}, max_shard_bytes=100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_existing_weights_are_not_overwritten(tmp_path):
    write(tmp_path, tensors())
    with pytest.raises(CheckpointError, match="already holds weights"):
        WeightWriter(tmp_path)


def test_no_weights(tmp_path):
    with pytest.raises(CheckpointError, match="holds no weights"):
        WeightReader(tmp_path)


def test_directory_errors(tmp_path):
    with pytest.raises(ConfigError, match="not a directory.*hf download"):
        HFDirectory.open(tmp_path / "meta-llama" / "Llama-2-7b")
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        HFDirectory.open(tmp_path)
    (tmp_path / "config.json").write_text('{\n"a": 1,,}')
    with pytest.raises(ConfigError, match=r"config\.json:2 is not JSON"):
        HFDirectory.open(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ConfigError, match="holds a JSON list"):
        HFDirectory.open(tmp_path)
    (tmp_path / "config.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ConfigError, match="is not UTF-8"):
        HFDirectory.open(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds no weights"):
        HFDirectory.open(tmp_path)
    write(tmp_path, tensors())
    (tmp_path / "tokenizer.json").write_text("{}")
    directory = HFDirectory.open(tmp_path)
    assert directory.config == {} and directory.generation_config() is None
    assert [file.name for file in directory.tokenizer_files()] == ["tokenizer.json"]
    with directory.weights() as reader:
        assert "a.weight" in reader.names()
