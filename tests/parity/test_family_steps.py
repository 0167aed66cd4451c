"""Import and export as the steps do them, of the families unlike Llama: logits of text, every bit and setting back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from family_models import CONFIGS, import_models, make
from worlds import World, on_ranks

from megatron_adapt.families import families
from megatron_adapt.hf.directory import HFDirectory
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.steps import export_hf, import_hf
from megatron_adapt.steps.reporter import Reporter

import_models()


@pytest.mark.parametrize("name", ["gemma3", "gpt2", "gpt_neox", "mpt"])
def test_import_and_export(world: World, tmp_path: Path, name):
    source = tmp_path / "source"
    config = {**next(iter(CONFIGS[name].values())), "vocab_size": Tokenizer.load(world.tokenizer).vocab_size}
    on_ranks(1, lambda: make(families()[name], config, source))
    for file in world.tokenizer.iterdir():
        shutil.copyfile(file, source / file.name)
    result = import_hf.run(source, tmp_path / "import", Reporter(), verify="logits")
    assert result["positions"] > 200  # in windows of the 64 positions that the model has
    assert max(result["max_abs_difference"], result["max_abs_difference_tp2"]) <= 1e-4 and result["top1_agreement"] == 1
    exported = export_hf.run(tmp_path / "import", tmp_path / "back", Reporter(), "keep", verify="weights")
    assert exported["config_changes"] == []
    with HFDirectory.open(source).weights() as there, HFDirectory.open(tmp_path / "back").weights() as back:
        assert set(there.names()) == set(back.names())
        assert [key for key in there.names() if not there.get(key).equal(back.get(key))] == []
    read = [json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "back")]
    assert read[0] == read[1]
