"""doctor: every finding where it belongs, and an exit code that a script can use."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Callable

import pytest

import megatron_adapt
from megatron_adapt import cli
from megatron_adapt.engine import backend
from megatron_adapt.errors import ConfigError
from megatron_adapt.steps import doctor
from megatron_adapt.steps.doctor import Finding

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
}  # fmt: skip


def found(topic: str, model: Path | None = None) -> Finding:
    (finding,) = [finding for finding in doctor.run(model) if finding.topic == topic]
    return finding


@pytest.fixture
def requires(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have the package ask for these."""
    return lambda *texts: monkeypatch.setattr(metadata, "requires", lambda name: list(texts))


def test_what_the_package_needs_is_compared_with_what_is_there(requires: Callable[..., None]) -> None:
    requires("numpy>=1", "torch<1", "no-such-package>=3", "also-not-there; extra == 'gpu'", "nor-this; python_version < '3'")
    assert found("numpy") == Finding("ok", "numpy", metadata.version("numpy"))
    assert found("torch") == Finding("problem", "torch", f"{metadata.version('torch')} is not <1; pip install 'torch<1'")
    assert found("no-such-package").text == "is not installed; pip install 'no-such-package>=3'"
    assert not {"also-not-there", "nor-this"} & {finding.topic for finding in doctor.run()}


def test_sources_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    assert found("megatron_adapt").kind == "note"


def test_the_extension_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found("C++ extension").kind == "ok"
    monkeypatch.delattr(megatron_adapt, "_C")
    monkeypatch.setitem(sys.modules, "megatron_adapt._C", None)
    finding = found("C++ extension")
    assert finding.kind == "problem" and "build it: pip install -e " in finding.text


def test_an_apex_that_is_not_nvidias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "apex" not in {finding.topic for finding in doctor.run()}
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex/__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert found("apex") == Finding("problem", "apex", "an unrelated package of that name; pip uninstall apex")
    (tmp_path / "apex/optimizers.py").write_text("")
    monkeypatch.delitem(sys.modules, "apex", raising=False)
    assert found("apex").kind == "ok"


def test_little_disk_and_few_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2**30}))
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda which: (1024, 65536))
    assert found("disk").kind == "note" and found("disk").text.startswith("1 GiB free in ")
    assert found("open files").text == "limited to 1024; ulimit -n 4096 raises it"


def test_gpus_and_their_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found("device").kind == "note" and found("layers").text.endswith(": there is no GPU")
    assert found("AdamW").text.startswith("torch's, fused: there is no GPU (weights in bf16 alone")
    cards = [{"name": "A", "memory": 80 * 2**30, "capability": "9.0"}, {"name": "B", "memory": 40 * 2**30, "capability": "8.0"}]
    monkeypatch.setattr(backend, "gpus", lambda: cards)
    monkeypatch.setattr(backend, "versions", lambda: {"NCCL": "2.27"})
    monkeypatch.setattr(backend, "transformer_engine_problem", lambda: "")
    assert found("GPU 0").text == "A, 80 GiB, capability 9.0"
    assert found("GPU 1").text == "B, 40 GiB, capability 8.0, no FP8"
    assert (found("NCCL").text, found("layers").kind) == ("2.27", "ok")
    assert found("AdamW").text.startswith("Transformer Engine's FusedAdam (weights in bf16 alone")


def test_what_a_model_is_built_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "model.safetensors").write_text("")
    assert found("model", tmp_path).text == "llama, 21,664 parameters, 2 layers"
    assert found("its layers", tmp_path).text == "plain torch: there is no GPU"
    monkeypatch.setattr(backend, "transformer_engine_problem", lambda: "")
    assert found("its layers", tmp_path).text == "Transformer Engine"
    monkeypatch.setattr(backend, "_layers", "torch")
    assert found("its layers", tmp_path).text == "plain torch: backend: torch is chosen"
    monkeypatch.setattr(backend, "_layers", "auto")
    mpt = {"model_type": "mpt", "architectures": ["MptForCausalLM"], "d_model": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 51}
    (tmp_path / "config.json").write_text(json.dumps(mpt))
    assert found("its layers", tmp_path).text == (
        "Transformer Engine; attention in plain torch: ALiBi; norms in plain torch: layernorm no bias"
    )
    with pytest.raises(ConfigError, match="no model at"):
        doctor.run(tmp_path / "none")


def test_a_back_end_can_be_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_layers", "te")
    with pytest.raises(ConfigError, match="backend: te cannot be used: there is no GPU. Choose auto or torch."):
        backend.uses_transformer_engine()
    monkeypatch.setattr(backend, "transformer_engine_problem", lambda: "")
    assert backend.uses_transformer_engine()
    monkeypatch.setattr(backend, "_layers", "torch")
    assert not backend.uses_transformer_engine() and backend.adamw() == "torch's, fused: backend: torch is chosen"


def test_the_command(requires: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> int | str | None:
        monkeypatch.setattr(sys, "argv", ["megatron-adapt", "doctor", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code

    requires("numpy>=1")
    assert run() in (0, None)
    assert capsys.readouterr().out.splitlines()[-1] == "everything that is needed is here"
    requires("numpy>=1", "torch<1")
    assert run() == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "1 problem" and any(line.startswith("! torch ") for line in lines)
    assert run("--json") == 2
    topics = {finding["topic"]: finding["kind"] for finding in json.loads(capsys.readouterr().out)}
    assert topics["torch"] == "problem" and topics["numpy"] == "ok"
