"""Tokenized corpora in Megatron Core's format: PREFIX.bin (ids back to back), PREFIX.idx (where each document lies)."""

from __future__ import annotations

import os
import struct
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from megatron_adapt.errors import DataError

# Megatron Core's type codes; its float codes 6 and 7 cannot be token ids.
_DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
TYPE_CODES = {dtype: code for code, dtype in _DTYPES.items()}
VERSION = 1  # of the format, the only one there is
MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")  # magic, version, type code, sequences, document boundaries
_CHUNK = 1 << 20  # index entries checked at a time
_REMEDY = "preprocess the corpus again"


class IndexedWriter:
    """Writes a corpus of documents, one sequence each; nothing appears under the final names before :meth:`finish`.

    Ids are stored as uint16 for a vocabulary below 65,500 ids, else as int32, as Megatron does. Use it as a context
    manager: it finishes at the end of the block and removes everything when the block is left by an exception.
    """

    def __init__(self, prefix: str | Path, vocab_size: int) -> None:
        from megatron_adapt import _C

        self.prefix = Path(prefix)
        self.vocab_size = vocab_size
        self._is_finished = False
        with WriteErrors(self.prefix):
            self._writer = _C.IndexedWriter(os.fsencode(self.prefix), vocab_size)

    def add(self, ids: np.ndarray, lengths: np.ndarray | list[int]) -> None:
        """Append documents.

        Args:
            ids: [tokens] any integer type, the documents back to back.
            lengths: [documents] number of ids of each; 0 is allowed.

        Raises:
            DataError: an id is negative or not below ``vocab_size`` (none of these documents is written then), or the
                disk is full.
        """
        lengths = np.asarray(lengths)
        if lengths.size and lengths.dtype.kind not in "iu":
            raise TypeError(f"lengths must be integers, not {lengths.dtype}")
        ids = np.require(ids, ids.dtype.newbyteorder("="), requirements=["C", "A"])
        with WriteErrors(self.prefix):
            self._writer.add(ids, np.ascontiguousarray(lengths, dtype=np.int64))

    def sync(self) -> None:
        """Complete both files on disk under their temporary names; a full disk shows here at the latest."""
        with WriteErrors(self.prefix):
            self._writer.sync()

    def finish(self) -> None:
        """Put the two files in place, the index last; syncs them before if :meth:`sync` has not."""
        with WriteErrors(self.prefix):
            self._writer.finish()
        self._is_finished = True

    def abandon(self) -> None:
        """Remove what was written; harmless after :meth:`finish`."""
        self._writer.abandon()

    @property
    def num_documents(self) -> int:
        return self._writer.num_documents

    @property
    def num_tokens(self) -> int:
        return self._writer.num_tokens

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint16 if self._writer.is_uint16 else np.int32)

    def __enter__(self) -> IndexedWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        try:
            if kind is None and not self._is_finished:
                self.finish()
        finally:
            self.abandon()


class WriteErrors:
    """Turns what the compiled writer raises into DataErrors."""

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: Any, error: BaseException | None, _trace: Any) -> None:
        if isinstance(error, BlockingIOError):
            message = f"{self.prefix}: another process is writing this corpus; wait for it or choose another name"
            raise DataError(message) from error
        if isinstance(error, OSError):
            path = os.fsdecode(error.filename)
            is_output = path.startswith(str(self.prefix)) or path == str(self.prefix.parent)
            raise DataError(f"cannot {'write' if is_output else 'read'} {path}: {error.strerror}; {self.prefix} was not completed") from error
        if isinstance(error, ValueError):
            raise DataError(f"{self.prefix}: {error}") from error


