"""Arrays that take a while to compute: one process does it, the others wait for the file.

They wait for a file and not on a collective, so no rank has to be in step with another. A process that dies while it
computes holds nobody up: the kernel gives up its lock. Where files cannot be locked or written, every process computes
for itself; the result is the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

PATIENCE = 120.0  # seconds to wait for another process, which may hang rather than have died
_INTERVAL = 0.02
_DIGEST = 32  # bytes


def load_or_build(
    path: Path, build: Callable[[], np.ndarray], accept: Callable[[np.ndarray], bool], obsolete: Path | None = None
) -> np.ndarray:
    """The array of int64 stored at ``path``, computed and stored if there is none that is acceptable.

    The file is the array and its SHA-256: it outlives the run, and a wrong number in it would mean wrong data.

    Args:
        build: computes it, the same in every process.
        accept: whether a stored array can be the one; a damaged file counts as none.
        obsolete: a file to remove when this one is stored.
    """
    found = _load(path, accept)
    if found is not None:
        return found
    try:
        path.parent.mkdir(exist_ok=True)
        lock = os.open(path.parent / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError:  # a corpus in a place that we may only read
        return build()
    try:
        patience = time.monotonic() + PATIENCE
        while not _is_mine(lock) and time.monotonic() < patience:
            time.sleep(_INTERVAL)
        found = _load(path, accept)  # somebody may have stored it since
        if found is not None:
            return found
        array = build()
        _store(path, array, obsolete)
        return array
    finally:
        os.close(lock)


def _is_mine(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: several may compute the same
        return True
    return True


def _load(path: Path, accept: Callable[[np.ndarray], bool]) -> np.ndarray | None:
    try:
        # Not mapped: the file may be removed by whoever no longer needs it, on a network file system under our feet.
        content = path.read_bytes()
    except OSError:
        return None
    body, digest = content[:-_DIGEST], content[-_DIGEST:]
    if len(body) % 8 or hashlib.sha256(body).digest() != digest:
        return None
    array = np.frombuffer(body, dtype="<i8")
    return array if accept(array) else None


def _store(path: Path, array: np.ndarray, obsolete: Path | None) -> None:
    """Atomically. It is a cache: where it cannot be stored, the array in memory serves as well."""
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    body = array.astype("<i8").tobytes()
    with contextlib.suppress(OSError):
        for left in path.parent.glob(f"{path.name}.*.tmp"):  # by a process that was killed, since this one has the lock
            left.unlink(missing_ok=True)
        try:
            with temporary.open("wb") as stream:
                stream.write(body + hashlib.sha256(body).digest())
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
            if obsolete is not None:
                obsolete.unlink(missing_ok=True)
        finally:
            temporary.unlink(missing_ok=True)
