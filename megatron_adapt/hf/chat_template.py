"""A tokenizer's chat template: messages -> text, and where in it the answers stand.

transformers renders (Jinja in a sandbox), so the text is that of its ``apply_chat_template``. An answer begins where the
conversation before it ends, rendered with the generation prompt, and ends with the token that closes its turn: that is
what a model has to write. Both places come from rendering, never from looking for the answer in the text, where it may
stand twice or be trimmed. Templates that mark answers (``{% generation %} ... {% endgeneration %}``) are believed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_adapt.errors import ConfigError
from megatron_adapt.hf import tool_calls
from megatron_adapt.hf.directory import read_json
from megatron_adapt.hf.tokenizer import Tokenizer

Span = tuple[int, int]
_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_TODAY = re.compile(r"\bstrftime_now\s*\(")
_MARK = "mark answers in the template: {% generation %} ... {% endgeneration %}"
_NO_DATE = "no date"  # what cannot be called
_OF_RENDERING = (
    "conversations", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "continue_final_message", "strftime_now",
    "return_assistant_tokens_mask",
)  # fmt: skip
_PROBE = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."}]


class Unrenderable(Exception):
    """Why a conversation has no text under a template, or no known answers."""


class ChatTemplate:
    """Made by :meth:`load`.

    Attributes:
        name: the file that it is from, for messages.
        source: Jinja.
        tokens: {"bos_token": "<s>", ...}, which templates use by name.
        closings: spellings of the tokenizer's added tokens, one of which has to end an answer.
        variables: ``tokens``, and what else is handed to the template by name, as ``apply_chat_template`` does with its keywords.
    """

    def __init__(
        self, name: str, source: str, tokens: Mapping[str, str], closings: Sequence[str], keywords: Mapping[str, Any] | None = None
    ) -> None:
        self.name, self.source, self.tokens = name, source, dict(tokens)
        self.closings = tuple(closings)
        self.marks = bool(_MARKS.search(source))
        self.variables: dict[str, Any] = {**tokens, **(keywords or {})}
        self._tools = tool_calls.ToolUse(source, self._tried)

    @classmethod
    def load(cls, tokenizer: Tokenizer, file: Path | None = None, keywords: Mapping[str, Any] | None = None) -> ChatTemplate:
        """The template in a file, else the tokenizer's own, with ``keywords``; tried on a question and its answer.

        Raises:
            ConfigError: there is none, Jinja or the tokenizer cannot read it, or a model would not learn to end its answers.
        """
        if tokenizer.definition is None:
            raise ConfigError(f"chats need a tokenizer.json, which {tokenizer.path} lacks: special tokens have to be found in text")
        name, source = (str(file), _read(file)) if file is not None else _own(tokenizer)
        added = [token["content"] for token in tokenizer.definition.head.get("added_tokens") or []]
        template = cls(name, source, _special_tokens(tokenizer), [content for content in added if content.strip()], keywords)
        for keyword in keywords or {}:
            if keyword in _OF_RENDERING or not re.search(rf"\b{re.escape(keyword)}\b", source):
                why = "is not for you to give" if keyword in _OF_RENDERING else f"does not occur in {name}"
                raise ConfigError(f"chat_template_kwargs: {keyword} {why}; remove it")
        template.check(tokenizer)
        return template

    def check(self, tokenizer: Tokenizer) -> None:
        try:
            text, answers = self.render(_PROBE)
            self._check_prompt(text)
        except Unrenderable as error:
            raise ConfigError(f"{self.name} cannot be used with the tokenizer {tokenizer.path}: {error}") from None
        if not answers:
            raise ConfigError(f"{self.name} marks no answer in {text!r}; {_MARK}")
        self._check_end(tokenizer, text, answers[-1])

    def _check_end(self, tokenizer: Tokenizer, text: str, answer: Span) -> None:
        """What is spelled like a token may not become it: one that is `normalized` is looked for in another spelling."""
        words = text[: answer[1]].rstrip()
        closing = self._closing(words)
        ((ids, places),) = tokenizer.encode_with_places([text])
        inside = (places[:, 1] > len(words) - len(closing)) & (places[:, 0] < len(words))
        tokens = tokenizer.tokens()
        found = [tokens[index] for index in ids[inside]]
        if closing not in found:
            raise ConfigError(
                f"the tokenizer {tokenizer.path} cuts {closing!r} at the end of an answer into {found}, so that a model would not learn to "
                f'stop: set "normalized": false for this token in its tokenizer.json, or let {self.name} write another one'
            )

    def _check_prompt(self, text: str) -> None:
        """Without a generation prompt a turn's heading would count as the answer's begin."""
        begin = len(self.plain(_PROBE[:1]))
        if self.marks or self._rendered(_PROBE[:1], prompt=True)[0] != text[:begin]:
            return
        other = self.plain([_PROBE[0], {**_PROBE[1], "content": "There."}])
        heading = os.path.commonprefix([text[begin:], other[begin:]])
        if heading.strip():
            raise Unrenderable(f"it has no generation prompt, so that answers would begin with {heading!r}; add one, or {_MARK}")

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None, learnt: Collection[int] | None = None
    ) -> tuple[str, list[Span]]:
        """Text of a conversation, and [begin, end) in characters of its answers with the token that closes each.

        Args:
            learnt: numbers of the assistant's messages whose places are wanted, from 0; None: of all.

        Raises:
            Unrenderable: the template refuses the conversation, where an answer stands cannot be known, or no token ends it.
        """
        messages = self._arranged(messages, tools)
        turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        wanted = [number for number in turns if learnt is None or number in learnt]
        if self.marks:
            text, marked = self._rendered(messages, tools, marked=True)
            answers = marked if wanted == turns else _of_turns(marked, turns, wanted)
            answers = [(begin, end) for begin, end in answers if begin < end]
        else:
            text = self._rendered(messages, tools)[0]
            answers = [self._answer(text, messages, tools, number) for number in wanted]
        for begin, end in answers:
            if not text[begin:end].rstrip().endswith(self.closings):
                raise Unrenderable(
                    f"no token of the tokenizer ends the answer {_shown(text[begin:end])}, so that a model would not learn to stop: "
                    "let the template write one there (like {{ eos_token }}), or choose a tokenizer that has it"
                )
        return text, answers

    def plain(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None) -> str:
        """The text alone; Unrenderable where the template refuses the conversation."""
        return self._rendered(self._arranged(messages, tools), tools)[0]

    def said(self, text: str, answer: Span) -> str:
        """An answer without the token that closes it and spaces around it, which may be the template's."""
        words = text[slice(*answer)].rstrip()
        return words[: len(words) - len(self._closing(words))].strip()

    def ends(self) -> list[str]:
        """The tokens that answers end with: one that is the last, those of a longer conversation, and calls of tools."""
        found = []
        for messages in (_PROBE, _PROBE * 2, *([tool_calls.called({"zq": 1})] if self._tools.writes_calls else [])):
            try:
                text, answers = self.render(messages)
            except Unrenderable:  # the short one was rendered when the template was loaded, others may need marks
                continue
            found += [self._closing(text[begin:end].rstrip()) for begin, end in answers]
        return list(dict.fromkeys(found))

    def _closing(self, words: str) -> str:
        return max((token for token in self.closings if words.endswith(token)), key=len, default="")

    def _answer(self, text: str, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None, number: int) -> Span:
        before = self._rendered(messages[:number], tools, prompt=True)[0] if number else self._opening(text)
        through = text if number + 1 == len(messages) else self._rendered(messages[: number + 1], tools)[0]
        if not (through.startswith(before) and text.startswith(through)):
            other = ", or learn the last answer alone (loss_on: last)" if number + 1 < len(messages) else ""
            raise Unrenderable(
                f"message {number + 1} reads otherwise where the conversation begins, ends or goes on there, so that where the answer "
                f"stands is not known; {_MARK}{other}"
            )
        # What follows the token that ends the turn, like the line end of ChatML, no model has to write.
        return len(before), len(before) + len(through[len(before) :].rstrip())

    def _opening(self, text: str) -> str:
        """What stands before an answer that a conversation begins with: up to the generation prompt, which templates seldom write for
        no conversation at all."""
        heading = self._rendered(_PROBE[:1], prompt=True)[0][len(self.plain(_PROBE[:1])) :]
        if not heading.strip():
            return self._rendered([], prompt=True)[0]
        return text[: text.find(heading) + len(heading)] if heading in text else heading

    def _arranged(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None) -> Sequence[Mapping[str, Any]]:
        if problem := self._tools.problem(messages, tools):
            raise Unrenderable(problem)
        try:
            return self._tools.arranged(messages)
        except ValueError as error:
            raise Unrenderable(f"the arguments of a tool call are no JSON object, which the template wants: {error}") from None

    def _tried(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None) -> str | None:
        try:
            return self._rendered(messages, tools)[0]
        except Unrenderable:
            return None

    def _rendered(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None, prompt: bool = False, marked: bool = False
    ) -> tuple[str, list[Span]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        dated = {"strftime_now": _NO_DATE} if _TODAY.search(self.source) else {}
        try:
            (text,), spans = render_jinja_template(
                [list(messages)], tools=tools, chat_template=self.source, return_assistant_tokens_mask=marked,
                add_generation_prompt=prompt, **self.variables, **dated,
            )  # fmt: skip
        except Exception as error:  # Jinja's own, and whatever an expression in a template raises
            if dated and "not callable" in str(error):
                raise Unrenderable(
                    "it writes today's date (strftime_now): tomorrow the same chats would be another corpus. Give a date by the name that "
                    "the template has for it (chat_template_kwargs, like date_string), or name a copy with a date in it (chat_template)"
                ) from None
            raise Unrenderable(f"the template refuses it: {' '.join(str(error).split())}") from None
        return text, list(spans[0]) if marked else []


def _of_turns(marked: Sequence[Span], turns: Sequence[int], wanted: Sequence[int]) -> list[Span]:
    if len(marked) != len(turns):
        raise Unrenderable(
            f"the template marks {len(marked)} answers where the assistant speaks {len(turns)} times, so that which is whose is not known, and "
            "not all of them are to be learnt; mark each of its messages once"
        )
    return [span for span, turn in zip(marked, turns) if turn in wanted]


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"...{text[-57:]}")


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the chat template {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the chat template {file} is not UTF-8 text") from None


def _own(tokenizer: Tokenizer) -> tuple[str, str]:
    files = {file.name: file for file in tokenizer.files}
    if "chat_template.jinja" in files:
        file = files["chat_template.jinja"]
        return str(file), _read(file)
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = (read_json(files[name]) or {}).get("chat_template") if name in files else None
        if isinstance(found, list):  # of several by name
            found = next((entry["template"] for entry in found if entry.get("name") == "default"), None)
        if found:
            return f"the chat template in {files[name]}", str(found)
    raise ConfigError(f"the tokenizer {tokenizer.path} has no chat template: name a file with one (chat_template)")


def _special_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """By the names that templates know them by, as transformers gives them."""
    files = {file.name: file for file in tokenizer.files}
    named: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        named.update(read_json(files[name]) or {} if name in files else {})
    tokens = {}
    for role in ("bos", "eos", "unk", "pad", "sep", "cls", "mask"):
        key = f"{role}_token"
        entry = named.get(key)
        content = entry.get("content") if isinstance(entry, dict) else entry
        if content is None and key not in named and (index := getattr(tokenizer, f"{role}_id", None)) is not None:
            content = tokenizer.tokens()[index]
        if content is not None:
            tokens[key] = content
    return tokens
