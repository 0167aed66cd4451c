"""Forked worker processes that are asked one thing at a time; none outlives this process, and none dies unnoticed."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

from megatron_adapt.data.worker import BadInput
from megatron_adapt.errors import AdaptError, DataError

Make = Callable[[Callable[[str, Any], None]], Any]  # is given what to call with names and values meanwhile
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


class WorkerFailed(RuntimeError):
    """A worker raised something that is no user's mistake; the message is its traceback."""


class Pool:
    """Worker processes by number, as many as are forked."""

    def __init__(self) -> None:
        self._connections: list[Connection] = []
        self._processes: list[Any] = []

    def fork(self, make: Make) -> int:
        """One more process, which is asked for methods of what ``make`` returns there; returns its number."""
        from megatron_adapt import _C  # noqa: F401 (here what is wrong with it is said once, and as an error)

        context = multiprocessing.get_context("fork")
        here, there = context.Pipe()
        others = [*self._connections, here]
        process = context.Process(target=_serve, args=(there, others, os.getpid(), make), daemon=True)
        process.start()
        there.close()
        self._connections.append(here)
        self._processes.append(process)
        return len(self._processes) - 1

    def ask(self, number: int, method: str, *arguments: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # it is dead: receive says why
            self._connections[number].send((method, *arguments))

    def receive(self) -> Iterator[tuple[int, str, Any]]:
        """(worker, the method that it was asked for, what that returned), as soon as there is any; (worker, a name, a
        value) that it sent meanwhile; or (worker, "bad", the BadInput that a method raised).

        Raises:
            AdaptError: what a method raised. WorkerFailed: anything else that it raised. DataError: a worker was killed.
        """
        sentinels = {process.sentinel: number for number, process in enumerate(self._processes)}
        ready = wait([*self._connections, *sentinels])
        for number, connection in enumerate(self._connections):
            if connection in ready:
                try:
                    name, value = connection.recv()
                except (EOFError, ConnectionResetError):
                    self._raise_dead(number)
                if name == "failed":
                    raise value
                if name == "crashed":
                    raise WorkerFailed(f"a worker process failed:\n{value}")
                yield number, name, value
        for sentinel in set(ready) & set(sentinels):
            if not self._connections[sentinels[sentinel]].poll():  # else it has said something before
                self._raise_dead(sentinels[sentinel])

    def _raise_dead(self, number: int) -> None:
        process = self._processes[number]
        process.join()
        code = process.exitcode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise DataError(
            f"worker process {process.pid} {how}; if the machine was out of memory use fewer workers; "
            "the same command continues where it stopped"
        )

    def __enter__(self) -> Pool:
        return self

    def stop(self) -> None:
        """They are not needed any more: the system takes them apart while this process goes on."""
        for process in self._processes:
            process.kill()

    def __exit__(self, *_: Any) -> None:
        self.end()

    def end(self) -> None:
        """None is left when this returns."""
        self.stop()
        for process in self._processes:
            process.join()
        for connection in self._connections:
            connection.close()


def _serve(connection: Connection, others: list[Connection], parent: int, make: Make) -> None:
    """What a worker process does until its parent has gone."""
    from megatron_adapt import _C

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(AttributeError, OSError):  # systems without prctl notice the closed pipe instead
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        return
    for other in others:
        other.close()
    _C.prepare_heap()
    gc.freeze()  # what is inherited stays: walking over it would cost time, and copies of shared pages
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process per core is all there is to share
    worker = make(lambda name, value: connection.send((name, value)))
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            method, *arguments = connection.recv()
            try:
                answer = (method, getattr(worker, method)(*arguments))
            except BadInput as error:
                answer = ("bad", error)
            except AdaptError as error:
                answer = ("failed", error)
            except BrokenPipeError:
                raise
            except BaseException:
                answer = ("crashed", traceback.format_exc())
            connection.send(answer)
