"""The tokenizer of a Hugging Face directory: text in, plain ids out.

``tokenizer.json`` is read by the Rust ``tokenizers`` library, a ``tokenizer.model`` without one by ``sentencepiece``, a
file of tiktoken as the ``tokenizer.json`` that it amounts to.
transformers is not involved: it takes seconds to import, and for some class names version 5 rebuilds the tokenizer from
its vocabulary and ignores the normalizer that ``tokenizer.json`` declares. The file is the definition here.
"""

from __future__ import annotations

import contextlib
import gc
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from megatron_adapt.errors import ConfigError, DataError
from megatron_adapt.hf import tiktoken
from megatron_adapt.hf.tokenizer_definition import Definition, digest_of, parse_object, text_of
from megatron_adapt.hf.tokenizer_identity import canonical_sentencepiece
from megatron_adapt.hf.tokenizer_libraries import ROLES, SentencePiece, Tokenizers

# Everything that transformers may read beside the vocabulary, in the order in which it is listed to be copied.
COMPANIONS = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip

# Spellings that carry a role where no configuration file says which token does.
WELL_KNOWN = {
    "bos": ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>"),
    "eos": ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>"),
    "unk": ("<unk>", "[UNK]"),
    "pad": ("<pad>", "[PAD]"),
}


class Tokenizer:
    """One vocabulary and the way text is cut with it; made by :meth:`load`.

    Attributes:
        path: the directory or file given to :meth:`load`.
        vocab_size: highest id + 1 (ids may have holes; added tokens count).
        bos_id, eos_id, unk_id, pad_id: ids of the special roles, ``None`` where the tokenizer has none.
        files: what to copy beside a model that uses this tokenizer.
        definition: the ``tokenizer.json``; ``None`` for a sentencepiece model.
    """

    def __init__(self, path: Path, file: Path, definition: Definition | None, deferred: bool) -> None:
        self.path, self._file = path, file
        self.definition = definition
        # A file under a name of its own (german.model) stands alone; a canonically named one has companions.
        folder = file.parent if file.name in COMPANIONS else None
        self.files = [folder / name for name in COMPANIONS if (folder / name).is_file()] if folder else [file]
        known = definition.ids if definition is not None and deferred else None
        if known is None or definition is None:
            ids = {token: index for index, token in enumerate(self._tokens) if token is not None}
            find, special, own, size = ids.get, self._library.special_tokens(), self._library.own_roles(), len(self._tokens)
        else:
            added, special, size = known
            own, vocabulary = {}, definition.compiled
            find = lambda token: added.get(token, vocabulary.find(token))  # noqa: E731
        self.vocab_size = size
        roles = _roles(folder, find, special, own, size)
        self.bos_id, self.eos_id, self.unk_id, self.pad_id = (roles[role] for role in ROLES)

    @classmethod
    def load(cls, path: str | Path, deferred: bool = False) -> Tokenizer:
        """Read the tokenizer in a directory, or a ``tokenizer.json``, a sentencepiece ``.model`` or a ``.tiktoken`` file.

        Args:
            deferred: load the library that encodes when it is first needed, where that can be put off. It takes most of
                the time, and complains then of what it does not understand in a tokenizer.json.

        Raises:
            ConfigError: nothing usable is there, or a special token named in the configuration does not exist.
            DataError: the file is there but broken.
        """
        with collection_paused():
            file = _vocabulary_file(Path(path))
            definition = None
            if tiktoken.is_tiktoken(file):
                definition = Definition(file, json.dumps(tiktoken.tokenizer_json(file)).encode())
            elif file.suffix == ".json":
                definition = Definition(file, file.read_bytes())
            return cls(Path(path), file, definition, deferred)

    @cached_property
    def _library(self) -> Tokenizers | SentencePiece:
        return SentencePiece(self._file) if self.definition is None else Tokenizers(self.definition)

    @cached_property
    def _tokens(self) -> list[str | None]:
        return self._library.tokens()

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of everything that determines the ids of a text: vocabulary, merges, normalizer, pre-tokenizer and
        added tokens. Neither the path and formatting of the file nor the post-processor, truncation, padding and decoder
        enter it, since they do not change plain ids."""
        return digest_of(canonical_sentencepiece(self._file)) if self.definition is None else self.definition.digest

    @property
    def backend_json(self) -> dict[str, Any] | None:
        """The parsed ``tokenizer.json``; None for a sentencepiece model."""
        return None if self.definition is None else self.definition.parsed

    def __reduce__(self) -> tuple:
        return Tokenizer.load, (self.path,)  # worker processes read the file again

    @property
    def library(self) -> str:
        """What encodes: "tokenizers" or "sentencepiece"."""
        return (SentencePiece if self.definition is None else Tokenizers).name

    def encode(self, texts: Sequence[str], parse_special_tokens: bool = False) -> list[np.ndarray]:
        """Ids of each text alone, int32: no BOS or EOS is added, and the spelling of a special token inside a text
        is plain text, so that no document can forge one, unless ``parse_special_tokens`` asks for its id.

        Raises:
            DataError: a text is not valid Unicode (a lone surrogate).
            ConfigError: special tokens are to be parsed by sentencepiece, which never does that.
        """
        texts = list(texts)
        for number, text in enumerate(texts):  # the libraries differ: some raise, some replace the character
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise DataError(
                    f"text {number} of this batch contains the lone surrogate U+{ord(text[error.start]):04X} at "
                    f"character {error.start}, which is not Unicode text; repair or drop the document."
                ) from None
        return self._library.encode(texts, parse_special_tokens)

    def encode_with_places(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids int32 [n], places int64 [n, 2]: [begin, end) in characters of what each token stands for) of each text;
        special tokens spelled in it get their ids, and none is added. One that takes spaces beside it along stands for itself alone.

        Raises:
            ConfigError: sentencepiece does not tell.
        """
        return self._library.encode_with_places(list(texts))

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of some ids. sentencepiece models never show their control tokens."""
        return self._library.decode([int(i) for i in ids], skip_special_tokens)

    def pieces(self, spelling: str) -> list[int] | None:
        """Ids into which the vocabulary alone cuts a raw spelling (with ``Ġ`` or ``▁`` as stored): no normalizer, no
        pre-tokenizer, no prefix. None for a sentencepiece model, which cannot be asked without them."""
        return self._library.pieces(spelling)

    def words(self, text: str) -> list[str]:
        """The spellings that a ``tokenizer.json`` cuts one by one: a text normalized and pre-tokenized."""
        return self._library.words(text)

    def tokens(self) -> list[str | None]:
        """Raw vocabulary strings by id (``Ġ``, ``▁``, ``<0x0A>`` … as stored), ``None`` where an id is unused."""
        return list(self._tokens)

    def special_tokens(self) -> dict[str, int]:
        """Ids of the tokens that no text makes, by spelling."""
        return self._library.special_tokens()


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """No garbage collection meanwhile: hundreds of thousands of small objects that are all needed would be walked over
    again and again, for half the time of reading a tokenizer."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _vocabulary_file(path: Path) -> Path:
    if path.is_file():
        if path.suffix not in (".json", ".model", ".tiktoken"):
            raise ConfigError(f"{path} is neither a tokenizer.json nor a sentencepiece .model file, nor a .tiktoken one.")
        return path
    if not path.is_dir():
        raise ConfigError(f"no tokenizer at {path}: neither a directory nor a file.")
    for name in ("tokenizer.json", "tokenizer.model"):
        if (path / name).is_file():
            return path / name
    old = [name for name in ("vocab.json", "vocab.txt", "merges.txt") if (path / name).is_file()]
    hint = (
        f" It has {' and '.join(old)} only: load it with transformers' AutoTokenizer and save_pretrained() it once."
        if old
        else ""
    )
    if not old and (pickled := sorted(path.glob("*.pkl"))):
        hint = f" {pickled[0].name} is pickled, and reading it would run its code: write its ranks as tokenizer.tiktoken and name that file."
    raise ConfigError(f"{path} holds neither tokenizer.json nor tokenizer.model.{hint}")


