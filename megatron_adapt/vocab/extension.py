"""A tokenizer with further tokens for a text: every old id keeps its token, every new token can be made."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any, Iterable, Mapping

import numpy as np

from megatron_adapt.errors import ConfigError, DataError
from megatron_adapt.hf.directory import read_json
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.vocab import derived
from megatron_adapt.vocab.continued_bpe import Learnt, learn
from megatron_adapt.vocab.matching import components, token_keys
from megatron_adapt.vocab.specials import denoising_tokens

EXAMPLES = 20
# Special tokens that their makers left without a meaning.
RESERVED = re.compile(
    r"<\|?(reserved|unused|placeholder|dummy|empty)(_special)?(_token)?_?\d+\|?>|\[unused_?\d+\]", re.IGNORECASE
)


def extend(
    source: Tokenizer, texts: Iterable[str], tokens: int, output: Path, min_count: int = 2, reuse: bool = False, sentinels: int = 0
) -> dict[str, Any]:
    """Write ``source`` with ``tokens`` more tokens, which continued BPE learns from ``texts``.

    Args:
        min_count: how often a pair has to come in the text to become a token.
        reuse: the new tokens first take ids that have no token, that no text can make, or that are reserved.
        sentinels: so many ``<extra_id_N>`` and the modes ``[R]``, ``[S]``, ``[X]``, for denoising, behind them as far as they are not there.
    Returns:
        Sizes, ids reused, tokens that are reachable and seen, bytes per token before and after, the most frequent.
    Raises:
        ConfigError: a vocabulary that is no BPE of a tokenizer.json. DataError: too little text (with what it yields).
    """
    parsed = derived.editable(source, ("BPE",), "extended")
    old = source.tokens()
    free = _reusable(source) if reuse else {}
    watched = derived.Watched(texts)
    words = _words(source, watched)

    def cut(spelling: str) -> list[str]:
        return [str(old[index]) for index in source.pieces(spelling) or ()]

    # What is given up for new tokens is no token any more, so that one of them may be spelt like it.
    known = [token for index, token in enumerate(old) if token is not None and index not in free]
    learnt = learn(words, known, cut, tokens, min_count, shaped=not _cuts_words(parsed))
    if len(learnt.tokens) < tokens:
        raise DataError(
            f"corpus too small: it yields {len(learnt.tokens)} new tokens that come at least {min_count} times where {tokens} are "
            f"asked for; ask for at most {len(learnt.tokens)} or give more text."
        )
    ids = sorted(free)[:tokens]
    taken = {index: free[index] for index in ids}
    ids += range(source.vocab_size, source.vocab_size + tokens - len(ids))
    removed = {old[index] for index in taken}
    merges = [merge for merge in derived.merges_of(parsed) if not removed & {*merge, "".join(merge)}]
    derived.set_merges(parsed, [*merges, *learnt.merges])
    stay = {token: index for index, token in enumerate(old) if token is not None and index not in taken}
    size = source.vocab_size + tokens - len(taken)
    special = {token: size + number for number, token in enumerate(_missing(sentinels, source))}
    parsed["added_tokens"] = [*(parsed.get("added_tokens") or []), *map(derived.special_entry, special)]
    derived.set_vocabulary(parsed, stay | dict(zip(learnt.tokens, ids)) | special)
    target = derived.write(source, output, parsed, derived.EXTENDED)
    return {"documents": watched.documents, "bytes": watched.bytes} | _report(source, target, words, learnt, ids, taken, watched)


def _missing(sentinels: int, source: Tokenizer) -> list[str]:
    """Tokens for denoising that are no special ones yet.

    Raises:
        ConfigError: one is a token that text makes.
    """
    special = source.special_tokens()
    names = [token for token in denoising_tokens(sentinels) if token not in special]
    if taken := sorted(set(names) & set(filter(None, source.tokens()))):
        raise ConfigError(f"{source.path}: {', '.join(taken)} cannot be added for denoising: text makes a token that is spelt so.")
    return names


def _words(source: Tokenizer, texts: Iterable[str]) -> Counter[str]:
    """Distinct pre-tokenized words with how often they come. Without a pre-tokenizer a document is one word, which is
    opened before its spaces, unless a token has one behind another character and might cross there."""
    crossing = any(re.search("[^▁]▁", token) for token in source.tokens() if token)
    words: Counter[str] = Counter()
    for text in texts:
        for word in source.words(text):
            words.update((word,) if crossing or "▁" not in word else re.findall("▁*[^▁]+|▁+", word))
    return words


def _cuts_words(parsed: Mapping[str, Any]) -> bool:
    """Whether a pattern keeps letters, digits and signs apart; sentencepiece does so only while it is trained."""
    return any(
        part.get("type") in ("Split", "Punctuation", "BertPreTokenizer") or (part.get("type") == "ByteLevel" and part.get("use_regex", True))
        for part in components(parsed.get("pre_tokenizer"))
    )


def _reusable(source: Tokenizer) -> dict[int, str]:
    """Ids that no text needs, with the reason."""
    keys, parsed = token_keys(source), source.backend_json or {}
    roles = {source.bos_id, source.eos_id, source.unk_id, source.pad_id}
    added = {entry["content"] for entry in parsed.get("added_tokens") or []}
    parts = {part for merge in derived.merges_of(parsed) for part in merge}
    template = _templates(source)
    found = {}
    for index, token in enumerate(keys.tokens):
        if token is None:
            found[index] = "no token"
        elif token in added:
            if RESERVED.fullmatch(token) and index not in roles and token not in template:
                found[index] = "reserved"
        # What BPE makes on its way through any word is what the same characters alone come to. So a token that its own
        # spelling does not come to is never made.
        elif not keys.is_byte[index] and index not in roles and len(token) > 1 and token not in parts:
            if source.pieces(token) != [index]:
                found[index] = "unreachable"
    return found


def _templates(source: Tokenizer) -> str:
    files = {file.name: file for file in source.files}
    found = [file.read_text(encoding="utf-8") for name, file in files.items() if name.startswith("chat_template")]
    if "tokenizer_config.json" in files:
        found.append(str((read_json(files["tokenizer_config.json"]) or {}).get("chat_template") or ""))
    return "\n".join(found)


def _report(
    source: Tokenizer, target: Tokenizer, words: Mapping[str, int], learnt: Learnt, ids: list[int], taken: Mapping[int, str],
    watched: derived.Watched,
) -> dict[str, Any]:  # fmt: skip
    """Cuts every distinct word again: the numbers are of the tokenizer as it was written."""
    old, new = source.tokens(), target.tokens()
    assert all(new[index] == token for index, token in enumerate(old) if index not in taken), "an old id changed"
    frequency = np.zeros(target.vocab_size, dtype=np.int64)
    for word, cut in learnt.words.items():
        pieces = target.pieces(word) or []
        if None not in cut and [new[index] for index in pieces] != cut:
            raise ConfigError(
                f"{source.path} cannot be extended: it cuts {word!r} otherwise than its merges say "
                f"({[new[index] for index in pieces]} where {cut} was expected)."
            )
        np.add.at(frequency, pieces, words[word])
    reachable = {index for index in ids if target.pieces(str(new[index])) == [index]}
    common = sorted(ids, key=lambda index: (-frequency[index], index))[:EXAMPLES]
    return {
        "source_vocab_size": source.vocab_size,
        "vocab_size": target.vocab_size,
        "new_tokens": len(ids),
        "new_characters": len(learnt.characters),
        "reused": dict(Counter(taken.values())),
        "reused_tokens": [old[index] for index in sorted(taken) if old[index] is not None][:EXAMPLES],
        "reachable": len(reachable),
        "unreachable_examples": [new[index] for index in ids if index not in reachable][:EXAMPLES],
        "seen": int((frequency[ids] > 0).sum()),
        "share_of_text": round(float(frequency[ids].sum() / max(1, frequency.sum())), 4),
        "bytes_per_token": [round(watched.bytes / max(1, count), 4) for count in (learnt.tokens_before, int(frequency.sum()))],
        "most_frequent": [[new[index], int(frequency[index])] for index in common],
        "round_trip": derived.round_trip(target, watched.sample),
        "digest": target.digest,
    }
