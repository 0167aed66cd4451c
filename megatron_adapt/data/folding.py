"""What characters are to filters of a corpus: the table that csrc/texts.h reads."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

import numpy as np

VERSION = unicodedata.unidata_version  # Python's
WORD, ALONE, SPACE, NOTHING, LETTER, DIGIT = (1 << bit for bit in range(21, 27))
_SIZE = 0x20000  # planes 0 and 1; behind them are ideographs and nothing else that matters
_ALONE = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x1980, 0x19FF), (0x1A20, 0x1AAF), (0x2E80, 0x2FDF), (0x3005, 0x3007),
    (0x3021, 0x3029), (0x3040, 0x312F), (0x31A0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F),
    (0xF900, 0xFAFF), (0xFF66, 0xFF9F), (0x16FE0, 0x18DFF), (0x1AFF0, 0x1B2FF),
)  # fmt: skip
"""Thai, Lao, Myanmar, Khmer, Tai, Han, kana, Bopomofo, Tangut and their like: written without spaces between words."""


@lru_cache(maxsize=1)
def table() -> np.ndarray:
    """[code points] uint32: the character in lower case, and bits.

    WORD: letters, digits and marks; ALONE: each is a word of its own; SPACE: White_Space; NOTHING: format characters (soft
    hyphen, joiners), which neither end words nor are part of them; LETTER and DIGIT: categories L and N.
    """
    bits = {"L": WORD | LETTER, "N": WORD | DIGIT, "M": WORD, "Cf": NOTHING, "Cs": 0}
    found = np.arange(_SIZE, dtype=np.uint32)
    category = unicodedata.category
    for point in range(_SIZE):
        character = chr(point)
        kind = category(character)
        if kind == "Cn":
            continue
        flags = bits.get(kind, bits.get(kind[0], 0))
        if flags & LETTER:
            lower = character.lower()
            found[point] = flags | (ord(lower) if len(lower) == 1 else point)
        elif flags:
            found[point] |= flags
        elif character.isspace() and not 0x1C <= point <= 0x1F:  # Python counts the four separators of ASCII
            found[point] |= SPACE
    for first, last in _ALONE:
        part = found[first : last + 1]
        part[part & WORD != 0] |= ALONE
    found.flags.writeable = False
    return found
