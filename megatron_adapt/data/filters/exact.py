"""exact: documents that say the same as an earlier one; the first is kept.

Compared by two polynomials modulo 2^61 - 1 of all characters (Karp, Rabin 1987): that among a billion documents of a million
characters any two different ones are taken for equal has a probability below one in a million. Some 60 bytes of memory a document.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatron_adapt.data import folding
from megatron_adapt.data.texts import Outcome, Texts, repeated
from megatron_adapt.options import option


@dataclass(frozen=True)
class Options:
    compare: str = option(
        "spaces", "bytes; spaces: any white space is one space; letters: letters and digits alone, in lower case",
        choices=("bytes", "spaces", "letters"),
    )  # fmt: skip


def run(texts: Texts, options: Options, threads: int, known: int = 0) -> Outcome:
    from megatron_adapt import _C

    values = _C.fingerprints(
        texts.text, texts.begins, texts.ends, folding.table(), compared=options.compare, threads=threads
    )
    order = np.lexsort((values[:, 1], values[:, 0]))  # stable: in each group the first document is the first
    is_first = np.ones(len(order), bool)
    is_first[1:] = (values[order[1:]] != values[order[:-1]]).any(1)
    kept = np.full(len(texts), -1, np.int64)
    kept[order] = np.where(is_first, -1, order[is_first][np.cumsum(is_first) - 1]) if len(order) else order
    kept[:known] = -1  # what repeats one of these repeats the first that says the same
    return repeated(kept, ("duplicate",), facts={"unicode": folding.VERSION})
