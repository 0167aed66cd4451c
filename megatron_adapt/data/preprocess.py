"""Raw text -> token ids: documents are streamed, encoded in batches and written in input order, in bounded memory."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_adapt.data.corpus import Paths, find_files, read_documents
from megatron_adapt.data.held_out import HeldOutWriter, divert, refuse_shared, writing
from megatron_adapt.data.indexed import IndexedReader, IndexedWriter
from megatron_adapt.errors import ConfigError, DataError

if TYPE_CHECKING:
    from megatron_adapt.hf.tokenizer import Tokenizer

_DOCUMENT_OVERHEAD = 256  # bytes of Python objects that a document costs beside its text


def preprocess(
    paths: Paths,
    tokenizer: Tokenizer,
    output_prefix: str | Path,
    *,
    text_key: str = "text",
    append_bos: bool = False,
    append_eod: bool = True,
    on_error: str = "stop",
    on_skip: Callable[[str], None] | None = None,
    held_out: float = 0.0,
    held_out_path: Paths | None = None,
    max_documents: int | None = None,
    batch_bytes: int = 4 << 20,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Tokenize a corpus into PREFIX.bin and PREFIX.idx, and write what was done to PREFIX.json, last.

    Nothing appears under these names before all is written, and an exception leaves no file behind. A document that is
    empty or becomes no token is left out and counted. BOS and EOD are not added where a document already has them.

    Args:
        paths, text_key, on_error, on_skip: see :func:`megatron_adapt.data.corpus.read_documents`.
        append_bos, append_eod: begin each document with ``tokenizer.bos_id``, end it with ``tokenizer.eos_id``.
        held_out: share of the documents, evenly spread, that goes as text to ``held_out.jsonl`` beside the prefix
            instead of into the corpus; at least one if the corpus has two.
        held_out_path: held-out text of its own instead, copied to ``held_out.jsonl``.
        max_documents: stop after so many documents, held-out ones included.
        batch_bytes: UTF-8 bytes of text encoded at a time.
        on_progress: receives {"documents", "tokens", "bytes", "seconds"} so far, after every batch.

    Returns:
        The content of PREFIX.json (see ``_describe``), and "seconds", which is not in it: equal input, equal files.

    Raises:
        ConfigError: an argument is out of its range, or an output would overwrite an input.
        DataError: bad input, no text at all, an id outside the vocabulary, a full disk.
    """
    started = time.monotonic()
    prefix = Path(output_prefix)
    files = find_files(paths)
    held_out_files = [] if held_out_path is None else find_files(held_out_path)
    share = _check_arguments(held_out, held_out_files, max_documents, batch_bytes)
    _check_paths(prefix, files, held_out_files, writes_held_out=bool(share or held_out_files))
    encoder = _Encoder(tokenizer, append_bos, append_eod)
    source = _Source(text_key, on_error, on_skip)
    with HeldOutWriter(prefix.parent / "held_out.jsonl") as kept, IndexedWriter(prefix, tokenizer.vocab_size) as writer:
        for text in source.read(held_out_files):
            kept.write(text)
        texts = divert(islice(source.read(files), max_documents), share, kept)
        for batch in _batches(texts, batch_bytes):
            writer.add(*encoder.encode(batch))
            if on_progress is not None:
                done = {"documents": writer.num_documents, "tokens": writer.num_tokens, "bytes": encoder.bytes}
                on_progress({**done, "seconds": time.monotonic() - started})
        stats = _describe(source, encoder, writer, kept)
        if writer.num_tokens == 0:
            shown = ", ".join(map(str, files[:3])) + (" ..." if len(files) > 3 else "")
            counts = f"{stats['skipped']} bad lines were skipped, {stats['empty']} documents are empty"
            raise DataError(f"the corpus {shown} is empty: no text becomes a token ({counts})")
        _publish(prefix, stats, writer, kept)
    return {**stats, "seconds": time.monotonic() - started}


def preprocess_keys(
    paths: Paths, tokenizer: Tokenizer, output_prefix: str | Path, keys: Iterable[str], **options: Any
) -> dict[str, dict[str, Any]]:
    """One corpus for each JSON key, named PREFIX_<key>_document as Megatron's tool does.

    Args:
        options: those of :func:`preprocess`, except ``text_key``.

    Returns:
        {prefix of the corpus: its stats}
    """
    keys = list(dict.fromkeys(keys))
    if len(keys) > 1 and (options.get("held_out") or options.get("held_out_path")):
        raise ConfigError(f"held-out text can be set aside for one JSON key at a time, not for {', '.join(keys)}")
    prefixes = {key: f"{output_prefix}_{key}_document" for key in keys}
    return {prefixes[key]: preprocess(paths, tokenizer, prefixes[key], text_key=key, **options) for key in keys}


