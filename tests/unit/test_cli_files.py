"""The command line and what lies on the disk: weights that are not their configuration's, places that cannot be written to."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import literature
import pytest
import tiny
from test_cli import Run, folder, run, untouched, written  # noqa: F401 (fixtures, and what they are for)

from megatron_adapt.data import locking
from megatron_adapt.errors import CheckpointError
from megatron_adapt.steps import import_hf
from megatron_adapt.steps.reporter import Reporter

CONFIG = {**tiny.CONFIG, "vocab_size": 8, "rms_norm_eps": 1e-5, "model_type": "llama", "hidden_act": "silu"}
WORDS = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}


def model(**changes: Any) -> Path:
    """A model directory; ``changes``: of the shapes of its weights."""
    path = Path("model")
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": WORDS}))
    literature.write_weights(path, CONFIG, **changes)
    return path


def test_weights_that_do_not_fit_their_configuration(run: Run) -> None:
    """All that the import would refuse, from the headers, beside what else is wrong."""
    changes = {
        "lm_head.weight": None, "model.layers.1.self_attn.k_proj.weight": None, "score.weight": [2, 32],
        "model.norm.weight": [31], "model.layers.0.mlp.down_proj.weight": [48, 32],
    }  # fmt: skip
    source = model(**changes)
    expected = (
        "model: tensors are missing: model.layers.1.self_attn.k_proj.weight, lm_head.weight; tensors have no place in a llama model: "
        "score.weight; model.layers.0.mlp.down_proj.weight has shape [48, 32], config.json announces [32, 48]; model.norm.weight has "
        "shape [31], config.json announces [32]. Do config.json and the weights belong together?"
    )
    for verb in ("check", "plan", "run"):
        result = untouched(run, verb, written(), "model.source=model", "parallel.tensor=3")
        result.refused("4 attention heads cannot be divided by parallel.tensor=3;\n", f"{expected}\n")
    with pytest.raises(CheckpointError) as error:
        import_hf.run(source, Path("imported"), Reporter(), verify="off")
    assert str(error.value) == expected
    (source / "model.safetensors").write_bytes(b"")
    untouched(run, "check", written(), "model.source=model").refused("model.safetensors is truncated or not a safetensors file")
    model()
    run("check", written(), "model.source=model").succeeded()


@pytest.mark.parametrize("place", ["/proc/x", "/proc/x/y", "/sys/x", "file/x"])
def test_places_that_cannot_be_written_to(run: Run, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Nothing can be made in /proc and /sys, root or not, and the systems say so in other words."""
    monkeypatch.setattr(locking, "PATIENCE", 0.0)
    Path("file").write_text("")
    model()
    folder = str(Path(place).parent)
    for words in (
        ("tokenizer", written(), f"output={place}"),
        ("tokenizer", "train", "--input", "de.jsonl", "--vocab-size", 300, place),
        ("preprocess", "--input", "de.jsonl", "--output-prefix", place, "--tokenizer-model", "model"),
        ("swap", "model", place, "--tokenizer", "model"),
        ("import", "model", place),
        ("export", "model", place),
        ("compare", "model", place, "--tokenizer", "model", "--corpus", "de.jsonl"),
        ("tokenizer", "report", "model", "--corpus", "de.jsonl", "--json", place),
        ("check", written(), "--schedule", f"{place}.png"),
    ):
        result = untouched(run, *words)
        assert result.code == 2 and "Traceback" not in result.err, (words, result)
        message = result.err.splitlines()[-1]
        assert re.search(rf"cannot write ({folder}|{place})|the folder {folder} does not exist", message), (words, message)


def test_the_first_node_cannot_write(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("NODE_RANK", "0"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "29400")):
        monkeypatch.setenv(name, value)
    result = untouched(run, "run", written(), "output=/proc/x", "--nnodes", 2)
    result.refused("this run cannot write /proc/x: No such file or directory. Make room or correct the permissions")
