"""OUTPUT.parts: a corpus while it is filtered, so that the same command continues after a crash.

Files of the folder: ``lock``; ``text`` (UTF-8 of all documents), ``offsets``, ``lines`` (int64) and ``sources`` (int32) of each;
``skipped.jsonl``; ``read.json`` (written last: what was read, and how); NN.npz and NN.json (last) for each filter that is through;
NN.text: what is left where filter NN cuts.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import ExitStack
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from megatron_adapt.data import locking
from megatron_adapt.data.corpus import place, stop_message
from megatron_adapt.data.documents import Bad, Batch
from megatron_adapt.data.held_out import writing
from megatron_adapt.data.parts import digest_of, write_atomically
from megatron_adapt.data.ranges import plan
from megatron_adapt.data.readers import read
from megatron_adapt.data.sources import STDIN, Paths, is_stream
from megatron_adapt.data.texts import Outcome, Texts
from megatron_adapt.errors import DataError

_FORMAT = 2  # of the folder: raise it when what older versions left must not be used
_ARRAYS = {"offsets": np.int64, "lines": np.int64, "sources": np.int32}


@dataclass(frozen=True)
class Reading:
    """A corpus, and how it is read: ``max_documents``: the first so many that have text."""

    paths: Paths
    text_key: str = "text"
    text_documents: str = "blocks"
    on_error: str = "stop"
    max_documents: int | None = None

    def settings(self) -> dict[str, Any]:
        """What there is to say of it beside its files."""
        limit = {} if self.max_documents is None else {"max_documents": self.max_documents}
        return {"text_key": self.text_key, "text_documents": self.text_documents, "on_error": self.on_error, **limit}


class Work:
    """The folder, locked.

    Raises:
        DataError: another process has it, or it cannot be written.
    """

    def __init__(self, output: Path) -> None:
        self.output, self.folder = output, Path(f"{output}.parts")
        self.names: list[str] = []
        with writing(self.folder):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._lock = locking.take(self.folder / "lock")
            except TimeoutError:
                raise DataError(f"{output}: another process is writing this file; wait for it or choose another name") from None

    def __enter__(self) -> Work:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        """The folder stays where something was interrupted after all was read."""
        if kind is None or not (self.folder / "read.json").exists():
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)

    def read(self, corpora: list[Reading], on_skip: Callable[[str], None] | None) -> list[dict[str, Any]]:
        """Reads all documents that are not empty, unless that is done already; what it says about those of each corpus.

        ``corpora``: their ``paths`` are names of sources; the last one is what is filtered.

        Raises:
            DataError: input that cannot be read, a bad line, unless these are skipped, or nothing to filter.
        """
        self.names = [str(name) for corpus in corpora for name in corpus.paths]
        inputs = [[name, os.urandom(8).hex() if name == STDIN else _identity(name)] for name in self.names]
        told = [[len(list(corpus.paths)), corpus.settings()] for corpus in corpora]
        key = {"format": _FORMAT, "inputs": inputs, "corpora": told}
        done = _load(self.folder / "read.json")
        if done is not None and done["key"] == key and done["facts"][-1]["documents"]:
            return done["facts"]
        with writing(self.folder):
            for entry in self.folder.iterdir():
                if entry.name != "lock":
                    entry.unlink()
            facts = _read(self.folder, corpora, on_skip)
            if not facts[-1]["documents"]:
                names = [str(name) for name in corpora[-1].paths]
                raise DataError(f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''}: no document has text; nothing to filter")
            write_atomically(self.folder / "read.json", json.dumps({"key": key, "facts": facts}))
        return facts

    def texts(self) -> Texts:
        return Texts.map(self.folder / "text", np.fromfile(self.folder / "offsets", np.int64))

    def places(self) -> Callable[[int], tuple[str, int]]:
        """Gives the file of a document and its first line or row, from 1."""
        lines = np.memmap(self.folder / "lines", np.int64, "r")
        sources = np.memmap(self.folder / "sources", np.int32, "r")
        return lambda number: (self.names[sources[number]], int(lines[number]) + 1)

    def result(self, number: int, key: Any) -> Outcome | None:
        """What filter ``number`` said, if an interrupted run with the same key has it."""
        done = _load(self._path(number, "json"))
        if done is None or done["key"] != key:
            for later in self.folder.glob("[0-9][0-9].json"):
                if int(later.stem) >= number:
                    later.unlink()
            return None
        with np.load(self._path(number, "npz")) as arrays:
            return Outcome(tuple(done["names"]), facts=done["facts"], **arrays)

    def keep(self, number: int, key: Any, outcome: Outcome) -> None:
        arrays = {name: getattr(outcome, name) for name in ("reasons", "values", "repeats", "spans")}
        with writing(self.folder):
            with self._path(number, "npz").open("wb") as stream:
                np.savez(stream, **{name: array for name, array in arrays.items() if array is not None})
                stream.flush()
                os.fsync(stream.fileno())
            done = {"key": key, "names": outcome.names, "facts": outcome.facts}
            write_atomically(self._path(number, "json"), json.dumps(done))

    def cut_file(self, number: int) -> Path:
        return self._path(number, "text")

    def _path(self, number: int, kind: str) -> Path:
        return self.folder / f"{number:02d}.{kind}"


def identity(file: Path) -> list[int]:
    """What tells that a file is not the one that it was."""
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _identity(name: str) -> list[int] | None:
    return None if is_stream(name) else identity(Path(name))


def _load(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _read(folder: Path, corpora: list[Reading], on_skip: Callable[[str], None] | None) -> list[dict[str, Any]]:
    found, first, size = [], 0, 0
    with ExitStack() as stack:
        files: dict[str, BinaryIO] = {name: stack.enter_context((folder / name).open("wb")) for name in ("text", *_ARRAYS)}
        skipped: BinaryIO = stack.enter_context((folder / "skipped.jsonl").open("wb"))
        files["offsets"].write(np.zeros(1, np.int64).data)
        for corpus in corpora:
            facts = {"documents": 0, "bytes": 0, "empty": 0, "skipped": 0, "replaced_surrogates": 0}
            names, inputs = list(map(str, corpus.paths)), []
            for source, name in enumerate(names, first):
                if facts["documents"] == corpus.max_documents:
                    break
                inputs.append({"name": name} if is_stream(name) else {"name": name, "size": Path(name).stat().st_size})
                if not is_stream(name):
                    inputs[-1]["sha256"] = digest_of(Path(name))
                for batch in _batches(name, corpus, facts):
                    _skip(batch.bad, corpus.on_error, skipped, facts, on_skip)
                    _add(batch, source, files, facts, size)
            first += len(names)
            size += facts["bytes"]
            found.append({**facts, "inputs": inputs})
        for stream in (*files.values(), skipped):
            stream.flush()
            os.fsync(stream.fileno())
    return found


def _batches(name: str, corpus: Reading, facts: dict[str, Any]) -> Iterator[Batch]:
    """What is read of a source; ``facts["documents"]``: so many there are, and grow to be, of the corpus."""
    most = corpus.max_documents
    for task in plan([name], corpus.text_documents, chunk_bytes=1 << 62):  # whole: lines count from its begin
        for batch in read(task, corpus.text_key):
            if most is not None and facts["documents"] >= most:
                return
            yield batch if most is None else _front(batch, most - facts["documents"])


def _front(batch: Batch, count: int) -> Batch:
    """A batch up to its document number ``count`` of those that have text, and what is bad before that."""
    behind = np.flatnonzero(np.diff(batch.offsets) > 0)[count - 1 : count] + 1
    if not len(behind):
        return batch
    size = int(behind[0])
    return replace(
        batch, offsets=batch.offsets[: size + 1], lines=batch.lines[:size], bad=[bad for bad in batch.bad if bad.before < size],
        replaced={number: times for number, times in batch.replaced.items() if number < size},
    )  # fmt: skip


def _add(batch: Batch, source: int, files: dict[str, BinaryIO], facts: dict[str, Any], before: int) -> None:
    """``before``: bytes of the corpora in front."""
    sizes = np.diff(batch.offsets)
    is_text = sizes > 0
    ends = before + facts["bytes"] + np.cumsum(sizes[is_text], dtype=np.int64)
    files["text"].write(np.ascontiguousarray(batch.text[batch.offsets[0] : batch.offsets[-1]]).data)
    files["offsets"].write(ends.data)
    files["lines"].write(np.ascontiguousarray(batch.lines[is_text], np.int64).data)
    files["sources"].write(np.full(len(ends), source, np.int32).data)
    facts["documents"] += len(ends)
    facts["empty"] += len(sizes) - len(ends)
    facts["bytes"] += int(sizes.sum())
    facts["replaced_surrogates"] += sum(batch.replaced.values())


def _skip(
    bad: list[Bad], on_error: str, stream: BinaryIO, facts: dict[str, Any], on_skip: Callable[[str], None] | None
) -> None:
    for one in bad:
        message = place(one.file, one.line, one.message)
        if on_error == "stop" or one.fatal:
            raise DataError(stop_message(message, one.fatal))
        line = None if one.line is None else one.line + 1
        data = one.data.rstrip(b"\r\n").decode("utf-8", "backslashreplace")
        entry = {"file": one.file, "line": line, "error": one.message, "data": data}
        stream.write(json.dumps(entry, ensure_ascii=False).encode("utf-8") + b"\n")
        facts["skipped"] += 1
        if on_skip is not None:
            on_skip(message)
