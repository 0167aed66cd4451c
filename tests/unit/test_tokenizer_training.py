"""vocab/train.py: sizes, round trips, equality of the two files, determinism, and every message."""

from __future__ import annotations

import gzip
import json
import random

import pytest
from harness import assets
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_adapt.errors import ConfigError, DataError
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.vocab.train import KINDS, train_tokenizer

ODD = [
    "", "Haus", " Haus", "  zwei  Wörter ", "Zeile\n\n  Zeile\tTab\r\n", "e\u0301 é 😀 日本 \x01", "a</s>b <s><unk>",
    "<0x0A> <0xZZ> <<s>>", "x <s>", "\n",
]  # fmt: skip


def corpus(documents: int = 60) -> list[str]:
    """Pseudo-German text, always the same."""
    rng = random.Random(5)
    stems = ["haus", "baum", "wind", "straße", "fluß", "größe", "müh", "acker", "licht", "schiff", "korn", "brück"]
    ends = ["", "e", "en", "er", "es", "lich", "ung", "chen"]
    words = [stem + end for stem in stems for end in ends]
    return [
        "\n\n".join(" ".join(rng.choices(words, k=rng.randint(5, 30))).capitalize() + "." for _ in range(4))
        for _ in range(documents)
    ]


@pytest.fixture(scope="module", params=sorted(KINDS))
def trained(request, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained") / "tokenizer"
    return request.param, output, train_tokenizer(iter(corpus()), 400, output, request.param)


def test_directory_and_statistics(trained) -> None:
    kind, output, stats = trained
    expected = ["tokenizer.json", "tokenizer_config.json"] + (["tokenizer.model"] if kind != "bpe" else [])
    assert sorted(file.name for file in output.iterdir()) == sorted(expected)
    assert [file.name for file in output.parent.iterdir()] == ["tokenizer"]  # no temporary directory is left
    tokenizer = Tokenizer.load(output)
    assert tokenizer.vocab_size == 400 == stats["vocab_size"]
    assert None not in tokenizer.tokens() and len(set(tokenizer.tokens())) == 400
    tokens = tokenizer.tokens()
    assert (tokens[tokenizer.bos_id], tokens[tokenizer.eos_id]) == ("<s>", "</s>")
    assert stats["documents"] == 60 and stats["bytes"] == sum(len(text.encode()) for text in corpus())
    assert stats["digest"] == tokenizer.digest and stats["kind"] == kind and stats["seconds"] > 0
    count = sum(map(len, tokenizer.encode(corpus())))
    assert stats["bytes_per_token"] == pytest.approx(stats["bytes"] / count) and stats["bytes_per_token"] > 2


def test_round_trip(trained) -> None:
    tokenizer = Tokenizer.load(trained[1])
    for text in ODD + corpus(5):
        ids = tokenizer.encode([text])[0]
        assert tokenizer.decode(ids) == text
        assert not {tokenizer.bos_id, tokenizer.eos_id} & set(ids.tolist())


def test_any_text_round_trips(trained) -> None:
    kind, output, _ = trained
    tokenizer = Tokenizer.load(output)
    # U+2581 is sentencepiece's own mark for a space.
    alphabet = st.characters(codec="utf-8", exclude_characters="" if kind == "bpe" else "▁\x00")

    @settings(max_examples=200, deadline=None)
    @given(st.text(alphabet=alphabet))
    def check(text: str) -> None:
        assert tokenizer.decode(tokenizer.encode([text])[0]) == text

    check()


def test_auto_tokenizer_agrees(trained) -> None:
    from transformers import AutoTokenizer

    tokenizer = Tokenizer.load(trained[1])
    theirs = AutoTokenizer.from_pretrained(trained[1])
    assert (theirs.bos_token, theirs.eos_token) == ("<s>", "</s>") and len(theirs) == 400
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
    texts = [text for text in ODD if "s>" not in text and "unk>" not in text] + corpus(5)
    for add_special_tokens in (False, True):
        ids = theirs(texts, add_special_tokens=add_special_tokens)["input_ids"]
        assert ids == [ours.tolist() for ours in tokenizer.encode(texts)]
    assert [theirs.decode(one) for one in ids] == texts


def test_auto_tokenizer_agrees_beside_a_llama_config(trained, tmp_path) -> None:
    """transformers consults the model type when it picks the class of a tokenizer."""
    from transformers import AutoTokenizer

    for file in trained[1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    ids = AutoTokenizer.from_pretrained(tmp_path)(["  zwei  Wörter "])["input_ids"]
    assert ids == [Tokenizer.load(trained[1]).encode(["  zwei  Wörter "])[0].tolist()]


def test_same_input_same_bytes(trained, tmp_path) -> None:
    kind, output, _ = trained
    train_tokenizer(corpus(), 400, tmp_path / "again", kind)
    for file in output.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize("kind", ["sentencepiece-bpe", "unigram"])
def test_json_cuts_like_the_model_on_real_text(kind: str, tmp_path) -> None:
    lines = []
    for name in ("de_eltec_novels", "en_eltec_novels", "ar_arcd_wikipedia"):
        with gzip.open(assets("text", f"{name}.jsonl.gz"), "rt", encoding="utf-8") as file:
            for line, _ in zip(file, range(12)):
                lines += json.loads(line)["text"].split("\n")
    train_tokenizer(lines, 1000, tmp_path / "t", kind)
    converted, model = Tokenizer.load(tmp_path / "t"), Tokenizer.load(tmp_path / "t" / "tokenizer.model")
    pairs = list(zip(converted.encode(lines + ODD), model.encode(lines + ODD)))
    assert sum(len(ids) for ids, _ in pairs) > 50_000
    different = [(a.tolist(), b.tolist()) for a, b in pairs if a.tolist() != b.tolist()]
    if kind == "sentencepiece-bpe":
        assert not different
    else:  # sentencepiece adds scores in single precision and so takes the worse of two nearly equal cuts now and then
        score = dict(enumerate(score for _, score in converted.backend_json["model"]["vocab"]))
        assert len(different) < len(pairs) / 1000
        for ours, theirs in different:
            assert 0 <= sum(map(score.get, ours)) - sum(map(score.get, theirs)) < 0.01


def test_spelled_out_special_tokens_are_not_learnt(tmp_path) -> None:
    texts = ["<s>durchgestrichen</s> <s>und</s> </s></s> <0x0A>"] * 50 + corpus(20)
    for kind in KINDS:
        train_tokenizer(texts, 330, tmp_path / kind, kind)
        tokenizer = Tokenizer.load(tmp_path / kind)
        ids = tokenizer.encode(texts[:1])[0]
        assert not {tokenizer.bos_id, tokenizer.eos_id} & set(ids.tolist())
        assert tokenizer.decode(ids) == texts[0]


def test_messages(tmp_path) -> None:
    output = tmp_path / "out"
    with pytest.raises(
        ConfigError, match="unknown kind of tokenizer 'wordpiece'; one of bpe, sentencepiece-bpe, unigram"
    ):
        train_tokenizer(corpus(), 400, output, "wordpiece")
    for kind, minimum in (("bpe", "need 258"), ("unigram", "leave no piece")):
        with pytest.raises(ConfigError, match=f"vocab_size 200 is too small: 256 bytes.*{minimum}"):
            train_tokenizer(corpus(), 200, output, kind)
    for kind in KINDS:
        with pytest.raises(DataError, match="the corpus for the tokenizer holds no text"):
            train_tokenizer(["", ""], 400, output, kind)
        with pytest.raises(
            DataError, match="corpus too small: it yields ([0-9]+) pieces where vocab_size asks for 30000"
        ) as e:
            train_tokenizer(corpus(), 30_000, output, kind)
        possible = int(str(e.value).split("yields ")[1].split()[0])
        assert train_tokenizer(corpus(), possible, tmp_path / kind, kind)["vocab_size"] == possible
        with pytest.raises(DataError, match=r"document 2 of the corpus contains the lone surrogate U\+DC80"):
            train_tokenizer(["gut", "b\udc80se"], 400, output, kind)
    with pytest.raises(DataError, match="vocab_size 262 is too small: this corpus needs [0-9]+ ids"):
        train_tokenizer(corpus(), 262, output, "sentencepiece-bpe")
    assert not output.exists()
    output.mkdir()
    (output / "x").write_text("precious")
    with pytest.raises(ConfigError, match="out already exists; remove it or name another directory"):
        train_tokenizer(corpus(), 400, output)
    assert (output / "x").read_text() == "precious"


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_an_error_of_the_reader_passes_unchanged(kind: str, tmp_path) -> None:
    def broken():
        yield from corpus(3)
        raise DataError("corpus.jsonl:4: not JSON")

    with pytest.raises(DataError, match="corpus.jsonl:4: not JSON"):
        train_tokenizer(broken(), 400, tmp_path / "out", kind)
    assert not list(tmp_path.iterdir())
