"""What is known about a run while it goes on."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_adapt.data import tables
from megatron_adapt.data.corpus import place, stop_message
from megatron_adapt.data.documents import Task
from megatron_adapt.data.held_out import writing
from megatron_adapt.data.parts import Parts
from megatron_adapt.data.readers import line_before
from megatron_adapt.data.worker import BadInput


class Tracker:
    """Adds up the headers of the tasks, and knows lines by their numbers in the file."""

    def __init__(self, parts: Parts, tasks: list[Task], on_skip: Callable[[str], None] | None) -> None:
        self.parts, self.on_skip = parts, on_skip
        self.tasks = {task.number: task for task in tasks}
        self.headers: list[dict[str, Any]] = []
        self.total: Counter[str] = Counter()
        self.skipped: Path | None = None
        self._stream: Any = None
        self._base = (-1, 0)  # number of a task, lines of its file in front of it

    def encoded(self, header: dict[str, Any]) -> None:
        """The next task in order."""
        number = header["number"]
        base = self._lines_before(number)
        self._base = (number + 1, base + header["lines"])
        self.headers.append(header)
        self.total.update({key: value for key, value in header.items() if isinstance(value, int) and key != "number"})
        if header["skipped"]:
            with writing(self.parts.folder), self.parts.path(number, "skipped").open(encoding="utf-8") as entries:
                for line in entries:
                    self._skip(json.loads(line), base)

    def message(self, error: BadInput) -> str:
        """What ends the run, with the line's number."""
        bad = error.bad
        line = None if bad.line is None else bad.line + self._lines_before(error.number)
        return stop_message(place(bad.file, line, bad.message), bad.fatal)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def _lines_before(self, number: int) -> int:
        task = self.tasks[number]
        if not task.begin:
            return 0
        if self._base[0] == number:
            return self._base[1]
        return tables.rows_before(task) if task.kind in ("parquet", "hub") else line_before(task.files[0], task.begin)

    def _skip(self, entry: dict[str, Any], base: int) -> None:
        if entry["line"] is not None:
            entry["line"] += base + 1  # counted from 1 from here on
        if self._stream is None:
            self.skipped = self.parts.folder / "skipped"
            self._stream = self.skipped.open("w", encoding="utf-8")
        self._stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self._stream.flush()
        if self.on_skip is not None:
            line = entry["line"]
            self.on_skip(place(entry["file"], None if line is None else line - 1, entry["error"]))


class Progress:
    """Adds up increments and tells the sums."""

    def __init__(self, tell: Callable[[dict[str, Any]], None] | None, total: int, started: float) -> None:
        self.tell, self.total, self.started = tell, total, started
        self.sums: Counter[str] = Counter(documents=0, tokens=0, bytes=0, read=0)

    def __call__(self, report: dict[str, int]) -> None:
        self.sums.update(report)
        if self.tell is not None:
            self.tell({**self.sums, "total": self.total, "seconds": time.monotonic() - self.started})