class IndexedReader:
    """A tokenized corpus, memory-mapped and checked as a whole when it is opened.

    Attributes:
        tokens: [num_tokens] every id of the corpus, documents in order (memory-mapped, read-only).
        num_tokens, num_documents, num_sequences: a document is one sequence or, rarely, several.
        dtype: type of the stored ids.

    Raises:
        DataError: a file is missing, damaged, truncated or of another kind; names the file, expected and found sizes.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = Path(prefix)
        index_path, data_path = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
        self.dtype, sequences, boundaries = _read_header(index_path)
        index = np.memmap(index_path, dtype=np.uint8, mode="r")
        offset = HEADER.size
        sizes = _view(index, np.int32, sequences, offset)
        pointers = _view(index, np.int64, sequences, offset + sizes.nbytes)
        documents = _view(index, np.int64, boundaries, offset + sizes.nbytes + pointers.nbytes)
        self.num_tokens = _check_pointers(index_path, sizes, pointers, self.dtype.itemsize)
        one_each = _check_documents(index_path, documents, sequences)
        expected, found = self.num_tokens * self.dtype.itemsize, _file_size(data_path)
        if expected != found:
            raise DataError(
                f"{data_path} has {found} bytes but {index_path.name} describes {expected} ({self.num_tokens} "
                f"tokens of {self.dtype.itemsize} bytes): it is truncated or belongs to another index; {_REMEDY}"
            )
        self.num_documents = boundaries - 1
        self.num_sequences = sequences
        self._sequence_sizes, self._pointers = sizes, pointers
        self._documents = None if one_each else documents
        # An empty file cannot be mapped.
        self.tokens = np.memmap(data_path, dtype=self.dtype, mode="r") if found else np.empty(0, dtype=self.dtype)

    @cached_property
    def sizes(self) -> np.ndarray:
        """[num_documents] int32 (int64 where documents have several sequences): number of tokens of each."""
        if self._documents is None:
            return self._sequence_sizes
        return np.diff(np.append(self._starts, self.num_tokens * self.dtype.itemsize)) // self.dtype.itemsize

    @cached_property
    def _starts(self) -> np.ndarray:
        """[num_documents] int64: the byte of the .bin file at which each document begins."""
        # Megatron's --split-sentences writes several sequences for one document.
        if self._documents is None:
            return self._pointers
        return np.append(self._pointers, self.num_tokens * self.dtype.itemsize)[self._documents[:-1]]

    def __len__(self) -> int:
        return self.num_documents

    def __getitem__(self, document: int) -> np.ndarray:
        """The ids of one document: [size], counted from the end where negative."""
        position = range(self.num_documents)[document]
        start = self.first_token(position)
        return self.tokens[start : start + int(self.sizes[position])]

    def first_token(self, document: int) -> int:
        """Where a document begins in ``tokens``."""
        return int(self._starts[document]) // self.dtype.itemsize


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        message = f"cannot open {path}: {error.strerror}; a corpus is PREFIX.bin and PREFIX.idx, named by PREFIX"
        raise DataError(message) from error


def _read_header(path: Path) -> tuple[np.dtype, int, int]:
    """Type of the ids, number of sequences, number of document boundaries (documents + 1)."""
    found = _file_size(path)
    try:
        with path.open("rb") as stream:
            header = stream.read(HEADER.size)
    except OSError as error:
        raise DataError(f"cannot open {path}: {error.strerror}") from error
    if not header.startswith(MAGIC):
        raise DataError(f"{path} is not a Megatron corpus index (it does not begin with MMIDIDX)")
    if len(header) < HEADER.size:
        raise DataError(f"{path} is truncated: it has {found} bytes and its header alone {HEADER.size}; {_REMEDY}")
    _, version, code, sequences, boundaries = HEADER.unpack(header)
    if version != VERSION:
        raise DataError(f"{path} has format version {version}; only version {VERSION} is known")
    if code not in _DTYPES:
        raise DataError(f"{path} has the type code {code}, not one of integers ({', '.join(map(str, _DTYPES))})")
    expected = HEADER.size + sequences * 12 + boundaries * 8
    if expected != found:
        raise DataError(
            f"{path} has {found} bytes but its header describes {expected} ({sequences} sequences): "
            f"it is truncated or damaged; {_REMEDY}"
        )
    if boundaries < 1:
        raise DataError(f"{path} is damaged: it has no document boundaries; {_REMEDY}")
    return np.dtype(_DTYPES[code]), sequences, boundaries


def _view(index: np.ndarray, dtype: type, count: int, offset: int) -> np.ndarray:
    # frombuffer, unlike a view of a slice, takes the offsets of this format that are not multiples of the item size.
    return np.frombuffer(index, dtype=dtype, count=count, offset=offset)


def _check_pointers(path: Path, sizes: np.ndarray, pointers: np.ndarray, item_size: int) -> int:
    """Each sequence begins where the one before ends; returns the number of tokens."""
    tokens = 0
    for start in range(0, len(sizes), _CHUNK):
        part = sizes[start : start + _CHUNK].astype(np.int64)
        ends = tokens + np.cumsum(part)
        wrong = (part < 0) | (pointers[start : start + _CHUNK] != (ends - part) * item_size)
        if wrong.any():
            sequence = start + int(wrong.argmax())
            raise DataError(f"{path} is damaged: sequence {sequence} does not follow on the one before; {_REMEDY}")
        tokens = int(ends[-1])
    return tokens


def _check_documents(path: Path, documents: np.ndarray, sequences: int) -> bool:
    """The boundaries ascend from 0 to the number of sequences; returns whether every document is one sequence."""
    ascending = documents[0] == 0 and documents[-1] == sequences
    one_each = len(documents) == sequences + 1
    for start in range(0, len(documents) - 1, _CHUNK):
        steps = np.diff(documents[start : start + _CHUNK + 1])
        ascending = ascending and bool((steps >= 0).all())
        one_each = one_each and bool((steps == 1).all())
    if not ascending:
        raise DataError(f"{path} is damaged: its document boundaries do not ascend from 0 to {sequences}; {_REMEDY}")
    return one_each
