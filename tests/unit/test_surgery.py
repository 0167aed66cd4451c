"""vocab/surgery.py: only the rows of the vocabulary change, and the result is a model that transformers loads."""

from __future__ import annotations

import collections
import gzip
import json
import os
import shutil

import numpy as np
import pytest
import torch
from family_models import CONFIGS
from harness import assets
from method_cases import world
from vocabularies import write_tokenizer

from megatron_adapt.errors import CheckpointError, ConfigError, DataError
from megatron_adapt.families import families, family_named, initial_tensors
from megatron_adapt.families.rules import EMBEDDING as MEGATRON_EMBEDDING, OUTPUT
from megatron_adapt.hf.directory import HFDirectory
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.hf.weights import WeightReader, WeightWriter
from megatron_adapt.vocab import methods, provenance
from megatron_adapt.vocab.matching import match
from megatron_adapt.vocab.surgery import check_tokenizer, swap

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def make_model(path, tied=False, rows=24, dtype="bfloat16", shard=5e9, stored_head=False):
    """A tiny random Llama with a sentencepiece-like tokenizer of 20 ids, two of them matching the target's."""
    tokens = ["<unk>", "<s>", "</s>", "<0x41>", "▁Haus", "ä", *(f"▁e{i}" for i in range(14))]
    write_tokenizer(path, tokens, "sentencepiece", {"unk": "<unk>", "bos": "<s>", "eos": "</s>"})
    config = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "tie_word_embeddings": tied, "dtype": dtype,
    }  # fmt: skip
    family = family_named("llama")
    full = {**family.complete_config(config, vocab_size=rows, bos=1, eos=2), "eos_token_id": [2, 3], "custom": "kept"}
    (path / "config.json").write_text(json.dumps(full))
    generation = {"bos_token_id": 1, "eos_token_id": [2, 3], "temperature": 0.6, "suppress_tokens": [4]}
    (path / "generation_config.json").write_text(json.dumps(generation))
    (path / "LICENSE.txt").write_text("yours")
    (path / "README.md").write_text("speaks of the old vocabulary")
    with WeightWriter(path, shard) as writer:
        for name, tensor in initial_tensors(family, family.read_config(full), seed=5, dtype=dtype):
            writer.add(name, tensor)
            if stored_head and name == EMBEDDING:
                writer.add(HEAD, tensor)
    return path


@pytest.fixture
def target(tmp_path):
    tokens = ["<|end|>", "<pad>", "ĠHaus", "Ã¤", "A", *(f"Ġd{i}" for i in range(25))]
    special = {"bos": "<|end|>", "eos": "<|end|>", "pad": "<pad>"}
    return write_tokenizer(tmp_path / "target", tokens, "byte-level", special)


def make_family_model(path, name, key, prefix=""):
    """A tiny fresh model of any family; ``prefix``: what its files leave out of the names."""
    tokens = ["<unk>", "<s>", "</s>", "<0x41>", "▁Haus", "ä", *(f"▁e{i}" for i in range(14))]
    write_tokenizer(path, tokens, "sentencepiece", {"unk": "<unk>", "bos": "<s>", "eos": "</s>"})
    family = family_named(name)
    given = {option: value for option, value in CONFIGS[name][key].items() if not option.endswith("token_id")}
    full = family.complete_config({**given, "vocab_size": 24}, vocab_size=24, bos=1, eos=2)
    (path / "config.json").write_text(json.dumps(full))
    with WeightWriter(path) as writer:
        for tensor_name, tensor in initial_tensors(family, family.read_config(full), seed=5):
            writer.add(tensor_name.removeprefix(prefix), tensor)
    return path


def tensors(path):
    with WeightReader(path) as reader:
        return {name: reader.get(name).clone() for name in reader.names()}


