"""The bytes of a new token as tokens of the old vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_adapt.vocab.matching import TokenKeys

if TYPE_CHECKING:
    from megatron_adapt.hf.tokenizer import Tokenizer


class Pieces:
    """Cuts bytes with a vocabulary: as its own model does where the bytes are text, else (half a character of UTF-8, a
    vocabulary that cannot be asked) from left to right, always with the longest token that fits.

    The bytes go in as they are. To decode and encode a token instead loses its leading space under a normalizer that
    adds or strips one, and to cut its raw spelling makes byte-level "Ø§ÙĦ" into Latin letters.
    """

    def __init__(self, tokenizer: Tokenizer, keys: TokenKeys) -> None:
        self._tokenizer = tokenizer
        self._keys = keys
        self._ids: dict[bytes, int] = {}
        for byte_tokens in (False, True):  # an ordinary piece goes before a byte token, then the lowest id
            for index, key in enumerate(keys.keys):
                if isinstance(key, bytes) and key and keys.is_byte[index] == byte_tokens:
                    self._ids.setdefault(key, index)
        self._longest = max(map(len, self._ids), default=0)

    def of(self, data: bytes) -> list[int] | None:
        """Ids whose bytes make up ``data``; None where the vocabulary lacks a byte of it."""
        try:
            ids = self._tokenizer.pieces(self._keys.spell(data))
        except UnicodeDecodeError:
            ids = None
        if ids and b"".join(self.bytes_of(index) for index in ids) == data:
            return ids
        return self._greedy(data)

    def bytes_of(self, index: int) -> bytes:
        key = self._keys.keys[index]
        return key if isinstance(key, bytes) else b""

    def _greedy(self, data: bytes) -> list[int] | None:
        ids: list[int] = []
        at = 0
        while at < len(data):
            for end in range(min(len(data), at + self._longest), at, -1):
                if (index := self._ids.get(data[at:end])) is not None:
                    ids.append(index)
                    at = end
                    break
            else:
                return None
        return ids or None
