"""near: documents that say nearly the same as an earlier kept one, by MinHash; the first is kept.

Each document is a set of shingles (five words in a row; the words in lower case, without punctuation; of scripts without spaces
each character is a word). Two documents whose sets have a Jaccard index of s (shared by all shingles) are compared with
probability 1 - (1 - s^rows)^bands, and a document is dropped if its true index with one that was kept is at least
``threshold``: nothing is dropped by estimate. With 20 bands of 6 rows, of pairs with an index of

    0.5   0.6   0.7   0.8   0.9   0.95
    27 %  62 %  92 %  99.8 %  all  all     are compared.

Every dropped document has a kept one that is this similar; no chains. A document is compared with 256 others at most, those
with the most equal hashes; ``cut_short`` of the report says for how many kept documents that left some out.
Memory: two bytes for each hash (240 a document), 24 bytes a document for each thread, and some for documents that share bands.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_adapt.data import folding
from megatron_adapt.data.texts import Outcome, Texts, repeated
from megatron_adapt.options import option


@dataclass(frozen=True)
class Options:
    threshold: float = option(0.8, "Jaccard index from which on two documents are the same", low=0.01, high=1)
    shingle: str = option("words", "what shingles consist of", choices=("words", "characters"))
    size: int = option(5, "words or characters of a shingle", low=1, high=1000)
    bands: int = option(20, "bands of hashes: more find more pairs", low=1, high=1000)
    rows: int = option(6, "hashes of a band: more find fewer pairs", low=1, high=100)
    seed: int = option(1234, "of the hashes", low=0)


def run(texts: Texts, options: Options, threads: int, known: int = 0) -> Outcome:
    from megatron_adapt import _C

    kept, similarity, verified, cut_short = _C.near_duplicates(
        texts.text, texts.begins, texts.ends, folding.table(), size=options.size, of_characters=options.shingle == "characters",
        bands=options.bands, rows=options.rows, seed=options.seed, threshold=options.threshold, known=known, threads=threads,
    )  # fmt: skip
    facts = {"pairs_compared": verified, "cut_short": cut_short, "unicode": folding.VERSION}
    return repeated(kept, ("near duplicate",), values=similarity, facts=facts)
