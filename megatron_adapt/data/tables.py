"""Documents in columns: parquet files and data sets of the Hugging Face hub, through Arrow."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from megatron_adapt.data.documents import Bad, Batch, ChatReader, Task
from megatron_adapt.data.messages import without_nulls
from megatron_adapt.data.parsing import BadLine
from megatron_adapt.data.sources import HUB
from megatron_adapt.errors import ConfigError, DataError

_ROWS = 2048  # read at a time
_HUB_NAME = re.compile(r"hf:(?P<name>[^@:]+)(@(?P<config>[^:]+))?(:(?P<split>.+))?")


def cut(name: str, chunk_bytes: int) -> Iterator[tuple[int, int, int]]:
    """(begin, end, bytes) of parts of at least ``chunk_bytes`` where there is so much: row groups, or rows of a set."""
    if name.startswith(HUB):
        data = _hub(name)
        rows = max(_ROWS, int(data.num_rows * chunk_bytes / max(data.dataset_size or 1, 1)))
        share = (data.dataset_size or 0) / max(data.num_rows, 1)
        for begin in range(0, max(data.num_rows, 1), rows):
            end = min(begin + rows, data.num_rows)
            yield begin, end, int((end - begin) * share)
        return
    metadata = _parquet(name).metadata
    begin = size = 0
    for group in range(metadata.num_row_groups):
        size += metadata.row_group(group).total_byte_size
        if size >= chunk_bytes or group + 1 == metadata.num_row_groups:
            yield begin, group + 1, size
            begin, size = group + 1, 0
    if not metadata.num_row_groups:
        yield 0, 0, 0


def read(task: Task, text_key: str, chats: ChatReader | None = None) -> Iterator[Batch]:
    """Batches of a part of a parquet file or data set; ``lines`` are rows from the begin of the task."""
    (name,) = task.files
    rows, key, is_text = 0, text_key if chats is None else chats.key, chats is None
    for columns in (_hub_columns if task.kind == "hub" else _parquet_columns)(task, key, is_text, () if chats is None else chats.beside.values()):
        batch = _batch(name, columns[key], rows, key) if chats is None else _chats(name, columns, rows, chats)
        rows += len(columns[key])
        batch.passed = rows
        yield batch


def rows_before(task: Task) -> int:
    """Rows of the file in front of a task."""
    if task.kind == "hub":
        return task.begin
    metadata = _parquet(task.files[0]).metadata
    return sum(metadata.row_group(group).num_rows for group in range(task.begin))


def _parquet(name: str) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(name)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {name}: {' '.join(str(error).split())}") from error


def _parquet_columns(task: Task, text_key: str, is_text: bool, beside: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The column, and of those ``beside`` the ones that the file has."""
    import pyarrow

    (name,) = task.files
    with _parquet(name) as file:
        _require(name, text_key, file.schema_arrow, is_text)
        columns = [text_key, *(column for column in beside if column in file.schema_arrow.names)]
        groups = list(range(task.begin, file.metadata.num_row_groups if task.end is None else task.end))
        try:
            for batch in file.iter_batches(_ROWS, row_groups=groups, columns=columns) if groups else ():
                yield {column: batch.column(column) for column in columns}
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"cannot read {name}: {' '.join(str(error).split())}") from error


def _hub_columns(task: Task, text_key: str, is_text: bool, beside: Iterable[str]) -> Iterator[dict[str, Any]]:
    """As :func:`_parquet_columns`."""
    (name,) = task.files
    data = _hub(name)
    _require(name, text_key, data.features.arrow_schema, is_text)
    columns = [text_key, *(column for column in beside if column in data.features.arrow_schema.names)]
    data = data.select_columns(columns).with_format("arrow")
    end = data.num_rows if task.end is None else task.end
    for begin in range(task.begin, end, _ROWS):
        rows = data[begin : min(begin + _ROWS, end)]
        yield {column: rows.column(column).combine_chunks() for column in columns}


