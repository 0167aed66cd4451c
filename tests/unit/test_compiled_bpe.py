"""hf/compiled_bpe.py and csrc/bpe.cpp: the ids of the tokenizers library for every text, or a refusal that says why."""

from __future__ import annotations

import copy
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from harness import assets
from hypothesis import given, settings, strategies as st

from megatron_adapt.data.encoder import choose
from megatron_adapt.errors import ConfigError
from megatron_adapt.hf.compiled_bpe import CompiledBPE
from megatron_adapt.hf.flat_encoding import Unsupported
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.hf.tokenizer_definition import Definition

REAL = [
    "tokenizers/mistral-7b-v0.1", "tokenizers/de-32k", "tokenizers/ar-32k", "models/stories260K",  # sentencepiece's kind
    "tokenizers/gpt2", "tokenizers/de-bpe-50k", "models/en-novels-5m",  # GPT-2's
]  # fmt: skip
PIECES = [
    " ", "  ", "▁", "▁▁", "\n", "\r\n", "\t", "\0", "a", "e", "der", "die", "und", "the", "Haus", "ü", "é", "e\u0301", "ß", "مرحبا", "日本", "😀",
    "👨\u200d👩", "\u00a0", "\u3000", "\ufb01", "1", "23", "3.14", ",", ".", "...", "<", "<s>", "</s>", "<0x0A>", "<unk>", "'s", "'ll", "'", "'S", "\u2028", "\x85", "\x1c", "²", "Ⅷ", "\u2580", "\u2582", "\u0481",
]  # fmt: skip
TEXTS = st.one_of(st.lists(st.sampled_from(PIECES), max_size=30).map("".join), st.text(max_size=30))
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_PREPEND = {"type": "Prepend", "prepend": "▁"}
STYLES = {
    "prepend": {"normalizer": {"type": "Sequence", "normalizers": [_PREPEND, _REPLACE]}},
    "replace": {"normalizer": _REPLACE},
    **{
        scheme: {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}}
        for scheme in ("always", "first", "never")
    },
}


def flat(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    data = [text.encode() for text in texts]
    return np.frombuffer(b"".join(data), np.uint8), np.cumsum([0, *map(len, data)], dtype=np.int64)


def check(tokenizer: Tokenizer, found: CompiledBPE, texts: list[str]) -> None:
    ids, starts = found.encode(*flat(texts), parallel=False)
    expected = tokenizer.encode(texts)
    for number, right in enumerate(expected):
        assert ids[starts[number] : starts[number + 1]].tolist() == right.tolist(), texts[number]
    assert len(ids) == starts[-1] == sum(map(len, expected))


@pytest.fixture(scope="module", params=REAL)
def real(request) -> tuple[Tokenizer, CompiledBPE]:
    tokenizer = Tokenizer.load(assets(request.param))
    return tokenizer, CompiledBPE(tokenizer)


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(TEXTS, min_size=1, max_size=8))
def test_real_tokenizers(real, texts):
    check(*real, texts)


@pytest.mark.parametrize("name", ["gpt2", "de-bpe-50k"])
def test_words_at_the_edges_of_character_classes(name):
    """Wherever letters, digits and spaces of Unicode begin and end, a text is cut where the library cuts it."""
    tokenizer = Tokenizer.load(assets("tokenizers", name))
    header = (Path(__file__).parents[2] / "csrc" / "unicode_classes.h").read_text()
    edges = {int(a, 16) + step for pair in re.findall(r"{0x(\w+), 0x(\w+)}", header) for a in pair for step in (-1, 0, 1)}
    points = sorted(point for point in edges if not 0xD7FF < point < 0xE000)
    assert len(points) > 1500
    texts = ["".join(f"a{chr(p)}1{chr(p)} {chr(p)}'s" for p in points[begin : begin + 50]) for begin in range(0, len(points), 50)]
    check(tokenizer, CompiledBPE(tokenizer), texts)


@pytest.mark.parametrize("name", ["gpt2", "de-bpe-50k", "de-32k"])
def test_cuts_at_the_edges_of_blocks(name):
    """Text is cut 64 bytes at a time: what stands across the edge of two blocks is cut as anywhere else."""
    tokenizer = Tokenizer.load(assets("tokenizers", name))
    ends = ["'ll be", "'s", "'sx", "''s", " 's", "\n's", "'d've", "'t't", "   x", "  ", " \n x", "\u00a0x", "é a", "a\u3000 b", "▁x", "x▁▁", "a1", ".a", "\u2580a"]
    texts = [("ab c" * 40)[:length] + end for length in (*range(58, 67), *range(124, 130), 0, 1) for end in ends]
    check(tokenizer, CompiledBPE(tokenizer), texts)