def load(path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, info = AutoModelForCausalLM.from_pretrained(path, dtype="auto", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model, AutoTokenizer.from_pretrained(path)


@pytest.mark.parametrize(("name", "key"), [(name, key) for name in CONFIGS for key in CONFIGS[name]])
def test_every_family_keeps_all_but_its_vocabulary(tmp_path, target, name, key):
    source = make_family_model(tmp_path / "model", name, key)
    report = swap(source, target, tmp_path / "out", "mean", pad_to_multiple=8)
    old, new = tensors(source), tensors(tmp_path / "out")
    vocabulary = {rule.hf[0] for rule in families()[name].rules if rule.megatron in (MEGATRON_EMBEDDING, OUTPUT)}
    assert set(old) == set(new) and len(vocabulary & set(old)) == (1 if report["tied"] else 2)
    for tensor in old:
        assert len(new[tensor]) == 32 if tensor in vocabulary else new[tensor].equal(old[tensor]), tensor
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 32
    (embedding,) = (rule.hf[0] for rule in families()[name].rules if rule.megatron == MEGATRON_EMBEDDING)
    assert load(tmp_path / "out")[0].get_input_embeddings().weight.equal(new[embedding])


def test_names_without_the_prefix_become_whole(tmp_path, target):
    bare = make_family_model(tmp_path / "bare", "gpt2", "released", prefix="transformer.")
    whole = make_family_model(tmp_path / "whole", "gpt2", "released")
    assert "wte.weight" in tensors(bare) and "transformer.wte.weight" in tensors(whole)
    for path in (bare, whole):
        swap(path, target, path / "out", "mean", seed=1)
    one, other = tensors(bare / "out"), tensors(whole / "out")
    assert set(one) == set(other) and all(one[name].equal(other[name]) for name in one)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("method", ["align", "copy", "mean", "random", "subwords"])
def test_swap(tmp_path, target, tied, method):
    source = make_model(tmp_path / "model", tied)
    texts = lambda: ["Haus ä A"] * 9  # noqa: E731
    report = swap(source, target, tmp_path / "out", method, seed=1, pad_to_multiple=8, options={}, texts=texts)
    old, new = tensors(source), tensors(tmp_path / "out")
    assert set(old) == set(new) and (HEAD in new) != tied
    for name in old:
        assert new[name].dtype == torch.bfloat16
        assert new[name].shape == (32, 16) if name in (EMBEDDING, HEAD) else new[name].equal(old[name]), name
    if method != "random":
        ids = torch.from_numpy(match(Tokenizer.load(target), Tokenizer.load(source)).source_ids)
        kept = (ids >= 0).nonzero().flatten()
        assert all(new[name][kept].equal(old[name][ids[kept]]) for name in {EMBEDDING, HEAD} & set(new))
    model, tokenizer = load(tmp_path / "out")
    assert model.config.vocab_size == 32 and model.dtype == torch.bfloat16 and len(tokenizer) == 30
    assert model(torch.tensor([[0, 2, 31]])).logits.shape == (1, 3, 32)
    assert report["tied"] is tied and report["method"] == method
    assert not [warning for warning in report["warnings"] if "BOS" in warning]
    assert (report["source_vocab_size"], report["source_rows"]) == (20, 24)
    assert (report["target_vocab_size"], report["target_rows"]) == (30, 32)
    assert report["overlap"] == {"exact": 2, "byte": 1, "role": 1, "special": 0, "total": 4}
    assert report["copied"] + report["composed"] + report["drawn"] == 32


def test_the_receipt_tells_where_rows_come_from(tmp_path, target):
    source = make_model(tmp_path / "model")
    report = swap(source, target, tmp_path / "out", "subwords", pad_to_multiple=8)
    lines = [json.loads(line) for line in gzip.open(tmp_path / "out" / "provenance.jsonl.gz", "rt", encoding="utf-8")]
    assert [line["id"] for line in lines] == list(range(32))
    assert lines[2] == {"id": 2, "token": "ĠHaus", "matched": "same bytes", "how": "copied", "from": [[4, 1.0]]}
    assert lines[0]["matched"] == "same role" and lines[4]["matched"] == "same byte"
    assert lines[31] == {"id": 31, "token": None, "padding": True, "how": "drawn"}
    counts = collections.Counter(line["how"] for line in lines)
    assert {key: report[key] for key in ("copied", "composed", "drawn")} == {"composed": 0, **counts}
    old, new = tensors(source)[EMBEDDING].float(), tensors(tmp_path / "out")[EMBEDDING].float()
    lengths = report["row_norms"]["input"]
    assert lengths["source"] == pytest.approx(np.quantile(old[:20].norm(dim=1).numpy(), (0.1, 0.5, 0.9)), rel=1e-4)
    drawn = [line["id"] for line in lines if line["how"] == "drawn"]
    assert lengths["drawn"] == pytest.approx(np.quantile(new[drawn].norm(dim=1).numpy(), (0.1, 0.5, 0.9)), rel=1e-4)
    assert set(report["row_norms"]) == {"input", "output"} and set(lengths) == {"source", "copied", "drawn"}
    swap(source, target, tmp_path / "again", "subwords", pad_to_multiple=8)
    assert (tmp_path / "again" / "provenance.jsonl.gz").read_bytes() == (tmp_path / "out" / "provenance.jsonl.gz").read_bytes()


def test_provenance_lists_the_heaviest_of_many_sources(tmp_path):
    here = world()
    dense = methods.build("clp", here.material(), here.options("clp") | {"variant": "original"})
    sparse = methods.build("clp", here.material(), here.options("clp"))
    for maps in (dense, sparse):
        provenance.write(tmp_path / "p.gz", here.material(), maps, tied=False)
        lines = [json.loads(line) for line in gzip.open(tmp_path / "p.gz", "rt", encoding="utf-8")]
        old = torch.eye(here.source.vocab_size)
        weights = maps.input.apply(old, seed=0)
        line = next(line for line in lines if line["how"] == "composed" and line.get("sources", 0) > 8)
        assert len(line["from"]) == 8 and (maps is sparse) == ("output" in line)
        if maps is dense:
            assert all(abs(weights[line["id"], index] - weight) < 1e-3 for index, weight in line["from"])
            assert line["sources"] == (weights[line["id"]] != 0).sum()


def test_input_and_output_are_drawn_independently(tmp_path, target):
    swap(make_model(tmp_path / "model"), target, tmp_path / "out", "random")
    new = tensors(tmp_path / "out")
    assert torch.corrcoef(torch.stack([new[EMBEDDING].flatten(), new[HEAD].flatten()]).float())[0, 1].abs() < 0.3


def test_configuration_and_files(tmp_path, target):
    swap(make_model(tmp_path / "model"), target, tmp_path / "out", "copy")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vocab_size"] == 30 and config["custom"] == "kept"
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (0, 0, 1)
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1, "temperature": 0.6}
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "LICENSE.txt", "config.json", "generation_config.json", "model.safetensors", "provenance.jsonl.gz",
        "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (target / "tokenizer.json").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["model", "out", "target"]


def test_the_same_vocabulary_changes_nothing(tmp_path):
    source = make_model(tmp_path / "model", rows=20)
    swap(source, source, tmp_path / "out", "copy")
    old, new = tensors(source), tensors(tmp_path / "out")
    assert all(new[name].equal(old[name]) for name in old)


def test_sharded_sources_and_stored_tied_heads(tmp_path, target):
    source = make_model(tmp_path / "model", tied=True, shard=500, stored_head=True)
    assert (source / "model.safetensors.index.json").exists()
    swap(source, target, tmp_path / "out", "copy")
    assert HEAD not in tensors(tmp_path / "out")
    load(tmp_path / "out")


def test_pickled_sources_become_safetensors(tmp_path, target):
    source = make_model(tmp_path / "model")
    old = tensors(source)
    torch.save(old, source / "pytorch_model.bin")
    swap(source, target, tmp_path / "from-safetensors", "copy")
    (source / "model.safetensors").unlink()
    swap(source, target, tmp_path / "out", "copy")
    one, other = tensors(tmp_path / "out"), tensors(tmp_path / "from-safetensors")
    assert set(one) == set(other) == set(old) and all(one[name].equal(other[name]) for name in one)
    load(tmp_path / "out")


def test_seed_decides(tmp_path, target):
    source = make_model(tmp_path / "model")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        swap(source, target, tmp_path / name, "copy", seed=seed)
    contents = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert contents[0] == contents[1] != contents[2]


def test_missing_bos_is_reported(tmp_path):
    tokens = ["<s>", "</s>", "x"]
    target = write_tokenizer(tmp_path / "t", tokens, "sentencepiece", {"bos": "<s>", "eos": "</s>"})
    source = make_model(tmp_path / "model")
    write_tokenizer(source, ["<|eos|>", "x"], "sentencepiece", {"eos": "<|eos|>"})
    report = swap(source, target, tmp_path / "out", "copy")
    assert len(report["warnings"]) == 1 and "BOS" in report["warnings"][0]


def test_holes_and_duplicates_are_told(tmp_path):
    target = write_tokenizer(tmp_path / "t", ["</s>", "x", "▁q", "<0x78>", "y"], "sentencepiece", {"eos": "</s>"}, added=("y",))
    parsed = json.loads((target / "tokenizer.json").read_text())
    parsed["model"]["vocab"]["z"] = 7  # 5 and 6 stand for nothing
    (target / "tokenizer.json").write_text(json.dumps(parsed))
    report = swap(make_model(tmp_path / "model"), target, tmp_path / "out", "copy")
    assert (report["target_vocab_size"], report["target_ids_without_a_token"], report["target_duplicate_bytes"]) == (8, 2, 1)
    assert report["warnings"] == ["the vocabularies have no ordinary token in common: no row of the old one is kept as it is"]
    assert load(tmp_path / "out")[0].get_input_embeddings().weight.isfinite().all()


def test_a_target_without_an_end(tmp_path):
    target = write_tokenizer(tmp_path / "t", ["▁Haus"], "sentencepiece", {})
    report = swap(make_model(tmp_path / "model"), target, tmp_path / "out", "copy")
    assert report["warnings"] == ["the target has no EOS token: nothing will mark the end of a document"]


def test_further_ends_of_text_stay_where_they_exist(tmp_path):
    source, special = make_model(tmp_path / "model"), {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "turn": "▁e5", "other": "▁e6"}
    tokens = json.loads((source / "tokenizer.json").read_text())["model"]["vocab"]
    write_tokenizer(source, [*tokens], "sentencepiece", special)
    ids = [tokens["</s>"], tokens["▁e5"], tokens["▁e6"]]
    for name in ("config.json", "generation_config.json"):
        (source / name).write_text(json.dumps(json.loads((source / name).read_text()) | {"eos_token_id": ids}))
    target = write_tokenizer(tmp_path / "t", ["a", "▁e5", "<|end|>"], "byte-level", {"eos": "<|end|>", "turn": "▁e5"})
    swap(source, target, tmp_path / "out", "copy")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text())["eos_token_id"] == [2, 1]


