"""Chats on plain paths: the flags of `preprocess` are the recipe's keys, and `inspect` shows what is learnt."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from chats import HARD, TEMPLATES, write_chats, write_tokenizer

from megatron_adapt.config import Corpus
from megatron_adapt.data import command, inspection
from megatron_adapt.errors import DataError
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.steps import preprocess
from megatron_adapt.steps.reporter import Reporter


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_chats(tmp_path / "chats.jsonl", [*HARD.values(), [{"role": "user", "content": "nur gefragt"}]])
    write_tokenizer(tmp_path / "with", TEMPLATES["chatml"])
    write_tokenizer(tmp_path / "without")
    (tmp_path / "llama3.jinja").write_text(TEMPLATES["llama3"])
    (tmp_path / "short.jinja").write_text("{{ '' if short else 'long' }}" + TEMPLATES["chatml"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: str, tokenizer: str = "with") -> tuple[int, str, str]:
    code = command.main(["--input", "chats.jsonl", "--output-prefix", "c", "--tokenizer-model", tokenizer, *words])
    return code, *capsys.readouterr()


CHOICES = {
    "own template": ("with", [], {}),
    "a file": ("without", ["--chat-template", "llama3.jinja"], {"chat_template": "llama3.jinja"}),
    "last": ("with", ["--loss-on", "last"], {"loss_on": "last"}),
    "others": (
        "without", ["--chat-template", "short.jinja", "--chat-template-kwargs", '{"short": true}', "--tools", "", "--system", "n"],
        {"chat_template": "short.jinja", "chat_template_kwargs": {"short": True}, "tools": None, "system": "n"},
    ),
    "all": ("with", ["--loss-on", "all", "--tokenizer-backend", "tokenizers"], {"loss_on": "all"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CHOICES)
def test_the_flags_are_the_keys_of_a_recipe(place, capsys, name):
    tokenizer, flags, keys = CHOICES[name]
    code, out, err = run(capsys, "--messages", "messages", *flags, tokenizer=tokenizer)
    stats = json.loads(Path("c_messages_document.json").read_text())
    left_out = "" if "all" in flags else ", 1 chats with nothing to learn left out"
    assert (code, err) == (0, "") and f", {stats['trained_tokens']} tokens are learnt, " in out and out.endswith(f" s{left_out}\n")
    (place / "recipe").mkdir()
    preprocess.run(Corpus(path="chats.jsonl", messages="messages", held_out=0, **keys), Path(tokenizer), Path("recipe"), Reporter(), 1, "c")
    for suffix in (".bin", ".idx", ".loss_mask"):
        assert Path(f"c_messages_document{suffix}").read_bytes() == Path(f"recipe/text{suffix}").read_bytes(), suffix


REFUSED = {
    "text": (
        ["--messages", "messages", "--json-keys", "text", "--append-eod", "--split-sentences", "--tokenizer-backend", "auto", "--text-documents", "files"],
        "--json-keys, --append-eod, --split-sentences, --text-documents files, --tokenizer-backend auto are for text, and --messages says that "
        "these are chats: they stay whole, their template writes all special tokens, and tokenizers knows where these stand; leave out one or the other",
    ),
    "one of them": (["--messages", "messages", "--append-bos"], "--append-bos is for text, and --messages says that these are chats"),
    "no chats": (
        ["--chat-template", "llama3.jinja", "--loss-on", "answers"],
        "--chat-template, --loss-on are for chats: give --messages KEY, too, or leave out what is for them",
    ),
    "no tools": (["--tools", "", "--chat-template-kwargs", "{}"], "--chat-template-kwargs, --tools are for chats: give --messages KEY, too"),
    "no template": (["--messages", "messages"], "the tokenizer without has no chat template: name a file with one (chat_template)"),
    "no file": (["--messages", "messages", "--chat-template", "none.jinja"], "cannot read the chat template none.jinja"),
    "another key": (
        ["--messages", "conversations", "--chat-template", "llama3.jinja"], "chats.jsonl:1: no key 'conversations'; the keys are 'messages'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense(place, capsys, name):
    flags, message = REFUSED[name]
    code, _, err = run(capsys, *flags, tokenizer="without")
    assert code == 2 and message in err and not list(place.glob("c_*"))


def test_inspect_shows_what_is_learnt(place, capsys):
    run(capsys, "--messages", "messages")
    tokenizer, prefix = Tokenizer.load(place / "with"), "c_messages_document"
    facts = inspection.describe(prefix)
    assert facts["trained_tokens"] == facts["description"]["trained_tokens"] > 0
    for number, (name, messages) in enumerate(HARD.items()):
        document = inspection.read_document(prefix, number)
        assert "".join(one["text"] for one in document["runs"]) == document["text"]
        answers = [one["text"] for one in document["runs"] if one["learnt"]]
        if name != "spaces":  # a token there reaches over the begin
            assert answers == [f"{message['content']}<|im_end|>" for message in messages if message["role"] == "assistant"]
        assert "".join(tokenizer.decode(document["ids"][one["begin"] : one["end"]]) for one in document["runs"]) == document["text"]
    inspection.show(facts, inspection.read_document(prefix, 0))
    lines = capsys.readouterr().out.splitlines()
    assert f"learnt     {facts['trained_tokens']:,} tokens, {facts['trained_tokens'] / facts['tokens']:.1%}" in lines
    assert lines[-3:] == [
        '-      "<|im_start|>user\\nWo ist der Igel?<|im_end|>\\n<|im_start|>assistant\\n"', 'learnt "Im Garten.<|im_end|>"', '-      "\\n"',
    ]  # fmt: skip


def test_inspect_of_a_character_that_is_cut(place, capsys):
    """A mask of others may begin within a character, of which no part is text."""
    run(capsys, "--messages", "messages")
    prefix, mask = Path("c_messages_document"), np.fromfile("c_messages_document.loss_mask", np.uint8)
    mask[:] = np.arange(len(mask)) % 2
    mask.tofile(f"{prefix}.loss_mask")
    prefix.with_suffix(".json").unlink()
    document = inspection.read_document(prefix, list(HARD).index("emoji"), "with")
    assert [(one["begin"], one["end"]) for one in document["runs"]] == [(n, n + 1) for n in range(len(document["ids"]))]
    assert inspection.describe(prefix)["trained_tokens"] == mask.sum()


def test_inspect_of_a_mask_that_is_wrong(place, capsys):
    run(capsys, "--messages", "messages")
    mask, description = Path("c_messages_document.loss_mask"), Path("c_messages_document.json")
    content, stats = mask.read_bytes(), json.loads(description.read_text())
    mask.write_bytes(content[:-1] + b"\1")  # the line end after the last answer
    with pytest.raises(DataError, match=r"by c_messages_document.loss_mask \d+ tokens are learnt, by c_messages_document.json \d+; preprocess"):
        inspection.describe("c_messages_document")
    mask.write_bytes(content[:-1])
    with pytest.raises(DataError, match="loss_mask has [0-9]+ bytes, one for each token, but"):
        inspection.read_document("c_messages_document", 0)
    del stats["loss_mask"]
    description.write_text(json.dumps(stats))
    with pytest.raises(DataError, match="loss_mask lies beside c_messages_document.json, which describes text, of which all is learnt; remove it"):
        inspection.describe("c_messages_document")


def test_a_part_without_chats(place, capsys):
    """Of two machines one had nothing to do: an empty mask is a mask."""
    for part in ("0/2", "1/2"):
        assert run(capsys, "--messages", "messages", "--shard", part)[0] == 0
    assert {inspection.describe(f"c_messages_document_0000{part}-of-00002")["documents"] for part in (0, 1)} == {0, len(HARD)}


def test_keywords_that_are_no_object(place, capsys):
    with pytest.raises(SystemExit):
        command.main(["--input", "chats.jsonl", "--output-prefix", "c", "--tokenizer-model", "with", "--chat-template-kwargs", "short"])
    assert """'short' is no JSON object, like '{"enable_thinking": false}'""" in capsys.readouterr().err
