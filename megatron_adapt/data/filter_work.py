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
from collections.abc import Callable
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
from megatron_adapt.data.sources import STDIN, is_stream
from megatron_adapt.data.texts import Outcome, Texts
from megatron_adapt.errors import DataError

_FORMAT = 1  # of the folder: raise it when what older versions left must not be used
_ARRAYS = {"offsets": np.int64, "lines": np.int64, "sources": np.int32}


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

    def read(self, names: list[str], options: dict[str, Any], on_skip: Callable[[str], None] | None) -> dict[str, Any]:
        """Reads all documents that are not empty, unless that is done already; what it says about them.

        Raises:
            DataError: input that cannot be read, or a bad line, unless these are skipped.
        """
        self.names = names
        inputs = [[name, os.urandom(8).hex() if name == STDIN else _identity(name)] for name in names]
        key = {"format": _FORMAT, "inputs": inputs, **options}
        done = _load(self.folder / "read.json")
        if done is not None and done["key"] == key:
            return done["facts"]
        with writing(self.folder):
            for entry in self.folder.iterdir():
                if entry.name != "lock":
                    entry.unlink()
            facts = _read(self.folder, names, options, on_skip)
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


def _read(folder: Path, names: list[str], options: dict[str, Any], on_skip: Callable[[str], None] | None) -> dict[str, Any]:
    facts = {"documents": 0, "bytes": 0, "empty": 0, "skipped": 0, "replaced_surrogates": 0}
    inputs = []
    with ExitStack() as stack:
        files: dict[str, BinaryIO] = {name: stack.enter_context((folder / name).open("wb")) for name in ("text", *_ARRAYS)}
        skipped: BinaryIO = stack.enter_context((folder / "skipped.jsonl").open("wb"))
        files["offsets"].write(np.zeros(1, np.int64).data)
        for source, name in enumerate(names):
            inputs.append({"name": name} if is_stream(name) else {"name": name, "size": Path(name).stat().st_size})
            if not is_stream(name):
                inputs[-1]["sha256"] = digest_of(Path(name))
            for task in plan([name], options["text_documents"], chunk_bytes=1 << 62):  # whole: lines count from its begin
                for batch in read(task, options["text_key"]):
                    _skip(batch.bad, options["on_error"], skipped, facts, on_skip)
                    _add(batch, source, files, facts)
        for stream in (*files.values(), skipped):
            stream.flush()
            os.fsync(stream.fileno())
    return {**facts, "inputs": inputs}


def _add(batch: Batch, source: int, files: dict[str, BinaryIO], facts: dict[str, Any]) -> None:
    sizes = np.diff(batch.offsets)
    is_text = sizes > 0
    ends = facts["bytes"] + np.cumsum(sizes[is_text], dtype=np.int64)
    files["text"].write(np.ascontiguousarray(batch.text[batch.offsets[0] : batch.offsets[-1]]).data)
    files["offsets"].write(ends.data)
    files["lines"].write(np.ascontiguousarray(batch.lines[is_text], np.int64).data)
    files["sources"].write(np.full(len(ends), source, np.int32).data)
    facts["documents"] += len(ends)
    facts["empty"] += len(sizes) - len(ends)
    facts["bytes"] = int(ends[-1]) if len(ends) else facts["bytes"]
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
