"""Checkpoints as other programs save them: stacked layers, padded rows, pickled arguments; and pickles that hold code."""

from __future__ import annotations

import argparse
import enum
import io
import json
import os
import pickle
import queue
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import ROOT
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.enums import ModelType
from test_conversion import Lines, assert_same, weights
from worlds import SIZES, VOCABULARY, Layout, World, tensors

from megatron_adapt import launch
from megatron_adapt.engine import backend, model as models
from megatron_adapt.engine.convert import tensor_parallel_slice
from megatron_adapt.errors import CheckpointError, ConfigError
from megatron_adapt.families import family_named, find_family
from megatron_adapt.families.rules import hf_to_megatron
from megatron_adapt.hf.directory import HFDirectory
from megatron_adapt.steps import export_hf, foreign, import_hf
from megatron_adapt.steps.foreign import find_source
from megatron_adapt.torch_dist import pickles

ROWS = 384  # of the embedding: VOCABULARY padded to a multiple of 128
LAYOUTS = {"one": Layout(), "TP2": Layout(tensor=2), "PP2": Layout(pipeline=2)}


def arguments(**changes: Any) -> argparse.Namespace:
    """What Megatron-LM says of ``worlds.MODELS["untied"]``, with some of the kinds of values that it stores."""
    settings = {
        "num_layers": SIZES["num_hidden_layers"], "hidden_size": SIZES["hidden_size"],
        "ffn_hidden_size": SIZES["intermediate_size"], "num_attention_heads": SIZES["num_attention_heads"],
        "group_query_attention": True, "num_query_groups": SIZES["num_key_value_heads"], "kv_channels": 8,
        "max_position_embeddings": 128, "seq_length": 64, "norm_epsilon": 1e-6, "rotary_base": 10000, "rotary_percent": 1.0,
        "position_embedding_type": "rope", "normalization": "RMSNorm", "swiglu": True, "add_bias_linear": False,
        "add_qkv_bias": False, "untie_embeddings_and_output_weights": True, "init_method_std": 0.1, "num_experts": None,
        "vocab_size": VOCABULARY, "padded_vocab_size": ROWS, "params_dtype": torch.bfloat16,
        "model_type": ModelType.encoder_or_decoder,
    }  # fmt: skip
    return argparse.Namespace(**{**settings, **changes})


def save(source: Path, place: Path, layout: Layout, args: Any) -> None:
    """As Megatron-LM does: the model's own sharded state, by which layers are stacked, an optimizer, and the arguments."""

    def work() -> None:
        directory = HFDirectory.open(source)
        family = find_family(directory.config)
        shape = family.read_config(directory.config)
        with backend.session(layout, 0):
            model = models.build(replace(shape, vocab_size=ROWS), layout, "fp32")
            with directory.weights() as reader, torch.no_grad():
                full = dict(hf_to_megatron(family, shape, reader))
                for name, parameter in models.named_parameters(model):
                    tensor = full[name]
                    if tensor.size(0) == VOCABULARY:
                        tensor = torch.cat([tensor, torch.full((ROWS - VOCABULARY, tensor.size(1)), torch.nan)])
                    rank = backend.rank() if layout.tensor > 1 else 0
                    parameter.copy_(tensor_parallel_slice(name, tensor, parameter.shape, rank, layout.tensor))
            state = {"args": args, "checkpoint_version": 3.0, "iteration": 5, "model": model.sharded_state_dict()}
            state["rng_state"] = ShardedObject("rng_state", {"seed": 1}, (2,), (backend.rank(),))
            key = "optimizer.state.exp_avg.decoder.final_layernorm.weight"
            if backend.rank() == 0:
                moment = dist_checkpointing.ShardedTensor.from_rank_offsets(key, torch.zeros(32))
                state["optimizer"] = {"moment": moment, "param_groups": [{"lr": 0.1}]}
                place.mkdir(parents=True)
            torch.distributed.barrier()
            # Else Megatron 0.16 starts a manager process here, which a forked rank's end leaves behind.
            filesystem_async._results_queue = queue.SimpleQueue()
            dist_checkpointing.save(state, str(place), validate_access_integrity=False)

    launch.fork(layout.model_ranks, work)


