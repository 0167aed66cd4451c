"""Import and export: the same bits through every layout, tensor by tensor, finished after a kill, wrong input refused."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import time
from pathlib import Path
from typing import Any, Callable

import numpy as np
import psutil
import pytest
import torch
import transformers.models.llama.modeling_llama  # noqa: F401  once, here: the forked ranks need it
from worlds import LAYOUTS, MODELS, Layout, World, hf_model, on_ranks, same_bits, stored, tensors, without_checksums

from megatron_adapt import launch
from megatron_adapt.engine import backend, checkpoint, model as models
from megatron_adapt.errors import CheckpointError, ConfigError
from megatron_adapt.families import family_named, initial_tensors
from megatron_adapt.families.conversion import AsHF, AsMegatron
from megatron_adapt.hf.directory import HFDirectory
from megatron_adapt.hf.weights import WeightReader, WeightWriter
from megatron_adapt.launch import StepFailed
from megatron_adapt.steps import export_hf, import_hf, receipt, verification
from megatron_adapt.steps.foreign import find_source
from megatron_adapt.steps.reporter import Reporter
from megatron_adapt.torch_dist import writer


class Lines(Reporter):
    """Keeps what is logged in this process."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def log(self, text: str) -> None:
        self.lines.append(text)


def weights(path: Path) -> dict[str, torch.Tensor]:
    with WeightReader(path) as reader:
        return {name: reader.get(name) for name in reader.names()}


def assert_same(path: Path, expected: dict[str, torch.Tensor]) -> None:
    found = weights(path)
    assert set(found) == set(expected)
    assert [name for name in found if not same_bits(found[name], expected[name])] == []


# ----------------------------------------------------------------------------------------------------------- there


@pytest.mark.parametrize("name", ["untied", "tied", "bf16"])
def test_megatron_loads_an_import_as_if_it_had_saved_it(world: World, tmp_path: Path, name):
    reporter = Lines()
    result = import_hf.run(world.model(name), tmp_path, reporter, verify="logits")
    assert result["tensors"] == 9 * 4 + (2 if MODELS[name].get("tie_word_embeddings") else 3)
    assert result["positions"] > 100 and result["top1_agreement"] == 1
    assert max(result["max_abs_difference"], result["max_abs_difference_tp2"]) < 1e-4
    assert "tensors equal bit for bit, logits of" in reporter.lines[-1] and "at TP 1 and 2" in reporter.lines[-1]
    ours, theirs = tensors(tmp_path), tensors(world.imported(name))
    dtype = getattr(torch, MODELS[name].get("dtype", "float32"))
    assert set(ours) == set(theirs) and {tensor.dtype for tensor in ours.values()} == {dtype}
    assert all(ours[key].float().equal(theirs[key]) for key in ours)


@pytest.mark.parametrize("layout", ["TP2", "PP2", "TP2xPP2"])
def test_training_continues_from_an_import_as_from_megatrons_own(world: World, tmp_path: Path, layout):
    import_hf.run(world.model("untied"), tmp_path / "import", Lines(), verify="off")
    ours = world.train(tmp_path / "ours", *LAYOUTS[layout], start=tmp_path / "import", steps=2)
    theirs = world.train(tmp_path / "theirs", *LAYOUTS[layout], start="untied", steps=2)
    assert ours.metrics == theirs.metrics


