"""vocab/matching.py: tokens are the same when their bytes are, whatever the vocabularies look like."""

from __future__ import annotations

import functools
import json
import time

import numpy as np
import pytest
from harness import assets
from vocabularies import write_tokenizer

from megatron_adapt.errors import ConfigError
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.vocab.matching import BYTE, EXACT, NONE, ROLE, SPECIAL, match, token_keys

SP = ["<unk>", "<s>", "</s>", "<0x0A>", "<0x41>", "A", "▁Haus", "ä", "▁▁", "x", "<0xC3>", "<tool>", "▁lit"]
BL = ["<|end|>", "ĠHaus", "Ã¤", "Ċ", "A", "ĠĠ", "Ã", "Haus", "<tool>", "Ġlit", "x▁"]


@pytest.fixture
def sentencepiece(tmp_path):
    special = {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "tool": "<tool>"}
    return Tokenizer.load(write_tokenizer(tmp_path / "sp", SP, "sentencepiece", special, added=("▁lit",)))


@pytest.fixture
def byte_level(tmp_path):
    special = {"bos": "<|end|>", "eos": "<|end|>", "unk": "<|end|>", "tool": "<tool>"}
    return Tokenizer.load(write_tokenizer(tmp_path / "bl", BL, "byte-level", special, added=("x▁",)))


def test_keys(sentencepiece, byte_level):
    keys = token_keys(sentencepiece).keys
    assert keys[:3] == ["<unk>", "<s>", "</s>"] and keys[SP.index("<tool>")] == "<tool>"
    assert keys[3:11] == [b"\n", b"A", b"A", b" Haus", "ä".encode(), b"  ", b"x", b"\xc3"]
    assert keys[SP.index("▁lit")] == "▁lit".encode()  # added tokens are literal text
    assert token_keys(byte_level).keys[1:7] == [b" Haus", "ä".encode(), b"\n", b"A", b"  ", b"\xc3"]
    assert token_keys(byte_level).keys[-1] == "x▁".encode()


def test_kinds_and_words(tmp_path, sentencepiece):
    keys = token_keys(sentencepiece)
    kinds = {token: keys.kind(index) for index, token in enumerate(SP)}
    assert {token for token, kind in kinds.items() if kind == "control"} == {"<unk>", "<s>", "</s>", "<tool>"}
    assert {token for token, kind in kinds.items() if kind == "byte"} == {"<0x0A>", "<0x41>", "<0xC3>"}
    assert [token for index, token in enumerate(SP) if keys.starts_word(index)] == ["▁Haus", "▁▁"]
    path = write_tokenizer(tmp_path / "holes", ["A"], "byte-level", {})
    parsed = json.loads((path / "tokenizer.json").read_text())
    parsed["model"]["vocab"] = {"A": 2}
    (path / "tokenizer.json").write_text(json.dumps(parsed))
    assert [token_keys(Tokenizer.load(path)).kind(index) for index in range(3)] == ["unused", "unused", "normal"]


def test_no_false_matches(tmp_path):
    """Half a character, control characters and look-alikes are other bytes, whatever a decoder makes of them."""
    tokens = ["Ã", "Ãĥ", "ĉ", "Ā", "Ð°", "ï»¿", "âĢĬ"]  # C3; U+00C3; tab; NUL; Cyrillic a; BOM; hair space
    ours = Tokenizer.load(write_tokenizer(tmp_path / "bl", tokens, "byte-level", {}))
    others = ["�", "Ã", "<0xC3>", "a", "\t", "\x00", "", "\ufeff", "▁"]
    theirs = Tokenizer.load(write_tokenizer(tmp_path / "sp", others, "sentencepiece", {}))
    pairs = {tokens[i]: others[j] for i, j in enumerate(match(ours, theirs).source_ids) if j >= 0}
    assert pairs == {"Ã": "<0xC3>", "Ãĥ": "Ã", "ĉ": "\t", "Ā": "\x00", "ï»¿": "\ufeff"}


def test_across_kinds(sentencepiece, byte_level):
    found = match(byte_level, sentencepiece)
    pairs = {BL[i]: SP[j] for i, j in enumerate(found.source_ids) if j >= 0}
    assert pairs == {
        "<|end|>": "<s>", "ĠHaus": "▁Haus", "Ã¤": "ä", "Ċ": "<0x0A>", "A": "A", "ĠĠ": "▁▁", "Ã": "<0xC3>",
        "<tool>": "<tool>",
    }  # fmt: skip
    tiers = dict(zip(BL, found.tiers))
    assert (tiers["<|end|>"], tiers["Ċ"], tiers["ĠHaus"], tiers["<tool>"]) == (ROLE, BYTE, EXACT, SPECIAL)
    assert tiers["Haus"] == NONE and tiers["Ġlit"] == NONE
    assert found.counts() == {"exact": 4, "byte": 2, "role": 1, "special": 1, "total": 8}


def test_back_across_kinds(sentencepiece, byte_level):
    pairs = {SP[i]: BL[j] for i, j in enumerate(match(sentencepiece, byte_level).source_ids) if j >= 0}
    assert pairs["<s>"] == pairs["</s>"] == "<|end|>"
    assert "<unk>" not in pairs  # GPT-2's end of text doubles as unk, which says nothing about its meaning
    assert pairs["<0x41>"] == pairs["A"] == "A" and pairs["<0xC3>"] == "Ã" and pairs["<0x0A>"] == "Ċ"


def test_every_vocabulary_matches_itself(sentencepiece, byte_level):
    for tokenizer in (sentencepiece, byte_level):
        assert match(tokenizer, tokenizer).source_ids.tolist() == list(range(tokenizer.vocab_size))


