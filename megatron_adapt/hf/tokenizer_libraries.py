"""The libraries that encode: ``tokenizers`` reads a tokenizer.json, ``sentencepiece`` a .model; both behind the same methods."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from megatron_adapt.errors import ConfigError, DataError
from megatron_adapt.hf.tokenizer_definition import Definition

ROLES = ("bos", "eos", "unk", "pad")


class Tokenizers:
    """A ``tokenizer.json`` behind the ``tokenizers`` library."""

    name = "tokenizers"

    def __init__(self, definition: Definition) -> None:
        self.file = definition.file
        self.full = self._made(definition.content)
        self.plain = _plain(self.full)
        if definition.head.get("model", {}).get("type") == "Unigram":
            self.plain = _plain(self._made(json.dumps(_without_special_pieces(definition.parsed)).encode()))
        self._parsing: Any = None

    def _made(self, content: bytes) -> Any:
        from tokenizers import Tokenizer as RustTokenizer

        try:
            return RustTokenizer.from_buffer(content)
        except Exception as error:  # the library raises bare Exception for every malformed file
            reason = " ".join(str(error).split())
            raise DataError(f"{self.file} is not a tokenizer that the tokenizers library can read: {reason}.") from None

    def encode(self, texts: list[str], parse_special_tokens: bool) -> list[np.ndarray]:
        tokenizer = self.parsing() if parse_special_tokens else self.plain
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def encode_with_places(self, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        encodings = self.parsing().encode_batch(texts, add_special_tokens=False)
        found = [(np.array(one.ids, np.int32), np.array(one.offsets, np.int64).reshape(-1, 2)) for one in encodings]
        if self._greedy:
            for text, (ids, places) in zip(texts, found):
                for number in np.flatnonzero(np.isin(ids, list(self._greedy))).tolist():
                    begin, end = places[number].tolist()
                    token = self._greedy[int(ids[number])]
                    if (at := text.find(token, begin, end)) >= 0:
                        places[number] = at, at + len(token)
        return found

    @cached_property
    def _greedy(self) -> dict[int, str]:
        """Added tokens that take the spaces beside them along, for which they do not stand."""
        added = self.full.get_added_tokens_decoder().items()
        return {index: token.content for index, token in added if token.lstrip or token.rstrip}

    def parsing(self) -> Any:
        """The tokenizer that finds special tokens in text; made at first use."""
        if self._parsing is None:
            self._parsing = _plain(type(self.full).from_str(self.full.to_str()))
            self._parsing.encode_special_tokens = False
        return self._parsing

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return self.full.decode(ids, skip_special_tokens=skip_special_tokens)

    def pieces(self, spelling: str) -> list[int] | None:
        return [token.id for token in self.plain.model.tokenize(spelling)]

    def words(self, text: str) -> list[str]:
        if self.plain.normalizer is not None:
            text = self.plain.normalizer.normalize_str(text)
        if self.plain.pre_tokenizer is None:
            return [text]
        return [word for word, _ in self.plain.pre_tokenizer.pre_tokenize_str(text)]

    def tokens(self) -> list[str | None]:
        vocabulary = self.full.get_vocab(with_added_tokens=True)
        tokens: list[str | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
        for token, index in vocabulary.items():
            tokens[index] = token
        return tokens

    def special_tokens(self) -> dict[str, int]:
        return {t.content: i for i, t in self.full.get_added_tokens_decoder().items() if t.special}

    def own_roles(self) -> dict[str, int]:
        return {}


class SentencePiece:
    """A sentencepiece ``.model``."""

    name = "sentencepiece"

    def __init__(self, file: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        try:
            self.model = SentencePieceProcessor(model_proto=file.read_bytes())
            self.size = self.model.get_piece_size()
        except Exception as error:
            raise DataError(f"{file} is not a sentencepiece model: {' '.join(str(error).split())}.") from None
        if not self.size:
            raise DataError(f"{file} is not a sentencepiece model: it holds no pieces.")

    def encode(self, texts: list[str], parse_special_tokens: bool) -> list[np.ndarray]:
        if parse_special_tokens:
            raise ConfigError("sentencepiece never finds special tokens in text; use a tokenizer.json to parse them")
        return [np.array(self.model.encode(text), dtype=np.int32) for text in texts]

    def encode_with_places(self, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        raise ConfigError("sentencepiece does not find special tokens in text, as chats need; use a tokenizer.json")

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return self.model.decode(ids)

    def pieces(self, spelling: str) -> list[int] | None:
        return None

    def tokens(self) -> list[str | None]:
        return [self.model.id_to_piece(i) for i in range(self.size)]

    def special_tokens(self) -> dict[str, int]:
        special = (i for i in range(self.size) if self.model.is_control(i) or self.model.is_unknown(i))
        return {self.model.id_to_piece(i): i for i in special}

    def own_roles(self) -> dict[str, int]:
        ids = {role: getattr(self.model, f"{role}_id")() for role in ROLES}
        return {role: index for role, index in ids.items() if index >= 0}


def _plain(tokenizer: Any) -> Any:
    """Set to take special tokens in text for text, and texts as they are."""
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _without_special_pieces(parsed: dict) -> dict:
    """A Unigram model finds its own control pieces in raw text (they carry a score like any other piece, unlike in
    sentencepiece); the copy used to encode has them under a spelling that no text contains, at the same ids."""
    model = parsed["model"]
    special = {t["content"] for t in parsed.get("added_tokens") or [] if t.get("special")}
    vocabulary = [[f"\U0010ffff{i}" if p in special else p, s] for i, (p, s) in enumerate(model["vocab"])]
    kept = [t for t in parsed.get("added_tokens") or [] if not t.get("special")]
    return {**parsed, "model": {**model, "vocab": vocabulary}, "added_tokens": kept, "post_processor": None}