def test_pickled_weights_are_imported(world: World, tmp_path: Path):
    source = shutil.copytree(world.model("bf16"), tmp_path / "source")
    torch.save(weights(source), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    assert import_hf.run(source, tmp_path / "import", Lines(), verify="weights")["tensors"] == 39
    export_hf.run(tmp_path / "import", tmp_path / "back", Lines(), verify="weights")
    assert_same(tmp_path / "back", weights(world.model("bf16")))


# ------------------------------------------------------------------------------------------------------- and back


@pytest.mark.parametrize("name, layout", [*(("untied", each) for each in LAYOUTS if "DP2" not in each and "DO" not in each), ("tied", "PP2"), ("mha", "TP2")])
def test_round_trip_through_every_layout(world: World, tmp_path: Path, name, layout):
    def save() -> None:
        model, _ = hf_model(world.model(name), LAYOUTS[layout][0])
        checkpoint.save(tmp_path, model, None, checkpoint.Position(), world.model(name))

    on_ranks(LAYOUTS[layout][1], save)
    result = export_hf.run(tmp_path, tmp_path / "back", Lines(), "keep", verify="weights")
    assert result["dtype"] == "float32" and result["config_changes"] == []
    assert_same(tmp_path / "back", weights(world.model(name)))
    for file in ("tokenizer.json", "config.json"):
        read = [json.loads((folder / file).read_text()) for folder in (tmp_path / "back", world.model(name))]
        assert read[0] == read[1]


def test_export_of_a_training_checkpoint(world: World, uninterrupted, tmp_path: Path):
    """Adam's moments lie in it, too; bfloat16 unless asked otherwise."""
    run, reporter = uninterrupted("TP2"), Lines()
    result = export_hf.run(run.folder, tmp_path / "out", reporter, max_shard_bytes=20_000, verify="logits")
    assert result["files"] > 3 and result["kept"] == 0 and result["max_abs_difference_tp2"] < 1e-4
    assert "as bfloat16 (stored as float32)" in reporter.lines[0]
    assert reporter.lines[1] == 'config.json: dtype: "float32" -> "bfloat16"'
    found, trained = weights(tmp_path / "out"), tensors(run.folder)
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert found["model.embed_tokens.weight"].equal(trained["embedding.word_embeddings.weight"].bfloat16())
    assert any(name.startswith("optimizer.") for name in stored(run.folder))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in found.values()) == result["bytes"]


def test_transformers_reads_an_export(world: World, tmp_path: Path):
    export_hf.run(world.imported("tied"), tmp_path / "out", Lines(), "float16", max_shard_bytes=20_000, verify="weights")

    def work() -> bool:
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        expected = weights(world.model("tied"))["model.norm.weight"].half()
        return model.dtype == torch.float16 and model.model.norm.weight.equal(expected)

    assert on_ranks(1, work) == [True]


def test_untying_and_tying(world: World, tmp_path: Path):
    reporter = Lines()
    export_hf.run(world.imported("tied"), tmp_path / "untied", reporter, "float32", tie="untie", verify="logits")
    found = weights(tmp_path / "untied")
    assert found["lm_head.weight"].equal(found["model.embed_tokens.weight"])
    assert "config.json: tie_word_embeddings: true -> false" in reporter.lines
    import_hf.run(tmp_path / "untied", tmp_path / "import", Lines(), verify="off")
    export_hf.run(tmp_path / "import", tmp_path / "tied", Lines(), "float32", tie="tie", verify="weights")
    assert_same(tmp_path / "tied", weights(world.model("tied")))
    with pytest.raises(CheckpointError, match="the head differs from the embedding; tying them would change the model"):
        export_hf.run(world.imported("untied"), tmp_path / "never", Lines(), tie="tie")


def dying_at(monkeypatch: pytest.MonkeyPatch, view: type, count: int, number: int) -> None:
    """Send this process a signal when the view is asked for a band for the ``count``-th time."""
    read, asked = view.read, []

    def dying(self: Any, name: str, first: int, out: Any) -> None:
        asked.append(name)
        if len(asked) == count:
            os.kill(os.getpid(), number)
            time.sleep(0.2)  # this is the thread that reads ahead; the signal strikes the main thread
        read(self, name, first, out)

    monkeypatch.setattr(view, "read", dying)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("verb", ["import", "export"])