@lru_cache(maxsize=4)
def _hub(name: str) -> Any:
    """A data set, downloaded where it is not in the cache, and memory-mapped."""
    parts = _HUB_NAME.fullmatch(name)
    if parts is None:
        raise ConfigError(f"{name} does not name a data set; write {HUB}NAME[@CONFIG][:SPLIT], like hf:org/name:train")
    try:
        import datasets
    except ImportError:
        raise ConfigError(f"{name} needs the library datasets: pip install 'megatron_adapt[datasets]'") from None
    try:
        return datasets.load_dataset(parts["name"], parts["config"], split=parts["split"] or "train")
    except Exception as error:  # the library raises whatever its builders and the network raise
        raise DataError(f"cannot load {name}: {' '.join(str(error).split())}") from error


def _require(name: str, text_key: str, schema: Any, is_text: bool) -> None:
    import pyarrow

    if text_key not in schema.names:
        raise DataError(f"{name} has no column {text_key!r}; its columns are {', '.join(map(repr, schema.names))}")
    kind = schema.field(text_key).type
    plain = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if is_text and str(plain) not in ("string", "large_string", "binary", "large_binary"):
        raise DataError(f"{name}: the column {text_key!r} holds {kind}, not text")


def _batch(name: str, column: Any, row: int, text_key: str) -> Batch:
    """Without what is null or not UTF-8."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    column = column.cast(pyarrow.large_binary())
    is_null = column.is_null().to_numpy(zero_copy_only=False)
    rows = row + np.flatnonzero(~is_null)
    wrong = [(int(at), f"the value of {text_key!r} is null") for at in row + np.flatnonzero(is_null)]
    text, offsets = _flat(column.drop_null())
    for number in _not_utf8(text, offsets):
        error = _decoding_error(text[offsets[number] : offsets[number + 1]].tobytes())
        wrong.append((int(rows[number]), f"not UTF-8 (byte {error.start + 1} is 0x{error.object[error.start]:02x})"))
    if len(wrong) > is_null.sum():
        is_good = ~np.isin(rows, [at for at, _ in wrong])
        text, offsets = _flat(column.drop_null().filter(pyarrow.array(is_good)))
        rows = rows[is_good]
    bad = [Bad(int(np.searchsorted(rows, at)), name, at, message) for at, message in sorted(wrong)]
    return Batch(name, text, offsets, rows, bad, size=column.nbytes)


def _chats(name: str, columns: dict[str, Any], row: int, chats: ChatReader) -> Batch:
    """Each row a list of messages and what is beside them."""
    texts: list[bytes] = []
    rows, bad, replaced = [], [], {}
    for at, values in enumerate(zip(*(column.to_pylist() for column in columns.values())), row):
        found = dict(zip(columns, map(without_nulls, values)))
        try:
            text, count = chats.document(found[chats.key], **{name: found.get(key) for name, key in chats.beside.items()})
        except BadLine as error:
            bad.append(Bad(len(texts), name, at, str(error)))
            continue
        if count:
            replaced[len(texts)] = count
        texts.append(text.encode("utf-8"))
        rows.append(at)
    offsets = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    text = np.frombuffer(b"".join(texts), np.uint8)
    return Batch(name, text, offsets, np.array(rows, np.int64), bad, replaced, size=sum(column.nbytes for column in columns.values()))


def _flat(column: Any) -> tuple[np.ndarray, np.ndarray]:
    """Bytes and offsets of an array of large_binary."""
    if not len(column):
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    _, starts, data = column.buffers()
    offsets = np.frombuffer(starts, np.int64)[column.offset : column.offset + len(column) + 1]
    text = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    return text[offsets[0] : offsets[-1]], offsets - offsets[0]


def _not_utf8(text: np.ndarray, offsets: np.ndarray) -> list[int]:
    """Numbers of the documents that are not UTF-8."""
    starts = offsets[:-1][np.diff(offsets) > 0]
    if not (text[starts] & 0xC0 == 0x80).any():  # no document begins inside a character, so all at once will do
        if _decoding_error(text.tobytes()) is None:
            return []
    pieces = (text[begin:end].tobytes() for begin, end in zip(offsets[:-1], offsets[1:]))
    return [number for number, piece in enumerate(pieces) if _decoding_error(piece) is not None]


def _decoding_error(data: bytes) -> Any:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error
    return None
