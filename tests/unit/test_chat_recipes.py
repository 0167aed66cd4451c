"""Chats in a recipe: what does not go with them is told before anything runs, and the rest of a plan knows them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
from chats import HARD, TEMPLATES, write_chats, write_tokenizer

from megatron_adapt import checks, config, plan, recipe
from megatron_adapt.data.indexed import IndexedReader
from megatron_adapt.data.packing import PackedOrder
from megatron_adapt.errors import ConfigError
from megatron_adapt.steps import preprocess
from megatron_adapt.steps.reporter import Reporter


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny.corpora(tmp_path)
    write_chats(tmp_path / "chats.jsonl", list(HARD.values()))
    write_tokenizer(tmp_path / "with", TEMPLATES["chatml"])
    write_tokenizer(tmp_path / "without")
    (tmp_path / "chatml.jinja").write_text(TEMPLATES["chatml"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def loaded(place: Path, tokenizer="with", corpus=None, phase=None, **changes) -> recipe.Recipe:
    """From scratch on chats and German text."""
    settings = {"steps": 2, "data": {"talk": 1, "german": 1}, "packing": "documents", **(phase or {})}
    phases = [tiny.phase("sft", **settings)]
    data = {"talk": {"path": "chats.jsonl", "messages": "messages", **(corpus or {})}, "german": {"path": "de.jsonl"}}
    model = {"from_scratch": {"config": tiny.CONFIG, "tokenizer": tokenizer}}
    tree = tiny.recipe(model=model, data=data, phases=phases, vocabulary=None, evaluation=None, **changes)
    return recipe.load(tiny.write(place, tree))


REFUSED = {
    "text_key": ({"corpus": {"text_key": "t"}}, "data.talk.text_key: belongs to text, and 'messages' says that these are chats; remove one"),
    "lines": ({"corpus": {"text_documents": "lines"}}, "data.talk.text_documents: belongs to .txt files, which hold no chats; remove it"),
    "bos": ({"corpus": {"bos": False}}, "data.talk.bos: belongs to text: where special tokens stand in chats their template says; remove it"),
    "eos": ({"corpus": {"eos": False}}, "data.talk.eos: belongs to text: where special tokens stand"),
    "unique": ({"corpus": {"unique_tokens": 9}}, "data.talk.unique_tokens: belongs to text: chats are not cut, and every epoch has each once"),
    "epochs": ({"corpus": {"shuffled_epochs": 2}}, "data.talk.shuffled_epochs: belongs to text: chats are not cut"),
    "packing": ({"phase": {"packing": "chunks"}}, "phases[0].packing: chats (talk) must not see one another, nor be cut; set it to 'documents'"),
    "template": ({"corpus": {"messages": None, "chat_template": "a"}}, "data.talk.chat_template: belongs to chats, which 'messages' names the key of"),
    "loss": ({"corpus": {"messages": None, "loss_on": "all"}}, "data.talk.loss_on: belongs to chats, which 'messages' names the key of"),
    "keywords": ({"corpus": {"messages": None, "chat_template_kwargs": {"a": 1}}}, "data.talk.chat_template_kwargs: belongs to chats, which"),
    "tools": ({"corpus": {"messages": None, "tools": None}}, "data.talk.tools: belongs to chats, which 'messages' names the key of"),
    "system": ({"corpus": {"messages": None, "system": "s"}}, "data.talk.system: belongs to chats, which 'messages' names the key of"),
    "loss of no kind": ({"corpus": {"loss_on": "some"}}, "data.talk.loss_on: "),
    "tokenizer": (
        {"tokenizer": {"train": {"corpora": ["german", "talk"], "vocab_size": 400}}},
        "model.from_scratch.tokenizer.train.corpora[1]: 'talk' holds chats, and only text is read here",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_with_chats(place, name):
    changes, message = REFUSED[name]
    with pytest.raises(ConfigError) as error:
        loaded(place, **changes)
    assert message in str(error.value)


def test_vocabulary_methods_read_text(place):
    with pytest.raises(ConfigError, match=r"vocabulary.corpora\[0\]: 'talk' holds chats, and only text is read here"):
        recipe.load(tiny.write(place, tiny.recipe(
            data={"talk": {"path": "chats.jsonl", "messages": "messages"}, "german": {"path": "de.jsonl"}, "english": {"path": "en.jsonl"}},
            vocabulary={"tokenizer": "with", "method": "copy", "corpora": ["talk"]},
        )))  # fmt: skip


def test_a_template_is_asked_for_before_anything_runs(place):
    checks.check(plan.build(loaded(place)))
    checks.check(plan.build(loaded(place, "without", {"chat_template": "chatml.jinja"})))
    with pytest.raises(ConfigError, match="data.talk: the tokenizer without has no chat template: name a file with one"):
        checks.check(plan.build(loaded(place, "without")))
    with pytest.raises(ConfigError, match="data.talk: cannot read the chat template nowhere.jinja"):
        checks.check(plan.build(loaded(place, corpus={"chat_template": "nowhere.jinja"})))
    trained = {"train": {"corpora": ["german"], "vocab_size": 400}}
    with pytest.raises(ConfigError, match="data.talk: a trained tokenizer has no chat template; give data.talk.chat_template, or tokenizer.train.like"):
        checks.check(plan.build(loaded(place, trained)))
    checks.check(plan.build(loaded(place, trained, {"chat_template": "chatml.jinja"})))
    checks.check(plan.build(loaded(place, {"train": {**trained["train"], "like": "with"}})))
    with pytest.raises(ConfigError, match="data.talk: the tokenizer without has no chat template"):
        checks.check(plan.build(loaded(place, {"train": {**trained["train"], "like": "without"}})))


def test_an_epoch_is_what_the_samples_hold(place):
    """Known from the corpus and the length of a sequence; the receipt of text is as before."""
    built = plan.build(loaded(place, phase={"steps": None, "epochs": 2, "sequence_length": 64}))
    for step in built.steps:
        if step.verb == "preprocess":
            step.output.mkdir(parents=True)
            stats = preprocess.run(
                built.recipe.data[step.output.name], place / "with", step.output, Reporter(), 1234, step.output.name
            )
            (step.output / "receipt.json").write_text(json.dumps({"verb": "preprocess", "metrics": stats}))
    talk, german = (place / f"out/data/base/{name}" for name in ("talk", "german"))
    packed = PackedOrder(IndexedReader(talk / "text"), 64, 1234, "talk")
    sizes = {name: preprocess.epoch_tokens(folder, 1234, name, built.recipe.data[name]) for name, folder in (("talk", talk), ("german", german))}
    (phase,) = built.recipe.phases
    assert sizes["talk"](phase) == packed.samples * 64 and sizes["german"] == IndexedReader(german / "text").num_tokens
    assert recipe.tokens(phase, sizes) == 2 * (sizes["talk"](phase) + sizes["german"])
    by_step = {step.name: step.settings for step in built.steps}
    assert by_step["data/base/talk"]["messages"] == "messages" and "messages" not in by_step["data/base/german"]
    assert config.Corpus.model_fields["loss_on"].default == "answers"


def test_receipts_name_what_is_not_the_default(place):
    """So that those of finished steps stay what they are."""

    def settings(**corpus) -> dict:
        steps = plan.build(loaded(place, corpus=corpus)).steps
        return next(step.settings for step in steps if step.name == "data/base/talk")

    before = settings()
    assert settings(tools="tools", chat_template_kwargs={}) == before and "tools" not in before
    assert settings(tools=None, system="s") == before | {"tools": None, "system": "s"} and "system" not in before
    assert settings(loss_on="last") == before | {"loss_on": "last"}
    assert settings(chat_template_kwargs={"a": "1"}) == before | {"chat_template_kwargs": {"a": "1"}}


def test_keywords_are_tried_before_anything_runs(place):
    with pytest.raises(ConfigError, match="data.talk: chat_template_kwargs: bold does not occur in the chat template in .*with"):
        checks.check(plan.build(loaded(place, corpus={"chat_template_kwargs": {"bold": True}})))