def test_a_named_token_without_a_row_is_not_added(tmp_path, target):
    config = json.loads((target / "tokenizer_config.json").read_text())
    given = {"pad_token": "[PAD]", "image_token": "<image>", "extra_special_tokens": ["<extra>"], "add_bos_token": True}
    (target / "tokenizer_config.json").write_text(json.dumps({**config, **given, "model_max_length": 9}))
    (target / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "[PAD]"}, "eos_token": "<|end|>"}))
    swap(make_model(tmp_path / "model"), target, tmp_path / "out", "copy")
    _, tokenizer = load(tmp_path / "out")
    assert len(tokenizer) == 30 and tokenizer.pad_token_id is None and tokenizer.model_max_length == 9
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert settings["add_bos_token"] is True and settings["extra_special_tokens"] == [] and "image_token" not in settings
    assert json.loads((tmp_path / "out" / "special_tokens_map.json").read_text()) == {"eos_token": "<|end|>"}


def test_a_lone_vocabulary_file(tmp_path, target):
    lone = tmp_path / "german.json"
    shutil.copyfile(target / "tokenizer.json", lone)
    swap(make_model(tmp_path / "model"), lone, tmp_path / "out", "copy")
    _, tokenizer = load(tmp_path / "out")
    assert len(tokenizer) == 30 and tokenizer("A")["input_ids"] == [4]


