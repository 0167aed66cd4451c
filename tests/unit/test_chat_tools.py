"""Tools in chats, and which answers are learnt: the ids are transformers' with ``tools=``, results of tools are never learnt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chats import TEMPLATES, chat, write_tokenizer

from megatron_adapt.data.chat import Chats, encode, from_json
from megatron_adapt.data.parsing import BadLine
from megatron_adapt.errors import ConfigError
from megatron_adapt.hf.chat_template import ChatTemplate
from megatron_adapt.hf.tokenizer import Tokenizer

_HEAD = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}"
)
_TAIL = "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
_CALLS = "{% for call in m.tool_calls or [] %}{% set f = call.function or call %}{{ '<call>' + f.name + ' ' }}{{ ARGUMENTS }}{{ '</call>' }}{% endfor %}"
_SAID = (
    "{{ '<|im_start|>' + m.role + '\n' }}{% if m.reasoning_content is defined %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}"
    "{{ m.content or '' }}" + _CALLS + "{{ '<|im_end|>\n' }}"
)
# Results of several calls in one turn of the user's, as Qwen's templates have it.
_GROUPED = (
    "{% if m.role == 'tool' %}{% if loop.previtem.role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}{{ '\n<result>' + m.content + '</result>' }}"
    "{% if loop.last or loop.nextitem.role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}{% else %}" + _SAID + "{% endif %}"
)


def tool_template(arguments: str, turn: str = _SAID) -> str:
    return _HEAD + turn.replace("ARGUMENTS", arguments) + _TAIL


TOOL_TEMPLATES = {
    "objects": tool_template("f.arguments | tojson"),
    "either": tool_template("f.arguments if f.arguments is string else f.arguments | tojson", _GROUPED),
    "text": tool_template("'```json ' + f.arguments"),
    "text in Python": tool_template("f.arguments"),  # writes objects as Python does
    # As DeepSeek's: calls where there is no text, which has to be null.
    "null": tool_template("f.arguments", _SAID.replace("{{ m.content or '' }}" + _CALLS, "{% if m.content is none %}" + _CALLS + "{% else %}{{ m.content }}{% endif %}")),
    "marked": TEMPLATES["marked"].replace("{% for m", _HEAD.split("{% for m")[0] + "{% for m").replace(
        "{{ m['content'] }}<|im_end|>{% endg", "{{ m['content'] or '' }}" + _CALLS.replace("ARGUMENTS", "f.arguments | tojson") + "<|im_end|>{% endg"
    ),
}  # fmt: skip
PARAMETERS = {"type": "object", "properties": {"ort": {"type": "string", "description": "z. B. <Köln>"}}, "required": ["ort"]}
TOOLS = [{"type": "function", "function": {"name": name, "description": f"{name}?", "parameters": PARAMETERS}} for name in ("wetter", "uhr")]


def call(name: str = "wetter", **arguments) -> dict:
    return {"id": f"call0000{len(name)}", "type": "function", "function": {"name": name, "arguments": arguments or {"ort": "Köln", "tage": 2}}}


def conversation(*calls: dict, text: bool = False) -> list[dict]:
    """A question, calls at once, their results, an answer, and a question and its answer without calls."""
    calls = [{**one, "function": {**one["function"], "arguments": json.dumps(one["function"]["arguments"], ensure_ascii=False)}} for one in calls] if text else list(calls)
    results = [{"role": "tool", "name": one["function"]["name"], "tool_call_id": one["id"], "content": '{"grad": 21}'} for one in calls]
    return [
        {"role": "user", "content": "Wie warm?"}, {"role": "assistant", "content": "", "tool_calls": calls}, *results,
        {"role": "assistant", "content": "21 Grad."}, *chat("Danke", "Gern."),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tokenizers")
    templates = {**TEMPLATES, **TOOL_TEMPLATES}
    return {name: write_tokenizer(folder / str(number), template) for number, (name, template) in enumerate(templates.items())}


def reader(folder: Path, *options, **keywords) -> Chats:
    return Chats("messages", ChatTemplate.load(Tokenizer.load(folder), None, keywords), *options)


def learnt(folder: Path, messages, tools=None, loss_on: str = "answers") -> tuple[list[int], str]:
    """(ids, the text of those that are learnt)"""
    document, _ = reader(folder, loss_on).document(messages, tools)
    if not document:
        return [], ""
    tokenizer = Tokenizer.load(folder)
    found = encode(tokenizer, [from_json(document)])
    return found.ids.tolist(), tokenizer.decode(found.ids[found.mask == 1])


def theirs(folder: Path, messages, tools=None) -> list[int]:
    from transformers import PreTrainedTokenizerFast

    found = PreTrainedTokenizerFast.from_pretrained(folder).apply_chat_template(messages, tools=tools, tokenize=True)
    return list(found["input_ids"] if hasattr(found, "keys") else found)


CALLED = '<call>wetter {"ort": "Köln", "tage": 2}</call>'
ANSWERS = "21 Grad.<|im_end|>Gern.<|im_end|>"


@pytest.mark.parametrize("template", TOOL_TEMPLATES)
@pytest.mark.parametrize("calls", [1, 2])
def test_calls_are_learnt_and_results_are_not(folders, template, calls):
    messages = conversation(call(), *[call("uhr")] * (calls - 1), text=template.startswith(("text", "null")))
    expected = CALLED.replace("{", "```json {") if template == "text" else CALLED  # where Jinja refuses to add an object
    ids, found = learnt(folders[template], messages, TOOLS)
    if template != "null":  # where transformers writes no call, because it takes keys with null away
        assert ids == theirs(folders[template], messages, TOOLS)
    assert found == expected + (expected.replace("wetter", "uhr") if calls > 1 else "") + "<|im_end|>" + ANSWERS


@pytest.mark.parametrize("template", TOOL_TEMPLATES)
def test_arguments_as_the_template_takes_them(folders, template):
    """OpenAI has JSON text where transformers has objects: both become what is right, where transformers would write text in
    quotes, or as Python does, or fail."""
    both = [learnt(folders[template], conversation(call(), text=text), TOOLS) for text in (False, True)]
    assert both[0] == both[1] and both[0][1].endswith("}</call><|im_end|>" + ANSWERS)
    for _, found in both:
        assert "'" not in found and '\\"' not in found


def test_other_spellings_of_tools(folders):
    folder = folders["objects"]
    expected = learnt(folder, conversation(call()), TOOLS)
    line = {"messages": conversation(call()), "tools": json.dumps(TOOLS), "id": 1}
    chats = reader(folder)
    assert chats.parse(json.dumps(line).encode()) == chats.document(conversation(call()), TOOLS)
    assert chats.parse(json.dumps({**line, "tools": TOOLS}).encode()) == chats.document(conversation(call()), TOOLS)
    for nothing in (None, [], "", "[]"):
        assert chats.parse(json.dumps({**line, "tools": nothing}).encode()) == chats.document(conversation(call())) != chats.document(conversation(call()), TOOLS)
    renamed = Chats("messages", chats.template, "answers", "functions"), Chats("messages", chats.template, "answers", None)
    assert [one.parse(json.dumps(line).encode()) for one in renamed] == [chats.document(conversation(call()))] * 2
    assert len({repr(one) for one in (chats, *renamed)}) == 3
    sharegpt = [
        {"from": "human", "value": "Wie warm?"}, {"from": "function_call", "value": json.dumps(call()["function"])},
        {"from": "observation", "value": '{"grad": 21}'}, {"from": "gpt", "value": "21 Grad."}, {"from": "human", "value": "Danke"},
        {"from": "gpt", "value": "Gern."},
    ]  # fmt: skip
    assert learnt(folder, sharegpt, TOOLS) == expected
    sharegpt[1]["value"] = json.dumps([call()["function"]])
    assert learnt(folder, sharegpt, TOOLS) == expected
    without = conversation(call())
    del without[1]["content"]
    assert learnt(folder, without, TOOLS) == expected == learnt(folder, [without[0], {**without[1], "content": None}, *without[2:]], TOOLS)
    plain = [without[0], {**without[1], "tool_calls": [call()["function"]]}, *without[2:]]
    assert learnt(folder, plain, TOOLS)[0] == theirs(folder, plain, TOOLS)


def test_columns_of_tools(folders, tmp_path):
    """A column of structs has all keys in every row: what is null there was never given."""
    import pyarrow
    from pyarrow import parquet

    from megatron_adapt.data.corpus import read_documents

    messages = [conversation(call(ort="Köln")), conversation(call("uhr", zone=1)), chat("Hallo", "Tag.")]
    chats = reader(folders["objects"])
    for name, tools in (("text", [json.dumps(TOOLS), None, None]), ("structs", [TOOLS, TOOLS[:1], None])):
        parquet.write_table(pyarrow.table({"messages": messages, "tools": tools}), tmp_path / f"{name}.parquet")
        assert "zone" in str(parquet.read_schema(tmp_path / f"{name}.parquet").field("messages").type)
        found = [one.text for one in read_documents([tmp_path / f"{name}.parquet"], chats=chats)]
        expected = [chats.document(*pair)[0] for pair in zip(messages, [TOOLS, TOOLS[:1] if name == "structs" else None, None])]
        assert found == expected


def test_parts_of_text_and_other_keys(folders):
    folder = folders["objects"]
    parts = [{"type": "text", "text": "Hal"}, {"type": "text", "text": "lo", "cache_control": {}}]
    assert learnt(folder, [{"role": "user", "content": parts}, {"role": "assistant", "content": ["Ta", "g."]}]) == learnt(folder, chat("Hallo", "Tag."))
    thought = [*chat("Hallo"), {"role": "assistant", "content": "Tag.", "reasoning_content": "Ein Gruß.", "refusal": None}]
    ids, found = learnt(folder, thought)
    assert ids == theirs(folder, thought) and found == "<think>Ein Gruß.</think>Tag.<|im_end|>"
    document, count = reader(folder).document(conversation(call(ort="a\ud800", **{"b\ud800": 1})), [{"name": "\ud800"}])
    assert count == 3 and "\ufffd" in from_json(document).text


def test_a_system_message_beside_the_others(folders, tmp_path):
    import pyarrow
    from pyarrow import parquet

    from megatron_adapt.data.corpus import read_documents

    chats = reader(folders["chatml"])
    with_it, without = chats.document(chat("a", "b", system="Kurz.")), chats.document(chat("a", "b"))
    lines = [({"system": "Kurz."}, with_it), ({"system": " "}, without), ({"system": None}, without), ({"s": "Kurz."}, without)]
    for beside, expected in lines:
        assert chats.parse(json.dumps({"messages": chat("a", "b"), **beside}).encode()) == expected
    assert chats.document(chat("a", "b", system="Lang."), system="Kurz.") == chats.document(chat("a", "b", system="Lang."))
    others = [Chats("messages", chats.template, "answers", "tools", key) for key in ("s", None)]
    line = json.dumps({"messages": chat("a", "b"), "system": "Lang.", "s": "Kurz."}).encode()
    assert [one.parse(line) for one in others] == [with_it, without] and len({repr(one) for one in (chats, *others)}) == 3
    table = {"messages": [chat("a", "b")] * 2, "system": ["Kurz.", None], "tools": [None, "[]"]}
    parquet.write_table(pyarrow.table(table), tmp_path / "chats.parquet")
    assert [one.text for one in read_documents([tmp_path / "chats.parquet"], chats=chats)] == [with_it[0], without[0]]
    with pytest.raises(BadLine, match=r"the value of 'system' is a JSON number instead of a system message; say which key these have, or .* \(system\)"):
        chats.document(chat("a", "b"), system=3)


# -------------------------------------------------------------------------------------------------------- what is learnt

TURNS = chat("A", "eins", "B", "zwei", "C", "drei")


@pytest.mark.parametrize("template", ["chatml", "llama3", "inst", "marked"])
@pytest.mark.parametrize("choice", [
    [0, 1, 1], [1, 0, None], [None, None, 0], [0.0, 1.0, 0], [False, True, True], [0, 0, 0],
])  # fmt: skip
def test_answers_are_chosen_one_by_one(folders, template, choice):
    name = "train" if isinstance(choice[0], bool) else "weight"
    chosen = [dict(message) for message in TURNS]
    for message, value in zip(chosen[1::2], choice):
        message[name] = value
    ids, found = learnt(folders[template], chosen)
    wanted = [word for word, value in zip(("eins", "zwei", "drei"), choice) if value is None or value]
    end = {"llama3": "<|eot_id|>", "inst": "</s>"}.get(template, "<|im_end|>")
    assert found.replace(" ", "") == "".join(word + end for word in wanted)
    assert ids == (theirs(folders[template], TURNS) if wanted else [])
    assert learnt(folders[template], chosen, loss_on="last")[1].strip() == ("" if choice[2] in (0, False) and choice[2] is not None else "drei" + end)


def test_the_last_answer_of_a_template_that_rewrites_earlier_ones(folders, tmp_path):
    """As those of reasoning models do: learning all needs marks, learning the last one does not."""
    think = TEMPLATES["chatml"].replace(
        "m['content'] + '<|im_end|>'", "('<think></think>' if loop.last and m['role'] == 'assistant' else '') + m['content'] + '<|im_end|>'"
    )
    folder = write_tokenizer(tmp_path, think)
    with pytest.raises(BadLine, match=r"message 2 reads otherwise .* or learn the last answer alone \(loss_on: last\)$"):
        learnt(folder, TURNS)
    ids, found = learnt(folder, TURNS, loss_on="last")
    assert found == "<think></think>drei<|im_end|>" and ids == theirs(folder, TURNS)
    first = [TURNS[0], {**TURNS[1], "weight": 0}, TURNS[2], {**TURNS[3], "weight": 0}, *TURNS[4:]]
    assert learnt(folder, first) == (ids, found)


def test_answers_that_are_marked_twice(folders, tmp_path):
    twice = TEMPLATES["marked"].replace("{{ m['content'] }}<|im_end|>{% endg", "{{ m['content'] }}<|im_end|>{% endgeneration %}{% generation %}{{ '!</s>' }}{% endg")
    folder = write_tokenizer(tmp_path, twice)
    assert learnt(folder, TURNS)[1].count("!") == 3
    with pytest.raises(BadLine, match="the template marks 6 answers where the assistant speaks 3 times, so that which is whose is not known"):
        learnt(folder, TURNS, loss_on="last")


def test_marked_answers_without_text_keep_their_place(folders):
    empty = TEMPLATES["marked"].replace("{{ m['content'] }}<|im_end|>{% endg", "{{ m['content'] + '<|im_end|>' if m['content'] else '' }}{% endg")
    assert empty != TEMPLATES["marked"]
    folder = write_tokenizer(folders["marked"].parent / "empty", empty)
    assert learnt(folder, chat("A", "", "B", "zwei"), loss_on="last")[1] == "zwei<|im_end|>"


def test_keywords_of_a_template(folders, tmp_path):
    """What transformers' apply_chat_template takes beside messages and tools; with a date given none is asked for."""
    dated = "{% if not date_string is defined %}{% set date_string = strftime_now('%d') %}{% endif %}{{ date_string + '\n' }}" + TEMPLATES["chatml"]
    folder = write_tokenizer(tmp_path, dated)
    with pytest.raises(ConfigError, match=r"writes today's date \(strftime_now\): .*Give a date .*\(chat_template_kwargs, like date_string\), or name a copy"):
        reader(folder)
    chats = reader(folder, date_string="26 Jul 2024")
    assert from_json(chats.document(TURNS)[0]).text.startswith("26 Jul 2024\n<|im_start|>")
    assert repr(chats) != repr(reader(folder, date_string="27 Jul 2024"))
    with pytest.raises(ConfigError, match="chat_template_kwargs: dat_string does not occur in the chat template in .*; remove it"):
        reader(folder, dat_string="26 Jul 2024")
    with pytest.raises(ConfigError, match="chat_template_kwargs: messages is not for you to give; remove it"):
        reader(folder, messages=[])