def test_what_was_stopped_continues_where_it_was(world: World, tmp_path: Path, monkeypatch, verb, number):
    monkeypatch.setattr(writer, "FILE_BYTES", 10_000)
    options = {"dtype": "float32", "max_shard_bytes": 10_000, "verify": "weights"}

    def action(folder: Path, reporter: Reporter) -> dict[str, Any]:
        if verb == "import":
            return import_hf.run(world.model("untied"), folder, reporter, verify="weights")
        return export_hf.run(world.imported("untied"), folder, reporter, **options)

    def files(folder: Path) -> dict[str, Path]:
        return {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file() and path.name != receipt.NAME}

    whole = receipt.Step("whole", verb, tmp_path / "whole", action)
    step = receipt.Step("out", verb, tmp_path / "out", action, keeps_parts=True)
    receipt.perform(whole, Lines())
    dying_at(monkeypatch, AsMegatron if verb == "import" else AsHF, 20, number)
    if number == signal.SIGKILL:
        with pytest.raises(StepFailed, match="SIGKILL"):
            launch.fork(1, lambda: receipt.perform(step, Lines()))
    else:
        assert launch.fork(1, lambda: receipt.perform(step, Lines())).stopped
    monkeypatch.undo()
    monkeypatch.setattr(writer, "FILE_BYTES", 10_000)
    finished = {name: path for name, path in files(tmp_path / ".out.partial").items() if not path.name.startswith(".")}
    damaged = finished[max(finished)]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")  # of the right size, but not what belongs there
    times = {name: path.stat().st_mtime_ns for name, path in finished.items() if path != damaged}
    assert len(times) > 1 and not (tmp_path / "out").exists()
    receipt.perform(step, Lines())
    assert receipt.read(tmp_path / "out")["metrics"]["kept"] == len(times)
    expected, found = files(tmp_path / "whole"), files(tmp_path / "out")
    assert set(found) == set(expected)
    assert [name for name in found if found[name].read_bytes() != expected[name].read_bytes()] == []
    kept = {name.replace(".tmp/", "/"): when for name, when in times.items()}
    assert {name: found[name].stat().st_mtime_ns for name in kept} == kept


def test_an_import_that_was_killed_just_before_its_receipt(world: World, tmp_path: Path):
    """Its checkpoint has its name already; all is kept and judged once more."""
    import_hf.run(world.model("untied"), tmp_path, Lines(), verify="off")
    (tmp_path / "step_00000000" / "hf" / "of_another_model.json").write_text("{}")
    reporter = Lines()
    assert import_hf.run(world.model("untied"), tmp_path, reporter, verify="weights")["kept"] == 1
    assert reporter.lines[-1].endswith("; 1 of 1 files were finished before")
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000000"]
    assert not (tmp_path / "step_00000000" / "hf" / "of_another_model.json").exists()


def test_an_error_leaves_nothing(world: World, tmp_path: Path, monkeypatch):
    def action(folder: Path, reporter: Reporter) -> dict[str, Any]:
        return export_hf.run(world.imported("untied"), folder, reporter, verify="weights")

    monkeypatch.setattr(export_hf, "differing", lambda *rest: verification.judge(["a", "b"], 9, "there"))
    with pytest.raises(CheckpointError, match="there: 2 of 9 tensors differ after conversion: a, b"):
        receipt.perform(receipt.Step("out", "export", tmp_path / "out", action, keeps_parts=True), Lines())
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------- what it refuses


