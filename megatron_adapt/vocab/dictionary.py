"""Bilingual word lists: one pair a line, the word of the source language, a tab, the word of the target language."""

from __future__ import annotations

from pathlib import Path

from megatron_adapt.errors import DataError
from megatron_adapt.vocab.material import read_lines

Pairs = list[tuple[str, str]]


def read_dictionary(path: Path) -> Pairs:
    """All pairs in the order of the file; blank lines and lines that begin with # are passed over, equal pairs too.

    Raises:
        ConfigError: it cannot be opened. DataError: "FILE:LINE: ..." for a line without tab, or no pair at all.
    """
    pairs: dict[tuple[str, str], None] = {}
    for number, line in read_lines(path, "dictionary"):
        if not line.strip() or line.startswith("#"):
            continue
        parts = [part.strip() for part in line.split("\t")]
        if len(parts) < 2 or not parts[0] or not parts[1]:
            raise DataError(f"{path}:{number}: expected two words with a tab between them.")
        pairs[parts[0], parts[1]] = None
    if not pairs:
        raise DataError(f"{path} holds no pair of words.")
    return list(pairs)


def with_cases(pairs: Pairs) -> Pairs:
    """Each pair as it is, in lower case and with capitals at the start, without repetition."""
    spelled = [(one(a), one(b)) for a, b in pairs for one in (str, str.lower, _capitalised)]
    return list(dict.fromkeys(spelled))


def _capitalised(word: str) -> str:
    return word[:1].upper() + word[1:]