@pytest.mark.parametrize("template, ends", [("objects", ["<|im_end|>"]), ("called", ["<|im_end|>", "<|eot_id|>"])])
def test_the_tokens_that_end_calls(folders, tmp_path, template, ends):
    """A call may end with another token than an answer; who generates text has to stop there, too."""
    source = TOOL_TEMPLATES["objects"].replace("{{ '<|im_end|>\n' }}{% endfor", "{{ '<|eot_id|>' if m.tool_calls else '<|im_end|>\n' }}{% endfor")
    folder = folders["objects"] if template == "objects" else write_tokenizer(tmp_path, source)
    assert ChatTemplate.load(Tokenizer.load(folder)).ends() == ends


# --------------------------------------------------------------------------------------------------------------- refused

USER, TOOL = {"role": "user", "content": "a"}, {"role": "tool", "content": "b"}
BAD = {
    "half": ("chatml", [USER, {"role": "assistant", "content": "b", "weight": 0.5}], None, "message 2 has the weight 0.5, and an answer is learnt or is not: write 0 or 1"),
    "words": ("chatml", [USER, {"role": "assistant", "content": "b", "train": "no"}], None, 'message 2 has the train "no", and an answer is learnt or is not: write true'),
    "both": ("chatml", [USER, {"role": "assistant", "content": "b", "weight": 1, "train": False}], None, "message 2 has the weight 1 and train false, of which one says"),
    "question": ("chatml", [{**USER, "weight": 1}], None, "message 1 has the role 'user' and a weight or train that says that it is learnt, which only"),
    "called by the user": ("chatml", [{**USER, "tool_calls": [call()]}], None, "message 1 has the role 'user' and tool calls, which only"),
    "no calls": ("objects", [USER, {"role": "assistant", "tool_calls": "wetter"}], TOOLS, "message 2 has tool calls that are no list of objects"),
    "no name": ("objects", [USER, {"role": "assistant", "tool_calls": [{}]}], TOOLS, "message 2 has a tool call without the name of a function"),
    "no JSON": ("objects", [{"from": "function_call", "value": "wetter()"}], TOOLS, "message 1 is no JSON text (Expecting value"),
    "no object": (
        "objects", [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}], TOOLS,
        "the arguments of a tool call are no JSON object, which the template wants: [1] is no object",
    ),
    "image": ("chatml", [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], None, "part 1 of message 1 has the type 'image_url', and only parts"),
    "part": ("chatml", [{"role": "user", "content": [{"type": "text"}]}], None, "part 1 of message 1 has no text, and only parts"),
    "part that is chosen": (
        "chatml", [USER, {"role": "assistant", "content": [{"type": "text", "text": "b", "train": False}]}], None,
        "part 1 of message 2 has a train of its own, and an answer is learnt whole or not at all: give the message one",
    ),
    "tools that are text": ("objects", [USER], "wetter", "the value of 'tools' is no JSON text (Expecting value"),
    "tools that are none": ("objects", [USER], ["wetter"], "the value of 'tools' is no list of tools, which are objects (JSON schemas), nor JSON text of one"),
    "unknown tools": ("chatml", TURNS, TOOLS, "it has tools, and the template writes none: choose a template that does, or say that there are none (tools)"),
    "unknown calls": ("chatml", conversation(call()), None, "message 2 calls a tool, and the template writes no tool_calls; choose one that does"),
    "calls beside text": (
        "null", [USER, {"role": "assistant", "content": "Moment.", "tool_calls": [call()]}], TOOLS,
        "message 2 calls a tool and says something, and the template writes no call then; leave out what it says, or choose another",
    ),
    "results as answers": (
        "inst", [USER, TOOL, *TURNS], None, "message 2 has the role 'tool', and the template writes what it says as if the assistant said it; choose one",
    ),
    "results left out": (
        "silent", [*TURNS[:2], TOOL, *TURNS[:2]], None, "message 3 has the role 'tool', and the template writes nothing of what it says; choose one",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused(folders, tmp_path, name):
    template, messages, tools, message = BAD[name]
    silent = TEMPLATES["chatml"].replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'tool' %}")
    folder = write_tokenizer(tmp_path, silent) if template == "silent" else folders[template]
    with pytest.raises(BadLine) as error:
        reader(folder).document(messages, tools)
    assert message in str(error.value)


def test_all_and_one_that_is_not_learnt(folders):
    with pytest.raises(BadLine, match="message 2 is not to be learnt, and loss_on 'all' learns the whole text"):
        learnt(folders["chatml"], [TURNS[0], {**TURNS[1], "weight": 0}], loss_on="all")
