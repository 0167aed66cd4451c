"""Chats in JSON lines -> text with known answers -> ids, and which of them are learnt.

A chat is rendered once, where it is read, into a document of its own: JSON of {"text", "answers": [begin, end) in
characters of what is learnt, "bytes": UTF-8 bytes of what the answers say}. Held-out chats are stored so, too, and can be
measured under any tokenizer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_adapt.data import messages as forms
from megatron_adapt.data.parsing import BadLine, record_of
from megatron_adapt.errors import DataError

if TYPE_CHECKING:
    from megatron_adapt.hf.chat_template import ChatTemplate
    from megatron_adapt.hf.tokenizer import Tokenizer

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
        loss_on: "answers", the "last" of them, or "all" of the text.
        tools, system: keys of the tools that the assistant may call, and of a system message, where a line has them; None: no
            line has any.

    Attributes:
        beside: these keys, by what :meth:`document` calls what is there.
    """

    def __init__(
        self, key: str, template: ChatTemplate, loss_on: str = "answers", tools: str | None = "tools", system: str | None = "system"
    ) -> None:
        self.key, self.template, self.loss_on = key, template, loss_on
        self.beside = {name: one for name, one in (("tools", tools), ("system", system)) if one is not None}

    def __repr__(self) -> str:
        """All that the result depends on."""
        template = self.template
        told = json.dumps([self.key, self.beside, self.loss_on, template.source, template.variables, template.closings])
        return f"chats {hashlib.sha256(told.encode()).hexdigest()}"

    def parse(self, data: bytes) -> tuple[str, int]:
        """A line of JSON -> a document, empty where nothing is learnt, and how many lone surrogates became U+FFFD."""
        record = record_of(data, self.key)
        return self.document(record[self.key], **{name: record.get(key) for name, key in self.beside.items()})

    def document(self, messages: Any, tools: Any = None, system: Any = None) -> tuple[str, int]:
        """As :meth:`parse`, of a list of messages, the assistant's tools and a system message.

        Raises:
            BadLine: they are none, or the template cannot be used with them.
        """
        from megatron_adapt.hf.chat_template import Unrenderable

        chat = forms.read(messages, {"tools": tools, "system": system}, {"messages": self.key, **self.beside})
        try:
            found = self._rendered(chat)
        except Unrenderable as error:
            raise BadLine(str(error)) from None
        return (to_json(found) if found.answers else ""), chat.replaced

    def _rendered(self, chat: forms.Chat) -> Rendered:
        if self.loss_on == "all":
            if False in chat.learnt:
                raise BadLine(f"message {chat.learnt.index(False) + 1} is not to be learnt, and loss_on 'all' learns the whole text")
            text = self.template.plain(chat.messages, chat.tools)
            return Rendered(text, ((0, len(text)),) if text else (), len(text.encode()))
        learnt = self._learnt(chat)
        if not learnt:
            return Rendered("", (), 0)
        text, answers = self.template.render(chat.messages, chat.tools, learnt)
        return Rendered(text, tuple(answers), sum(len(self.template.said(text, answer).encode()) for answer in answers))

    def _learnt(self, chat: forms.Chat) -> list[int]:
        """Numbers, from 0, of the messages that are learnt."""
        answers = [number for number, message in enumerate(chat.messages) if message["role"] == "assistant"]
        chosen = answers[-1:] if self.loss_on == "last" else answers
        return [number for number in chosen if chat.learnt[number] is not False]


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
