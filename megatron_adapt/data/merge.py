"""Several tokenized corpora -> one, documents in order, in constant memory."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_adapt.data import loss_mask
from megatron_adapt.data.held_out import writing
from megatron_adapt.data.indexed import IndexedReader, WriteErrors
from megatron_adapt.errors import AdaptError, ConfigError, DataError

# Of a description (PREFIX.json): these add up; held-out text and skipped lines stay with the inputs.
_COUNTS = (
    "documents", "tokens", "bytes", "skipped", "empty", "replaced_surrogates", "unknown_tokens", "sequences", "trained_tokens", "trained_bytes",
)  # fmt: skip
_LEFT = {"held_out": None, "held_out_documents": 0, "held_out_bytes": 0, "skipped_lines": None}
# How documents became ids: what is learnt of them hangs on it, and of one corpus it is one thing.
_ENCODING = ("append_bos", "append_eod", "parse_special_tokens", "split_sentences")
_REQUIRED = {"documents", "tokens", "bytes", "tokenizer_digest", "tokenizer_path"}


def find_prefixes(folder: str | Path) -> list[Path]:
    """Every corpus in a folder, by its prefix, in the order of their names (as strings: ``part_10`` before ``part_2``).

    Raises:
        ConfigError: no folder, no corpus in it, or only one file of a pair; all of these at once.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder of corpora (PREFIX.bin and PREFIX.idx)")
    found: dict[str, set[str]] = {}
    for file in folder.iterdir():
        if file.suffix in (".bin", ".idx"):
            found.setdefault(file.name[:-4], set()).add(file.suffix)
    single = [f"{name}{suffix}" for name, suffixes in sorted(found.items()) if len(suffixes) < 2 for suffix in suffixes]
    if single:
        raise ConfigError(f"{folder}: {', '.join(single)} without the other file of the pair .bin and .idx")
    if not found:
        raise ConfigError(f"{folder} holds no corpus (no PREFIX.bin and PREFIX.idx)")
    return [folder / name for name in sorted(found)]


def merge(prefixes: Sequence[str | Path], output_prefix: str | Path, mixed: bool = False) -> tuple[dict[str, Any], list[Path]]:
    """Write OUTPUT.bin and OUTPUT.idx, byte for byte what Megatron's ``IndexedDatasetBuilder.add_index`` makes.

    All inputs are validated before anything is written; memory does not grow with the corpora. Where every input has a
    description, OUTPUT.json is written last: counts add up, what is the same in all is kept, held-out text is left out.
    Of corpora of chats OUTPUT.loss_mask says what is learnt. Text has no place beside them: it may be cut, and chats may not.

    Args:
        prefixes: corpora of text or of chats, whose ids have one type and, where they are described, come from one tokenizer.
        mixed: documents may also differ in whether they begin with BOS, end with EOS and the like, as far as described.

    Returns:
        {"documents", "tokens", ...}: the description, or these two numbers alone without one; and the descriptions
        (PREFIX.json) that are missing where there is none.

    Raises:
        ConfigError: nothing to merge, or the output would overwrite an input.
        DataError: everything that is wrong with the inputs, or the output cannot be written.
    """
    inputs = [Path(prefix) for prefix in prefixes]
    output = Path(output_prefix)
    if not inputs:
        raise ConfigError("there is nothing to merge: name at least one corpus")
    if output.resolve() in {path.resolve() for path in inputs}:
        raise ConfigError(f"{output} is an input and would be overwritten; choose another output prefix")
    described, masked = _check(inputs, mixed)
    found = [stats for stats in described if stats is not None]
    missing = [Path(f"{prefix}.json") for prefix, stats in zip(inputs, described) if stats is None]
    merged = None if missing else _description(found, output)
    with writing(output.parent):
        output.parent.mkdir(parents=True, exist_ok=True)
    documents, tokens = merge_indexed(inputs, output, masked)  # a former description is gone then
    if merged is not None:
        description = Path(f"{output}.json")
        with writing(description):
            _replace(description, merged)
    return merged or {"documents": documents, "tokens": tokens}, missing


