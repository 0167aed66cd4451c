"""Which tokens of two vocabularies are the same: compared as the bytes they stand for, never as decorated strings.

A word-initial "Haus" is ``ĠHaus`` in one vocabulary and ``▁Haus`` in another; an "ä" is ``Ã¤`` or ``ä``. Both are the
same bytes, and that is the identity used here. Special tokens are matched by their role, then by their text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Callable, Iterator, Union

import numpy as np

from megatron_adapt.errors import ConfigError
from megatron_adapt.hf.tiktoken import byte_alphabet

if TYPE_CHECKING:
    from megatron_adapt.hf.tokenizer import Tokenizer

ROLES = ("bos", "eos", "unk", "pad")
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")

# The bytes of an ordinary token, or the text of a special one.
Key = Union[bytes, str]

# How a target token was matched.
NONE, EXACT, BYTE, ROLE, SPECIAL = range(5)


@dataclass(frozen=True)
class Matching:
    """For every id of the target vocabulary, the same token of the source.

    Attributes:
        source_ids: int64 [target.vocab_size], -1 where there is none.
        tiers: int8 [target.vocab_size]: ``EXACT`` (equal bytes), ``BYTE`` (equal, and one of the two is a single-byte
            fallback token like ``<0x41>``), ``ROLE`` (special, same role), ``SPECIAL`` (special, same text), ``NONE``.
    """

    source_ids: np.ndarray
    tiers: np.ndarray

    def counts(self) -> dict[str, int]:
        """How many target tokens were matched in which way."""
        tiers = {"exact": EXACT, "byte": BYTE, "role": ROLE, "special": SPECIAL}
        found = {name: int((self.tiers == tier).sum()) for name, tier in tiers.items()}
        return {**found, "total": int((self.source_ids >= 0).sum())}


def match(
    target: Tokenizer, source: Tokenizer, wanted: TokenKeys | None = None, have: TokenKeys | None = None
) -> Matching:
    """Match every target token; ``wanted`` and ``have``: both tokenizers' ``token_keys``, where they are known already.

    Where several source tokens have the same bytes, one of the same spelling wins (so that a vocabulary matches itself
    id by id), then an ordinary piece over a byte-fallback token, then the lowest id.

    Raises:
        ConfigError: a kind of vocabulary whose bytes are not known.
    """
    wanted, have = wanted or token_keys(target), have or token_keys(source)
    spelled = {token: index for index, token in enumerate(have.tokens) if token is not None}
    by_key: dict[Key, int] = {}
    for byte_tokens in (False, True):
        for index, key in enumerate(have.keys):
            if key is not None and have.is_byte[index] == byte_tokens:
                by_key.setdefault(key, index)
    found = np.full(len(wanted.keys), -1, dtype=np.int64)
    tiers = np.zeros(len(wanted.keys), dtype=np.int8)
    for index, key in enumerate(wanted.keys):
        if key is None:
            continue
        same = spelled.get(wanted.tokens[index], -1)
        if same < 0 or have.keys[same] != key:
            same = by_key.get(key, -1)
        if same >= 0:
            found[index] = same
            byte = wanted.is_byte[index] or have.is_byte[same]
            tiers[index] = SPECIAL if isinstance(key, str) else BYTE if byte else EXACT
    for index, same in _same_role(target, source):
        found[index], tiers[index] = same, ROLE
    return Matching(found, tiers)


@dataclass(frozen=True)
class TokenKeys:
    """A vocabulary by id: raw strings, what they stand for (None for unused ids), and which are byte fallbacks;
    ``spell`` writes bytes as a raw string of this vocabulary (UnicodeDecodeError where it only could with byte tokens)."""

    tokens: list[str | None]
    keys: list[Key | None]
    is_byte: list[bool]
    spell: Callable[[bytes], str]

    def kind(self, index: int) -> str:
        """"unused", "control" (special), "byte" (a fallback like ``<0x41>``) or "normal"."""
        key = self.keys[index]
        return "unused" if key is None else "control" if isinstance(key, str) else "byte" if self.is_byte[index] else "normal"

    def starts_word(self, index: int) -> bool:
        """Whether the bytes begin with the space that marks a word's begin."""
        key = self.keys[index]
        return isinstance(key, bytes) and key[:1] == b" "


