"""What of a tokenizer determines the ids of a text, in one canonical form: the same tokenizer gives the same value
however its file was formatted, and whichever version of ``tokenizers`` wrote it."""

from __future__ import annotations

from operator import itemgetter
from pathlib import Path
from typing import Any

# Values that older writers leave out, by component type.
DEFAULTS: dict[str, dict[str, Any]] = {
    "BPE": {"byte_fallback": False, "ignore_merges": False, "fuse_unk": False},
    "Unigram": {"byte_fallback": False},
    "ByteLevel": {"use_regex": True, "add_prefix_space": True},
    "Metaspace": {"split": True, "prepend_scheme": "always"},
}

# Spelled differently without a difference in meaning, or without influence on ids.
IRRELEVANT = {"trim_offsets", "dropout", "str_rep"}


def canonical_json(parsed: dict) -> dict:
    """The id-determining part of a parsed ``tokenizer.json``: model, normalizer, pre-tokenizer, added tokens."""
    model = parsed.get("model") or {}
    vocabulary, merges = model.get("vocab", {}), model.get("merges") or []
    if isinstance(vocabulary, dict):
        vocabulary = sorted(zip(vocabulary.values(), vocabulary), key=itemgetter(0))
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
    return {**canonical_rest(parsed, bool(merges)), "vocab": vocabulary, "merges": merges}


def canonical_rest(parsed: dict, is_bpe: bool) -> dict:
    """The same without vocabulary and merges.

    Args:
        is_bpe: there are merges; older files do not say that their model is byte pair encoding.
    """
    model = {key: value for key, value in (parsed.get("model") or {}).items() if key not in ("vocab", "merges")}
    added = []
    for token in sorted(parsed.get("added_tokens") or [], key=lambda token: token["id"]):
        # Special tokens are never looked for in raw text, so how they would be matched does not matter.
        flags = (
            []
            if token.get("special")
            else [bool(token.get(flag)) for flag in ("normalized", "lstrip", "rstrip", "single_word")]
        )
        added.append([token["id"], token["content"], *flags])
    return {
        "model": _component({"type": "BPE", **model} if is_bpe else model),
        "normalizer": _component(parsed.get("normalizer")),
        "pre_tokenizer": _component(parsed.get("pre_tokenizer")),
        "added_tokens": added,
    }


def _component(value: Any) -> Any:
    if isinstance(value, list):
        return [_component(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    filled = {**DEFAULTS.get(str(value.get("type")), {}), **value}
    if value.get("type") == "Metaspace" and "prepend_scheme" not in value and value.get("add_prefix_space") is False:
        filled["prepend_scheme"] = "never"
    if value.get("type") == "Metaspace":
        filled.pop("add_prefix_space", None)
    # An empty string and null both mean "none" (continuing_subword_prefix of GPT-2 and of newer files).
    return {
        key: _component(entry)
        for key, entry in filled.items()
        if entry is not None and entry != "" and key not in IRRELEVANT
    } or None


def canonical_sentencepiece(file: Path) -> dict:
    """The id-determining part of a sentencepiece model: pieces with scores and types, normalization, algorithm."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(file.read_bytes())
    normalizer, trainer = model.normalizer_spec, model.trainer_spec
    return {
        "pieces": [[piece.piece, piece.score, piece.type] for piece in model.pieces],
        "algorithm": [trainer.model_type, trainer.byte_fallback, trainer.treat_whitespace_as_suffix],
        "normalizer": [
            normalizer.precompiled_charsmap.hex(), normalizer.add_dummy_prefix,
            normalizer.remove_extra_whitespaces, normalizer.escape_whitespaces,
        ],
    }  # fmt: skip