def tokenizer_file(model: str | Path, tokenizer_type: str | None = None) -> Path:
    """What to load for Megatron's ``--tokenizer-model`` and ``--tokenizer-type``.

    Args:
        tokenizer_type: "HuggingFaceTokenizer", "SentencePieceTokenizer" or None for whatever the path holds.

    Raises:
        ConfigError: the path does not hold a tokenizer of that type.
    """
    path = Path(model)
    if tokenizer_type == "SentencePieceTokenizer":
        path = path / "tokenizer.model" if path.is_dir() else path
        if path.suffix != ".model" or not path.is_file():
            raise ConfigError(f"{path} is not a sentencepiece .model file, which SentencePieceTokenizer needs")
    elif tokenizer_type == "HuggingFaceTokenizer" and path.suffix == ".model":
        raise ConfigError(f"{path} is a sentencepiece model; use --tokenizer-type SentencePieceTokenizer")
    return path


def open_corpus(prefix: str | Path, tokenizer_digest: str | None = None) -> tuple[IndexedReader, dict[str, Any]]:
    """A corpus made by :func:`preprocess` and its stats.

    Raises:
        DataError: it is unfinished or damaged, or was made by a tokenizer with another digest than the one given.
    """
    path = Path(f"{prefix}.json")
    try:
        stats = json.loads(path.read_text(encoding="utf-8"))
        found = (stats["documents"], stats["tokens"])
        digest, tokenizer_path, _ = stats["tokenizer_digest"], stats["tokenizer_path"], stats["bytes"]
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: the corpus {prefix} does not exist or is unfinished") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a description of a corpus; preprocess the corpus {prefix} again") from error
    reader = IndexedReader(prefix)
    if found != (reader.num_documents, reader.num_tokens):
        raise DataError(
            f"{path} describes {found[0]} documents with {found[1]} tokens but {prefix}.idx has "
            f"{reader.num_documents} with {reader.num_tokens}; preprocess the corpus again"
        )
    if tokenizer_digest is not None and digest != tokenizer_digest:
        raise DataError(
            f"the corpus {prefix} was tokenized with another tokenizer ({tokenizer_path}, digest {digest[:12]}, "
            f"expected {tokenizer_digest[:12]}); preprocess it again with the tokenizer of this model"
        )
    return reader, stats


class _Source:
    """Reads documents and counts what is left out or changed."""

    def __init__(self, text_key: str, on_error: str, on_skip: Callable[[str], None] | None) -> None:
        self.text_key, self.on_error, self.on_skip = text_key, on_error, on_skip
        self.skipped = self.empty = self.replaced = 0

    def read(self, files: list[Path]) -> Iterator[str]:
        # read_documents refuses an empty list
        for document in read_documents(files, self.text_key, self.on_error, self._skip) if files else ():
            self.replaced += document.replaced
            self.empty += not document.text
            if document.text:
                yield document.text

    def _skip(self, message: str) -> None:
        self.skipped += 1
        if self.on_skip is not None:
            self.on_skip(message)


class _Encoder:
    """Texts -> ids with BOS and EOD; counts the bytes of what it encoded, unknown tokens and documents without any."""

    def __init__(self, tokenizer: Tokenizer, append_bos: bool, append_eod: bool) -> None:
        self.tokenizer = tokenizer
        self.begin = self._special("BOS", tokenizer.bos_id) if append_bos else None
        self.end = self._special("EOD (end-of-text)", tokenizer.eos_id) if append_eod else None
        self.bytes = self.unknown = self.dropped = 0

    def _special(self, role: str, token_id: int | None) -> np.ndarray:
        if token_id is None:
            raise DataError(
                f"the tokenizer {self.tokenizer.path} has no {role} token to append: name one in its "
                "tokenizer_config.json (bos_token, eos_token) or do not append it"
            )
        return np.array([token_id], dtype=np.int64)

    def encode(self, batch: list[tuple[str, int]]) -> tuple[np.ndarray, np.ndarray]:
        """Texts with their UTF-8 sizes -> (ids of all back to back, number of ids of each document that has some)."""
        pieces: list[np.ndarray] = []
        lengths: list[int] = []
        for ids, (_, size) in zip(self.tokenizer.encode([text for text, _ in batch]), batch):
            if len(ids) == 0:
                self.dropped += 1
                continue
            self.bytes += size
            if self.tokenizer.unk_id is not None:  # before EOD is added: in GPT-2 they are the same token
                self.unknown += int(np.count_nonzero(ids == self.tokenizer.unk_id))
            document = [ids]
            if self.begin is not None and ids[0] != self.begin[0]:
                document.insert(0, self.begin)
            if self.end is not None and ids[-1] != self.end[0]:
                document.append(self.end)
            pieces += document
            lengths.append(sum(map(len, document)))
        flat = np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)
        return flat, np.array(lengths, dtype=np.int64)


