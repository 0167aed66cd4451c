"""tiktoken's text format, ``BASE64 RANK`` a line, as a tokenizer.json.

The format is a byte-level BPE without its merges, its special tokens and the pattern that cuts words. Merges follow from
the ranks: a token is made of the two tokens to which the earlier ones cut its bytes. The pattern has to be known by the
file's name.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

from megatron_adapt.errors import ConfigError, DataError

_SPACES = r"\s+(?!\S)|\s+"
_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|" + _SPACES
_O200K = "|".join((
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", _SPACES,
))  # fmt: skip
# Beginning of a file's name -> how its words are cut. "tokenizer.model" in this format is Llama 3's.
PATTERNS = {
    "r50k_base": _GPT2, "p50k_base": _GPT2, "gpt2": _GPT2, "o200k": _O200K,
    "cl100k": f"{_LETTERS}|\\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}", "tokenizer": f"{_LETTERS}|\\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}",
    "qwen": f"{_LETTERS}|\\p{{N}}|{_SIGNS}|{_SPACES}",
}  # fmt: skip


def is_tiktoken(file: Path) -> bool:
    """Whether a file is in this format, judged by its first line."""
    with open(file, "rb") as stream:
        first = stream.readline(10_000).split()
    try:
        return len(first) == 2 and bool(base64.b64decode(first[0], validate=True)) and int(first[1]) >= 0
    except (ValueError, binascii.Error):
        return False


def read_ranks(file: Path) -> dict[bytes, int]:
    """The bytes of every token and its rank, which is its id.

    Raises:
        DataError: a broken line, or bytes or a rank given twice, with the line.
    """
    ranks: dict[bytes, int] = {}
    lines_of: dict[int, int] = {}
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            spelled, written = line.split()
            token, rank = base64.b64decode(spelled, validate=True), int(written)
        except (ValueError, binascii.Error):
            raise DataError(f"{file}:{number}: expected the base64 of a token and its rank.") from None
        if token in ranks or rank in lines_of:
            raise DataError(f"{file}:{number}: the token or the rank {rank} comes twice.")
        ranks[token], lines_of[rank] = rank, number
    return ranks


def tokenizer_json(file: Path) -> dict[str, Any]:
    """The content of a tokenizer.json that cuts text like tiktoken does with this file.

    Raises:
        ConfigError: a file whose name does not tell the pattern. DataError: a broken file.
    """
    name = file.name.lower()
    pattern = next((pattern for start, pattern in PATTERNS.items() if name.startswith(start)), None)
    if pattern is None:
        raise ConfigError(
            f"{file}: a file of tiktoken does not say how words are cut, and its name is none of those whose pattern is known "
            f"({', '.join(PATTERNS)}, ...). Rename it after the scheme that it follows, or convert it to tokenizer.json."
        )
    ranks = read_ranks(file)
    spelled = {byte: character for character, byte in byte_alphabet().items()}
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise DataError(f"{file}: {len(missing)} single bytes have no token, {missing[0]:#04x} first; the file is not whole.")

    def text(data: bytes) -> str:
        return "".join(spelled[byte] for byte in data)

    ordered = sorted(ranks, key=ranks.__getitem__)
    merges = [[text(part) for part in parts] for token in ordered if len(token) > 1 and len(parts := _halves(token, ranks)) == 2]
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]}, "post_processor": None, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
            "vocab": {text(token): ranks[token] for token in ordered}, "merges": merges,
        },
    }  # fmt: skip


def _halves(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """How the tokens of lower rank cut a token: into two, if it can be made at all."""
    parts = [token[at : at + 1] for at in range(len(token))]
    while len(parts) > 2:
        pairs = [(ranks.get(parts[at] + parts[at + 1], ranks[token]), at) for at in range(len(parts) - 1)]
        rank, at = min(pairs)
        if rank >= ranks[token]:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character -> byte: printable Latin-1 stands for itself, the rest is shifted up from 256."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{chr(byte): byte for byte in printable}, **{chr(256 + i): byte for i, byte in enumerate(others)}}
