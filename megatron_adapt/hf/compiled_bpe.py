"""Many texts at once through the project's own byte pair encoder (csrc/bpe.h), for two kinds of tokenizers.

Those of sentencepiece's kind write spaces as U+2581 and merge across a whole text. Other libraries are slow on these; whole
texts cut at places that no merge crosses give the same ids, and most pieces have been met before. Those of GPT-2's kind merge
the bytes of words, which a regular expression finds.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from megatron_adapt.hf.flat_encoding import Unsupported
from megatron_adapt.hf.tokenizer import Tokenizer

_SPACE = "\u2581"
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_PREPEND = {"type": "Prepend", "prepend": _SPACE}

# Letters and digits of Unicode 13 to 16: a library that knows another version than csrc/unicode_classes.h cuts them otherwise.
_RECENT = (
    "\u08be\u1c89\u9ffd\ua7c7\ua7ca\ua7cb\U00010d40\U00010d4a\U00010ec2\U00011f02\U00011f50\U00016d40\U00016d70"
    "\U0001e290\U0001e4d0\U0001e4f0\U0001e5d0\U0001e5f1\U0001fbf0\U0002a6de\U0002b739\U0002ebf0\U00030000\U000323af"
)


class CompiledBPE:
    """A tokenizer behind csrc/bpe.h.

    Args:
        parse_special_tokens: not possible here.

    Attributes:
        odd: strings to be compared with the library that defines the ids.

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
        prefix, unless_space, words = _kind(definition.head)
        if definition.compiled is None:
            raise Unsupported("it is no byte pair encoding")
        _check_model(definition.head["model"], words)
        self.odd = ("".join(f"a{character}1{character} " for character in _RECENT),) if words else ()
        try:
            self._backend = _C.BpeEncoder(definition.compiled, prefix=prefix, unless_space=unless_space, words=words)
        except ValueError as error:
            raise Unsupported(str(error)) from None

    def encode(self, text: np.ndarray, offsets: np.ndarray, parallel: bool) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`megatron_adapt.hf.flat_encoding.Gigatoken.encode`; always one core."""
        return self._backend.encode(text, offsets)


def _kind(parsed: dict[str, Any]) -> tuple[bool, bool, bool]:
    """Whether a space goes before a text, whether that is left out before a text that begins with one, and whether the text
    is cut into words."""
    if any(not token.get("special") for token in parsed.get("added_tokens") or []):
        raise Unsupported("it finds added tokens in text")
    normalizer, cutter = parsed.get("normalizer"), parsed.get("pre_tokenizer")
    steps = normalizer.get("normalizers") if normalizer and normalizer.get("type") == "Sequence" else [normalizer]
    if cutter is None and steps in ([_PREPEND, _REPLACE], [_REPLACE]):
        return len(steps) == 2, False, False
    if normalizer is None and cutter and cutter.get("type") == "Metaspace":
        scheme = cutter.get("prepend_scheme", "always" if cutter.get("add_prefix_space", True) else "never")
        if cutter.get("replacement") == _SPACE and cutter.get("split") is False and scheme in ("always", "first", "never"):
            return scheme != "never", True, False
    if normalizer is None and cutter and cutter.get("type") == "ByteLevel" and cutter.get("use_regex", True):
        return cutter.get("add_prefix_space", True), True, True
    raise Unsupported("it normalizes or cuts text otherwise than by writing spaces as U+2581 or into the words of GPT-2")


def _check_model(model: dict[str, Any], words: bool) -> None:
    if model.get("type", "BPE") != "BPE":
        raise Unsupported("it is no byte pair encoding")
    if not words and not model.get("byte_fallback"):
        raise Unsupported("it has no tokens for single bytes")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(key):
            raise Unsupported(f"it has {key}")
    if words and model.get("byte_fallback"):
        raise Unsupported("it has byte_fallback")