def token_keys(tokenizer: Tokenizer) -> TokenKeys:
    """What every token of a vocabulary stands for.

    Raises:
        ConfigError: a kind of vocabulary whose bytes are not known.
    """
    tokens = tokenizer.tokens()
    keys: list[Key | None] = [None] * len(tokens)
    is_byte = [False] * len(tokens)
    added, special = _added_tokens(tokenizer)
    to_bytes, spell, fallback = _reader_of(tokenizer)
    for index, token in enumerate(tokens):
        if token is None:
            continue
        if index in special:
            keys[index] = token
        elif index in added:
            keys[index] = token.encode()
        elif fallback and token[:1] == "<" and (match := BYTE_TOKEN.fullmatch(token)):
            keys[index], is_byte[index] = bytes([int(match[1], 16)]), True
        else:
            keys[index] = to_bytes(token)
    return TokenKeys(tokens, keys, is_byte, spell)


def _reader_of(tokenizer: Tokenizer) -> tuple[Callable[[str], bytes], Callable[[bytes], str], bool]:
    """Functions from a raw token to its bytes and back, and whether ``<0xNN>`` are single bytes."""
    parsed = tokenizer.backend_json
    if parsed is None:  # a sentencepiece model
        return *_with_mark("▁"), True
    model = parsed.get("model") or {}
    parts = [*components(parsed.get("pre_tokenizer")), *components(parsed.get("decoder"))]
    kinds = {part.get("type") for part in parts}
    if model.get("end_of_word_suffix"):
        raise ConfigError(
            f"{tokenizer.path}: vocabularies that mark word ends ({model['end_of_word_suffix']!r}) cannot be matched; "
            f"byte-level BPE, sentencepiece and WordPiece ones can."
        )
    if "ByteLevel" in kinds:
        return _from_byte_alphabet, _to_byte_alphabet, False
    if model.get("type") == "WordPiece":
        prefix = model.get("continuing_subword_prefix", "##")
        return (
            lambda token: (token[len(prefix) :] if token.startswith(prefix) else " " + token).encode(),
            lambda data: data[1:].decode() if data[:1] == b" " else prefix + data.decode(),
            False,
        )
    fallback = bool(model.get("byte_fallback")) or "ByteFallback" in kinds
    marks = [part["replacement"] for part in parts if part.get("type") == "Metaspace" and part.get("replacement")]
    return *_with_mark(marks[0] if marks else "▁"), fallback


def _with_mark(mark: str) -> tuple[Callable[[str], bytes], Callable[[bytes], str]]:
    return lambda token: token.replace(mark, " ").encode(), lambda data: data.decode().replace(" ", mark)


def components(value: Any) -> Iterator[dict[str, Any]]:
    """All parts of a pre-tokenizer or decoder, sequences opened up."""
    if isinstance(value, dict):
        yield value
        for nested in (*(value.get("pretokenizers") or ()), *(value.get("decoders") or ())):
            yield from components(nested)


_byte_alphabet = lru_cache(maxsize=None)(byte_alphabet)


def _from_byte_alphabet(token: str) -> bytes:
    alphabet = _byte_alphabet()
    try:
        return bytes([alphabet[character] for character in token])
    except KeyError:  # a token that byte-level BPE can never produce, such as a reserved placeholder
        return token.encode()


def _to_byte_alphabet(data: bytes) -> str:
    spelled = {byte: character for character, byte in _byte_alphabet().items()}
    return "".join(spelled[byte] for byte in data)


def _added_tokens(tokenizer: Tokenizer) -> tuple[set[int], set[int]]:
    """Ids of added tokens, which are literal text, and of special ones among them; roles count as special."""
    entries = (tokenizer.backend_json or {}).get("added_tokens") or []
    added = {entry["id"]: bool(entry.get("special")) for entry in entries}
    special = {index for index, flag in added.items() if flag} | set(_roles(tokenizer).values())
    return set(added), special


def _roles(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids of the special roles. An unk or pad that doubles as bos or eos (GPT-2's) is no evidence of what it means."""
    ids = {role: getattr(tokenizer, f"{role}_id") for role in ROLES}
    boundaries = {ids["bos"], ids["eos"]}
    return {
        role: index
        for role, index in ids.items()
        if index is not None and not (role in ("unk", "pad") and index in boundaries)
    }


def _same_role(target: Tokenizer, source: Tokenizer) -> Iterator[tuple[int, int]]:
    """Pairs of ids with a common role. Of a target token with several roles, the first in ``ROLES`` that the source
    has counts (bos before eos: the first position of a text is where attention rests)."""
    wanted, have = _roles(target), _roles(source)
    for role in reversed(ROLES):
        if role in wanted and role in have:
            yield wanted[role], have[role]
