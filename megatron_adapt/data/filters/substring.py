"""substring: text of 100 characters and more that stands in the corpus before.

Exact, whatever the corpus looks like (csrc/substrings.h): no samples, no limits. Lengths are characters, documents are never
joined, and no character is cut in two. ``action`` is what happens then:

- ``span``: later copies are cut out, the first stays, and so does a document without the cut part. Where there is white space
  in a span it is made to begin and end at words, so that nothing is glued together.
- ``document``: a document that has a substring in common with an earlier kept one is dropped.
- ``all``: every document that has one in common with any other, or twice itself, is dropped, and so the first copy, too. That
  is what "Scaling Data-Constrained Language Models" (Muennighoff et al. 2023) did; here to reproduce it.

Memory: about 2 bytes for each character of text at 100 characters (16 bytes for one in ``characters`` / 4, and as much
again while that grows), but no more than ``gigabytes``, with several passes over the text where that is little; plus one
bit for each byte of text (``span``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatron_adapt.data import folding
from megatron_adapt.data.texts import Outcome, Texts, repeated
from megatron_adapt.options import option


@dataclass(frozen=True)
class Options:
    action: str = option("span", "cut later copies, drop later documents, or drop all of them", choices=("span", "document", "all"))
    characters: int = option(100, "length from which on a repetition counts", low=2, high=100_000)
    gigabytes: float = option(4.0, "memory for what is found, about", low=0.001)


def run(texts: Texts, options: Options, threads: int, known: int = 0) -> Outcome:
    from megatron_adapt import _C

    where = (texts.text, texts.begins, texts.ends)
    search = {"characters": options.characters, "memory": int(options.gigabytes * 1e9), "threads": threads}
    names = ("repeated substring", "nothing is left")
    if options.action == "document":
        return repeated(_C.repeating_documents(*where, **search, known=known), names)
    if options.action == "all":
        reasons = _C.documents_with_repeats(*where, **search).astype(np.int16) - 1
        reasons[:known] = -1
        return Outcome(names, reasons)
    spans = _C.repeated_spans(*where, folding.table(), whole_words=True, **search)
    spans = spans[spans[:, 0] >= known]
    documents, firsts = np.unique(spans[:, 0], return_index=True)
    reasons = np.full(len(texts), -1, np.int16)
    for document, own in zip(documents.tolist(), np.split(spans, firsts[1:])):
        if _is_blank(texts, document, own):
            reasons[document] = 1
    spans = spans[reasons[spans[:, 0]] < 0]
    facts = {
        "documents_cut": int((reasons[documents] < 0).sum()), "spans": len(spans),
        "bytes_cut": int((spans[:, 2] - spans[:, 1]).sum()), "unicode": folding.VERSION,
    }  # fmt: skip
    return Outcome(names, reasons, spans=spans, facts=facts)


def _is_blank(texts: Texts, document: int, spans: np.ndarray) -> bool:
    """Whether nothing but white space is left without the spans."""
    starts, stops = [texts.begins[document], *spans[:, 2]], [*spans[:, 1], texts.ends[document]]
    rest = b"".join(texts.text[start:stop].tobytes() for start, stop in zip(starts, stops))
    return not rest.decode("utf-8").strip()
