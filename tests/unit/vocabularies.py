"""Small tokenizers for the tests of vocab/, made in memory and written as Hugging Face directories."""

from __future__ import annotations

import json
from pathlib import Path

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
FALLBACK = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}


def write_tokenizer(
    path: Path, tokens: list[str], kind: str, special: dict[str, str], added: tuple[str, ...] = ()
) -> Path:
    """A tokenizer.json whose ids are positions in ``tokens``.

    Args:
        kind: "byte-level", "sentencepiece" or "wordpiece".
        special: role ("bos", ...) or anything else -> special token; those must be in ``tokens``.
        added: tokens that are added, but not special.
    """
    path.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: index for index, token in enumerate(tokens)}
    fallback = kind == "sentencepiece"
    model = {"type": "BPE", "vocab": vocabulary, "merges": [], "unk_token": None, "byte_fallback": fallback}
    pre_tokenizer = decoder = None
    if kind == "byte-level":
        pre_tokenizer = {"type": "Sequence", "pretokenizers": [BYTE_LEVEL]}
        decoder = BYTE_LEVEL
    elif kind == "sentencepiece":
        pre_tokenizer, decoder = METASPACE, FALLBACK
    else:
        model = {
            "type": "WordPiece", "vocab": vocabulary, "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        }  # fmt: skip
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    entries = [{"id": vocabulary[t], "content": t, "special": True, **flags} for t in special.values()]
    entries += [{"id": vocabulary[t], "content": t, "special": False, **flags} for t in added]
    parsed = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": sorted(entries, key=lambda e: e["id"]),
        "normalizer": None, "pre_tokenizer": pre_tokenizer, "post_processor": None, "decoder": decoder, "model": model,
    }  # fmt: skip
    (path / "tokenizer.json").write_text(json.dumps(parsed), encoding="utf-8")
    roles = {f"{role}_token": special.get(role) for role in ("bos", "eos", "unk", "pad")}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **roles}
    (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path