@pytest.fixture(scope="module")
def megatron(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model "untied" saved at tensor parallel size 2, as iteration 5 of a folder."""
    folder = tmp_path_factory.mktemp("megatron")
    save(world.model("untied"), folder / "iter_0000005", LAYOUTS["TP2"], arguments())
    (folder / "latest_checkpointed_iteration.txt").write_text("5\n")
    return folder


def test_it_is_what_this_test_is_about(megatron: Path):
    """Stacked layers, padded rows, an optimizer, FP8's states: what is undone or left out does exist."""
    reader = pickles.read_table(megatron / "iter_0000005" / ".metadata")
    sizes = {name: tuple(entry.size) for name, entry in reader.state_dict_metadata.items() if hasattr(entry, "size")}
    assert sizes["decoder.layers.mlp.linear_fc1.weight"] == (4, 96, 32)
    assert sizes["embedding.word_embeddings.weight"] == (ROWS, 32)
    names = set(reader.state_dict_metadata)
    assert any(name.startswith("optimizer.") for name in names) and any("_extra_state" in name for name in names)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_megatron_lm_by_its_arguments(world: World, megatron: Path, tmp_path: Path, layout):
    folder = megatron
    if layout != "TP2":
        save(world.model("untied"), tmp_path / "iter_0000012", LAYOUTS[layout], arguments())
        folder = tmp_path
    reporter = Lines()
    result = export_hf.run(folder, tmp_path / "out", reporter, "keep", family="llama")
    assert result["dtype"] == "float32" and result["tensors"] == 4 * 6 + 3
    assert_same(tmp_path / "out", weights(world.model("untied")))
    ours = json.loads((world.model("untied") / "config.json").read_text())
    made = json.loads((tmp_path / "out" / "config.json").read_text())
    same = ("vocab_size", "num_key_value_heads", "rms_norm_eps", "rope_theta", "tie_word_embeddings", "hidden_act", "head_dim")
    assert {key: made[key] for key in same} == {key: ours[key] for key in same}
    assert reporter.lines[0].startswith("config.json is made from") and "(args)" in reporter.lines[0]
    assert "there is no tokenizer in this checkpoint" in reporter.lines[1]
    assert "logits are not compared: that needs a tokenizer" in reporter.lines[2]


def test_megatron_lm_with_a_config_by_hand(world: World, megatron: Path, tmp_path: Path):
    """The directory brings the tokenizer, so logits are compared, too; common.pt is not even opened."""
    copied = shutil.copytree(megatron, tmp_path / "in")
    (copied / "iter_0000005" / "common.pt").write_bytes(b"?")
    result = export_hf.run(copied, tmp_path / "out", Lines(), "keep", hf_config=world.model("untied"), verify="logits")
    assert result["max_abs_difference_tp2"] < 1e-4
    assert_same(tmp_path / "out", weights(world.model("untied")))
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    with pytest.raises(ConfigError, match="--verify logits needs a tokenizer, and .* has none"):
        file = world.model("untied") / "config.json"
        export_hf.run(copied, tmp_path / "no", Lines(), hf_config=file, verify="logits")
    with pytest.raises(ConfigError, match="there is no such file, and no directory with a config.json"):
        find_source(copied, hf_config=tmp_path / "nowhere")


def test_the_family_is_found_by_its_tensors(megatron: Path, monkeypatch):
    assert find_source(megatron).family.name == "llama"
    llama = family_named("llama")
    monkeypatch.setattr(foreign, "families", lambda: {"llama": llama, "twin": replace(llama, name="twin")})
    with pytest.raises(CheckpointError, match=r"may be a model of several families \(llama, twin\): choose one with --family"):
        find_source(megatron)


def test_the_readmes_lines_open_a_checkpoint_of_ours(world: World, tmp_path: Path):
    """tools/checkpoint/README.md says how Megatron-LM does it; here in two layouts, for one of which it adds a row."""
    lines = re.findall(r"```python\n(.*?)```", (ROOT / "tools" / "checkpoint" / "README.md").read_text(), re.S)[0]
    import_hf.run(world.model("untied"), tmp_path, Lines(), verify="off")
    code = lines.replace("OUT/", f"{tmp_path}/")
    assert code != lines
    shape = find_source(tmp_path).shape
    expected = tensors(tmp_path)

    def work() -> None:
        with backend.session(layout, 0):
            rows = VOCABULARY + VOCABULARY % layout.tensor
            model = models.build(replace(shape, vocab_size=rows), layout, "fp32")
            exec(code, {"model": model, "dist_checkpointing": dist_checkpointing})
            for name, parameter in models.named_parameters(model):
                whole = expected[name]
                if whole.size(0) == VOCABULARY:
                    whole = torch.cat([whole, whole.new_zeros(rows - VOCABULARY, whole.size(1))])
                part = tensor_parallel_slice(name, whole, parameter.shape, backend.rank(), layout.tensor)
                assert parameter.equal(part), name

    for layout in (LAYOUTS["one"], LAYOUTS["TP2"]):
        launch.fork(layout.model_ranks, work)


class Forged(enum.Enum):
    A = 1


class Code:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("ran",)


def test_pickled_code_is_refused_by_its_name(megatron: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = shutil.copytree(megatron / "iter_0000005", tmp_path / "in")
    for value, name in ((Code(), "posix.mkdir"), (Forged.A, "test_foreign.Forged")):
        torch.save({"args": value}, place / "common.pt")
        with pytest.raises(CheckpointError, match=rf"common.pt was not read: it names .*{name}.* Say --family and --hf-config"):
            find_source(place)
    (place / "common.pt").write_bytes(b"no pickle")
    with pytest.raises(CheckpointError, match="common.pt cannot be read"):
        find_source(place)
    with open(place / ".metadata", "wb") as file:
        pickle.dump(Code(), file)
    with pytest.raises(CheckpointError, match=r"\.metadata cannot be read .*it names posix.mkdir, which no table of a checkpoint"):
        find_source(place)
    assert not (tmp_path / "ran").exists()
    kept = pickles.read_object(io.BytesIO(_saved(arguments())), "memory")
    assert kept.model_type is ModelType.encoder_or_decoder and kept.params_dtype is torch.bfloat16


def _saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rotary_percent": 0.5}, "rotary_percent = 0.5 has no place in config.json"),
        ({"normalization": "LayerNorm"}, "normalization = 'LayerNorm' has no place in config.json"),
        ({"swiglu": False}, "hidden_act = 'another activation' is not supported"),
        ({"num_layers": 3}, r"no place in a llama model|has shape"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"vocab_size": None, "padded_vocab_size": None}, "vocab_size is missing"),
    ],
)
def test_arguments_that_are_no_llama(megatron: Path, tmp_path: Path, changes, message):
    place = shutil.copytree(megatron / "iter_0000005", tmp_path / "in")
    torch.save({"args": arguments(**changes)}, place / "common.pt")
    with pytest.raises(CheckpointError, match=message) as caught:
        find_source(place, family="llama")
    assert "does not tell which model" in str(caught.value) and "Say --hf-config" in str(caught.value)


