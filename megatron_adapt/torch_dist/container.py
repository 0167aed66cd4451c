"""The archive that ``torch.save`` makes of one tensor: uncompressed zip records, the values in the last or nearly so.

    data.pkl    a pickle that says dtype and shape, and which record holds the values
    byteorder   "little"
    version     of this layout
    data/0      the values

Written without a checksum of the values, as torch does after ``set_crc32_options(False)``: torch does not check it, and
computing it takes longer than writing them.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zlib
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Iterator

from megatron_adapt.streams.checksums import CheckedFile
from megatron_adapt.torch_dist.encoding import Call, Name, Persistent, dumps

ALIGNMENT = 64  # bytes, of the values: torch's own
FOLDER = "archive"
_STORAGES = {"FloatStorage": "float32", "BFloat16Storage": "bfloat16", "HalfStorage": "float16"}
_LOCAL, _CENTRAL, _END64, _LOCATOR, _END = (
    struct.Struct(f"<4s{fields}") for fields in ("5H3I2H", "6H3I5H2I", "QHHIIQQQQ", "IQI", "4HIIH")
)  # APPNOTE.TXT 4.3.7, 4.3.12, 4.3.14, 4.3.15, 4.3.16
_LATER = 0xFFFFFFFF  # "see the zip64 field"


class Unreadable(Exception):
    """Why an archive is not one that this module reads."""


@dataclass(frozen=True)
class Values:
    """Where the values of a tensor lie in its archive.

    Attributes:
        strides: in values.
        first: values of the storage before the tensor's first.
        count: values of the storage.
        offset, size: in bytes, of the record that holds the storage.
    """

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    first: int
    count: int
    offset: int = 0
    size: int = 0

    @property
    def is_contiguous(self) -> bool:
        return self.strides == strides_of(self.shape)


def strides_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a contiguous tensor."""
    return tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))


def around(shape: tuple[int, ...], dtype: str, width: int) -> tuple[bytes, bytes]:
    """What stands before and after the values of a contiguous tensor, of ``width`` bytes each."""
    count = math.prod(shape)
    storage = next(name for name, known in _STORAGES.items() if known == dtype)
    tensor = Call(
        Name("torch._utils", "_rebuild_tensor_v2"),
        (Persistent(("storage", Name("torch", storage), "0", "cpu", count)), 0, shape, strides_of(shape), False,
         Call(Name("collections", "OrderedDict"))),
    )  # fmt: skip
    return _archive([("data.pkl", dumps(tensor)), ("byteorder", b"little"), ("version", b"3\n")], count * width)


def plain(value: Any) -> bytes:
    """The archive of a value without tensors."""
    before, after = _archive([("data.pkl", dumps(value)), ("byteorder", b"little"), ("version", b"3\n")], None)
    return before + after


def _archive(small: list[tuple[str, bytes]], values: int | None) -> tuple[bytes, bytes]:
    before, central, count = b"", b"", 0
    for name, content in small:
        header = (20, 0, 0, 0, 0, zlib.crc32(content), len(content), len(content))
        path = f"{FOLDER}/{name}".encode()
        central += _CENTRAL.pack(b"PK\1\2", 20, *header, len(path), 0, 0, 0, 0, 0, len(before)) + path
        before += _LOCAL.pack(b"PK\3\4", *header, len(path), 0) + path + content
        count += 1
    if values is not None:
        path = f"{FOLDER}/data/0".encode()
        header = (45, 0, 0, 0, 0, 0, _LATER, _LATER)
        sizes = struct.pack("<HHQQ", 1, 16, values, values)
        central += _CENTRAL.pack(b"PK\1\2", 45, *header, len(path), len(sizes), 0, 0, 0, 0, len(before)) + path + sizes
        padding = -(len(before) + _LOCAL.size + len(path) + len(sizes) + 4) % ALIGNMENT
        extra = sizes + struct.pack("<2sH", b"FB", padding) + bytes(padding)
        before += _LOCAL.pack(b"PK\3\4", *header, len(path), len(extra)) + path + extra
        count += 1
    start = len(before) + (values or 0)
    end = start + len(central)
    after = central + _END64.pack(b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(central), start)
    after += _LOCATOR.pack(b"PK\6\7", 0, end, 1) + _END.pack(b"PK\5\6", 0, 0, count, count, len(central), _LATER, 0)
    return before, after


