"""Many texts at once through the project's own byte pair encoder (csrc/bpe.h): for tokenizers of sentencepiece's kind, which
write spaces as U+2581 and merge across a whole text. Other libraries are slow on these; whole texts cut at places that no
merge crosses give the same ids, and most pieces have been met before."""

from __future__ import annotations

from typing import Any

import numpy as np

from megatron_adapt.hf.flat_encoding import Unsupported
from megatron_adapt.hf.tokenizer import Tokenizer

_SPACE = "\u2581"
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_PREPEND = {"type": "Prepend", "prepend": _SPACE}


class CompiledBPE:
    """A tokenizer behind csrc/bpe.h.

    Args:
        parse_special_tokens: not possible here.

    Raises:
        Unsupported: the tokenizer does anything that is not known here to be the same.
    """

    name = "compiled"

    def __init__(self, tokenizer: Tokenizer, parse_special_tokens: bool = False) -> None:
        from megatron_adapt import _C

        definition = tokenizer.definition
        if definition is None:
            raise Unsupported("it is not a tokenizer.json")
        if parse_special_tokens:
            raise Unsupported("it does not look for special tokens in text")
        prefix, unless_space = _prefix(definition.head)
        if definition.compiled is None:
            raise Unsupported("it is no byte pair encoding")
        _check_model(definition.head["model"])
        try:
            self._backend = _C.BpeEncoder(definition.compiled, prefix=prefix, unless_space=unless_space)
        except ValueError as error:
            raise Unsupported(str(error)) from None

    def encode(self, text: np.ndarray, offsets: np.ndarray, parallel: bool) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`megatron_adapt.hf.flat_encoding.Gigatoken.encode`; always one core."""
        return self._backend.encode(text, offsets)


def _prefix(parsed: dict[str, Any]) -> tuple[bool, bool]:
    """Whether a space goes before a text, and whether that is left out before a text that begins with one."""
    if any(not token.get("special") for token in parsed.get("added_tokens") or []):
        raise Unsupported("it finds added tokens in text")
    normalizer, cutter = parsed.get("normalizer"), parsed.get("pre_tokenizer")
    steps = normalizer.get("normalizers") if normalizer and normalizer.get("type") == "Sequence" else [normalizer]
    if cutter is None and steps in ([_PREPEND, _REPLACE], [_REPLACE]):
        return len(steps) == 2, False
    if normalizer is None and cutter and cutter.get("type") == "Metaspace":
        scheme = cutter.get("prepend_scheme", "always" if cutter.get("add_prefix_space", True) else "never")
        if cutter.get("replacement") == _SPACE and cutter.get("split") is False and scheme in ("always", "first", "never"):
            return scheme != "never", True
    raise Unsupported("it normalizes or cuts text otherwise than by writing spaces as U+2581")


def _check_model(model: dict[str, Any]) -> None:
    if model.get("type", "BPE") != "BPE":
        raise Unsupported("it is no byte pair encoding")
    if not model.get("byte_fallback"):
        raise Unsupported("it has no tokens for single bytes")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(key):
            raise Unsupported(f"it has {key}")