def test_damage_to_the_files_is_named(world: World, tmp_path: Path):
    def damaged(name: str, change: Callable[[dict[str, torch.Tensor]], None], config: dict[str, Any] = {}, **options: Any) -> Path:
        folder = shutil.copytree(world.model("untied"), tmp_path / name)
        values = weights(folder)
        change(values)
        (folder / "model.safetensors").unlink()
        with WeightWriter(folder, **options) as writer:
            for key, tensor in values.items():
                writer.add(key, tensor)
        settings = json.loads((folder / "config.json").read_text()) | config
        (folder / "config.json").write_text(json.dumps(settings))
        return folder

    def refused(source: Path, match: str, kind: type = CheckpointError) -> None:
        with pytest.raises(kind, match=match):
            receipt.perform(
                receipt.Step("out", "import", tmp_path / "out", lambda folder, reporter: import_hf.run(source, folder, reporter)),
                Lines(),
            )
        assert not list(tmp_path.glob("*out*"))

    norm = "model.layers.1.input_layernorm.weight"
    key = "model.layers.2.self_attn.k_proj.weight"
    missing = damaged("missing", lambda values: None, max_shard_bytes=20_000)
    sorted(missing.glob("*.safetensors"))[1].unlink()
    refused(missing, r"model-00002-of-\d+\.safetensors is missing, although the index names it")
    cut = damaged("truncated", lambda values: None)
    os.truncate(cut / "model.safetensors", 70_000)
    refused(cut, r"model\.safetensors is truncated: expected \d+ bytes, found 70000")
    refused(damaged("extra", lambda values: values.update(extra=torch.ones(3))), "no place in a llama model: extra")
    refused(damaged("gone", lambda values: values.pop(norm)), f"tensors are missing: {norm}")
    refused(damaged("shape", lambda values: values.update({norm: torch.ones(31)})), rf"{norm} has shape \[31\]")
    nan = damaged("nan", lambda values: (values[norm][3].fill_(torch.nan), values[key][1, 2].fill_(torch.inf)))
    refused(nan, f"NaN or infinite values in 2 of the tensors: {norm}, {key}")
    for _ in range(2):  # the second finds the first one's file, as after a stop
        with pytest.raises(CheckpointError, match=f"NaN or infinite values in 2 of the tensors: {norm}, {key}"):
            import_hf.run(nan, tmp_path / "kept", Lines(), verify="off")
    refused(damaged("rope", lambda values: None, {"rope_scaling": {"rope_type": "spiral"}}), "rope type 'spiral'", ConfigError)


class Code:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("ran",)


