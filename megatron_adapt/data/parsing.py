"""What one line or block says: decided here, by Python, wherever the compiled scanner (csrc/documents.h) does not."""

from __future__ import annotations

import json
import re
from typing import Any

_SURROGATE = re.compile("[\ud800-\udfff]")


class BadLine(Exception):
    """What is wrong with one line or block."""


def parse_json(data: bytes, text_key: str) -> tuple[str, int]:
    """The string under ``text_key``, and how many lone surrogates in it became U+FFFD."""
    text = record_of(data, text_key)[text_key]
    if not isinstance(text, str):
        raise BadLine(f"the value of {text_key!r} is a JSON {json_type(text)} instead of a string")
    # Only an escape can bring a surrogate in: it is not valid UTF-8.
    return _SURROGATE.subn("\ufffd", text) if b"\\u" in data else (text, 0)


def record_of(data: bytes, key: str) -> dict[str, Any]:
    """A line of JSON, which has something under a key."""
    try:
        record = json.loads(_decode(data.rstrip(b"\r\n")))
    except (ValueError, RecursionError) as error:
        raise BadLine(f"not JSON ({error})") from error
    if not isinstance(record, dict):
        raise BadLine(f"a JSON {json_type(record)} instead of an object with the key {key!r}")
    if key not in record:
        raise BadLine(f"no key {key!r}; the keys are {', '.join(map(repr, list(record)[:10])) or 'none'}")
    return record


def parse_block(data: bytes, _text_key: str) -> tuple[str, int]:
    """A block of plain text with its line ends normalised to ``\\n``."""
    return _decode(b"\n".join(line.rstrip(b"\r") for line in data.rstrip(b"\r\n").split(b"\n"))), 0


def parse_whole(data: bytes, _text_key: str) -> tuple[str, int]:
    """A whole file of plain text, blank lines included."""
    return _decode(data.replace(b"\r\n", b"\n").rstrip(b"\n")), 0


def json_type(value: object) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadLine(f"not UTF-8 (byte {error.start + 1} is 0x{data[error.start]:02x})") from error
