"""How a step speaks while it works: lines and progress, from rank 0, to a terminal or to the process that forked it."""

from __future__ import annotations

import json
import os


class Reporter:
    """Prints on rank 0 (the environment's ``RANK``; no rank counts as 0)."""

    def __init__(self) -> None:
        self.speaks = os.environ.get("RANK", "0") == "0"

    def log(self, text: str) -> None:
        if self.speaks:
            print(text, flush=True)

    def progress(self, done: int, total: int) -> None:
        """Position of a running step; a plain terminal has the log lines instead."""


class PipeReporter(Reporter):
    """Sends JSON lines to a file descriptor; the reader shows them."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.descriptor = descriptor

    def _send(self, message: dict) -> None:
        if self.speaks:
            os.write(self.descriptor, json.dumps(message).encode() + b"\n")

    def log(self, text: str) -> None:
        self._send({"log": text})

    def progress(self, done: int, total: int) -> None:
        self._send({"progress": [done, total]})