def merge_indexed(prefixes: Sequence[Path], output: Path, masked: bool = False) -> tuple[int, int]:
    """The two files alone, of corpora that are known to be whole, and OUTPUT.loss_mask where they are ``masked``; returns
    (documents, tokens). What OUTPUT.json and OUTPUT.loss_mask were before is removed.

    Raises:
        DataError: the types of ids differ, a file changes meanwhile, the output cannot be written.
    """
    from megatron_adapt import _C

    with WriteErrors(output):
        return _C.merge_indexed([os.fsencode(prefix) for prefix in prefixes], os.fsencode(output), masked)


def _check(prefixes: Sequence[Path], mixed: bool) -> tuple[list[dict[str, Any] | None], bool]:
    """The description of each corpus, None without one, and whether all are of chats; DataError with all that is wrong."""
    problems: list[str] = []
    found: list[dict[str, Any] | None] = [None] * len(prefixes)  # a corpus that is named twice is there twice
    kinds: dict[str, Path] = {}
    masked: dict[bool, list[Path]] = {True: [], False: []}
    for number, prefix in enumerate(prefixes):
        try:
            found[number] = _read(prefix)
            reader = IndexedReader(prefix)
            kinds.setdefault(reader.dtype.name, prefix)
            is_masked = loss_mask.has_mask(prefix, found[number])
            if is_masked:
                loss_mask.open_mask(reader)
            masked[is_masked].append(prefix)
        except AdaptError as error:
            problems.append(str(error))
    if len(kinds) > 1:
        listed = ", ".join(f"{prefix} has {name}" for name, prefix in kinds.items())
        problems.append(f"ids of different types cannot be merged: {listed}; preprocess all with the same vocabulary")
    if all(masked.values()):
        chats, text = (", ".join(map(str, dict.fromkeys(masked[kind]))) for kind in (True, False))
        problems.append(
            f"chats ({chats}) and text ({text}) cannot be merged: chats are never cut, and of them answers alone are learnt; keep two "
            "corpora, which a phase of a recipe mixes by weight"
        )
    tokenizers: dict[str, str] = {}
    for prefix, stats in zip(prefixes, found):
        if stats is not None:
            tokenizers.setdefault(stats["tokenizer_digest"], f"{prefix} with {stats['tokenizer_path']}")
    if len(tokenizers) > 1:
        listed = ", ".join(tokenizers.values())
        problems.append(f"corpora of different tokenizers cannot be merged: {listed}; preprocess all with the same one")
    for key in () if mixed else _ENCODING:
        values: dict[str, Path] = {}
        for prefix, stats in zip(prefixes, found):
            if stats is not None and key in stats:
                values.setdefault(json.dumps(stats[key]), prefix)
        if len(values) > 1:
            listed = ", ".join(f"{prefix} has {value}" for value, prefix in values.items())
            problems.append(f"corpora with different {key} are not merged: {listed}; preprocess all alike, or say --mixed")
    if problems:
        raise DataError(";\n".join(problems))
    return found, bool(masked[True])


def _read(prefix: Path) -> dict[str, Any] | None:
    """PREFIX.json; None: there is none."""
    path = Path(f"{prefix}.json")
    try:
        stats = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        stats = None
    if not isinstance(stats, dict) or not _REQUIRED <= stats.keys():
        raise DataError(f"{path} is not a description of a corpus; preprocess {prefix} again")
    return stats


def _description(every: Sequence[dict[str, Any]], output: Path) -> dict[str, Any]:
    """One description of all."""
    first, *others = every
    same = {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
    # In the order of the first: the keys that add up or are the same everywhere.
    counts = {key: sum(stats.get(key, 0) for stats in every) for key in _COUNTS}
    shards = [shard for stats in every for shard in stats.get("shards", [])]  # of the ids, which lie in this order
    own = {"tokenizer_path": first["tokenizer_path"], "loss_mask": f"{output.name}{loss_mask.SUFFIX}", "shards": shards}
    values = {**same, **_LEFT, **counts, **own}
    return {key: values[key] for key in first if key in values}


def _replace(path: Path, value: dict[str, Any]) -> None:
    temporary = Path(f"{path}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
