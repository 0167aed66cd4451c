"""Chats: their text is transformers', and of its tokens those are learnt that a model has to write, no more and no fewer."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from chats import HARD, SPECIAL, TEMPLATES, chat, segments, write_tokenizer

from megatron_adapt.data.chat import Chats, encode, from_json, learnt
from megatron_adapt.data.parsing import BadLine
from megatron_adapt.errors import ConfigError
from megatron_adapt.hf.chat_template import ChatTemplate
from megatron_adapt.hf.tokenizer import Tokenizer

CASES = [(template, name) for template in TEMPLATES for name in HARD]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tokenizer with each of the templates."""
    folder = tmp_path_factory.mktemp("tokenizers")
    return {name: write_tokenizer(folder / name, template) for name, template in TEMPLATES.items()}


def theirs(folder: Path):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder)


def encoded(folder: Path, messages, loss_on: str = "answers"):
    tokenizer = Tokenizer.load(folder)
    document, _ = Chats("messages", ChatTemplate.load(tokenizer), loss_on).document(messages)
    return tokenizer, encode(tokenizer, [from_json(document)])


def by_bytes(tokenizer: Tokenizer, ids: list[int], parts) -> list[int]:
    """The mask from the bytes of each token, which a byte-level vocabulary spells one by one: no library is asked for places."""
    tokens, answer, begin, mask = tokenizer.tokens(), [], 0, []
    for text, is_answer in parts:
        answer += [is_answer] * len(text.encode())
    for index in ids:
        size = len(tokens[index].encode()) if tokens[index] in SPECIAL else len(tokens[index])
        mask.append(int(any(answer[begin : begin + size])))
        begin += size
    assert begin == len(answer)
    return mask


@pytest.mark.parametrize("template, name", CASES)
def test_ids_are_those_of_transformers_and_answers_are_learnt(folders, template, name):
    tokenizer, found = encoded(folders[template], HARD[name])
    rendered = theirs(folders[template]).apply_chat_template(HARD[name], tokenize=True)
    assert found.ids.tolist() == list(rendered["input_ids"] if hasattr(rendered, "keys") else rendered)
    parts = segments(template, HARD[name])
    assert tokenizer.decode(found.ids) == "".join(text for text, _ in parts)
    assert found.mask.tolist() == by_bytes(tokenizer, found.ids.tolist(), parts)
    assert found.bytes == sum(len(said(text).encode()) for text, is_answer in parts if is_answer)


def said(text: str) -> str:
    return next(text.removesuffix(token) for token in ("<|im_end|>", "<|eot_id|>", "</s>") if text.endswith(token)).strip()


def test_answers_that_a_template_marks_are_those_of_transformers(folders):
    for name, messages in HARD.items():
        found = theirs(folders["marked"]).apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        mask = encoded(folders["marked"], messages)[1].mask.tolist()
        if name != "spaces":  # where transformers leaves out a token that reaches over the begin of an answer
            assert mask == list(found["assistant_masks"]), name
        assert sum(mask) >= sum(found["assistant_masks"])


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_question_never_counts_and_an_answer_does(folders, template):
    _, one = encoded(folders[template], chat("Ja oder nein?", "Ja", "Warum?", "Darum."))
    _, other = encoded(folders[template], chat("Wo ist der Igel denn?", "Ja", "So?", "Darum."))
    assert one.ids[one.mask == 1].tolist() == other.ids[other.mask == 1].tolist() and one.bytes == other.bytes == 8
    _, longer = encoded(folders[template], chat("Ja oder nein?", "Ja, aber", "Warum?", "Darum."))
    assert longer.mask.sum() > one.mask.sum() and len(longer.mask) - longer.mask.sum() == len(one.mask) - one.mask.sum()


INSIDE = TEMPLATES["chatml"].replace("{% endfor %}{% if add_generation_prompt %}", "{% if loop.last and add_generation_prompt %}") + "{% endfor %}"  # Zephyr's


@pytest.mark.parametrize("template", [*TEMPLATES, INSIDE, "{% if messages[0]['role'] == 'system' %}{% endif %}" + TEMPLATES["chatml"]])
def test_the_assistant_may_begin(folders, tmp_path, template):
    """Many sets lack the first question; who speaks is not learnt there either."""
    folder = folders.get(template) or write_tokenizer(tmp_path, template)
    messages = [{"role": "assistant", "content": "Hallo!"}, *chat("Wo?", "Da.")]
    if template == "inst":
        with pytest.raises(BadLine, match="roles must alternate"):
            encoded(folder, messages)
        return
    tokenizer, found = encoded(folder, messages)
    assert re.fullmatch(r"Hallo!(<\|\w+\|>)Da.\1", tokenizer.decode(found.ids[found.mask == 1]))


