"""vocab/pruning.py: what a text needs stays, is cut as before and keeps its meaning; the rest goes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from method_cases import world
from vocabularies import write_tokenizer

from megatron_adapt.errors import ConfigError, DataError
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.vocab.derived import derivation
from megatron_adapt.vocab.pruning import prune
from megatron_adapt.vocab.train import train_tokenizer


def cut_alike(old, new, texts):
    """Whether every text is cut into the same spellings."""
    names = [tokenizer.tokens() for tokenizer in (old, new)]
    pairs = zip(old.encode(texts), new.encode(texts))
    return all([names[0][index] for index in one] == [names[1][index] for index in other] for one, other in pairs)


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece-bpe", "unigram"])
def test_the_text_is_cut_as_before(tmp_path, kind):
    train_tokenizer(world().german, 600, tmp_path / "old", kind)
    old, texts = Tokenizer.load(tmp_path / "old"), world().german[:12]
    report = prune(old, iter(texts), tmp_path / "new")
    new = Tokenizer.load(tmp_path / "new")
    assert report["vocab_size"] == new.vocab_size < 600 and report["source_vocab_size"] == 600
    assert report["kept_of_text"] == 1 and report["sample_cut_as_before"] == report["sample_documents"] == len(texts)
    assert report["bytes_per_token"][0] == report["bytes_per_token"][1] and report["round_trip"]["changed"] == 0
    assert cut_alike(old, new, texts) and derivation(tmp_path / "new", old) == "pruned"
    assert [token for token in old.tokens() if token in set(new.tokens())] == new.tokens()  # in the old order
    others = ["Ganz anderes: ёж 日本 \n\t 123", *world().german[40:60]]
    assert all(new.decode(ids) == text for text, ids in zip(others, new.encode(others)))  # still lossless
    used = np.bincount(np.concatenate(old.encode(texts)), minlength=600) > 0
    assert {old.tokens()[index] for index in np.flatnonzero(used)} <= set(new.tokens())
    for role in ("bos", "eos", "unk"):
        ids = [getattr(tokenizer, f"{role}_id") for tokenizer in (old, new)]
        assert (ids[0] is None) == (ids[1] is None) and (ids[0] is None or old.tokens()[ids[0]] == new.tokens()[ids[1]])


def test_transformers_cuts_alike(tmp_path):
    from transformers import AutoTokenizer

    for name in ("source", "target"):
        prune(Tokenizer.load(world().folder / name), world().german[:30], tmp_path / name)
        theirs, ours = AutoTokenizer.from_pretrained(tmp_path / name), Tokenizer.load(tmp_path / name)
        assert len(theirs) == ours.vocab_size and theirs.eos_token_id == ours.eos_id
        texts = world().german[:40]
        assert theirs(texts, add_special_tokens=False)["input_ids"] == [ids.tolist() for ids in ours.encode(texts)]


def test_the_most_frequent_stay(tmp_path):
    old, texts = world().target, world().german
    report = prune(old, texts, tmp_path / "few", keep=400)
    assert report["vocab_size"] == 400 and 0.5 < report["kept_of_text"] < 1
    assert report["bytes_per_token"][0] > report["bytes_per_token"][1] and report["round_trip"]["changed"] == 0
    often = prune(old, texts, tmp_path / "often", min_count=50)
    frequency = np.bincount(np.concatenate(old.encode(texts)), minlength=old.vocab_size)
    wanted = {old.tokens()[index] for index in np.flatnonzero(frequency >= 50)}
    new = Tokenizer.load(tmp_path / "often")
    assert wanted <= set(new.tokens()) and often["vocab_size"] < old.vocab_size
    merges = {"".join(merge) for merge in new.backend_json["model"]["merges"]}
    assert {token for token in new.tokens() if len(token) > 1 and token not in ("<s>", "</s>")} <= merges  # all can be made


def test_ids_are_renumbered_everywhere(tmp_path):
    tokens = ["[UNK]", "[CLS]", "never", "[SEP]", "Haus", "##es", "##boot", "H", "##a", "[PAD]"]
    special = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]"}
    path = write_tokenizer(tmp_path / "old", tokens, "wordpiece", special)
    parsed = json.loads((path / "tokenizer.json").read_text())
    parsed["pre_tokenizer"] = {"type": "Whitespace"}
    parsed["post_processor"] = {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 1]}
    parsed["padding"] = {
        "strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 9, "pad_type_id": 0, "pad_token": "[PAD]",
    }  # fmt: skip
    (path / "tokenizer.json").write_text(json.dumps(parsed))
    config = json.loads((path / "tokenizer_config.json").read_text())
    decoder = {"9": {"content": "[PAD]", "special": True}}
    (path / "tokenizer_config.json").write_text(json.dumps({**config, "added_tokens_decoder": decoder, "model_max_length": 77}))
    prune(Tokenizer.load(path), ["Hauses Haus"], tmp_path / "new")
    new = Tokenizer.load(tmp_path / "new")
    assert new.tokens() == ["[UNK]", "[CLS]", "[SEP]", "Haus", "##es", "H", "##a", "[PAD]"]
    assert (new.unk_id, new.pad_id) == (0, 7) and new.encode(["Hauses"])[0].tolist() == [3, 4]
    assert new.backend_json["post_processor"] == {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]}
    assert new.backend_json["padding"]["pad_id"] == 7
    assert [(entry["id"], entry["content"]) for entry in new.backend_json["added_tokens"]] == [
        (0, "[UNK]"), (1, "[CLS]"), (2, "[SEP]"), (7, "[PAD]")]  # fmt: skip
    settings = json.loads((tmp_path / "new" / "tokenizer_config.json").read_text())
    assert "added_tokens_decoder" not in settings and settings["model_max_length"] == 77


def test_template_processing_is_renumbered(tmp_path):
    path = tmp_path / "old"
    train_tokenizer(world().german, 500, path, "bpe")
    parsed = json.loads((path / "tokenizer.json").read_text())
    entry = {"id": 500, "content": "<|last|>", "special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    parsed["added_tokens"].append(entry)
    piece = {"SpecialToken": {"id": "<|last|>", "type_id": 0}}
    parsed["post_processor"] = {
        "type": "TemplateProcessing", "single": [piece, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [piece],
        "special_tokens": {"<|last|>": {"id": "<|last|>", "ids": [500], "tokens": ["<|last|>"]}},
    }  # fmt: skip
    (path / "tokenizer.json").write_text(json.dumps(parsed))
    prune(Tokenizer.load(path), world().german[:2], tmp_path / "new")
    new = Tokenizer.load(tmp_path / "new")
    last = new.tokens().index("<|last|>")
    assert last == new.vocab_size - 1 < 500
    assert new.backend_json["post_processor"]["special_tokens"]["<|last|>"]["ids"] == [last]


def test_messages(tmp_path):
    old = world().target
    with pytest.raises(ConfigError, match=r"target: 258 tokens always stay \(added tokens, bytes, characters\), which is more than the 100 to keep"):
        prune(old, world().german, tmp_path / "out", keep=100)
    with pytest.raises(DataError, match="the corpus for the tokenizer holds no text"):
        prune(old, [""], tmp_path / "out")
    with pytest.raises(ConfigError, match="a sentencepiece model cannot be pruned; convert it to tokenizer.json first"):
        prune(Tokenizer.load(world().folder / "source" / "tokenizer.model"), ["a"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
