"""Which files, or what else, a corpus consists of."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_adapt.errors import DataError

Paths = str | Path | Iterable[str | Path]

KINDS = {".jsonl": "json", ".json": "json", ".txt": "text"}
TEXT_DOCUMENTS = {"blocks": "text", "lines": "lines", "files": "file"}  # what text_documents makes of .txt, as kinds of tasks
COMPRESSIONS = (".gz", ".zst")
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst", ".txt", ".txt.gz", ".txt.zst", ".parquet")
# Plain .json is read when it is named, but not when a folder is searched: there it is more often something else.
_NAMED_SUFFIXES = (*SUFFIXES, ".json")
STDIN, HUB = "-", "hf:"
MAX_BYTES = 256 << 20  # of one document: what has no line ends or blank lines must not fill the memory
BLANK_LINE = re.compile(rb"\n[ \t\r\x0b\x0c]*\n")


def find_files(paths: Paths) -> list[Path]:
    """The corpus files that the paths name: files as given, folders (searched recursively) and globs in sorted order.

    Raises:
        DataError: a path does not exist or has no corpus file, a file is of an unknown kind or named twice.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not paths:
        raise DataError("no corpus file was given")
    files = [file for path in paths for file in _expand(Path(path))]
    seen: set[Path] = set()
    for file in files:
        if file.resolve() in seen:
            raise DataError(f"the corpus file {file} is named twice; name it once (weights belong in the recipe)")
        seen.add(file.resolve())
    return files


def find_sources(paths: Paths) -> list[str]:
    """:func:`find_files`, and beside files ``-`` (standard input) and ``hf:NAME[@CONFIG][:SPLIT]`` (a data set)."""
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    files = [path for path in paths if not is_stream(str(path))]
    found = {str(path): [str(file) for file in find_files(path)] for path in files}
    names = [name for path in paths for name in found.get(str(path), [str(path)])]
    if files:
        find_files(files)  # a file may not be named twice
    for name in {name for name in names if names.count(name) > 1}:
        raise DataError(f"the corpus {name} is named twice; name it once (weights belong in the recipe)")
    if not names:
        raise DataError("no corpus file was given")
    return names


def find_repeatable(paths: Paths) -> list[str]:
    """:func:`find_sources` of a corpus that is read more than once.

    Raises:
        DataError: it is standard input.
    """
    names = find_sources(paths)
    if STDIN in names:
        raise DataError("standard input can be read once, and this is read several times: save it to a file")
    return names


def files_of(paths: Paths) -> tuple[Path, ...]:
    """The files among :func:`find_repeatable`."""
    return tuple(Path(name) for name in find_repeatable(paths) if not is_stream(name))


def is_stream(name: str) -> bool:
    """Whether this names something else than files."""
    return name == STDIN or name.startswith(HUB)


def kind_of(name: str, text_documents: str = "blocks") -> str:
    """What :class:`Task` says about it; ``text_documents``: one of ``TEXT_DOCUMENTS``."""
    if name.startswith(HUB):
        return "hub"
    if name.endswith(".parquet"):
        return "parquet"
    for suffix in COMPRESSIONS:
        name = name.removesuffix(suffix)
    kind = "json" if name == STDIN else KINDS[Path(name).suffix]
    return TEXT_DOCUMENTS[text_documents] if kind == "text" else kind


def idle_keys(paths: Paths, given: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(key, why it does nothing) of ``text_key`` and ``text_documents``, as far as given, where no file is read by them."""
    names = find_sources(paths)
    plain = {not is_stream(name) and kind_of(name) == "text" for name in names}
    if "text_documents" in given and plain == {False}:
        yield "text_documents", f"is about .txt files, and there is none ({_some(names)})"
    if "text_key" in given and plain == {True}:
        yield "text_key", f"is a key of JSON or a column, and there are .txt files alone ({_some(names)})"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names if len(names) < 4 else [*names[:2], "..."])


def _expand(path: Path) -> list[Path]:
    if path.is_dir():
        inner = (file for file in path.rglob("*") if file.name.endswith(SUFFIXES) and file.is_file())
        files = sorted(file for file in inner if not any(part.startswith(".") for part in file.relative_to(path).parts))
        if not files:
            raise DataError(f"{path} contains no corpus file ({', '.join(SUFFIXES)})")
        return files
    files = [path] if path.exists() else [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    if not files:
        hint = f" (for a data set of the Hugging Face hub write {HUB}{path})" if len(path.parts) == 2 and not path.suffix else ""
        raise DataError(f"the corpus {path} does not exist{hint}")
    for file in files:
        if not file.name.endswith(_NAMED_SUFFIXES):
            raise DataError(f"{file} is of an unknown kind; a corpus file ends in {', '.join(_NAMED_SUFFIXES)}")
    return files


def data_sets(paths: Paths) -> list[str]:
    """What else than files is among :func:`find_repeatable`."""
    return [name for name in find_repeatable(paths) if is_stream(name)]


def reading(corpus: Any, sets: Sequence[str] | None = None) -> dict[str, Any]:
    """What of a corpus decides which text is read; where its files lie does not, and of data sets (``sets``: those of a corpus whose
    files are yet to be made) there is but the name."""
    known = {"data_sets": found} if (found := data_sets(corpus.path) if sets is None else sets) else {}
    chats = corpus.model_dump(include={"messages", "loss_on"}) if corpus.messages is not None else {}
    # Receipts from before there was a choice do not name it.
    chats |= {key: value for key in ("tools", "system") if (value := getattr(corpus, key)) != key}
    chats |= {"chat_template_kwargs": corpus.chat_template_kwargs} if corpus.chat_template_kwargs else {}
    texts = {} if corpus.text_documents == "blocks" else {"text_documents": corpus.text_documents}
    return corpus.model_dump(include={"text_key", "held_out", "on_error", "max_documents", "bos", "eos"}) | known | texts | chats