def test_what_arguments_say_of_rotary_embeddings_and_rows(megatron: Path, tmp_path: Path):
    place = shutil.copytree(megatron / "iter_0000005", tmp_path / "in")
    args = arguments(use_rope_scaling=True, rope_scaling_factor=4.0, max_position_embeddings=16384, vocab_size=None)
    torch.save({"args": args}, place / "common.pt")
    source = find_source(place, family="llama")
    assert source.shape.rope["rope_type"] == "llama3" and source.shape.rope["factor"] == 4.0
    assert source.shape.vocab_size == ROWS and any("is not stated: all 384 rows are kept" in note for note in source.notes)


def test_folders_that_are_no_torch_dist_checkpoint(world: World, tmp_path: Path):
    old = tmp_path / "old" / "iter_0000001"
    (old / "mp_rank_00").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"Megatron's older format, a file for each rank .* --ckpt-format torch_dist"):
        find_source(tmp_path / "old")
    (tmp_path / "old" / "latest_checkpointed_iteration.txt").write_text("9")
    with pytest.raises(CheckpointError, match="iter_0000009 does not exist, although the folder's latest"):
        find_source(tmp_path / "old")
    (tmp_path / "old" / "latest_checkpointed_iteration.txt").write_text("soon")
    with pytest.raises(CheckpointError, match="says 'soon', which is neither a number nor 'release'"):
        find_source(tmp_path / "old")
    zarr = tmp_path / "zarr" / "iter_0000001"
    zarr.mkdir(parents=True)
    (zarr / "metadata.json").write_text('{"sharded_backend": "zarr"}')
    with pytest.raises(CheckpointError, match="is a checkpoint of format zarr, not of torch_dist"):
        find_source(tmp_path / "zarr")
    with pytest.raises(ConfigError, match="says itself which model it is; leave --family and --hf-config out"):
        find_source(world.imported("untied"), family="llama")


def test_damage_is_named_at_once(megatron: Path, tmp_path: Path):
    place = shutil.copytree(megatron / "iter_0000005", tmp_path / "in")
    first, second, *_ = sorted(place.glob("*.distcp"))
    os.truncate(first, first.stat().st_size - 1)
    second.unlink()
    with pytest.raises(CheckpointError, match=rf"damaged checkpoint: {first.name} has \d+ bytes instead of \d+; {second.name} is missing"):
        find_source(place, family="llama")
