"""A tokenizer with those tokens only that a text needs: what is made of them is cut as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterable, Mapping

import numpy as np

from megatron_adapt.errors import ConfigError
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.vocab import derived
from megatron_adapt.vocab.matching import token_keys


def prune(
    source: Tokenizer, texts: Iterable[str], output: Path, min_count: int = 1, keep: int | None = None
) -> dict[str, Any]:
    """Write ``source`` without the tokens that ``texts`` do not need; ids close up in their old order.

    Kept are tokens that come ``min_count`` times in the text, those that merges make them of, added tokens, bytes, and
    where nothing else spells them all single characters. A text whose tokens are all kept is cut into the same ones: BPE
    on a word makes what it makes on the parts, the best path of Unigram stays the best, and WordPiece's longest match
    the longest.

    Args:
        keep: at most so many tokens, the most frequent ones.
    Raises:
        ConfigError: not a tokenizer.json, or ``keep`` below what must stay. DataError: no text.
    """
    parsed = derived.editable(source, ("BPE", "Unigram", "WordPiece"), "pruned")
    watched = derived.Watched(texts)
    frequency = derived.frequencies(source, watched)
    chosen = _always(source, parsed)
    least = len(chosen)
    if keep is not None and keep < least:
        raise ConfigError(
            f"{source.path}: {least} tokens always stay (added tokens, bytes, characters), which is more than the {keep} to keep."
        )
    origins = _Origins(parsed, source)
    for index in sorted(np.flatnonzero(frequency >= min_count), key=lambda index: (-frequency[index], index)):
        closure = origins.of(int(index)) - chosen
        if keep is None or len(chosen) + len(closure) <= keep:
            chosen |= closure
    tokens, kept = source.tokens(), sorted(chosen)
    ids = {str(tokens[index]): new for new, index in enumerate(kept)}
    if "merges" in parsed["model"]:
        merges = derived.merges_of(parsed)
        derived.set_merges(parsed, [(left, right) for left, right in merges if {left, right, left + right} <= set(ids)])
    derived.set_vocabulary(parsed, ids)
    target = derived.write(source, output, parsed, derived.PRUNED)
    assert [tokens[index] for index in kept] == target.tokens(), "the ids of a pruned vocabulary close up in order"
    new_id = np.full(source.vocab_size, -1)
    new_id[kept] = np.arange(len(kept))
    before, after = source.encode(watched.sample), target.encode(watched.sample)
    size = sum(len(text.encode("utf-8", "replace")) for text in watched.sample)
    return {
        "documents": watched.documents,
        "bytes": watched.bytes,
        "source_vocab_size": source.vocab_size,
        "vocab_size": target.vocab_size,
        "always_kept": least,
        "kept_of_text": round(float(frequency[kept].sum() / frequency.sum()), 6),
        "sample_documents": len(before),
        "sample_cut_as_before": sum(np.array_equal(new_id[one], other) for one, other in zip(before, after)),
        "bytes_per_token": [round(size / max(1, sum(map(len, cut))), 4) for cut in (before, after)],
        "round_trip": derived.round_trip(target, watched.sample),
        "digest": target.digest,
    }


def _always(source: Tokenizer, parsed: Mapping[str, Any]) -> set[int]:
    """Ids that stay whatever the text: added tokens, roles, bytes; single characters where no bytes stand for them."""
    model, keys = parsed["model"], token_keys(source)
    added = {entry["content"] for entry in parsed.get("added_tokens") or []}
    roles = {source.bos_id, source.eos_id, source.unk_id, source.pad_id}
    fallback, prefix = bool(model.get("byte_fallback")), model.get("continuing_subword_prefix") or ""
    unknown = model.get("unk_token")
    if isinstance(model.get("unk_id"), int):
        unknown = model["vocab"][model["unk_id"]][0]
    kept = set()
    for index, token in enumerate(keys.tokens):
        if token is None:
            continue
        bare = token[len(prefix) :] if prefix and token.startswith(prefix) else token
        spells = len(bare) <= 1 and not fallback
        if token in added or token == unknown or index in roles or keys.is_byte[index] or spells:
            kept.add(index)
    return kept


class _Origins:
    """What a token is made of by merges, down to its characters."""

    def __init__(self, parsed: Mapping[str, Any], source: Tokenizer) -> None:
        self.tokens = source.tokens()
        self.ids = {token: index for index, token in enumerate(self.tokens) if token is not None}
        self.ranks = {merge: rank for rank, merge in enumerate(derived.merges_of(parsed))}

    def of(self, index: int) -> set[int]:
        """The token, and every token on the way to it; itself alone where no merges lead to it."""
        parts = list(str(self.tokens[index])) if self.ranks else []
        found = {self.ids[part] for part in parts if part in self.ids}
        while len(parts) > 1:
            ranked = [(self.ranks[pair], at) for at, pair in enumerate(zip(parts, parts[1:])) if pair in self.ranks]
            if not ranked:
                return {index}
            at = min(ranked)[1]
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
            found.add(self.ids[parts[at]])
        return found | {index}
