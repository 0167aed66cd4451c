"""A tokenizer's files written into another directory, so that transformers reads there what ``Tokenizer`` reads here."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping

from megatron_adapt.hf.directory import read_json

if TYPE_CHECKING:
    from megatron_adapt.hf.tokenizer import Tokenizer

ROLES = ("bos", "eos", "unk", "pad")
# Files that spell the vocabulary out; beside a tokenizer.json with another one they would contradict it.
SPELLED = ("tokenizer.json", "tokenizer.model", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt")
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")


def write_tokenizer(tokenizer: Tokenizer, output: Path, parsed: Mapping[str, Any] | None = None) -> None:
    """Copy the files of ``tokenizer`` into the directory ``output``, flushed to disk.

    Args:
        parsed: the content of a tokenizer.json to write instead of the tokenizer's own; other files that spell the
            vocabulary are then left out. It holds every token that has a role.
    """
    content = tokenizer.backend_json if parsed is None else parsed
    if parsed is None and any(file.suffix == ".json" for file in tokenizer.files):
        for file in tokenizer.files:
            if file.name not in SETTINGS:  # a lone vocabulary file may have a name of its own
                copy_flushed(file, output / (file.name if len(tokenizer.files) > 1 else "tokenizer.json"))
    else:
        for file in tokenizer.files:
            if file.name not in (*SETTINGS, *SPELLED) and len(tokenizer.files) > 1:
                copy_flushed(file, output / file.name)
        write_json(output / "tokenizer.json", dict(content or {}))
    known = _contents(content or {})
    found = {file.name: read_json(file) or {} for file in tokenizer.files if file.name in SETTINGS}
    tokens = tokenizer.tokens()
    roles = {f"{role}_token": getattr(tokenizer, f"{role}_id") for role in ROLES}
    spelled = {name: tokens[index] for name, index in roles.items() if index is not None}
    # Named classes (LlamaTokenizer, ...) are rebuilt by transformers 5 from the vocabulary, without the normalizer that
    # tokenizer.json declares: other ids. The generic class reads the file as it is.
    settings = {**spelled, **found.get(SETTINGS[0], {}), "tokenizer_class": "PreTrainedTokenizerFast"}
    if parsed is not None:
        settings.pop("added_tokens_decoder", None)  # by id; tokenizer.json says the same
    write_json(output / SETTINGS[0], _only_known(settings, known, spelled))
    if SETTINGS[1] in found:
        write_json(output / SETTINGS[1], _only_known(found[SETTINGS[1]], known, spelled))


def _contents(parsed: Mapping[str, Any]) -> set[str]:
    vocabulary = (parsed.get("model") or {}).get("vocab") or {}
    tokens = vocabulary if isinstance(vocabulary, dict) else [piece for piece, _ in vocabulary]
    return {*tokens, *(entry["content"] for entry in parsed.get("added_tokens") or [])}


def _only_known(settings: Mapping[str, Any], known: set[str], spelled: Mapping[str, str | None]) -> dict[str, Any]:
    """transformers adds what is named but not in the vocabulary (a [PAD], say): the model has no row for it."""
    kept: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, list) and name.endswith("special_tokens"):
            kept[name] = [entry for entry in value if _content(entry) in known]
        elif isinstance(value, dict) and name.endswith("special_tokens"):
            kept[name] = {key: entry for key, entry in value.items() if _content(entry) in known}
        elif name in spelled or not _names_a_token(name, value) or (name[:-6] not in ROLES and _content(value) in known):
            kept[name] = value
    return kept


def _names_a_token(name: str, value: Any) -> bool:
    return name[:-6] in ROLES or (name.endswith("_token") and isinstance(_content(value), str))


def _content(entry: Any) -> Any:
    return entry.get("content") if isinstance(entry, dict) else entry


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Indented, with a line end, flushed to disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def copy_flushed(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    descriptor = os.open(target, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
