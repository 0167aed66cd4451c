"""What a chat template makes of tools, tool calls and their results, asked before it is used with any.

Templates take a call's arguments as an object, as JSON text (OpenAI's), or as both, and render the other one as Python's
notation or as text in quotes; some write calls only where there is no text beside them, or where that is null; some know no
tools, and write messages of roles that they do not know as answers, or not at all. A model would learn all of that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]
Render = Callable[[Sequence[Message], Sequence[Mapping[str, Any]] | None], str | None]

_NAME, _WORD = "probe_tool", "Zq7"
TOOLS = [{"type": "function", "function": {"name": _NAME, "description": "None.", "parameters": {"type": "object", "properties": {}}}}]
_ID = "probe0001"  # nine letters and digits, as Mistral's templates want them
_ABSENT = "\0absent"
_NOTHING = ("", _ABSENT, None)  # what is there where nothing is said
_ASKED = {"role": "user", "content": "Where?"}


def called(arguments: Any, content: Any = "") -> list[dict[str, Any]]:
    """A question, the call of a tool beside some text (_ABSENT: without the key), its result and the answer."""
    call = {"id": _ID, "type": "function", "function": {"name": _NAME, "arguments": arguments}}
    result = {"role": "tool", "name": _NAME, "tool_call_id": _ID, "content": "There."}
    said = {} if content is _ABSENT else {"content": content}
    return [_ASKED, {"role": "assistant", **said, "tool_calls": [call]}, result, {"role": "assistant", "content": "There."}]


class ToolUse:
    """Of one template.

    Args:
        render: messages and tools -> their text, or None where the template refuses them.
    """

    def __init__(self, source: str, render: Render) -> None:
        self._render = render
        self._roles: dict[str, str | None] = {}
        self._forms: tuple[bool, bool] | None = None
        self._texts: dict[tuple[Any, str], str | None] = {}
        self.writes_tools, self.writes_calls = (bool(re.search(rf"\b{word}\b", source)) for word in ("tools", "tool_calls"))

    def problem(self, messages: Sequence[Message], tools: Sequence[Any] | None) -> str | None:
        """What of a chat a model would see otherwise than it is, or not at all."""
        if tools and not self.writes_tools:
            return "it has tools, and the template writes none: choose a template that does, or say that there are none (tools)"
        for number, message in enumerate(messages, 1):
            if message.get("tool_calls") and not self.writes_calls:
                return f"message {number} calls a tool, and the template writes no tool_calls; choose one that does"
            if message.get("tool_calls") and message.get("content") and not self._writes(_WORD) and any(map(self._writes, _NOTHING)):
                return f"message {number} calls a tool and says something, and the template writes no call then; leave out what it says, or choose another"
            if number > 1 and message["role"] not in ("user", "assistant") and (problem := self._role_problem(message["role"])):
                return f"message {number} has the role {message['role']!r}, and the template writes {problem}; choose one that knows this role"
        return None

    def arranged(self, messages: Sequence[Message]) -> list[Message]:
        """With calls in a form that the template takes: as they are where it does.

        Raises:
            ValueError: arguments have to become an object, and are none.
        """
        return [self._message(message) if message.get("tool_calls") else message for message in messages]

    def _message(self, message: Message) -> Message:
        found = {**message, "tool_calls": [self._call(call) for call in message["tool_calls"]]}
        given = message.get("content", _ABSENT)
        if given in _NOTHING and not self._writes(given):
            for other in filter(self._writes, _NOTHING):
                return {**{key: value for key, value in found.items() if key != "content"}, **({} if other is _ABSENT else {"content": other})}
        return found

    def _call(self, call: Mapping[str, Any]) -> Mapping[str, Any]:
        if "function" in call:
            return {**call, "function": self._call(call["function"])}
        arguments = call.get("arguments")
        if not isinstance(arguments, (str, dict)):
            return call
        texts, objects = self._known()
        if isinstance(arguments, str) and objects and not texts:
            found = json.loads(arguments or "{}")
            if not isinstance(found, dict):
                raise ValueError(f"{arguments} is no object")
            return {**call, "arguments": found}
        if isinstance(arguments, dict) and texts and not objects:
            return {**call, "arguments": json.dumps(arguments, ensure_ascii=False)}
        return call

    def _known(self) -> tuple[bool, bool]:
        """Whether arguments that are text come out as they are, and objects not in Python's notation."""
        if self._forms is None:
            text, made = ([self._call_text(content, form) for content in _NOTHING] for form in ("text", "object"))
            self._forms = any('{"zq": 1}' in one for one in text if one), any("{'zq'" not in one for one in made if one)
        return self._forms

    def _writes(self, content: Any) -> bool:
        """Whether calls beside such a text are written."""
        return any(self._call_text(content, form) is not None for form in ("text", "object"))

    def _call_text(self, content: Any, form: str) -> str | None:
        """A conversation with a call, None where the template refuses it or writes nothing of the call."""
        key = content, form
        if key not in self._texts:
            messages = called('{"zq": 1}' if form == "text" else {"zq": 1}, content)
            text = self._render(messages, TOOLS)
            call = {name: value for name, value in messages[1].items() if name != "tool_calls"}
            self._texts[key] = None if text == self._render([messages[0], call, *messages[2:]], TOOLS) else text
        return self._texts[key]

    def _role_problem(self, role: str) -> str | None:
        if role not in self._roles:
            self._roles[role] = self._asked(role)
        return self._roles[role]

    def _asked(self, role: str) -> str | None:
        found = []
        for before in ([_ASKED], called({})[:2]):
            message = {"name": _NAME, "tool_call_id": _ID, "content": _WORD}
            text = self._render([*before, {**message, "role": role}], TOOLS)
            if text is not None:
                if text == self._render([*before, {**message, "role": "assistant"}], TOOLS):
                    return "what it says as if the assistant said it"
                found.append(_WORD in text)
        return None if not found or any(found) else "nothing of what it says"
