"""The tokenizer of a Hugging Face directory: text in, plain ids out.

``tokenizer.json`` is read by the Rust ``tokenizers`` library, a ``tokenizer.model`` without one by ``sentencepiece``, a
file of tiktoken as the ``tokenizer.json`` that it amounts to.
transformers is not involved: it takes seconds to import, and for some class names version 5 rebuilds the tokenizer from
its vocabulary and ignores the normalizer that ``tokenizer.json`` declares. The file is the definition here.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Iterable, Iterator, Sequence

import numpy as np

from megatron_adapt.errors import ConfigError, DataError
from megatron_adapt.hf import tiktoken
from megatron_adapt.hf.tokenizer_identity import canonical_json, canonical_sentencepiece

ROLES = ("bos", "eos", "unk", "pad")

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
        digest: SHA-256 (hex) of everything that determines the ids of a text: vocabulary, merges, normalizer,
            pre-tokenizer and added tokens. Neither the path and formatting of the file nor the post-processor,
            truncation, padding and decoder enter it, since they do not change plain ids.
        files: what to copy beside a model that uses this tokenizer.
        backend_json: the parsed ``tokenizer.json``; ``None`` for a sentencepiece model.
    """

    def __init__(
        self,
        path: Path,
        backend: Any,
        tokens: list[str | None],
        digest: str,
        roles: dict[str, int | None],
        files: list[Path],
        backend_json: dict | None,
    ) -> None:
        self.path = path
        self.vocab_size = len(tokens)
        self.digest = digest
        self.files = files
        self.backend_json = backend_json
        self.bos_id, self.eos_id, self.unk_id, self.pad_id = (roles[role] for role in ROLES)
        self._backend = backend
        self._tokens = tokens

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read the tokenizer in a directory, or a ``tokenizer.json``, a sentencepiece ``.model`` or a ``.tiktoken`` file.

        Raises:
            ConfigError: nothing usable is there, or a special token named in the configuration does not exist.
            DataError: the file is there but broken.
        """
        with collection_paused():
            return cls._load(Path(path))

    @classmethod
    def _load(cls, path: Path) -> Tokenizer:
        file = _vocabulary_file(path)
        if file.suffix == ".json":
            text = _read_text(file)
            with ThreadPoolExecutor(1) as beside:  # the library works without the interpreter's lock
                made = beside.submit(_RustBackend, file, text)
                parsed = _parse(file, text)
                try:
                    digest = _digest(canonical_json(parsed))
                finally:
                    backend: Any = made.result()  # of a broken file it knows best what is wrong
            backend.hide_special_pieces(parsed)
        elif tiktoken.is_tiktoken(file):
            parsed = tiktoken.tokenizer_json(file)
            backend, digest = _RustBackend(file, json.dumps(parsed)), _digest(canonical_json(parsed))
        else:
            parsed = None
            backend = _SentencePieceBackend(file)
            digest = _digest(canonical_sentencepiece(file))
        # A file under a name of its own (german.model) stands alone; a canonically named one has companions.
        folder = file.parent if file.name in COMPANIONS else None
        tokens = backend.tokens()
        roles = _roles(folder, backend, tokens)
        files = [folder / name for name in COMPANIONS if (folder / name).is_file()] if folder else [file]
        return cls(path, backend, tokens, digest, roles, files, parsed)

    def __reduce__(self) -> tuple:
        return Tokenizer.load, (self.path,)  # worker processes read the file again

    @property
    def library(self) -> str:
        """What encodes: "tokenizers" or "sentencepiece"."""
        return self._backend.name

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
        return self._backend.encode(texts, parse_special_tokens)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of some ids. sentencepiece models never show their control tokens."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens)

    def pieces(self, spelling: str) -> list[int] | None:
        """Ids into which the vocabulary alone cuts a raw spelling (with ``Ġ`` or ``▁`` as stored): no normalizer, no
        pre-tokenizer, no prefix. None for a sentencepiece model, which cannot be asked without them."""
        return self._backend.pieces(spelling)

    def words(self, text: str) -> list[str]:
        """The spellings that a ``tokenizer.json`` cuts one by one: a text normalized and pre-tokenized."""
        return self._backend.words(text)

    def tokens(self) -> list[str | None]:
        """Raw vocabulary strings by id (``Ġ``, ``▁``, ``<0x0A>`` … as stored), ``None`` where an id is unused."""
        return list(self._tokens)


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


def _digest(value: dict) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=True, sort_keys=True).encode()).hexdigest()


class _RustBackend:
    """A ``tokenizer.json`` behind the ``tokenizers`` library."""

    name = "tokenizers"

    def __init__(self, file: Path, text: str) -> None:
        self.file = file
        self.full = self._made(text)
        self.plain = _plain(self.full)
        self._parsing: Any = None

    def _made(self, text: str) -> Any:
        from tokenizers import Tokenizer as RustTokenizer

        try:
            return RustTokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception for every malformed file
            reason = " ".join(str(error).split())
            raise DataError(f"{self.file} is not a tokenizer that the tokenizers library can read: {reason}.") from None

    def hide_special_pieces(self, parsed: dict) -> None:
        """Not to be found in text; ``parsed`` is what this tokenizer was made of."""
        if parsed.get("model", {}).get("type") == "Unigram":
            self.plain = _plain(self._made(json.dumps(_without_special_pieces(parsed))))

    def encode(self, texts: list[str], parse_special_tokens: bool) -> list[np.ndarray]:
        tokenizer = self.parsing() if parse_special_tokens else self.plain
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def parsing(self) -> Any:
        """The tokenizer that finds special tokens in text; made at first use."""
        if self._parsing is None:
            self._parsing = _plain(type(self.full).from_str(self.full.to_str()))
            self._parsing.encode_special_tokens = False
        return self._parsing

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return self.full.decode(ids, skip_special_tokens=skip_special_tokens)

    def pieces(self, spelling: str) -> list[int] | None:
        return [token.id for token in self.plain.model.tokenize(spelling)]

    def words(self, text: str) -> list[str]:
        if self.plain.normalizer is not None:
            text = self.plain.normalizer.normalize_str(text)
        if self.plain.pre_tokenizer is None:
            return [text]
        return [word for word, _ in self.plain.pre_tokenizer.pre_tokenize_str(text)]

    def tokens(self) -> list[str | None]:
        vocabulary = self.full.get_vocab(with_added_tokens=True)
        tokens: list[str | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
        for token, index in vocabulary.items():
            tokens[index] = token
        return tokens

    def special_tokens(self) -> dict[str, int]:
        return {t.content: i for i, t in self.full.get_added_tokens_decoder().items() if t.special}

    def own_roles(self) -> dict[str, int]:
        return {}


class _SentencePieceBackend:
    """A sentencepiece ``.model``."""

    name = "sentencepiece"

    def __init__(self, file: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        try:
            self.model = SentencePieceProcessor(model_proto=file.read_bytes())
            self.size = self.model.get_piece_size()
        except Exception as error:
            raise DataError(f"{file} is not a sentencepiece model: {' '.join(str(error).split())}.") from None
        if not self.size:
            raise DataError(f"{file} is not a sentencepiece model: it holds no pieces.")

    def encode(self, texts: list[str], parse_special_tokens: bool) -> list[np.ndarray]:
        if parse_special_tokens:
            raise ConfigError("sentencepiece never finds special tokens in text; use a tokenizer.json to parse them")
        return [np.array(self.model.encode(text), dtype=np.int32) for text in texts]

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return self.model.decode(ids)

    def pieces(self, spelling: str) -> list[int] | None:
        return None

    def tokens(self) -> list[str | None]:
        return [self.model.id_to_piece(i) for i in range(self.size)]

    def special_tokens(self) -> dict[str, int]:
        special = (i for i in range(self.size) if self.model.is_control(i) or self.model.is_unknown(i))
        return {self.model.id_to_piece(i): i for i in special}

    def own_roles(self) -> dict[str, int]:
        ids = {role: getattr(self.model, f"{role}_id")() for role in ROLES}
        return {role: index for role, index in ids.items() if index >= 0}


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


def _plain(tokenizer: Any) -> Any:
    """Set to take special tokens in text for text, and texts as they are."""
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read_json(file: Path) -> dict:
    return _parse(file, _read_text(file))


def _read_text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}.") from None


def _parse(file: Path, text: str) -> dict:
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{file}:{error.lineno} is not JSON: {error.msg}.") from None
    if not isinstance(parsed, dict):
        raise DataError(f"{file} holds a JSON {type(parsed).__name__} where an object is expected.")
    return parsed


def _without_special_pieces(parsed: dict) -> dict:
    """A Unigram model finds its own control pieces in raw text (they carry a score like any other piece, unlike in
    sentencepiece); the copy used to encode has them under a spelling that no text contains, at the same ids."""
    model = parsed["model"]
    special = {t["content"] for t in parsed.get("added_tokens") or [] if t.get("special")}
    vocabulary = [[f"\U0010ffff{i}" if p in special else p, s] for i, (p, s) in enumerate(model["vocab"])]
    kept = [t for t in parsed.get("added_tokens") or [] if not t.get("special")]
    return {**parsed, "model": {**model, "vocab": vocabulary}, "added_tokens": kept, "post_processor": None}


def _roles(folder: Path | None, backend: Any, tokens: list[str | None]) -> dict[str, int | None]:
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
    ids = {token: index for index, token in enumerate(tokens) if token is not None}
    special, own = backend.special_tokens(), backend.own_roles()
    roles: dict[str, int | None] = {}
    for role in ROLES:
        index: int | None
        if f"{role}_token" in named:
            index = _named_token(named[f"{role}_token"], role, ids, folder)
        elif role in own:
            index = own[role]
        else:
            index = _first_id(numbered.get(f"{role}_token_id"), len(tokens))
            if index is None:
                index = next((special[s] for s in WELL_KNOWN[role] if s in special), None)
        roles[role] = index
    return roles


def _named_token(entry: Any, role: str, ids: dict[str, int], folder: Path | None) -> int | None:
    content = entry.get("content") if isinstance(entry, dict) else entry
    if content is None or content in ids:
        return ids.get(content)
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