def test_pieces_win_over_byte_tokens_and_low_ids_over_high(tmp_path):
    source = Tokenizer.load(write_tokenizer(tmp_path / "s", ["<0x41>", "A", "ab", "▁"], "sentencepiece", {}, ("ab",)))
    target = Tokenizer.load(write_tokenizer(tmp_path / "t", ["A", "Ġ"], "byte-level", {}))
    assert match(target, source).source_ids.tolist() == [1, 3]


def test_wordpiece(tmp_path, sentencepiece):
    tokens = ["[UNK]", "Haus", "##x", "##Haus"]
    target = Tokenizer.load(write_tokenizer(tmp_path / "wp", tokens, "wordpiece", {"unk": "[UNK]"}))
    assert match(target, sentencepiece).source_ids.tolist() == [SP.index("<unk>"), SP.index("▁Haus"), SP.index("x"), -1]


def test_unused_ids_match_nothing(tmp_path, byte_level):
    path = write_tokenizer(tmp_path / "holes", ["A", "B"], "byte-level", {})
    parsed = json.loads((path / "tokenizer.json").read_text())
    parsed["model"]["vocab"] = {"A": 0, "ĠHaus": 5}
    (path / "tokenizer.json").write_text(json.dumps(parsed))
    holes = Tokenizer.load(path)
    assert match(holes, byte_level).source_ids.tolist() == [BL.index("A"), -1, -1, -1, -1, BL.index("ĠHaus")]
    assert set(match(byte_level, holes).source_ids) == {-1, 0, 5}


def test_word_end_marks_are_refused(tmp_path, byte_level):
    path = write_tokenizer(tmp_path / "gpt1", ["a</w>"], "byte-level", {})
    parsed = json.loads((path / "tokenizer.json").read_text())
    parsed["model"]["end_of_word_suffix"] = "</w>"
    (path / "tokenizer.json").write_text(json.dumps(parsed))
    with pytest.raises(ConfigError, match=r"gpt1: vocabularies that mark word ends \('</w>'\) cannot be matched"):
        match(byte_level, Tokenizer.load(path))


REAL = {
    # (source, target): matched tokens; the first is the published number for this pair
    ("mistral-7b-v0.1", "de-32k"): 7404,
    ("mistral-7b-v0.1", "ar-32k"): 2369,
    ("mistral-7b-v0.1", "de-bpe-50k"): 8696,
    ("gpt2", "mistral-7b-v0.1"): 21367,
    ("gpt2", "de-32k"): 8141,
    ("de-bpe-50k", "de-32k"): 29861,
}


@pytest.mark.parametrize(("source", "target"), REAL)
def test_real_pairs(source, target):
    (wanted_tokenizer, wanted), (have_tokenizer, have) = real(target), real(source)
    start = time.perf_counter()
    found = match(wanted_tokenizer, have_tokenizer)
    assert time.perf_counter() - start < 5
    assert found.counts()["total"] == REAL[source, target]
    ordinary = np.flatnonzero((found.tiers == EXACT) | (found.tiers == BYTE))
    pairs = [(wanted[i], have[found.source_ids[i]]) for i in ordinary]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    assert all(a == b for a, b in known) and len(known) >= len(pairs) - 13
    missed = {wanted[i] for i in np.flatnonzero(found.tiers == NONE)} & set(have)
    assert missed <= {None}


def test_kinds_of_a_real_pair():
    found = match(real("de-32k")[0], real("mistral-7b-v0.1")[0])
    assert found.counts() == {"exact": 7145, "byte": 256, "role": 3, "special": 0, "total": 7404}
    found = match(real("mistral-7b-v0.1")[0], real("gpt2")[0])
    assert found.counts()["total"] == 21367 and found.counts()["byte"] == 256 - (found.tiers == NONE)[3:259].sum()


@functools.cache
def real(name: str) -> tuple[Tokenizer, list[bytes | None]]:
    tokenizer = Tokenizer.load(assets("tokenizers", name))
    return tokenizer, independent_bytes(tokenizer)


def independent_bytes(tokenizer: Tokenizer) -> list[bytes | None]:
    """Bytes of tokens, with the byte alphabet taken from the tokenizers library. None for special tokens and for the 13
    bytes that no UTF-8 text contains, which the library therefore never shows."""
    from tokenizers.pre_tokenizers import ByteLevel

    special = {entry["content"] for entry in tokenizer.backend_json["added_tokens"] if entry["special"]}
    alphabet = None
    if tokenizer.backend_json["model"].get("byte_fallback") is not True:
        alphabet = {}
        for code in (*range(0x800), *range(0x800, 0xD800, 0x400), 0xE000, 0xF000, *range(0x10000, 0x110000, 0x8000)):
            spelled = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(chr(code))[0][0]
            alphabet.update(zip(spelled, chr(code).encode()))
    result: list[bytes | None] = []
    for token in tokenizer.tokens():
        if token is None or token in special:
            result.append(None)
        elif alphabet is not None:
            result.append(bytes(alphabet[c] for c in token) if all(c in alphabet for c in token) else None)
        elif len(token) == 6 and token.startswith("<0x"):
            result.append(bytes.fromhex(token[3:5]))
        else:
            result.append(b" ".join(part.encode() for part in token.split("▁")))
    return result


def test_large_vocabularies_take_about_a_second(tmp_path):
    tokens = [f"w{i:x}" for i in range(130_000)]
    source = Tokenizer.load(write_tokenizer(tmp_path / "s", tokens, "byte-level", {}))
    target = Tokenizer.load(write_tokenizer(tmp_path / "t", tokens[::4], "sentencepiece", {}))
    start = time.perf_counter()
    assert match(target, source).source_ids.tolist() == list(range(0, 130_000, 4))
    assert time.perf_counter() - start < 3
