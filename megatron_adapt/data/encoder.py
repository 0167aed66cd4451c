"""Texts -> what a .bin file holds, by the fastest library that gives the tokenizer's own ids."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from megatron_adapt.errors import ConfigError, DataError

if TYPE_CHECKING:
    from megatron_adapt.hf.compiled_bpe import CompiledBPE
    from megatron_adapt.hf.flat_encoding import Gigatoken
    from megatron_adapt.hf.tokenizer import Tokenizer

BACKENDS = ("auto", "compiled", "gigatoken", "tokenizers", "sentencepiece")
_SAMPLES = 32  # documents of a run that are encoded by both libraries, at least
_SAMPLE_BYTES = 32 << 20  # and one for so many bytes of text
_SMALL_CORPUS = 4 << 20  # bytes below which loading a second library takes longer than it saves
_REFERENCE_BYTES = 1 << 20  # encoded at a time by libraries that return an object per text
_EXCERPT = 16 << 10  # bytes of a document that are compared
_UINT16_VOCABULARY = 65_500  # ids below which Megatron stores uint16
_ODD = (
    "", " ", "a", "  a  b\t\tc ", "\n\n a\r\n", "e\u0301\u00e9\u00a0\u200b\u3000x", "\0\x01\x7f",
    "\U0001f600\U0001f468\u200d\U0001f469", "don't WE'LL 12345 3.14 a1b2", "<s>[INST]<|x|>",
    "\u0645\u0631\u062d\u0628\u0627 \u4f60\u597d", "\ufb01\uff21 \u1e9e",
)  # fmt: skip


class Difference(DataError):
    """The fast encoder gives other ids than the library that defines them."""


class Sequences(NamedTuple):
    """ids [tokens] as stored, sizes int32 [sequences], sequences of each document int32 [documents], counts."""

    ids: np.ndarray
    sizes: np.ndarray
    texts: np.ndarray
    counts: dict[str, int]


class Sample(NamedTuple):
    """Some texts and what a fast encoder makes of them: text [bytes] uint8 and offsets [texts + 1], ids [tokens] and theirs."""

    backend: str
    text: np.ndarray
    offsets: np.ndarray
    ids: np.ndarray
    id_offsets: np.ndarray


class Reference:
    """The library that defines the ids: slow to load, which it is when first needed."""

    def __init__(self, tokenizer: Tokenizer, parse_special_tokens: bool) -> None:
        self.tokenizer, self.parse = tokenizer, parse_special_tokens

    def load(self) -> None:
        self.tokenizer.encode([])

    def encode(self, text: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As :meth:`Encoder.encode`."""
        pieces: list[np.ndarray] = []
        begin, count = 0, len(offsets) - 1
        while begin < count:
            end = max(begin + 1, int(np.searchsorted(offsets, offsets[begin] + _REFERENCE_BYTES, "right")) - 1)
            raw = text[offsets[begin] : offsets[end]].tobytes()
            cuts = (offsets[begin : end + 1] - offsets[begin]).tolist()
            texts = [raw[a:b].decode("utf-8") for a, b in zip(cuts[:-1], cuts[1:])]
            pieces += self.tokenizer.encode(texts, True) if self.parse else self.tokenizer.encode(texts)
            begin = end
        lengths = [len(piece) for piece in pieces]
        ids = np.concatenate(pieces).astype(np.int32, copy=False) if pieces else np.empty(0, np.int32)
        return ids, np.cumsum([0, *lengths], dtype=np.int64)

    def compare(self, sample: Sample) -> None:
        """
        Raises:
            Difference: some ids are others.
        """
        backend, text, offsets, ids, id_offsets = sample
        expected, starts = self.encode(text, offsets)
        if np.array_equal(starts, id_offsets) and np.array_equal(expected, ids):
            return
        for number in range(len(offsets) - 1):
            found = ids[id_offsets[number] : id_offsets[number + 1]]
            right = expected[starts[number] : starts[number + 1]]
            if not np.array_equal(found, right):
                at = next((i for i, (a, b) in enumerate(zip(found, right)) if a != b), min(len(found), len(right)))
                piece = text[offsets[number] : offsets[number + 1]].tobytes().decode("utf-8")
                raise Difference(
                    f"{backend} and {self.tokenizer.library} give different ids for {piece[:80]!r} with the tokenizer "
                    f"{self.tokenizer.path}: at token {at} {found[at : at + 5].tolist()} and {right[at : at + 5].tolist()}; "
                    f"use --tokenizer-backend {self.tokenizer.library} (or auto)"
                )


