"""How a tokenizer cuts a text, and what a change to another one would keep: the numbers of `tokenizer report`."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Iterable, Sequence

import numpy as np

from megatron_adapt.errors import DataError
from megatron_adapt.vocab.matching import BYTE, EXACT, ROLE, ROLES, SPECIAL, TokenKeys, match, token_keys
from megatron_adapt.vocab.pieces import Pieces

if TYPE_CHECKING:
    from megatron_adapt.hf.tokenizer import Tokenizer

WORD = re.compile(r"\w+")
DIGITS = "1234567"
KINDS = {"same bytes": EXACT, "same byte": BYTE, "same role": ROLE, "same special token": SPECIAL}
BATCH = 2**20  # characters encoded at a time
EXAMPLES = 5


@dataclass
class _Count:
    """What one tokenizer makes of the text so far."""

    tokenizer: Tokenizer
    frequency: np.ndarray
    changed: int = 0
    example: str = ""

    def add(self, texts: Sequence[str]) -> None:
        for text, ids in zip(texts, self.tokenizer.encode(texts)):
            self.frequency += np.bincount(ids, minlength=len(self.frequency))
            if (decoded := self.tokenizer.decode(ids)) != text:
                self.changed += 1
                self.example = self.example or _difference(text, decoded)


def report(source: Tokenizer, target: Tokenizer | None, texts: Iterable[str], max_bytes: int) -> dict[str, Any]:
    """Measure one tokenizer, or two and what they share.

    Args:
        texts: documents in the language that matters; read up to ``max_bytes`` of UTF-8.
    Returns:
        ``text`` (documents, bytes, words: maximal runs of letters and digits), ``tokenizers`` (one entry each, see
        ``_described``) and with a target ``change`` (see ``_change``).
    Raises:
        DataError: no text. ConfigError: a kind of vocabulary whose bytes are not known.
    """
    counts = [_Count(one, np.zeros(one.vocab_size, dtype=np.int64)) for one in (source, target) if one is not None]
    keys = [token_keys(count.tokenizer) for count in counts]
    documents = size = words = 0
    batch: list[str] = []
    for text in texts:
        documents, size, words = documents + 1, size + len(text.encode("utf-8", "replace")), words + len(WORD.findall(text))
        batch.append(text)
        if sum(map(len, batch)) > BATCH or size >= max_bytes:
            _add(counts, batch)
            batch = []
        if size >= max_bytes:
            break
    if not size:
        raise DataError("tokenizer report: the corpus holds no text.")
    _add(counts, batch)
    found: dict[str, Any] = {"text": {"documents": documents, "bytes": size, "words": words}}
    found["tokenizers"] = [_described(count, one, documents, size, words) for count, one in zip(counts, keys)]
    if target is not None:
        found["change"] = _change(counts, keys)
    return found


def _add(counts: list[_Count], batch: list[str]) -> None:
    for count in counts:
        count.add(batch)


def _described(count: _Count, keys: TokenKeys, documents: int, size: int, words: int) -> dict[str, Any]:
    """Fertility: ``tokens_per_word``. ``unreachable``: ordinary tokens that the vocabulary's own rules never put together,
    so that their rows can never be read or trained; None for a sentencepiece model, which cannot be asked.
    ``changed_documents``: those that decode to something else."""
    tokenizer, frequency = count.tokenizer, count.frequency
    tokens = int(frequency.sum())
    byte = np.array(keys.is_byte)
    unreachable = _unreachable(tokenizer, keys)
    return {
        "path": str(tokenizer.path),
        "vocab_size": tokenizer.vocab_size,
        "unused_ids": sum(token is None for token in keys.tokens),
        "kinds": dict(Counter(keys.kind(index) for index in range(tokenizer.vocab_size))),
        "word_initial": sum(keys.starts_word(index) for index in range(tokenizer.vocab_size)),
        "tokens": tokens,
        "tokens_per_word": _ratio(tokens, words),
        "bytes_per_token": _ratio(size, tokens),
        "vocabulary_seen": _ratio(int((frequency > 0).sum()), tokenizer.vocab_size),
        "byte_tokens": _ratio(int(frequency[byte].sum()), tokens),
        "unknown_tokens": 0 if tokenizer.unk_id is None else int(frequency[tokenizer.unk_id]),
        "unreachable": None if unreachable is None else len(unreachable),
        "unreachable_examples": [keys.tokens[index] for index in (unreachable or [])[:EXAMPLES]],
        "duplicate_bytes": _duplicates(keys),
        "digits": [tokenizer.decode([index]) for index in tokenizer.encode([DIGITS])[0]],
        "changed_documents": count.changed,
        "changed_example": count.example,
        "special": {role: None if (index := getattr(tokenizer, f"{role}_id")) is None else keys.tokens[index] for role in ROLES},
    }


def _unreachable(tokenizer: Tokenizer, keys: TokenKeys) -> list[int] | None:
    added = {entry["id"] for entry in (tokenizer.backend_json or {}).get("added_tokens") or []}
    found = []
    for index, (token, key) in enumerate(zip(keys.tokens, keys.keys)):
        if token is None or not isinstance(key, bytes) or keys.is_byte[index] or index in added:
            continue
        pieces = tokenizer.pieces(token)
        if pieces is None:
            return None
        if pieces != [index]:
            found.append(index)
    return found


def _duplicates(keys: TokenKeys) -> int:
    """Ids whose bytes an earlier id already stands for, byte tokens aside."""
    ordinary = [key for key, byte in zip(keys.keys, keys.is_byte) if isinstance(key, bytes) and not byte]
    return len(ordinary) - len(set(ordinary))


def _change(counts: list[_Count], keys: list[TokenKeys]) -> dict[str, Any]:
    """``kept``: ids of the target by how they are found in the source. ``kept_of_text``: share of the target's running
    tokens whose rows would be kept. ``pieces_per_new_token``: of the source, weighted by frequency in the text.
    ``length``: tokens of the target for one of the source."""
    source, target = (count.tokenizer for count in counts)
    matching = match(target, source)
    frequency = counts[1].frequency
    kept = matching.source_ids >= 0
    pieces = Pieces(source, keys[0])
    new = [index for index in np.flatnonzero(~kept & (frequency > 0)) if isinstance(keys[1].keys[index], bytes)]
    lengths = np.array([len(pieces.of(keys[1].keys[index]) or ()) for index in new], dtype=np.int64)
    weights = frequency[new]
    specials = [
        {"role": role, "source": ours, "target": theirs}
        for role in ROLES
        if (ours := _role(source, keys[0], role)) != (theirs := _role(target, keys[1], role))
    ]
    return {
        "kept": {name: int((matching.tiers == tier).sum()) for name, tier in KINDS.items()} | {"total": int(kept.sum())},
        "kept_of_vocabulary": _ratio(int(kept.sum()), len(kept)),
        "kept_of_text": _ratio(int(frequency[kept].sum()), int(frequency.sum())),
        "pieces_per_new_token": _ratio(int((lengths * weights).sum()), int(weights.sum())),
        "new_tokens_without_pieces": int((lengths == 0).sum()),
        "length": _ratio(int(frequency.sum()), int(counts[0].frequency.sum())),
        "special_differences": specials,
    }


def _role(tokenizer: Tokenizer, keys: TokenKeys, role: str) -> str | None:
    index = getattr(tokenizer, f"{role}_id")
    return None if index is None else keys.tokens[index]


def _ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None


def _difference(text: str, decoded: str, around: int = 12) -> str:
    at = next((i for i, (a, b) in enumerate(zip(text, decoded)) if a != b), min(len(text), len(decoded)))
    begin = max(0, at - around)
    return f"{text[begin : at + around]!r} -> {decoded[begin : at + around]!r}"