def test_a_space_before_words(tmp_path):
    parsed = copy.deepcopy(Tokenizer.load(assets("tokenizers", "gpt2")).backend_json)
    parsed["pre_tokenizer"]["add_prefix_space"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(parsed))
    tokenizer = Tokenizer.load(tmp_path)
    texts = ["", "a", " a", "\n\na", "'s is", "\u00a0b", "\u00e9", "\x80", "x" * 50, "  two  words " * 30]
    check(tokenizer, CompiledBPE(tokenizer), texts)


def write(folder: Path, pairs: list[tuple[str, str]], **changes: object) -> Path:
    """A tokenizer.json of the letters a to d, the space, and what the pairs become."""
    tokens = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcd.", "ü"]
    merges = []
    for left, right in pairs:
        if left in tokens and right in tokens and [left, right] not in merges:
            merges.append([left, right])
            tokens += [left + right] * (left + right not in tokens)
    model = {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "merges": merges}
    special = {"id": 1, "content": "</s>", "special": True, **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)}
    parsed = {
        "version": "1.0", "added_tokens": [special], "normalizer": None, "pre_tokenizer": None, "post_processor": None,
        "decoder": None, "model": {**model, "vocab": {token: number for number, token in enumerate(tokens)}}, **changes,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(parsed))
    return folder


@pytest.mark.parametrize("style", STYLES)
def test_random_merges(tmp_path, style):
    """Merges of every kind, those across spaces among them: it may refuse nothing here, cuts just become fewer."""
    chance = random.Random(style)
    for case in range(12):
        known, pairs = ["▁", *"abcd.", "ü"], []
        for _ in range(chance.choice([1, 5, 40, 200])):
            pairs.append((chance.choice(known), chance.choice(known)))
            known.append("".join(pairs[-1]))
        tokenizer = Tokenizer.load(write(tmp_path / f"{case}", pairs, **STYLES[style]))
        found = CompiledBPE(tokenizer)
        letters = [" ", " ", "▁", "\n", "ü", "x", "😀", *"aabbccdd."]
        texts = ["".join(chance.choices(letters, k=chance.choice([0, 1, 3, 20, 90]))) for _ in range(40)]
        texts += ["".join(chance.choices("abcd", k=length)) for length in (15, 16, 17, 63, 64, 65, 66, 500)]
        check(tokenizer, found, texts)
        check(tokenizer, found, texts)  # remembered


def test_a_long_text_without_spaces():
    tokenizer = Tokenizer.load(assets("tokenizers", "de-32k"))
    chance = random.Random(0)
    text = "".join(chance.choices("enrstaiduhlgcm", k=300_000))
    check(tokenizer, CompiledBPE(tokenizer), [text, "a" * 100_000, " " * 100_000])


def test_more_pieces_than_it_remembers():
    """What is new pushes out what came once, and of pieces with many ids all are forgotten when these need 16 MB."""
    tokenizer = Tokenizer.load(assets("models", "stories260K"))
    chance = random.Random(0)
    texts = [" ".join(f"{chance.getrandbits(64):x}zz" for _ in range(1000)) for _ in range(300)]
    found = CompiledBPE(tokenizer)
    first = found.encode(*flat(texts), parallel=False)
    again = found.encode(*flat(texts), parallel=False)
    fresh = CompiledBPE(tokenizer).encode(*flat(texts[-2:]), parallel=False)[0]
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[0][-len(fresh) :], fresh)
    check(tokenizer, found, texts[::60])


def change(parsed: dict, path: str, value: object) -> dict:
    changed = copy.deepcopy(parsed)
    *folders, key = path.split(".")
    place = changed
    for name in folders:
        place = place[name]
    place[key] = value
    return changed


def definition(parsed: dict) -> Definition:
    return Definition(Path("tokenizer.json"), json.dumps(parsed).encode())


PLAIN = {"id": 2, "content": "<0x00>", **dict.fromkeys(("special", "single_word", "lstrip", "rstrip", "normalized"), False)}