class Encoder:
    """Flat texts to flat ids, and these to sequences with BOS and EOD.

    Attributes:
        backend: "compiled", "gigatoken", "tokenizers" or "sentencepiece": what encodes.
        parallel: use all cores from this process.
        samples: documents that are compared, on average, for each byte of text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        append_bos: bool,
        append_eod: bool,
        parse_special_tokens: bool,
        fast: CompiledBPE | Gigatoken | None,
    ) -> None:
        self.tokenizer = tokenizer
        self.bos = _special(tokenizer, "BOS", tokenizer.bos_id) if append_bos else -1
        self.eod = _special(tokenizer, "EOD (end-of-text)", tokenizer.eos_id) if append_eod else -1
        self.reference = Reference(tokenizer, parse_special_tokens)
        self.fast = fast
        self.backend = tokenizer.library if fast is None else fast.name
        self.dtype = np.dtype(np.uint16 if tokenizer.vocab_size < _UINT16_VOCABULARY else np.int32)
        self.parallel = False
        self.samples = 0.0

    def encode(self, text: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """ids [tokens] and their offsets [texts + 1], for text [bytes] uint8 and offsets [texts + 1]."""
        return self.reference.encode(text, offsets) if self.fast is None else self.fast.encode(text, offsets, self.parallel)

    def build(self, ids: np.ndarray, id_offsets: np.ndarray, offsets: np.ndarray, first_text: np.ndarray | None) -> Sequences:
        """Sequences of documents; ``first_text`` [documents + 1] where documents consist of several texts.

        Raises:
            DataError: an id is outside the vocabulary, a document is too long.
        """
        from megatron_adapt import _C

        if first_text is None:
            first_text = np.arange(len(offsets))
        unknown = -1 if self.tokenizer.unk_id is None else self.tokenizer.unk_id
        try:
            return Sequences(*_C.sequences(
                np.ascontiguousarray(ids), id_offsets, offsets, first_text, bos=self.bos, eod=self.eod, unknown=unknown,
                vocab_size=self.tokenizer.vocab_size, uint16=self.dtype == np.uint16,
            ))  # fmt: skip
        except ValueError as error:
            raise DataError(f"the tokenizer {self.tokenizer.path}: {error}") from error

    def sample(
        self, text: np.ndarray, offsets: np.ndarray, ids: np.ndarray, id_offsets: np.ndarray, chance: Random
    ) -> Iterator[Sample]:
        """Some of the texts that :meth:`encode` was given, to be compared: long ones as an excerpt."""
        wanted = 0 if self.fast is None else int(self.samples * len(text) + chance.random())
        if not wanted or len(offsets) < 2:
            return
        chosen = sorted(chance.sample(range(len(offsets) - 1), min(wanted, len(offsets) - 1)))
        short = [number for number in chosen if offsets[number + 1] - offsets[number] <= _EXCERPT]
        if short:
            yield Sample(self.backend, *_subset(text, offsets, short), *_subset(ids, id_offsets, short))
        for number in set(chosen) - set(short):
            piece = text[offsets[number] : offsets[number] + _EXCERPT].tobytes().decode("utf-8", "ignore").encode()
            yield self._encoded([piece])

    def odd(self) -> Sample:
        """Strings that libraries are likely to differ on, special tokens among them."""
        definition = self.tokenizer.definition
        added = [token["content"] for token in (definition.head if definition else {}).get("added_tokens") or []][:64]
        odd = (*_ODD, *self.fast.odd, *added, *(f"a{token}b {token} c" for token in added))  # type: ignore[union-attr]
        return self._encoded([text.encode() for text in odd])

    def _encoded(self, texts: list[bytes]) -> Sample:
        text, offsets = np.frombuffer(b"".join(texts), np.uint8), np.cumsum([0, *map(len, texts)], dtype=np.int64)
        return Sample(self.backend, text, offsets, *self.fast.encode(text, offsets, False))  # type: ignore[union-attr]


def choose(
    tokenizer: Tokenizer, backend: str | None, corpus_bytes: int, append_bos: bool, append_eod: bool, parse_special_tokens: bool
) -> Encoder:
    """The encoder for a corpus.

    Args:
        backend: one of :data:`BACKENDS`. "compiled" and "gigatoken" insist on these, "tokenizers" and "sentencepiece" do without.
            None and "auto": the first of these that supports the tokenizer, where the corpus is worth loading it.

    Raises:
        ConfigError: the backend is unknown or cannot read this tokenizer.
        DataError: no BOS or EOD to append.
    """
    plain = Encoder(tokenizer, append_bos, append_eod, parse_special_tokens, None)
    if backend is not None and backend not in BACKENDS:
        raise ConfigError(f"the tokenizer backend is one of {', '.join(BACKENDS)}, not {backend!r}")
    if backend in ("tokenizers", "sentencepiece") and tokenizer.library != backend:
        raise ConfigError(f"the tokenizer {tokenizer.path} is read by {tokenizer.library}, not by {backend}")
    if not may_be_fast(tokenizer, backend, corpus_bytes):
        return plain
    fast = _fast(tokenizer, backend, parse_special_tokens)
    if fast is None:
        return plain
    encoder = Encoder(tokenizer, append_bos, append_eod, parse_special_tokens, fast)
    encoder.samples = max(_SAMPLES / max(corpus_bytes, 1), 1 / _SAMPLE_BYTES)
    return encoder


def may_be_fast(tokenizer: Tokenizer, backend: str | None, corpus_bytes: int) -> bool:
    """False where :func:`choose` takes the library that defines the ids, or nothing."""
    if backend in (None, "auto"):
        return corpus_bytes >= _SMALL_CORPUS and tokenizer.library == "tokenizers"
    return backend in ("compiled", "gigatoken")


def _fast(tokenizer: Tokenizer, backend: str | None, parse_special_tokens: bool) -> CompiledBPE | Gigatoken | None:
    """The one asked for, or the faster one of those that support the tokenizer."""
    from megatron_adapt.hf.compiled_bpe import CompiledBPE
    from megatron_adapt.hf.flat_encoding import Gigatoken, Unsupported

    for kind in (CompiledBPE, Gigatoken):
        if backend in (None, "auto", kind.name):
            try:
                return kind(tokenizer, parse_special_tokens)
            except Unsupported as error:
                if backend == kind.name:
                    message = f"{kind.name} cannot be used with the tokenizer {tokenizer.path}: {error}"
                    raise ConfigError(message) from None
    return None


def _special(tokenizer: Tokenizer, role: str, token_id: int | None) -> int:
    if token_id is None:
        raise DataError(
            f"the tokenizer {tokenizer.path} has no {role} token to append: name one in its "
            "tokenizer_config.json (bos_token, eos_token) or do not append it"
        )
    return token_id


def _subset(values: np.ndarray, offsets: np.ndarray, chosen: list[int]) -> tuple[np.ndarray, np.ndarray]:
    pieces = [values[offsets[number] : offsets[number + 1]] for number in chosen]
    return np.concatenate(pieces), np.cumsum([0, *map(len, pieces)], dtype=np.int64)
