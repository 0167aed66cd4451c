"""Pickles written from their description: what torch reads as instances of its classes, without importing them.

Importing ``torch.distributed.checkpoint`` takes longer than copying two gigabytes. The opcodes are those of Python's
``pickle``, protocol 2 (``pickletools`` describes them).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Name:
    """A class or function by its module and name."""

    module: str
    name: str


@dataclass(frozen=True)
class Call:
    """What a function returns when it is called while reading."""

    function: Name
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Made:
    """An instance with this state: a dictionary of its attributes, or what its ``__setstate__`` takes."""

    kind: Name
    state: Any


@dataclass(frozen=True)
class Persistent:
    """What the reader's ``persistent_load`` makes of this value."""

    value: Any


class Pairs(list):
    """A dictionary as (key, value) pairs, for keys of the kinds above."""


def dumps(value: Any) -> bytes:
    """The pickle of plain values, tuples, lists, dictionaries and the classes above."""
    return b"\x80\x02" + _encode(value) + b"."


def _encode(value: Any) -> bytes:
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        if -(2**31) <= value < 2**31:
            return b"J" + struct.pack("<i", value)
        digits = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(digits)]) + digits
    if isinstance(value, str):
        text = value.encode()
        return b"X" + struct.pack("<I", len(text)) + text
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_encode, value)) + b"t"
    if isinstance(value, (dict, Pairs)):
        pairs = value.items() if isinstance(value, dict) else value
        return b"}(" + b"".join(_encode(key) + _encode(each) for key, each in pairs) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_encode, value)) + b"e"
    if isinstance(value, Name):
        return f"c{value.module}\n{value.name}\n".encode()
    if isinstance(value, Call):
        return _encode(value.function) + _encode(value.arguments) + b"R"
    if isinstance(value, Persistent):
        return _encode(value.value) + b"Q"
    assert isinstance(value, Made), type(value)
    return _encode(value.kind) + b")\x81" + _encode(value.state) + b"b"
