"""PREFIX.parts: what an unfinished corpus has so far, so that the same command continues after a crash.

Files of the folder: ``lock``; ``plan.json``, what the parts belong to; ``data``, which becomes PREFIX.bin, with every
finished part at its final place; and of each part NUMBER.json (written last), NUMBER.sizes (int32, tokens of its
sequences), and where they are needed NUMBER.texts (int32, sequences of its documents), NUMBER.mask (uint8, of chats: tokens
that are learnt), NUMBER.skipped, NUMBER.held.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from megatron_adapt.data import locking
from megatron_adapt.data.held_out import writing
from megatron_adapt.errors import DataError

_READ_BYTES = 4 << 20


class Parts:
    """The folder, locked; made by :meth:`open` and left by :meth:`close`.

    Attributes:
        resumed: whether parts of an earlier run are there.
        data: descriptor of the ``data`` file.
    """

    def __init__(self, prefix: Path, lock: int, data: int, resumed: bool) -> None:
        self.prefix, self.folder = prefix, _folder(prefix)
        self.data, self.resumed = data, resumed
        self._lock: int | None = lock

    @classmethod
    def open(cls, prefix: Path, plan: dict[str, Any]) -> Parts:
        """Take over the parts of an earlier run with an equal plan; those of another plan are removed.

        Raises:
            DataError: another process is at it, or the folder cannot be written.
        """
        folder = _folder(prefix)
        with writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = _take_lock(folder, prefix)
        text = json.dumps(plan, ensure_ascii=False)
        file = folder / "plan.json"
        with writing(folder):
            resumed = file.exists() and file.read_text(encoding="utf-8") == text
            if not resumed:
                for entry in folder.iterdir():
                    if entry.name != "lock":
                        entry.unlink()
                write_atomically(file, text)
            data = os.open(folder / "data", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        return cls(prefix, lock, data, resumed and any(folder.glob("*[0-9].json")))

    def path(self, number: int, kind: str) -> Path:
        return self.folder / f"{number:08d}.{kind}"

    def finished(self, number: int) -> dict[str, Any] | None:
        """What :meth:`record` was given for a part, if its data are still what they were."""
        try:
            header = json.loads(self.path(number, "json").read_text(encoding="utf-8"))
            if any(digest_of(self.path(number, kind)) != digest for kind, digest in header["files"].items()):
                return None
        except (FileNotFoundError, ValueError, KeyError):
            return None
        digest, offset, end = hashlib.sha256(), header["offset"], header["offset"] + header["size"]
        while offset < end and (data := os.pread(self.data, min(_READ_BYTES, end - offset), offset)):
            digest.update(data)
            offset += len(data)
        return header if offset == end and digest.hexdigest() == header["sha256"] else None

    def record(self, number: int, header: dict[str, Any]) -> None:
        """A part is finished: all its other files are written, and its ids are in their place."""
        with writing(self.folder):
            write_atomically(self.path(number, "json"), json.dumps(header), sync=False)

    def close(self, done: bool = False) -> None:
        """Unlock the folder. It is removed where all is done, and where no part is finished."""
        if self._lock is None:
            return
        os.close(self.data)
        if done or not any(self.folder.glob("*[0-9].json")):
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)
        self._lock = None


def digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while data := stream.read(_READ_BYTES):
            digest.update(data)
    return digest.hexdigest()


def write_atomically(path: Path, text: str, sync: bool = True) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        if sync:
            os.fsync(stream.fileno())
    os.replace(temporary, path)


def _folder(prefix: Path) -> Path:
    return Path(f"{prefix}.parts")


def _take_lock(folder: Path, prefix: Path) -> int:
    try:
        return locking.take(folder / "lock")
    except TimeoutError:
        raise DataError(f"{prefix}: another process is writing this corpus; wait for it or choose another name") from None