def test_all_may_be_learnt(folders):
    _, found = encoded(folders["chatml"], HARD["turns"], "all")
    assert found.mask.all() and found.ids.tolist() == encoded(folders["chatml"], HARD["turns"])[1].ids.tolist()
    assert encoded(folders["chatml"], [{"role": "user", "content": "Hallo"}], "all")[1].mask.all()


def test_no_answer_is_no_document(folders):
    chats = Chats("messages", ChatTemplate.load(Tokenizer.load(folders["chatml"])))
    assert chats.document([]) == ("", 0) and chats.document([{"role": "user", "content": "Hallo"}]) == ("", 0)


def test_other_spellings_of_the_same_chat(folders):
    chats = Chats("c", ChatTemplate.load(Tokenizer.load(folders["chatml"])))
    roles = {"user": "human", "assistant": "gpt", "system": "system"}
    expected = chats.document(HARD["system"])
    assert chats.document([{"from": roles[m["role"]], "value": m["content"]} for m in HARD["system"]]) == expected
    assert chats.document([{**m, "role": roles[m["role"]], "id": 7} for m in HARD["system"]]) == expected
    assert chats.parse(json.dumps({"id": 3, "c": HARD["system"]}).encode() + b"\r\n") == expected


def test_columns_of_two_spellings(folders):
    """Files of both kinds joined to one table: every struct has all keys, and null where its file had none."""
    chats = Chats("messages", ChatTemplate.load(Tokenizer.load(folders["chatml"])))
    expected = chats.document(HARD["system"])
    nulls = dict.fromkeys(("role", "content", "from", "value"))
    assert chats.document([{**nulls, **m} for m in HARD["system"]]) == expected
    assert chats.document([{**nulls, "from": m["role"], "value": m["content"]} for m in HARD["system"]]) == expected
    with pytest.raises(BadLine, match="message 1 has neither 'role' and 'content' nor 'from' and 'value'"):
        chats.document([{"role": None, "content": None}])


def test_a_heading_that_takes_spaces_along_is_not_learnt(folders, tmp_path):
    """Phi-3's tokens do (rstrip): the first spaces of an answer become no token, and the heading stays who speaks."""
    folder = write_tokenizer(tmp_path, CHATML.replace("m['role'] + '\n'", "m['role'] + '<|end_header_id|>\n'").replace("assistant\n", "assistant<|end_header_id|>\n"))
    made = json.loads((folder / "tokenizer.json").read_text())
    for token in made["added_tokens"]:
        token.update(rstrip=True, lstrip=token["content"] == "<|im_end|>")
    (folder / "tokenizer.json").write_text(json.dumps(made))
    tokenizer, found = encoded(folder, chat("Wo?", "  davor und danach  ", "\n\nWann?", "\n\nheute"))
    learnt = "".join(tokenizer.decode([index]) for index in found.ids[found.mask == 1].tolist())
    assert learnt == "davor und danach<|im_end|>heute<|im_end|>"


def test_lone_surrogates_are_replaced_and_counted(folders):
    chats = Chats("messages", ChatTemplate.load(Tokenizer.load(folders["chatml"])))
    document, count = chats.parse(json.dumps({"messages": chat("a\ud800", "b\ud800\udc00\udfff")}).encode())
    assert count == 2 and "a\ufffd" in from_json(document).text and "b\U00010000\ufffd" in from_json(document).text