def _read_json(file: Path) -> dict[str, Any]:
    return parse_object(file, text_of(file, file.read_bytes()))


def _roles(
    folder: Path | None, find: Callable[[Any], int | None], special: dict[str, int], own: dict[str, int], size: int
) -> dict[str, int | None]:
    """Ids of bos, eos, unk and pad: tokenizer_config.json first, then special_tokens_map.json, what the vocabulary
    file says itself, the ids in config.json, and well-known spellings among the special tokens last."""
    named: dict[str, Any] = {}
    numbered: dict[str, Any] = {}
    if folder is not None:
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            if (folder / name).is_file():
                named.update(_read_json(folder / name))
        if (folder / "config.json").is_file():
            numbered = _read_json(folder / "config.json")
    roles: dict[str, int | None] = {}
    for role in ROLES:
        index: int | None
        if f"{role}_token" in named:
            index = _named_token(named[f"{role}_token"], role, find, folder)
        elif role in own:
            index = own[role]
        else:
            index = _first_id(numbered.get(f"{role}_token_id"), size)
            if index is None:
                index = next((special[s] for s in WELL_KNOWN[role] if s in special), None)
        roles[role] = index
    return roles


def _named_token(entry: Any, role: str, find: Callable[[Any], int | None], folder: Path | None) -> int | None:
    content = entry.get("content") if isinstance(entry, dict) else entry
    index = find(content) if isinstance(content, str) else None
    if content is None or index is not None:
        return index
    if role in ("unk", "pad"):  # named out of habit in many files, and needed by nothing here
        return None
    raise ConfigError(
        f"{folder}: {role}_token {content!r} of the configuration is not in the vocabulary; "
        f"add it to tokenizer.json or name another."
    )


def _first_id(entry: Any, vocab_size: int) -> int | None:
    """The id in a model's config.json: a number, or a list of which the first counts."""
    if isinstance(entry, list):
        entry = entry[0] if entry else None
    return entry if isinstance(entry, int) and 0 <= entry < vocab_size else None