def locate(file: BinaryIO | CheckedFile, offset: int, length: int) -> Values:
    """Where the values of the tensor lie whose archive has ``length`` bytes from ``offset`` on; offsets in the file.

    Raises:
        Unreadable: damaged, compressed, or not a plain tensor. Nothing that the pickle names is run.
    """
    archive = _Archive(file, offset, length)
    try:
        records = {name.partition("/")[2]: place for name, place in archive.records()}
        if "byteorder" in records and (order := archive.read(*records["byteorder"])) != b"little":
            raise Unreadable(f"its values are in byte order {order!r}")
        found = _unpickled(archive.read(*records["data.pkl"]))
        start, size = records["data/0"]
    except (struct.error, KeyError, UnicodeDecodeError):
        raise Unreadable("it is no archive of one tensor") from None
    return replace(found, offset=offset + start, size=size)


class _Archive:
    """The records of a zip archive that is a part of a file."""

    def __init__(self, file: BinaryIO | CheckedFile, offset: int, length: int) -> None:
        self.file, self.offset, self.length = file, offset, length

    def read(self, start: int, size: int) -> bytes:
        if not 0 <= start <= start + size <= self.length:
            raise Unreadable("it is no archive of one tensor")
        self.file.seek(self.offset + start)
        return self.file.read(size)

    def records(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """(name, (start, size)) of all, from the directory at the end of the archive."""
        _, _, _, _, _, size, start, _ = _END.unpack(self.read(self.length - _END.size, _END.size))
        if start == _LATER:
            place = self.length - _END.size - _LOCATOR.size
            sign, _, end, _ = _LOCATOR.unpack(self.read(place, _LOCATOR.size))
            *_, size, start = _END64.unpack(self.read(end, _END64.size))
        central = io.BytesIO(self.read(start, size))
        while len(entry := central.read(_CENTRAL.size)) == _CENTRAL.size:
            sign, _, _, _, method, _, _, _, stored, full, name_length, extra_length, comment, _, _, _, at = _CENTRAL.unpack(entry)
            name, extra = central.read(name_length).decode(), io.BytesIO(central.read(extra_length))
            central.seek(comment, io.SEEK_CUR)
            if sign != b"PK\1\2" or method or stored != full:
                raise Unreadable("it is compressed")
            while len(head := extra.read(4)) == 4:
                kind, count = struct.unpack("<HH", head)
                field = extra.read(count)
                if kind == 1:  # 64 bits of those of full, stored, at that have none in the entry
                    numbers = iter(struct.unpack(f"<{count // 8}Q", field[: count // 8 * 8]))
                    full, stored, at = (next(numbers) if value == _LATER else value for value in (full, stored, at))
            *_, name_length, extra_length = _LOCAL.unpack(self.read(at, _LOCAL.size))
            yield name, (at + _LOCAL.size + name_length + extra_length, full)


class _TensorUnpickler(pickle.Unpickler):
    """Reads a tensor without its values; anything but a tensor is refused before it is imported."""

    def persistent_load(self, pid: Any) -> Any:
        kind, dtype, key, _, count = pid
        if kind != "storage" or key != "0":
            raise Unreadable("it holds more than one tensor")
        return dtype, count

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _values
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda values, *_: values
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise Unreadable(f"it names {module}.{name}, which no tensor of weights needs")


def _values(storage: tuple[str, int], first: int, shape: Any, strides: Any, *_: Any) -> Values:
    return Values(storage[0], tuple(shape), tuple(strides), first, storage[1])


def _unpickled(content: bytes) -> Values:
    try:
        found = _TensorUnpickler(io.BytesIO(content)).load()
    except Unreadable:
        raise
    except Exception as error:  # a damaged pickle raises almost anything
        raise Unreadable(f"{type(error).__name__}: {error}") from None
    if not isinstance(found, Values):
        raise Unreadable("it is no tensor")
    return found
