"""hf/tiktoken.py: ranks become a tokenizer that cuts like the one they were taken from."""

from __future__ import annotations

import base64

import pytest
from harness import assets
from method_cases import world

from megatron_adapt.errors import ConfigError, DataError
from megatron_adapt.hf.tiktoken import read_ranks
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.vocab.matching import match, token_keys


def write(path, tokens):
    path.write_text("".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)))
    return path


def ordinary(tokenizer):
    return [key for key in token_keys(tokenizer).keys if isinstance(key, bytes)]


def test_merges_follow_from_ranks(tmp_path):
    original = world().target  # two special tokens, then bytes and merges in their order, words cut as GPT-2's
    ranked = Tokenizer.load(write(tmp_path / "r50k_base.tiktoken", ordinary(original)))
    assert ranked.vocab_size == original.vocab_size - 2 and ranked.bos_id is None and ranked.library == "tokenizers"
    texts = [*world().german, "It's 2024!  ёж 日本\n\t x"]
    assert [ids.tolist() for ids in ranked.encode(texts)] == [(ids - 2).tolist() for ids in original.encode(texts)]
    assert all(ranked.decode(ids) == text for text, ids in zip(texts, ranked.encode(texts)))
    assert match(ranked, original).source_ids.tolist() == list(range(2, original.vocab_size))


def test_gpt2(tmp_path):
    original = Tokenizer.load(assets("tokenizers", "gpt2"))
    ranked = Tokenizer.load(write(tmp_path / "gpt2.tiktoken", ordinary(original)))
    texts = [*world().german[:40], "def f(x):\n    return x  # 12345 don't"]
    assert [ids.tolist() for ids in ranked.encode(texts)] == [ids.tolist() for ids in original.encode(texts)]
    assert match(ranked, original).counts()["total"] == 50_256


def test_digits_of_llama_3(tmp_path):
    """Its file is called tokenizer.model like sentencepiece's, and is told apart by what is in it."""
    folder = tmp_path / "llama"
    folder.mkdir()
    write(folder / "tokenizer.model", [*(bytes([byte]) for byte in range(256)), b"12", b"34", b"1234"])
    tokenizer = Tokenizer.load(folder)
    assert [tokenizer.decode([index]) for index in tokenizer.encode(["123412"])[0]] == ["12", "3", "4", "12"]


def test_messages(tmp_path):
    whole = [bytes([byte]) for byte in range(256)]
    with pytest.raises(ConfigError, match=r"mine\.tiktoken: a file of tiktoken does not say how words are cut, .*r50k_base"):
        Tokenizer.load(write(tmp_path / "mine.tiktoken", whole))
    with pytest.raises(DataError, match=r"cl100k_base\.tiktoken: 1 single bytes have no token, 0xff first"):
        Tokenizer.load(write(tmp_path / "cl100k_base.tiktoken", whole[:-1]))
    path = write(tmp_path / "qwen.tiktoken", whole)
    path.write_text(path.read_text() + "QQ== 300\n")
    with pytest.raises(DataError, match=r"qwen\.tiktoken:257: the token or the rank 300 comes twice"):
        read_ranks(path)
    path.write_text("QQ== 0\n\n!\n")
    with pytest.raises(DataError, match=r"qwen\.tiktoken:3: expected the base64 of a token and its rank"):
        Tokenizer.load(path)
