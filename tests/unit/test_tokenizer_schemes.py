"""Options of vocab/train.py: digits, spaces, reserved tokens, special tokens and chat template of another tokenizer."""

from __future__ import annotations

import json

import pytest
from vocabularies import write_tokenizer

from megatron_adapt.errors import ConfigError
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.vocab.train import KINDS, Scheme, train_tokenizer

TEXTS = ["Im Jahr 2024 waren es 1234567 Häuser,    davon 2024 neue.\n    Zeile 1999\n\n    Noch eine: 1999 und 2024."] * 60
ODD = [*TEXTS[:1], " 12  34\t5678\r\n", "٣٤٥ Straße   x", "</s>2024<s>", ""]


def digit_runs(tokenizer):
    return max(sum(character.isdigit() for character in token or "") for token in tokenizer.tokens() if not (token or "").startswith("<"))


def space_runs(tokenizer):
    return max((token or "").count("▁") + (token or "").count("Ġ") for token in tokenizer.tokens())


@pytest.mark.parametrize(("kind", "digits", "longest"), [
    ("bpe", "runs", 7), ("bpe", "three", 3), ("bpe", "single", 1), ("sentencepiece-bpe", "runs", 4), ("sentencepiece-bpe", "single", 1),
    ("unigram", "single", 1),
])  # fmt: skip
@pytest.mark.parametrize("whitespace", ["runs", "single"])
def test_digits_and_spaces(tmp_path, kind, digits, longest, whitespace):
    size = 300 if kind != "unigram" else 295
    report = train_tokenizer(TEXTS, size, tmp_path / "t", kind, Scheme(digits, whitespace))
    tokenizer = Tokenizer.load(tmp_path / "t")
    assert digit_runs(tokenizer) == 1 if longest == 1 else 1 < digit_runs(tokenizer) <= longest
    if whitespace == "single":
        assert space_runs(tokenizer) == 1
    elif kind != "unigram":  # so small a one has no room for them
        assert space_runs(tokenizer) > 1
    assert report["round_trip"] == {"documents": len(TEXTS), "changed": 0} and report["reserved"] == 0
    assert all(tokenizer.decode(ids) == text for text, ids in zip(ODD, tokenizer.encode(ODD)))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_reserved_tokens_reach_a_multiple(tmp_path, kind):
    from transformers import AutoTokenizer

    report = train_tokenizer(TEXTS, 300, tmp_path / "t", kind, Scheme(multiple=64))
    tokenizer = Tokenizer.load(tmp_path / "t")
    assert (report["vocab_size"], report["reserved"], tokenizer.vocab_size) == (320, 20, 320)
    reserved = [token for token in tokenizer.tokens() if token.startswith("<|reserved_")]
    assert reserved == [f"<|reserved_{number}|>" for number in range(20)]
    text = "a <|reserved_3|> b"
    assert tokenizer.decode(tokenizer.encode([text])[0]) == text  # written out, it is text
    assert not set(tokenizer.encode([text])[0].tolist()) & {tokenizer.tokens().index(token) for token in reserved}
    theirs = AutoTokenizer.from_pretrained(tmp_path / "t")
    assert len(theirs) == 320 and theirs("<|reserved_3|>")["input_ids"] == [tokenizer.tokens().index("<|reserved_3|>")]
    if kind != "bpe":
        model = Tokenizer.load(tmp_path / "t" / "tokenizer.model")
        assert model.tokens() == tokenizer.tokens()
        assert [ids.tolist() for ids in model.encode([*ODD, text])] == [ids.tolist() for ids in tokenizer.encode([*ODD, text])]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_special_tokens_and_template_of_another(tmp_path, kind):
    tokens = ["x", "<|im_start|>", "<|im_end|>", "y", "<|bos|>", "[PAD]"]
    special = {"bos": "<|bos|>", "eos": "<|im_end|>", "pad": "[PAD]", "start": "<|im_start|>"}
    like = write_tokenizer(tmp_path / "like", tokens, "byte-level", special)
    config = json.loads((like / "tokenizer_config.json").read_text())
    (like / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": "{{ '<|im_start|>' }}"}))
    (like / "chat_template.jinja").write_text("{{ '<|im_start|>ä' }}")
    train_tokenizer(TEXTS, 303, tmp_path / "t", kind, Scheme(like=like, multiple=8))
    tokenizer = Tokenizer.load(tmp_path / "t")
    names = tokenizer.tokens()
    first = [] if kind == "bpe" else ["<unk>"]
    assert names[: 4 + len(first)] == [*first, "<|im_start|>", "<|im_end|>", "<|bos|>", "[PAD]"] and tokenizer.vocab_size == 304
    roles = [names[index] for index in (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)]
    assert roles == ["<|bos|>", "<|im_end|>", "[PAD]"]
    assert (tmp_path / "t" / "chat_template.jinja").read_text() == "{{ '<|im_start|>ä' }}"
    assert json.loads((tmp_path / "t" / "tokenizer_config.json").read_text())["chat_template"] == "{{ '<|im_start|>' }}"
    text = "<|im_start|>user [PAD]"
    assert tokenizer.decode(tokenizer.encode([text])[0]) == text and min(tokenizer.encode([text])[0]) >= 4 + len(first)
    assert tokenizer.encode([text], parse_special_tokens=True)[0][0] == names.index("<|im_start|>")


def test_messages(tmp_path):
    bare = write_tokenizer(tmp_path / "bare", ["a"], "byte-level", {})
    with pytest.raises(ConfigError, match="bare has no special tokens that could be taken over"):
        train_tokenizer(TEXTS, 300, tmp_path / "t", "bpe", Scheme(like=bare))
    shared = write_tokenizer(tmp_path / "shared", ["<|end|>"], "byte-level", {"bos": "<|end|>", "eos": "<|end|>"})
    with pytest.raises(ConfigError, match="shared has one token for several of BOS, EOS and PAD, which sentencepiece cannot have; train bpe"):
        train_tokenizer(TEXTS, 300, tmp_path / "t", "unigram", Scheme(like=shared))
    with pytest.raises(ConfigError, match="digits 'three' belongs to bpe, not to unigram"):
        train_tokenizer(TEXTS, 300, tmp_path / "t", "unigram", Scheme(digits="three"))
    train_tokenizer(TEXTS, 300, tmp_path / "t", "bpe", Scheme(like=shared))
    tokenizer = Tokenizer.load(tmp_path / "t")
    assert tokenizer.bos_id == tokenizer.eos_id == 0