@pytest.mark.parametrize(
    "path,value,message",
    [
        ("added_tokens", [PLAIN], "it finds added tokens in text"),
        ("normalizer", {"type": "NFKC"}, "it normalizes or cuts text otherwise"),
        ("pre_tokenizer", {"type": "Metaspace", "replacement": "▁", "split": True}, "it normalizes or cuts text otherwise"),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": False}, "it has byte_fallback"),
        ("pre_tokenizer", {"type": "ByteLevel", "use_regex": False}, "it normalizes or cuts text otherwise"),
        ("model.byte_fallback", False, "it has no tokens for single bytes"),
        ("model.ignore_merges", True, "it has ignore_merges"),
        ("model.dropout", 0.1, "it has dropout"),
        ("model.continuing_subword_prefix", "##", "it has continuing_subword_prefix"),
        ("model.end_of_word_suffix", "</w>", "it has end_of_word_suffix"),
        ("model.merges", [["a", "b"], ["a", "nowhere"]], "a merge has a token that the vocabulary lacks"),
        ("model.merges", [["a", "b"], ["a", "b"]], "a merge is there twice"),
        ("model.merges", [], "it is no byte pair encoding"),
        ("model.type", "Unigram", "it is no byte pair encoding"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, path, value, message):
    tokenizer = Tokenizer.load(write(tmp_path, [("a", "b")], **STYLES["prepend"]))
    CompiledBPE(tokenizer)
    parsed = change(tokenizer.backend_json, "normalizer", None) if path == "pre_tokenizer" else tokenizer.backend_json
    tokenizer.definition = definition(change(parsed, path, value))
    with pytest.raises(Unsupported, match=message):
        CompiledBPE(tokenizer)
    with pytest.raises(ConfigError, match=f"compiled cannot be used with the tokenizer {tmp_path}: {message}"):
        choose(tokenizer, "compiled", 1 << 30, False, True, False)


def test_vocabularies_that_are_refused(tmp_path):
    def without(token: str) -> Tokenizer:
        tokenizer = Tokenizer.load(write(tmp_path, [("a", "b")], **STYLES["prepend"]))
        parsed = copy.deepcopy(tokenizer.backend_json)
        parsed["model"]["vocab"].pop(token)
        tokenizer.definition = definition(parsed)
        return tokenizer

    with pytest.raises(Unsupported, match="no token <0x41>"):
        CompiledBPE(without("<0x41>"))
    with pytest.raises(Unsupported, match=r"no token U\+2581"):
        CompiledBPE(without("▁"))
    words = copy.deepcopy(Tokenizer.load(assets("tokenizers", "gpt2")))
    parsed = copy.deepcopy(words.backend_json)
    parsed["model"]["vocab"]["other"] = parsed["model"]["vocab"].pop("ÿ")
    words.definition = definition(parsed)
    with pytest.raises(Unsupported, match="no token for some byte"):
        CompiledBPE(words)
    with pytest.raises(Unsupported, match="bytes are merged"):
        CompiledBPE(Tokenizer.load(write(tmp_path, [("<0x41>", "a")], **STYLES["prepend"])))
    with pytest.raises(Unsupported, match="it does not look for special tokens in text"):
        CompiledBPE(Tokenizer.load(write(tmp_path, [("a", "b")], **STYLES["prepend"])), parse_special_tokens=True)
    with pytest.raises(Unsupported, match="it is not a tokenizer.json"):
        CompiledBPE(Tokenizer.load(assets("tokenizers", "de-32k", "tokenizer.model")))


def test_which_is_chosen():
    for name, backend in (("de-32k", "compiled"), ("mistral-7b-v0.1", "compiled"), ("gpt2", "compiled"), ("de-bpe-50k", "compiled")):
        tokenizer = Tokenizer.load(assets("tokenizers", name))
        assert choose(tokenizer, None, 1 << 30, False, True, False).backend == backend
    for name in ("de-32k", "gpt2"):  # special tokens are looked for in text
        assert choose(Tokenizer.load(assets("tokenizers", name)), None, 1 << 30, False, True, True).backend == "gigatoken"


def test_arrays_that_do_not_fit():
    found = CompiledBPE(Tokenizer.load(assets("models", "stories260K")))
    with pytest.raises(ValueError, match="offsets must ascend within the array"):
        found.encode(np.zeros(3, np.uint8), np.array([0, 4]), parallel=False)
    broken = np.frombuffer(b"\xff\xe2\x96 a\xf0\x9f", np.uint8)  # no UTF-8: its bytes, and no crash
    assert len(found.encode(broken, np.array([0, 1, len(broken)]), parallel=False)[0])
