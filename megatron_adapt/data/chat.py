"""Chats in JSON lines -> text with known answers -> ids, and which of them are learnt.

A chat is rendered once, where it is read, into a document of its own: JSON of {"text", "answers": [begin, end) in
characters of what is learnt, "bytes": UTF-8 bytes of what the answers say}. Held-out chats are stored so, too, and can be
measured under any tokenizer.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_adapt.data.parsing import BadLine, json_type, value_of
from megatron_adapt.errors import DataError

if TYPE_CHECKING:
    from megatron_adapt.hf.chat_template import ChatTemplate
    from megatron_adapt.hf.tokenizer import Tokenizer

ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
_SPELLINGS = (("role", "content"), ("from", "value"))
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Rendered:
    """The text of a chat; ``answers``: [begin, end) in its characters of what is learnt, ``bytes``: of what they say."""

    text: str
    answers: tuple[tuple[int, int], ...]
    bytes: int


@dataclass(frozen=True)
class Encoded:
    """Chats one after the other: ids int32 [tokens], offsets [chats + 1] in them and in the text's bytes, mask uint8 [tokens]: 1 for
    what is learnt, ``bytes``: of what the answers say."""

    ids: np.ndarray
    id_offsets: np.ndarray
    text_offsets: np.ndarray
    mask: np.ndarray
    bytes: int


class Chats:
    """How chats are read.

    Args:
        key: of the list of messages in a line of JSON.
        loss_on: "answers", or "all" of the text.
    """

    def __init__(self, key: str, template: ChatTemplate, loss_on: str = "answers") -> None:
        self.key, self.template, self.loss_on = key, template, loss_on

    def __repr__(self) -> str:
        """All that the result depends on."""
        template = self.template
        told = json.dumps([self.key, self.loss_on, template.source, template.tokens, template.closings])
        return f"chats {hashlib.sha256(told.encode()).hexdigest()}"

    def parse(self, data: bytes) -> tuple[str, int]:
        """A line of JSON -> a document, empty where there is no answer, and how many lone surrogates became U+FFFD."""
        return self.document(value_of(data, self.key))

    def document(self, messages: Any) -> tuple[str, int]:
        """As :meth:`parse`, of a list of messages.

        Raises:
            BadLine: they are none, or the template cannot be used with them.
        """
        from megatron_adapt.hf.chat_template import Unrenderable

        chat, replaced = [], 0
        for number, message in enumerate(_list(messages, self.key), 1):
            role, content = _role_and_content(message, f"message {number}")
            content, count = _SURROGATE.subn("\ufffd", content)
            chat.append({"role": role, "content": content})
            replaced += count
        try:
            found = self._rendered(chat)
        except Unrenderable as error:
            raise BadLine(str(error)) from None
        return (to_json(found) if found.answers else ""), replaced

    def _rendered(self, chat: Sequence[dict[str, str]]) -> Rendered:
        if self.loss_on == "all":
            text = self.template.plain(chat)
            return Rendered(text, ((0, len(text)),) if text else (), len(text.encode()))
        if not any(message["role"] == "assistant" for message in chat):
            return Rendered("", (), 0)
        text, answers = self.template.render(chat)
        return Rendered(text, tuple(answers), sum(len(self.template.said(text, answer).encode()) for answer in answers))


def encode(tokenizer: Tokenizer, chats: Sequence[Rendered]) -> Encoded:
    """Each text is tokenized as a whole; a token is learnt that stands for any character of an answer."""
    pieces = tokenizer.encode_with_places([chat.text for chat in chats])
    masks = [learnt(places, chat.answers) for (_, places), chat in zip(pieces, chats)]
    ids = [found for found, _ in pieces]
    return Encoded(
        np.concatenate(ids) if ids else np.empty(0, np.int32),
        np.cumsum([0, *map(len, ids)], dtype=np.int64),
        np.cumsum([0, *(len(chat.text.encode()) for chat in chats)], dtype=np.int64),
        np.concatenate(masks) if masks else np.empty(0, np.uint8),
        sum(chat.bytes for chat in chats),
    )


def learnt(places: np.ndarray, answers: Sequence[tuple[int, int]]) -> np.ndarray:
    """[tokens] uint8, of their places [tokens, 2]."""
    begin, end = places[:, 0], places[:, 1]
    # Libraries trim spaces from places: of a token of spaces alone only the end is left.
    begin = np.where(begin == end, end - 1, begin)
    mask = np.zeros(len(places), dtype=np.uint8)
    for first, behind in answers:
        mask[(begin < behind) & (end > first)] = 1
    return mask


def to_json(chat: Rendered) -> str:
    return json.dumps({"text": chat.text, "answers": chat.answers, "bytes": chat.bytes}, ensure_ascii=False)


def from_json(document: str) -> Rendered:
    found = json.loads(document)
    return Rendered(found["text"], tuple((begin, end) for begin, end in found["answers"]), found["bytes"])


def is_stored(path: Path) -> bool:
    """Whether this is a .jsonl file of chats that were held out, by the keys of its first line; text may have answers beside, too."""
    if path.suffix != ".jsonl" or not path.is_file():
        return False
    with path.open("rb") as lines:
        begin = lines.readline(1 << 28)
    try:
        found = json.loads(begin)
    except ValueError:
        return False
    return isinstance(found, dict) and found.keys() == {"text", "answers", "bytes"} and isinstance(found["answers"], list)


def read_stored(path: Path) -> Iterator[Rendered]:
    """Chats that were held out."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield from_json(line)
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}:{number} is no chat that was held out ({error}); preprocess its corpus again") from None


def _list(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise BadLine(f"the value of {key!r} is a JSON {json_type(value)} instead of a list of messages")
    return value


def _role_and_content(message: Any, where: str) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise BadLine(f"{where} is a JSON {json_type(message)} instead of an object")
    for role_key, content_key in _SPELLINGS:
        if role_key in message and content_key in message:
            role, content = message[role_key], message[content_key]
            if role is not None or content is not None:  # where files were joined a column of structs has both, one of them empty
                break
    else:
        raise BadLine(f"{where} has neither 'role' and 'content' nor 'from' and 'value'")
    if not isinstance(role, str) or role not in ROLES:
        raise BadLine(f"{where} has the role {role!r}, which is none of {', '.join(ROLES)}")
    if not isinstance(content, str) or message.get("tool_calls"):
        what = "tool calls" if message.get("tool_calls") else f"a JSON {json_type(content)}"
        raise BadLine(f"{where} holds {what} instead of text")
    return ROLES[role], content
