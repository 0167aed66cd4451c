"""What a vocabulary method may look at, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator, Sequence

import numpy as np

from megatron_adapt.errors import ConfigError, DataError
from megatron_adapt.vocab.matching import Matching, TokenKeys, match, token_keys
from megatron_adapt.vocab.token_map import TokenMap
from megatron_adapt.vocab.weighting import Triples, concatenated

if TYPE_CHECKING:
    from megatron_adapt.hf.tokenizer import Tokenizer


@dataclass(frozen=True)
class Maps:
    """The result of a method.

    Attributes:
        input: rows of the input embedding.
        output: rows of the output matrix of an untied model.
        report: what the method wants to say about its work, for the receipt.
        warnings: what the user should see.
    """

    input: TokenMap
    output: TokenMap
    report: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def same(cls, token_map: TokenMap, report: dict[str, Any] | None = None, warnings: Sequence[str] = ()) -> Maps:
        """One map for both matrices."""
        return cls(token_map, token_map, report or {}, list(warnings))

    def padded(self, rows: int) -> Maps:
        first = self.input.padded(rows)
        second = first if self.output is self.input else self.output.padded(rows)
        return Maps(first, second, self.report, self.warnings)

    def keeping(self, source_rows: np.ndarray) -> Maps:
        """Row ``i`` of both matrices is row ``source_rows[i]`` of the source where that is not -1."""
        first = self.input.keeping(source_rows)
        second = first if self.output is self.input else self.output.keeping(source_rows)
        return Maps(first, second, self.report, self.warnings)


@dataclass(frozen=True)
class Material:
    """Both tokenizers, a few facts about the model, and text in the target language where there is some.

    Attributes:
        layers: of the model. tied: whether input and output share one matrix.
        seed: of everything that is random in a method; draws of rows have their own.
        texts: opens the documents; every call starts again at the first.
    """

    target: Tokenizer
    source: Tokenizer
    layers: int = 1
    tied: bool = False
    seed: int = 0
    texts: Callable[[], Iterable[str]] | None = None

    @cached_property
    def matching(self) -> Matching:
        return match(self.target, self.source, self.target_keys, self.source_keys)

    @cached_property
    def source_keys(self) -> TokenKeys:
        return token_keys(self.source)

    @cached_property
    def target_keys(self) -> TokenKeys:
        return token_keys(self.target)

    def kept(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens that both vocabularies have: their target ids and source ids, int64 [n] each."""
        rows = np.flatnonzero(self.matching.source_ids >= 0)
        return rows, self.matching.source_ids[rows]

    def new(self) -> np.ndarray:
        """Used ids of the target that the source does not have, int64 [n]."""
        used = np.array([token is not None for token in self.target_keys.tokens], dtype=bool)
        return np.flatnonzero(used & (self.matching.source_ids < 0))

    def token_map(self, triples: Triples, **settings: Any) -> TokenMap:
        """Kept rows copied, (target row, source id, weight) triples composed, the others drawn."""
        kept, old = self.kept()
        rows, ids, weights = concatenated((kept, old, np.ones(len(kept))), triples)
        return TokenMap.from_entries(rows, ids, weights, self.target.vocab_size, self.source.vocab_size, **settings)

    def anchors(self, method: str, least: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """:meth:`kept` without special tokens: what similarities can be measured to.

        Raises:
            ConfigError: fewer than ``least``.
        """
        rows, ids = self.kept()
        ordinary = np.array([isinstance(self.target_keys.keys[row], bytes) for row in rows], dtype=bool)
        if ordinary.sum() < least:
            raise ConfigError(
                f"method {method} measures similarity to tokens that both vocabularies have, and {self.target.path} has "
                f"only {int(ordinary.sum())} in common with {self.source.path}; use subwords or mean."
            )
        return rows[ordinary], ids[ordinary]

    def ids_of_texts(self, tokenizer: Tokenizer, method: str, max_bytes: int) -> Iterator[np.ndarray]:
        """Ids of every document, int32 [tokens], up to ``max_bytes`` of UTF-8 altogether.

        Raises:
            ConfigError: no text was given. DataError: it is empty.
        """
        batch: list[str] = []
        size = 0
        for text in self.documents(method, max_bytes):
            batch.append(text)
            size += len(text)
            if size > 2**20:
                yield from tokenizer.encode(batch)
                batch, size = [], 0
        yield from tokenizer.encode(batch)

    def documents(self, method: str, max_bytes: int) -> Iterator[str]:
        """The documents, the last one cut, up to ``max_bytes`` of UTF-8 altogether; raises like ``ids_of_texts``."""
        if self.texts is None:
            raise ConfigError(
                f"method {method} reads text in the target language: name files with --corpus, or corpora of the recipe "
                f"under vocabulary.corpora."
            )
        left = max_bytes
        for text in self.texts():
            encoded = text.encode("utf-8", "replace")
            if encoded:
                yield text if len(encoded) <= left else encoded[:left].decode("utf-8", "ignore")
                left -= len(encoded)
            if left <= 0:
                return
        if left == max_bytes:
            raise DataError(f"method {method}: the corpus holds no text.")


def read_lines(path: Path, what: str) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 file without line ends.

    Raises:
        ConfigError: it cannot be opened. DataError: "FILE:LINE: ..." where it is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError:
                    raise DataError(f"{path}:{number}: not UTF-8; convert the file.") from None
    except OSError as error:
        raise ConfigError(f"cannot read the {what} {path}: {error.strerror}.") from None
