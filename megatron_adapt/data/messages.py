"""A chat as it stands in a corpus -> messages as chat templates take them (OpenAI's), and which of its answers are learnt.

Other spellings are brought to that one: {from, value} and the roles human, gpt, observation and function_call (ShareGPT),
contents as lists of text parts, tools as JSON text. All other keys of a message stay as they are, for the template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_adapt.data.parsing import BadLine, json_type

ROLES = {
    "system": "system", "developer": "developer", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
    "function_call": "assistant", "tool": "tool", "observation": "tool",
}  # fmt: skip
_SPELLINGS = (("role", "content"), ("from", "value"))
_CHOICES = ("weight", "train")  # of an answer: whether it is learnt
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Chat:
    """``tools``: schemas, None without any; ``learnt``: of each message what it says itself; ``replaced``: lone surrogates
    that became U+FFFD."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    learnt: list[bool | None]
    replaced: int


def read(messages: Any, beside: Mapping[str, Any], keys: Mapping[str, str | None]) -> Chat:
    """``messages`` and what stands ``beside`` them: "tools", and a "system" message that is to come first.

    Args:
        keys: of "messages" and these in the corpus, for what is said about them.

    Raises:
        BadLine: this is no chat.
    """
    if not isinstance(messages, list):
        raise BadLine(f"the value of {keys['messages']!r} is a JSON {json_type(messages)} instead of a list of messages")
    found = [_message(message, f"message {number}") for number, message in enumerate(messages, 1)]
    if found and found[0][0]["role"] not in ("system", "developer"):
        found = [*_system(beside.get("system"), keys.get("system")), *found]
    schemas = _schemas(beside.get("tools"), keys.get("tools"))
    (chat, schemas), replaced = _without_surrogates([[message for message, _ in found], schemas])
    return Chat(chat, schemas, [learnt for _, learnt in found], replaced)


def without_nulls(value: Any) -> Any:
    """Of a column's value what its row has given: columns of structs have all keys in every row."""
    if isinstance(value, list):
        return [without_nulls(one) for one in value]
    if isinstance(value, Mapping):
        return {key: without_nulls(one) for key, one in value.items() if one is not None}
    return value


def _message(message: Any, where: str) -> tuple[dict[str, Any], bool | None]:
    if not isinstance(message, dict):
        raise BadLine(f"{where} is a JSON {json_type(message)} instead of an object")
    role_key, content_key = next((keys for keys in _SPELLINGS if message.get(keys[0]) is not None), (None, None))
    calls = message.get("tool_calls")
    if role_key is None or (content_key not in message and not calls):
        raise BadLine(f"{where} has neither 'role' and 'content' nor 'from' and 'value'")
    spelled, content = message[role_key], message.get(content_key)
    if not isinstance(spelled, str) or spelled not in ROLES:
        raise BadLine(f"{where} has the role {spelled!r}, which is none of {', '.join(ROLES)}")
    role, learnt = ROLES[spelled], _learnt(message, where)
    if role != "assistant" and (calls or learnt):
        what = "tool calls" if calls else "a weight or train that says that it is learnt"
        raise BadLine(f"{where} has the role {spelled!r} and {what}, which only the assistant's have; remove that")
    # What is null was not given, whatever wrote the line; the others are the template's.
    rest = {name: one for name, one in message.items() if one is not None and name not in (*_CHOICES, *_SPELLINGS[0], *_SPELLINGS[1])}
    if spelled == "function_call":
        found = _json(content, where)
        calls = [{"type": "function", "function": call} for call in _calls(found if isinstance(found, list) else [found], where)]
        return {"role": role, "content": "", **rest, "tool_calls": calls}, learnt
    if calls:
        _calls(calls, where)
    said = {} if content is None else {"content": _text(content, where)}
    if not calls and not said:
        raise BadLine(f"{where} holds a JSON null instead of text")
    return {"role": role, **said, **rest}, learnt


def _learnt(message: Mapping[str, Any], where: str) -> bool | None:
    """What a message says itself; None: nothing."""
    found = {}
    for name in _CHOICES:
        if (value := message.get(name)) is None:
            continue
        if not isinstance(value, (int, float)) or value not in (0, 1):
            allowed = "0 or 1" if name == "weight" else "true or false"
            raise BadLine(f"{where} has the {name} {json.dumps(value)}, and an answer is learnt or is not: write {allowed}")
        found[name] = bool(value)
    if len(set(found.values())) > 1:
        raise BadLine(f"{where} has the weight {int(found['weight'])} and train {json.dumps(found['train'])}, of which one says that it is learnt; remove one")
    return next(iter(found.values()), None)


def _text(content: Any, where: str) -> str:
    """Text, or its parts one after the other."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadLine(f"{where} holds a JSON {json_type(content)} instead of text")
    texts = []
    for number, part in enumerate(content, 1):
        at = f"part {number} of {where}"
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = f"the type {part['type']!r}" if isinstance(part, dict) and part.get("type") not in (None, "text") else "no text"
            raise BadLine(f"{at} has {kind}, and only parts with the type 'text' and a 'text' can be learnt or read")
        for name in _CHOICES:
            if part.get(name) is not None:
                raise BadLine(f"{at} has a {name} of its own, and an answer is learnt whole or not at all: give the message one instead")
        texts.append(part["text"])
    return "".join(texts)


def _calls(calls: Any, where: str) -> list[dict[str, Any]]:
    """Tool calls as they are, each a function or what holds one."""
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise BadLine(f"{where} has tool calls that are no list of objects")
    for call in calls:
        function = call.get("function", call)
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadLine(f"{where} has a tool call without the name of a function")
    return calls


def _system(text: Any, key: str | None) -> list[tuple[dict[str, Any], None]]:
    if text is not None and not isinstance(text, str):
        raise BadLine(f"the value of {key!r} is a JSON {json_type(text)} instead of a system message; say which key these have, or that there are none (system)")
    return [({"role": "system", "content": text}, None)] if text and text.strip() else []


def _schemas(tools: Any, key: str | None) -> list[dict[str, Any]] | None:
    if isinstance(tools, str):
        tools = _json(tools, f"the value of {key!r}") if tools.strip() else None
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadLine(
            f"the value of {key!r} is no list of tools, which are objects (JSON schemas), nor JSON text of one; if it is something else, say "
            "which key tools have, or that there are none (tools)"
        )
    return tools


def _json(text: Any, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise BadLine(f"{where} is no JSON text ({error})") from None


def _without_surrogates(value: Any) -> tuple[Any, int]:
    """Lone surrogates anywhere in it become U+FFFD; and how many."""
    if isinstance(value, str):
        return _SURROGATE.subn("\ufffd", value)
    if isinstance(value, list):
        found = [_without_surrogates(one) for one in value]
        return [one for one, _ in found], sum(count for _, count in found)
    if isinstance(value, dict):
        pairs, count = _without_surrogates([list(pair) for pair in value.items()])
        return dict(pairs), count
    return value, 0
