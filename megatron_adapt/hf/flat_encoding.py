"""Many texts at once through gigatoken: flat arrays in, flat arrays out.

gigatoken reads the same ``tokenizer.json`` as the ``tokenizers`` library and is many times as fast; it covers most BPE
tokenizers, not all. Whoever uses it compares a sample with :meth:`Tokenizer.encode` (see ``data/encoder.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from megatron_adapt.hf.tokenizer import Tokenizer


class Unsupported(Exception):
    """Why a fast encoder cannot be used with a tokenizer."""


class Gigatoken:
    """A tokenizer behind gigatoken.

    Args:
        parse_special_tokens: find special tokens in the text instead of taking their spelling as text.

    Raises:
        Unsupported: gigatoken is not installed, or does not support this tokenizer.
    """

    name = "gigatoken"
    odd: tuple[str, ...] = ()  # strings to be compared with the library that defines the ids

    def __init__(self, tokenizer: Tokenizer, parse_special_tokens: bool = False) -> None:
        definition = tokenizer.definition
        if definition is None:
            raise Unsupported("it is not a tokenizer.json")
        changes: dict[str, Any] = {"truncation": None, "padding": None}
        if not parse_special_tokens:
            kept = [token for token in definition.head.get("added_tokens") or [] if not token.get("special")]
            changes |= {"added_tokens": kept, "post_processor": None}
        try:
            import gigatoken
        except ImportError as error:
            raise Unsupported(f"gigatoken is not installed ({error})") from None
        try:
            self._backend = gigatoken.Tokenizer.from_json(definition.with_head(**changes))
        except Exception as error:  # it raises several kinds for what it does not know
            raise Unsupported(" ".join(str(error).split())) from None

    def encode(self, text: np.ndarray, offsets: np.ndarray, parallel: bool) -> tuple[np.ndarray, np.ndarray]:
        """Ids of texts that lie back to back.

        Args:
            text: [bytes] uint8, UTF-8.
            offsets: [texts + 1] int64, where each text begins.
            parallel: use all cores; False in forked processes.

        Returns:
            ids [tokens] uint32 of all texts, and offsets [texts + 1] int64 of each text in them.
        """
        import awkward
        from awkward.contents import ListOffsetArray, NumpyArray
        from awkward.index import Index64

        texts = ListOffsetArray(
            Index64(offsets), NumpyArray(text, parameters={"__array__": "byte"}), parameters={"__array__": "bytestring"}
        )
        encoded = self._backend.encode_batch(awkward.Array(texts), parallel=parallel).layout.to_ListOffsetArray64(True)
        starts = np.asarray(encoded.offsets.data)
        return np.asarray(encoded.content.data)[: starts[-1]], starts
