"""One process at a time, told by a file. The kernel gives the lock up when its holder dies, however it dies.

On NFS these locks hold between machines (Linux sends them to the server); where a file system has none, several processes
go on beside each other as if there were no lock.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

PATIENCE = 5.0  # seconds; a killed run's processes die within that


def take(file: Path) -> int:
    """The descriptor of a file that is locked until it is closed; the file and its folder are made where they are missing.

    Its holder may remove the file before closing it.

    Raises:
        TimeoutError: another process holds it. OSError: the file cannot be made.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        file.parent.mkdir(exist_ok=True)
        try:
            lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # its former holder has just removed the folder, or nothing can be made in this one (/proc)
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            if time.monotonic() > deadline:
                raise TimeoutError(f"{file} is locked by another process") from None
            time.sleep(0.1)
            continue
        except OSError:
            return lock  # a file system without locks: go on without
        try:
            if os.path.samestat(os.fstat(lock), os.stat(file)):
                return lock
        except FileNotFoundError:
            pass
        os.close(lock)
