"""vocab/extension.py and continued_bpe.py: old ids stay, every new token is really made, ids that nothing uses are found."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from harness import assets
from hypothesis import given, settings
from hypothesis import strategies as st
from method_cases import world
from vocabularies import write_tokenizer

from megatron_adapt.errors import ConfigError, DataError
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.vocab.continued_bpe import learn
from megatron_adapt.vocab.derived import derivation
from megatron_adapt.vocab.extension import extend
from megatron_adapt.vocab.train import train_tokenizer


def edit(path, change):
    parsed = json.loads((path / "tokenizer.json").read_text())
    change(parsed)
    (path / "tokenizer.json").write_text(json.dumps(parsed))
    return path


@pytest.mark.parametrize("source", ["source", "target"])  # sentencepiece and byte-level
def test_every_new_token_is_made_and_no_old_one_changes(tmp_path, source):
    here = world()
    old, texts = getattr(here, source), [*here.german, "Ungewöhnliches Œuvre: 2024, 2024!\n\n  »Œuvre«\t日本 日本"] * 2
    report = extend(old, iter(texts), 200, tmp_path / "new")
    new = Tokenizer.load(tmp_path / "new")
    assert new.tokens()[: old.vocab_size] == old.tokens() and new.vocab_size == old.vocab_size + 200 == report["vocab_size"]
    assert report["new_tokens"] == report["reachable"] == 200 and report["unreachable_examples"] == [] and report["reused"] == {}
    frequency = Counter(index for ids in new.encode(texts) for index in ids.tolist())
    added = range(old.vocab_size, new.vocab_size)
    assert report["seen"] == sum(frequency[index] > 0 for index in added) > 150
    assert report["most_frequent"][0] == [new.tokens()[index := max(added, key=lambda i: (frequency[i], -i))], frequency[index]]
    size = sum(len(text.encode()) for text in texts)
    before, after = (sum(map(len, tokenizer.encode(texts))) for tokenizer in (old, new))
    assert report["bytes_per_token"] == [round(size / before, 4), round(size / after, 4)] and after < before
    assert (report["documents"], report["bytes"]) == (len(texts), size)
    assert report["round_trip"] == {"documents": len(texts), "changed": 0}
    assert all(new.decode(ids) == text for text, ids in zip(texts, new.encode(texts)))
    assert (new.bos_id, new.eos_id, new.unk_id) == (old.bos_id, old.eos_id, old.unk_id)
    assert derivation(tmp_path / "new", old) == "extended" and derivation(tmp_path / "new", new) is None
    if source == "source":  # digits and signs are kept apart from letters, as sentencepiece does
        made = [token.lstrip("▁") for token in new.tokens()[old.vocab_size :]]
        assert all(token.isalpha() or not any(map(str.isalnum, token)) or token.isdigit() for token in made)
        assert report["new_characters"] == sum(len(token) == 1 for token in new.tokens()[old.vocab_size :]) > 0


def test_transformers_cuts_alike(tmp_path):
    from transformers import AutoTokenizer

    here = world()
    for old in (here.source, here.target):
        extend(old, here.german, 100, tmp_path / old.path.name)
        theirs, ours = AutoTokenizer.from_pretrained(tmp_path / old.path.name), Tokenizer.load(tmp_path / old.path.name)
        assert len(theirs) == ours.vocab_size
        assert theirs(here.german, add_special_tokens=False)["input_ids"] == [ids.tolist() for ids in ours.encode(here.german)]


def test_it_is_bpe_continued():
    """Against counting all pairs anew after every merge."""
    rng = random.Random(3)
    words = Counter("".join(rng.choices("abcd", k=rng.randint(1, 9))) for _ in range(120))
    known = {"a", "b", "c", "d", "ab", "aba"}

    def cut(word):
        parts = list(word)
        for left, right in (("a", "b"), ("ab", "a")):
            parts = joined(parts, left, right)
        return parts

    def joined(parts, left, right):
        new, at = [], 0
        while at < len(parts):
            step = 2 if parts[at : at + 2] == [left, right] else 1
            new.append("".join(parts[at : at + step]))
            at += step
        return new

    parts, merges, tokens = {word: cut(word) for word in words}, [], set(known)
    for _ in range(40):
        pairs = Counter()
        for word, number in words.items():
            for pair in zip(parts[word], parts[word][1:]):
                pairs[pair] += number
        allowed = [(-number, *pair) for pair, number in pairs.items() if number >= 3 and "".join(pair) not in tokens]
        if not allowed:
            break
        _, left, right = min(allowed)
        merges.append((left, right))
        tokens.add(left + right)
        parts = {word: joined(cut, left, right) for word, cut in parts.items()}
    found = learn(words, known, cut, 40, 3, shaped=False)
    assert found.merges == merges and len(merges) > 20 and found.words == parts and found.characters == []
    assert found.tokens_before == sum(len(cut(word)) * number for word, number in words.items())


def test_digits_are_joined_only_where_the_tokenizer_joins_some():
    words = Counter({"▁2024": 9, "▁▁2024": 3, "▁Jahr2024": 5})
    known = {*"▁2024Jahr", "▁▁"}
    cut = list
    found = learn(words, known, cut, 50, 2, shaped=True)
    assert {"Ja", "▁Jahr"} <= set(found.tokens) and not any(character.isdigit() for token in found.tokens for character in token)
    found = learn(words, {*known, "99", "▁9"}, cut, 50, 2, shaped=True)
    assert "2024" in found.tokens or "▁2024" in found.tokens
    assert not any("r2" in token for token in found.tokens)


def test_line_breaks_and_rare_characters_stay_bytes():
    words = Counter({"ab\nab": 1000, "ab日": 900, "xé": 1})
    found = learn(words, {*"abx"}, list, 5, 2, shaped=True)
    assert found.characters == ["日"] and found.merges == [("a", "b"), ("ab", "日")]
    assert found.words["ab\nab"] == ["ab", None, "ab"] and found.words["xé"] == ["x", None]
    assert found.tokens_before == 1000 * 5 + 900 * 5 + 3


@settings(max_examples=8, deadline=None)
@given(st.lists(st.text(alphabet="abä ▁\n1日", min_size=1, max_size=12), min_size=1, max_size=12))
def test_any_text_comes_back(tmp_path_factory, texts):
    here = world()
    folder = tmp_path_factory.mktemp("any")
    for old in (here.source, here.target):
        try:
            extend(old, texts * 3, 1, folder / old.path.name)
        except DataError:  # nothing to learn
            continue
        new = Tokenizer.load(folder / old.path.name)
        before, after = ([tokenizer.decode(ids) for ids in tokenizer.encode(texts)] for tokenizer in (old, new))
        assert before == after


RESERVED = ["<|end|>", "<|reserved_special_token_0|>", "<unused7>", "<|reserved_special_token_1|>", "<|tool|>"]


def reusable(path):
    """Ids 0-4 special, 6 unused (a hole), "xyz" unreachable because "yz" is made first and nothing joins x to it."""
    letters = [*"abcdefghijklmnopqrstuvwxyz", "Ġ"]
    tokens = [*RESERVED, "hole", *letters, "yz", "xyz", "xy"]
    special = {"eos": RESERVED[0], **{name: name for name in RESERVED[1:]}}
    write_tokenizer(path, tokens, "byte-level", special)
    ids = {token: index for index, token in enumerate(tokens)}

    def change(parsed):
        del parsed["model"]["vocab"]["hole"]
        parsed["model"]["merges"] = [["y", "z"], ["x", "y"], ["xy", "z"]]

    edit(path, change)
    (path / "chat_template.jinja").write_text("{{ '<|reserved_special_token_1|>' }}")
    return Tokenizer.load(path), ids


def test_ids_that_nothing_uses_come_first(tmp_path):
    old, ids = reusable(tmp_path / "old")
    texts = ["abab cdcd efef ghgh ijij", "abab cdcd efef ghgh ijij wxyz"] * 3
    report = extend(old, texts, 8, tmp_path / "new", reuse=True)
    new = Tokenizer.load(tmp_path / "new")
    assert report["reused"] == {"reserved": 2, "no token": 1, "unreachable": 1}
    assert report["reused_tokens"] == ["<|reserved_special_token_0|>", "<unused7>", "xyz"]
    assert report["vocab_size"] == new.vocab_size == old.vocab_size + 4 and report["reachable"] == 8
    changed = [index for index, (one, other) in enumerate(zip(old.tokens(), new.tokens())) if one != other]
    assert changed == [1, 2, 5, ids["xyz"]]
    assert new.eos_id == 0 and None not in new.tokens() and new.encode(["wxyz"])[0].tolist()[:1] == [ids["w"]]
    assert {entry["content"] for entry in new.backend_json["added_tokens"]} == {"<|end|>", "<|reserved_special_token_1|>", "<|tool|>"}
    untouched = extend(old, texts, 3, tmp_path / "other")
    assert untouched["reused"] == {} and untouched["vocab_size"] == old.vocab_size + 3


def test_added_tokens_outside_the_model_keep_their_ids(tmp_path):
    """The library gives such tokens the next free number when it reads a file; with more merges that is another one."""
    path = tmp_path / "old"
    train_tokenizer(world().german, 400, path, "bpe")
    entry = {"content": "<|im_start|>", "special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    edit(path, lambda parsed: parsed["added_tokens"].append({"id": 400, **entry}))
    old = Tokenizer.load(path)
    assert old.tokens()[400] == "<|im_start|>" and "<|im_start|>" not in old.backend_json["model"]["vocab"]
    extend(old, world().german, 30, tmp_path / "new")
    new = Tokenizer.load(tmp_path / "new")
    assert new.tokens()[400] == "<|im_start|>" and new.vocab_size == 431
    assert 400 not in new.encode(["<|im_start|>"])[0] and 400 in new.encode(["<|im_start|>"], parse_special_tokens=True)[0]


def test_what_cannot_be_extended(tmp_path):
    here = world()
    with pytest.raises(ConfigError, match="wp: a WordPiece vocabulary cannot be extended; BPE alone can: it cuts off the longest piece first"):
        extend(Tokenizer.load(write_tokenizer(tmp_path / "wp", ["[UNK]"], "wordpiece", {})), ["a"], 1, tmp_path / "out")
    unigram = write_tokenizer(tmp_path / "ug", ["a"], "byte-level", {})
    edit(unigram, lambda parsed: parsed.update(model={"type": "Unigram", "unk_id": 0, "vocab": [["a", -1.0]]}))
    with pytest.raises(ConfigError, match="ug: a Unigram vocabulary cannot be extended; BPE alone can: its pieces compete by the probab"):
        extend(Tokenizer.load(unigram), ["a"], 1, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"tokenizer\.model: a sentencepiece model cannot be extended; convert it"):
        extend(Tokenizer.load(here.folder / "source" / "tokenizer.model"), ["a"], 1, tmp_path / "out")
    marked = write_tokenizer(tmp_path / "marked", ["a"], "byte-level", {})
    edit(marked, lambda parsed: parsed["model"].update(continuing_subword_prefix="##"))
    with pytest.raises(ConfigError, match="a BPE vocabulary with continuing_subword_prefix '##' cannot be extended"):
        extend(Tokenizer.load(marked), ["a"], 1, tmp_path / "out")
    with pytest.raises(DataError, match=r"corpus too small: it yields (\d+) new tokens that come at least 2 times where 90000"):
        extend(here.target, here.german, 90_000, tmp_path / "out")
    with pytest.raises(DataError, match="the corpus for the tokenizer holds no text"):
        extend(here.target, ["", ""], 5, tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_text("precious")
    with pytest.raises(ConfigError, match="out already exists; remove it or name another directory"):
        extend(here.target, here.german, 5, tmp_path / "out")


@pytest.mark.parametrize("name", ["mistral-7b-v0.1", "gpt2"])
def test_real_tokenizers(tmp_path, name):
    old = Tokenizer.load(assets("tokenizers", name))
    texts = world().german * 2
    report = extend(old, texts, 40, tmp_path / "new")
    assert report["reachable"] == 40 and report["bytes_per_token"][1] > report["bytes_per_token"][0]
    assert report["round_trip"]["changed"] == 0
    count = sum(map(len, Tokenizer.load(tmp_path / "new").encode(texts)))
    assert report["bytes_per_token"][1] == round(report["bytes"] / count, 4) and report["seen"] > 30