def test_tokenizer_beyond_the_rows(tmp_path, target):
    source = make_model(tmp_path / "model", rows=18)
    with pytest.raises(ConfigError, match=r"model: the tokenizer has ids up to 19, but the model only 18 rows.*'▁e12'"):
        swap(source, target, tmp_path / "out", "copy")
    assert not (tmp_path / "out").exists()
    assert check_tokenizer(source, 20).vocab_size == 20


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "kopy"}, ConfigError, "no vocabulary method 'kopy'.*Did you mean 'copy'"),
        ({"pad_to_multiple": 0}, ConfigError, "pad_to_multiple = 0 is not a positive whole number"),
        ({"tokenizer_dir": "absent"}, ConfigError, "no tokenizer at absent"),
        ({"source_dir": "absent"}, ConfigError, "no model at absent"),
    ],
)
def test_bad_arguments(tmp_path, target, arguments, error, message):
    given = {
        "source_dir": make_model(tmp_path / "model"), "tokenizer_dir": target, "output_dir": tmp_path / "out",
        "method": "copy",
    }  # fmt: skip
    with pytest.raises(error, match=message):
        swap(**{**given, **arguments})
    assert sorted(os.listdir(tmp_path)) == ["model", "target"]


def test_occupied_output(tmp_path, target):
    (tmp_path / "out").mkdir()
    source = make_model(tmp_path / "model")
    swap(source, target, tmp_path / "out", "copy")  # an empty directory is welcome
    with pytest.raises(ConfigError, match="out already exists; choose another directory"):
        swap(source, target, tmp_path / "out", "copy")