BAD = {
    "not JSON": ("{", "not JSON"),
    "another key": ('{"text": "a"}', "no key 'messages'; the keys are 'text'"),
    "text": ('{"messages": "a"}', "the value of 'messages' is a JSON string instead of a list of messages"),
    "no object": ('{"messages": ["a"]}', "message 1 is a JSON string instead of an object"),
    "no role": ('{"messages": [{"content": "a"}]}', "message 1 has neither 'role' and 'content' nor 'from' and 'value'"),
    "unknown role": ('{"messages": [{"role": "critic", "content": "a"}]}', "message 1 has the role 'critic', which is none of system, developer, user"),
    "role of no kind": ('{"messages": [{"role": ["user"], "content": "a"}]}', "message 1 has the role ['user'], which is none of"),
    "an object": ('{"messages": [{"role": "user", "content": {"type": "text"}}]}', "message 1 holds a JSON object instead of text"),
    "nothing": ('{"messages": [{"role": "user", "content": null}]}', "message 1 holds a JSON null instead of text"),
    "refused": (
        json.dumps({"messages": [*chat("a", "b"), {"role": "assistant", "content": "c"}]}), "the template refuses it: roles must alternate",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_line_that_is_no_chat(folders, name):
    line, message = BAD[name]
    with pytest.raises(BadLine) as error:
        Chats("messages", ChatTemplate.load(Tokenizer.load(folders["inst"]))).parse(line.encode())
    assert message in str(error.value)


# ------------------------------------------------------------------------------------------------------------- templates

CHATML, REMEDY = TEMPLATES["chatml"], "mark answers in the template: {% generation %} ... {% endgeneration %}"
REFUSED = {
    "syntax": ("{% for %}", "the template refuses it: "),
    "date": ("{{ strftime_now('%d') }}" + CHATML, "writes today's date (strftime_now): tomorrow the same chats would be another corpus"),
    "no prompt": (CHATML.split("{% if add")[0], "it has no generation prompt, so that answers would begin with '<|im_start|>assistant\\n'"),
    "no end": (CHATML.replace("<|im_end|>", ""), "no token of the tokenizer ends the answer 'Here.', so that a model would not learn to stop"),
    "unknown end": (CHATML.replace("<|im_end|>", "<|end|>"), "no token of the tokenizer ends the answer 'Here.<|end|>'"),
    "end not marked": (
        TEMPLATES["marked"].replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>"), "no token of the tokenizer ends the answer",
    ),
    "prompt that is not said": (
        CHATML.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>"), "message 2 reads otherwise where the conversation begins",
    ),
    "nothing marked": (CHATML + "{% if false %}{% generation %}{% endgeneration %}{% endif %}", "marks no answer in"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_template_that_cannot_be_used(folders, tmp_path, name):
    source, message = REFUSED[name]
    (tmp_path / "template.jinja").write_text(source)
    with pytest.raises(ConfigError) as error:
        ChatTemplate.load(Tokenizer.load(folders["chatml"]), tmp_path / "template.jinja")
    assert message in str(error.value) and "template.jinja" in str(error.value)


def test_an_end_that_the_tokenizer_does_not_make(folders, tmp_path):
    """As older conversions have it: `normalized` tokens are looked for with the prefix that the normalizer puts before every text."""
    made = json.loads((folders["chatml"] / "tokenizer.json").read_text())
    folder = write_tokenizer(tmp_path, CHATML)

    def load(normalized: bool) -> ChatTemplate:
        added = [{**token, "normalized": normalized} for token in made["added_tokens"]]
        settings = {"added_tokens": added, "normalizer": {"type": "Prepend", "prepend": "x"}}
        (folder / "tokenizer.json").write_text(json.dumps(made | settings))
        return ChatTemplate.load(Tokenizer.load(folder))

    assert load(False).ends() == ["<|im_end|>"]
    message = r"cuts '<\|im_end\|>' at the end of an answer into \['.*'\], so that a model would not learn to stop: set \"normalized\": false"
    with pytest.raises(ConfigError, match=message):
        load(True)


def test_a_template_that_rewrites_earlier_turns_needs_marks(folders, tmp_path):
    """As reasoning models' do, which drop what was thought before."""
    think = CHATML.replace("m['content'] + '<|im_end|>'", "('<think></think>' if loop.last and m['role'] == 'assistant' else '') + m['content'] + '<|im_end|>'")
    file = tmp_path / "think.jinja"
    file.write_text(think)
    template = ChatTemplate.load(Tokenizer.load(folders["chatml"]), file)
    assert template.render(HARD["plain"])[0].count("<think>") == 1
    with pytest.raises(BadLine) as error:
        Chats("messages", template).document(HARD["turns"])
    assert "message 2 reads otherwise where the conversation begins, ends or goes on there" in str(error.value) and REMEDY in str(error.value)


def test_where_a_template_is_found(folders, tmp_path):
    folder = write_tokenizer(tmp_path / "none")
    with pytest.raises(ConfigError, match="has no chat template: name a file with one"):
        ChatTemplate.load(Tokenizer.load(folder))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    named = [{"name": "tools", "template": "x"}, {"name": "default", "template": CHATML}]
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": named}))
    assert ChatTemplate.load(Tokenizer.load(folder)).source == CHATML
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATES["inst"]}))
    assert ChatTemplate.load(Tokenizer.load(folder)).source == TEMPLATES["inst"]
    (folder / "chat_template.jinja").write_text(TEMPLATES["llama3"])
    assert ChatTemplate.load(Tokenizer.load(folder)).source == TEMPLATES["llama3"]
    with pytest.raises(ConfigError, match="cannot read the chat template .*missing.jinja: No such file"):
        ChatTemplate.load(Tokenizer.load(folder), tmp_path / "missing.jinja")
    (tmp_path / "latin.jinja").write_bytes(b"\xe4")
    with pytest.raises(ConfigError, match="latin.jinja is not UTF-8 text"):
        ChatTemplate.load(Tokenizer.load(folder), tmp_path / "latin.jinja")


def test_special_tokens_that_a_template_names(folders, tmp_path):
    template = ChatTemplate.load(Tokenizer.load(folders["inst"]))
    assert template.tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    folder = write_tokenizer(tmp_path / "bare", TEMPLATES["inst"])
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["bos_token"]  # known by its spelling, as everywhere
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": {"content": "</s>"}}))
    assert ChatTemplate.load(Tokenizer.load(folder)).tokens == template.tokens


def test_sentencepiece_cannot_read_chats():
    assets = os.environ.get("MEGATRON_ADAPT_ASSETS")
    if assets is None:
        pytest.skip("MEGATRON_ADAPT_ASSETS is not set")
    tokenizer = Tokenizer.load(Path(assets) / "tokenizers/de-32k/tokenizer.model")
    with pytest.raises(ConfigError, match="chats need a tokenizer.json"):
        ChatTemplate.load(tokenizer)
    with pytest.raises(ConfigError, match="sentencepiece does not find special tokens in text"):
        tokenizer.encode_with_places(["a"])


def test_tokens_of_spaces_alone_have_a_place():
    """Libraries trim a token of spaces to nothing at its end."""
    places = np.array([[0, 3], [4, 4], [4, 6], [7, 9]])
    assert learnt(places, [(3, 6)]).tolist() == [0, 1, 1, 0]
    assert learnt(places, [(4, 6)]).tolist() == [0, 0, 1, 0]
    assert learnt(places, []).tolist() == [0] * 4


@pytest.mark.parametrize("tokenizer", ["mistral-7b-v0.1", "de-bpe-50k", "gpt2"])
def test_real_chats(tmp_path, tokenizer):
    """Of real tokenizers (Metaspace with byte fallback, byte-level): the text is whole, and what is learnt is what is answered."""
    assets = os.environ.get("MEGATRON_ADAPT_ASSETS")
    if assets is None:
        pytest.skip("MEGATRON_ADAPT_ASSETS is not set")
    loaded = Tokenizer.load(Path(assets) / "tokenizers" / tokenizer)
    eos = loaded.decode([loaded.eos_id])
    (tmp_path / "chat.jinja").write_text(
        "{% for m in messages %}" + eos + "{{ m['role'] + '\n' + m['content'] + '" + eos + "\n' }}{% endfor %}"
        "{% if add_generation_prompt %}" + eos + "{{ 'assistant\n' }}{% endif %}"
    )
    chats = Chats("messages", ChatTemplate.load(loaded, tmp_path / "chat.jinja"))
    lines = (Path(assets) / "chat/en_oasst_100.jsonl").read_bytes().splitlines()[:25]
    lines += gzip.decompress((Path(assets) / "chat/de_germandpr.jsonl.gz").read_bytes()).splitlines()[:10]
    for line in lines:
        messages = json.loads(line)["messages"]
        rendered = from_json(chats.parse(line)[0])
        found = encode(loaded, [rendered])
        assert found.ids.tolist() == loaded.encode([rendered.text], parse_special_tokens=True)[0].tolist()
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        assert found.bytes == sum(len(answer.strip().encode()) for answer in answers)
        words = loaded.decode(found.ids[found.mask == 1])
        assert words.split() == "".join(answer + eos for answer in answers).split()