def _batches(texts: Iterator[str], batch_bytes: int) -> Iterator[list[tuple[str, int]]]:
    batch: list[tuple[str, int]] = []
    total = 0
    for text in texts:
        size = len(text.encode("utf-8"))
        batch.append((text, size))
        total += size + _DOCUMENT_OVERHEAD
        if total >= batch_bytes:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def _check_arguments(
    held_out: float, held_out_files: list[Path], max_documents: int | None, batch_bytes: int
) -> Fraction:
    if not 0 <= held_out < 1:
        raise ConfigError(f"held_out is a share of the documents, at least 0 and below 1, not {held_out}")
    if held_out and held_out_files:
        raise ConfigError("give either held_out, a share of the corpus, or held_out_path, a file of its own, not both")
    if max_documents is not None and max_documents < 1:
        raise ConfigError(f"max_documents must be at least 1, not {max_documents}")
    if batch_bytes < 1:
        raise ConfigError(f"batch_bytes must be at least 1, not {batch_bytes}")
    return Fraction(str(held_out))  # 0.29 is 29/100: exact for any number of documents


def _check_paths(prefix: Path, files: list[Path], held_out_files: list[Path], writes_held_out: bool) -> None:
    if not prefix.name:
        raise ConfigError(f"the output prefix {str(prefix)!r} has no file name; name it like {prefix / 'corpus'}")
    held_out_file = prefix.parent / "held_out.jsonl"
    outputs = {Path(f"{prefix}{suffix}").resolve() for suffix in (".bin", ".idx", ".json")}
    outputs |= {held_out_file.resolve()} if writes_held_out else set()
    inputs = {file.resolve() for file in files}
    for file in (*files, *held_out_files):
        if file.resolve() in outputs:
            raise ConfigError(f"{file} is an input and would be overwritten; choose another prefix than {prefix}")
    for file in held_out_files:
        if file.resolve() in inputs:
            raise ConfigError(f"{file} is both training and held-out text; name another file for one of them")
    if writes_held_out:
        refuse_shared(held_out_file, prefix)


def _describe(source: _Source, encoder: _Encoder, writer: IndexedWriter, held_out: HeldOutWriter) -> dict[str, Any]:
    """What PREFIX.json says: bytes are the UTF-8 bytes of the text behind the tokens, skipped the bad lines."""
    tokenizer = encoder.tokenizer
    return {
        "documents": writer.num_documents, "tokens": writer.num_tokens, "bytes": encoder.bytes,
        "skipped": source.skipped, "empty": source.empty + encoder.dropped, "replaced_surrogates": source.replaced,
        "held_out": held_out.path.name if held_out.documents else None,
        "held_out_documents": held_out.documents, "held_out_bytes": held_out.bytes,
        "unknown_tokens": encoder.unknown,
        "tokenizer_digest": tokenizer.digest, "tokenizer_path": str(tokenizer.path),
        "vocab_size": tokenizer.vocab_size, "dtype": writer.dtype.name,
        "append_bos": encoder.begin is not None, "append_eod": encoder.end is not None,
    }  # fmt: skip


def _publish(prefix: Path, stats: dict[str, Any], writer: IndexedWriter, held_out: HeldOutWriter) -> None:
    """All is written and synced before the first name changes; the description goes first and comes back last."""
    description = Path(f"{prefix}.json")
    temporary = Path(f"{description}.tmp")
    with writing(temporary):
        stream = temporary.open("w", encoding="utf-8")
    try:
        with writing(temporary), stream:
            stream.write(json.dumps(stats, indent=2, ensure_ascii=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        held_out.sync()
        writer.sync()
        with writing(description):
            description.unlink(missing_ok=True)
        writer.finish()
        held_out.publish()
        with writing(description):
            os.replace(temporary, description)
    finally:
        temporary.unlink(missing_ok=True)
