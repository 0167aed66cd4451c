"""A ``tokenizer.json`` as a file: what it says, without an object for each of its tokens where nobody asks for these."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

from megatron_adapt.errors import DataError
from megatron_adapt.hf.tokenizer_identity import canonical_json, canonical_rest


class Definition:
    """The content of a file.

    Attributes:
        head: the parsed file; where ``compiled`` is there, with None for the model's vocabulary and merges.
        compiled: these (``_C.TokenizerJson``) of byte pair encoding in its usual form; None of others.

    Raises:
        DataError: it is not UTF-8, or not JSON, or no object.
    """

    def __init__(self, file: Path, content: bytes) -> None:
        from megatron_adapt import _C

        self.file = file
        self._content = content
        self.compiled: Any = None
        try:
            self.compiled = _C.TokenizerJson(content)
            self.head: dict[str, Any] = json.loads(self.compiled.rest)
        except ValueError:
            self.head = self.parsed

    @property
    def content(self) -> bytes:
        """JSON that says the same as the file, or just that, for others to read: in the form that takes the least time."""
        return self._content if self.compiled is None else self.compiled.compact

    @cached_property
    def parsed(self) -> dict[str, Any]:
        """All of it."""
        return parse_object(self.file, text_of(self.file, self._content))

    def with_head(self, **changes: Any) -> str:
        """The text of the file with other values for some of its keys ("model" is none of them)."""
        head = {**self.head, **changes}
        if self.compiled is None:
            return json.dumps(head)
        model = {key: value for key, value in head.pop("model").items() if key not in ("vocab", "merges")}
        long = f'"vocab": {self.compiled.vocabulary}, "merges": {self.compiled.merges}'
        return f'{json.dumps({**head, "model": model})[:-2]}{", " if model else ""}{long}}}}}'

    @cached_property
    def digest(self) -> str:
        """See :attr:`megatron_adapt.hf.tokenizer.Tokenizer.digest`."""
        if self.compiled is None:
            return digest_of(canonical_json(self.parsed))
        rest = canonical_rest(self.head, is_bpe=True)
        parts = {key: _canonical_text(value).encode() for key, value in rest.items()}
        parts |= {"vocab": self.compiled.canonical_vocabulary, "merges": self.compiled.canonical_merges}
        digest = hashlib.sha256()
        for number, key in enumerate(sorted(parts)):  # megabytes, which are not put together first
            digest.update(b'%s"%s": ' % (b", " if number else b"{", key.encode()))
            digest.update(parts[key])
        digest.update(b"}")
        return digest.hexdigest()

    @cached_property
    def ids(self) -> tuple[dict[str, int], dict[str, int], int] | None:
        """Ids of all added tokens, of the special ones, and the highest id + 1; None where only the ``tokenizers`` library
        knows them: it numbers added tokens anew where the file's numbers have holes or differ from the vocabulary's."""
        if self.compiled is None or self.compiled.count != len(self.compiled):
            return None
        added: dict[str, int] = {}
        following = len(self.compiled)
        for token in self.head.get("added_tokens") or []:
            found = self.compiled.find(token["content"])
            expected = following if found is None else found
            if token["id"] != expected or token["content"] in added:
                return None
            following += found is None
            added[token["content"]] = expected
        special = {t["content"]: t["id"] for t in self.head.get("added_tokens") or [] if t.get("special")}
        return added, special, following


def text_of(file: Path, content: bytes) -> str:
    """Raises: DataError: no UTF-8."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}.") from None


def parse_object(file: Path, text: str) -> dict[str, Any]:
    """Raises: DataError: no JSON, or no object."""
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{file}:{error.lineno} is not JSON: {error.msg}.") from None
    if not isinstance(parsed, dict):
        raise DataError(f"{file} holds a JSON {type(parsed).__name__} where an object is expected.")
    return parsed


def digest_of(value: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical_text(value).encode()).hexdigest()


def _canonical_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, sort_keys=True)