def test_a_sentencepiece_model_alone_is_refused(tmp_path, target):
    model = assets("tokenizers", "de-32k", "tokenizer.model")
    with pytest.raises(ConfigError, match=r"tokenizer\.model has no tokenizer\.json"):
        swap(make_model(tmp_path / "model"), model, tmp_path / "out", "copy")


def test_broken_sources_leave_nothing(tmp_path, target):
    source = make_model(tmp_path / "model")
    content = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(content[:-7])
    with pytest.raises(CheckpointError, match=f"truncated: expected {len(content)} bytes, found {len(content) - 7}"):
        swap(source, target, tmp_path / "out", "copy")
    (source / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"tokenizer\.json:1 is not JSON"):
        swap(source, target, tmp_path / "out", "copy")
    assert sorted(os.listdir(tmp_path)) == ["model", "target"]


def test_unwritable_output(tmp_path, target):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not write"):
        swap(make_model(tmp_path / "model"), target, tmp_path / "file" / "out", "copy")


@pytest.mark.parametrize(
    ("model", "tokenizer"),
    [
        ("stories260K", "gpt2"), ("stories260K", "de-32k"), ("en-novels-5m", "mistral-7b-v0.1"),
        ("en-novels-5m", "ar-32k"), ("en-novels-5m", "de-bpe-50k"),
    ],
)  # fmt: skip
def test_real_models_and_tokenizers(tmp_path, model, tokenizer):
    source, target = assets("models", model), assets("tokenizers", tokenizer)
    report = swap(source, target, tmp_path / "out", "copy", pad_to_multiple=128)
    assert report["copied"] == report["overlap"]["total"] > 300 and report["target_rows"] % 128 == 0
    old, new = tensors(source), tensors(tmp_path / "out")
    assert all(new[name].equal(old[name]) for name in old if name not in (EMBEDDING, HEAD))
    assert HFDirectory.open(tmp_path / "out").config["vocab_size"] == report["target_rows"] == len(new[EMBEDDING])
    loaded, theirs = load(tmp_path / "out")
    ours = Tokenizer.load(tmp_path / "out")
    assert ours.digest == Tokenizer.load(target).digest and len(theirs) == ours.vocab_size
    texts = ["Die schöne Straße  ist 2024 km lang.\n\tJa?", " leading", "مرحبا بالعالم 12", "ﬁn ½ Å"]
    for text, ids in zip(texts, ours.encode(texts)):
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids.tolist()
        assert loaded(torch.from_numpy(ids)[None].long()).logits.isfinite().all()
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_id, ours.eos_id)
    assert (loaded.config.bos_token_id, loaded.config.eos_token_id) == (ours.bos_id, ours.eos_id)