def test_pickles_with_code_are_not_run(world: World, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = shutil.copytree(world.model("untied"), tmp_path / "source")
    (source / "model.safetensors").unlink()
    torch.save({"weight": Code()}, source / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pytorch_model.bin is refused: reading it would run posix.mkdir"):
        import_hf.run(source, tmp_path / "out", Lines())
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_of_another_shape_is_refused(world: World, tmp_path: Path):
    folder = shutil.copytree(world.imported("untied"), tmp_path / "in")
    file = folder / "step_00000000" / "hf" / "config.json"
    size = file.stat().st_size
    without_checksums(file.parents[1], digests={})  # or the change itself would be refused
    for change, message in (
        ('"tie_word_embeddings": true ', "no place in a llama model: output_layer.weight"),
        ('"num_hidden_layers": 5', "tensors are missing: decoder.layers.4.self_attention.linear_qkv.layer_norm_weight"),
        ('"intermediate_size": 44', r"decoder.layers.0.mlp.linear_fc1.weight has shape \[96, 32\].*says \[88, 32\]"),
    ):
        text = (world.model("untied") / "config.json").read_text()
        key = change.split(":")[0]
        old = next(part for part in text.replace("}", ",").split(", ") if part.startswith(key))
        file.write_text(text.replace(old, change).ljust(size)[:size] if len(text.replace(old, change)) <= size else "")
        with pytest.raises(CheckpointError, match=message):
            export_hf.run(folder, tmp_path / "out", Lines(), verify="off")


# ------------------------------------------------------------------------------------------------------- memory


def test_memory_is_less_than_that_of_a_tensor(world: World, tmp_path: Path):
    """A model of 200 MB in two files, whose largest tensor has 16 MB; the way back from two tensor parallel ranks."""
    config = {
        "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 18, "num_attention_heads": 8,
        "num_key_value_heads": 8, "max_position_embeddings": 64,
    }  # fmt: skip
    family = family_named("llama")
    full = family.complete_config(config, 10240, 0, 1)
    shape = family.read_config(full)
    source = shutil.copytree(world.model("untied"), tmp_path / "source")
    (source / "model.safetensors").unlink()
    (source / "config.json").write_text(json.dumps(full))

    def fill() -> None:
        with WeightWriter(source, 120e6) as writer:
            for name, tensor in initial_tensors(family, shape, 1):
                writer.add(name, tensor)

    launch.fork(1, fill)
    assert len(list(source.glob("*.safetensors"))) == 2
    largest = 4 * max(size[0] * (size[1] if len(size) > 1 else 1) for size in shape.parameter_shapes().values())
    bound = 12e6  # bands: not even one tensor
    assert largest > bound

    def used(work: Callable[[Path, Path], object], large: Path, small: Path) -> int:
        """Bytes by which converting the large model raises the memory of a process that has converted a small one; the
        kernel refuses it more than 80 MB, of which each thread takes eight for its stack."""

        def measure() -> dict[str, int]:
            work(small, tmp_path / "small")
            held = psutil.Process().memory_info().rss
            status = Path("/proc/self/status").read_text()
            data = 1024 * int(re.search(r"VmData:\s+(\d+) kB", status)[1])
            resource.setrlimit(resource.RLIMIT_DATA, (data + 80_000_000, data + 80_000_000))
            work(large, tmp_path / "large")
            with pytest.raises(MemoryError):  # far more than is free again of what this process once had
                np.ones(1_000_000_000, np.uint8)
            return {"bytes": verification.peak_memory() - held}

        return verification.apart(measure)["bytes"]

    def there(source: Path, output: Path) -> None:
        opened = HFDirectory.open(source)
        import_hf._convert(opened, family.read_config(opened.config), output, True, Lines())

    def back(source: Path, output: Path) -> None:
        export_hf._convert(find_source(source), output / "hf", "float32", 120e6, "keep", True, Lines())

    assert used(there, source, world.model("untied")) < bound

    def save() -> None:
        with backend.session(Layout(tensor=2), 0):
            model = models.build(shape, Layout(tensor=2), "fp32")
            checkpoint.load(checkpoint.resolve(tmp_path / "large"), model)
            checkpoint.save(tmp_path / "tp2", model, None, checkpoint.Position(), source)

    launch.fork(2, save)
    assert used(back, tmp_path / "tp2", world.imported("untied")) < bound
    shutil.rmtree(tmp_path)


def test_a_model_too_large_for_memory(world: World, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(verification, "available_memory", lambda: 1e9)
    with pytest.raises(ConfigError, match="--verify logits holds the whole model in float32: it needs about 1.5 GB of memory, 1.0 GB"):
        import_hf.run(world.model("untied"), tmp_path / "a", Lines(), verify="logits")
    reporter = Lines()
    result = import_hf.run(world.model("untied"), tmp_path / "a", reporter)
    assert "positions" not in result and result["tensors"] == 39
    assert reporter.lines[0].startswith("logits are not compared: that needs about 1.5 GB of memory")
    result = import_hf.run(world.model("untied"), tmp_path / "b", reporter, verify="off")
    assert "tensors" not in result and "; not verified; " in reporter.lines[-1]


def test_a_shape_that_two_ranks_cannot_share(world: World, tmp_path: Path):
    settings = json.loads((world.model("untied") / "config.json").read_text()) | {"num_key_value_heads": 1}
    family = family_named("llama")
    source = shutil.copytree(world.model("untied"), tmp_path / "source")
    (source / "config.json").write_text(json.dumps(settings))
    (source / "model.safetensors").unlink()

    def fill() -> None:
        with WeightWriter(source) as writer:
            for name, tensor in initial_tensors(family, family.read_config(settings), 1):
                writer.add(name, tensor)

    launch.fork(1, fill)
    reporter = Lines()
    result = import_hf.run(source, tmp_path / "out", reporter)
    assert "max_abs_difference_tp2" not in result and result["positions"] > 100
    assert reporter.lines[0].startswith("logits are compared at tensor parallel size 1 only: 1 key/value heads cannot be divided")
    assert "at TP 1," in reporter.lines[1]


def test_unexpected_changes_of_the_configuration_fail():
    before, after = {"a": 1, "dtype": "float32", "b": None}, {"a": 2, "dtype": "bfloat16", "b": None}
    assert verification.configuration(before, after, {"a", "dtype"}, "x") == ["a: 1 -> 2", 'dtype: "float32" -> "bfloat16"']
    with pytest.raises(CheckpointError, match="x differs from the source's configuration: a: 1 -> 2"):
        verification.configuration(before, after, {"dtype"}, "x")
