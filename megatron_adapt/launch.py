"""Start the ranks of one step: forked on this machine, or as torchrun's children.

Forking costs a quarter of a second where a fresh interpreter pays several for its imports. The parent imports what
the ranks will need.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import math
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, NoReturn, Sequence

from megatron_adapt import errors
from megatron_adapt.errors import AdaptError

STOPPED = 75  # EX_TEMPFAIL: saved and stopped on request; the same command continues
GRACE = 3.0  # seconds that the other ranks get after one has failed or left
SIGNALS = (signal.SIGINT, signal.SIGTERM)
PIPE_SIZE = 65_536  # bytes
LONGEST_REPORT = PIPE_SIZE // 12 - 100  # characters, of which JSON makes up to 12 bytes each


class StepFailed(Exception):
    """A rank ended with an error that is no ``AdaptError``; the message holds its traceback or signal.

    ``cause``: what a command that failed has said itself, on its way to the same terminal.
    """

    cause = ""


@dataclass(frozen=True)
class Outcome:
    stopped: bool = False


def under_torchrun() -> bool:
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def cores() -> int:
    return len(os.sched_getaffinity(0))


def threads_a_rank(world: int) -> int:
    """As many as OMP_NUM_THREADS says (of nested numbers the first, as OpenMP reads it), else an even share of the cores."""
    said = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(said) if said.isdecimal() and int(said) > 0 else max(1, cores() // world)


def fork(
    world: int,
    function: Callable[[], None],
    threads: int | None = None,
    receive: Callable[[dict[str, Any]], None] | None = None,
) -> Outcome:
    """Run ``function`` in ``world`` forked processes that can form one gloo group, and wait for them.

    ``receive`` gets every JSON line that they write to the descriptor named by ``MEGATRON_ADAPT_MESSAGES``.

    Raises the ranks' ``AdaptError``, or ``StepFailed`` with the signal or traceback of the rank that failed first.
    ``Outcome.stopped`` says that SIGINT / SIGTERM came: the ranks saved and left, or were just done.
    """
    folder = Path(tempfile.mkdtemp(prefix="megatron-adapt-"))
    sys.stdout.flush()
    sys.stderr.flush()
    ranks: list[_Rank] = []
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    os.set_blocking(reader, False)
    if receive is not None:
        os.environ["MEGATRON_ADAPT_MESSAGES"] = str(writer)
    messages = _Messages(reader, receive or (lambda message: None))
    # A signal waits until both sides have their handlers: none is lost, and none strikes a child that is not one yet.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    parent = os.getpid()
    forks = _Forks()
    try:
        for number in range(world):
            report = os.pipe()
            environment = {
                "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(world),
                "MEGATRON_ADAPT_RENDEZVOUS": str(folder / "rendezvous"),
            }  # fmt: skip
            wanted = threads or threads_a_rank(world)
            pid = forks.fork(partial(_child, function, environment, report[1], parent, wanted, mask))
            os.close(report[1])
            os.set_blocking(report[0], False)
            ranks.append(_Rank(number, pid, report[0]))
        return _wait(ranks, messages, mask)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.environ.pop("MEGATRON_ADAPT_MESSAGES", None)
        for descriptor in (reader, writer, *(rank.report for rank in ranks)):
            os.close(descriptor)
        for rank in ranks:
            rank.kill(signal.SIGKILL)
        for rank in ranks:
            rank.reap(wait=True)
        forks.end()
        shutil.rmtree(folder, ignore_errors=True)


class _Forks:
    """Forks from a thread of its own, which lives as long as the children (a child dies with the thread that made it).

    OpenMP notes its worker threads in the thread that first needed them, and a forked copy of that thread waits for ever
    for workers that it has not got. A child of a fresh thread starts workers of its own, whatever this process computed.
    """

    def __init__(self) -> None:
        self.tasks: queue.SimpleQueue[Callable[[], NoReturn] | None] = queue.SimpleQueue()
        self.pids: queue.SimpleQueue[int | OSError] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        while (task := self.tasks.get()) is not None:
            try:
                pid = os.fork()
            except OSError as error:  # too many processes, or no memory
                self.pids.put(error)
                continue
            if pid == 0:
                task()
            self.pids.put(pid)

    def fork(self, task: Callable[[], NoReturn]) -> int:
        """Run ``task``, which ends its process, in a child; the child's id."""
        self.tasks.put(task)
        pid = self.pids.get()
        if isinstance(pid, OSError):
            raise pid
        return pid

    def end(self) -> None:
        self.tasks.put(None)
        self.thread.join()


def child(command: Sequence[str]) -> Outcome:
    """Run a command in a session of its own and wait for it; raises ``StepFailed`` when it fails.

    SIGINT and SIGTERM go to its children, where it has some: torchrun itself would give its ranks 30 seconds and call
    their leaving a failure, but when they save and leave by themselves it ends well. It ends when this process dies.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    parent = os.getpid()

    def prepare() -> None:
        _die_with(parent, signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    asked: list[int] = []

    def forward(number: int, frame: object) -> None:
        asked.append(number)
        for pid in _children(process.pid) or [process.pid]:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, number)

    folder = tempfile.TemporaryDirectory(prefix="megatron-adapt-")
    file = Path(folder.name) / "error"
    environment = {**os.environ, "MEGATRON_ADAPT_NESTED": "1", "MEGATRON_ADAPT_ERROR": str(file)}
    process = subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=prepare)
    handlers = {number: signal.signal(number, forward) for number in SIGNALS}
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        code = process.wait()
        error = StepFailed(f"{' '.join(command)} ended with exit code {code}")
        if file.is_file():
            error.cause = file.read_text()
    finally:
        folder.cleanup()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if code not in (0, STOPPED) and not asked:
        raise error
    return Outcome(stopped=code == STOPPED or bool(asked))


def note_error(text: str) -> None:
    """Tell the process that has started this one with ``child`` what is wrong; of several ranks the first that does."""
    if file := os.environ.get("MEGATRON_ADAPT_ERROR"):
        with contextlib.suppress(OSError), open(file, "x") as note:
            note.write(text)


def _children(pid: int) -> list[int]:
    """The process ids of a process's children."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # another process that has just ended
            if int(file.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(file.parent.name))
    return found


def _die_with(parent: int, number: int) -> None:
    """Have the kernel send this process a signal when its parent ends, however it does."""
    ctypes.CDLL(None).prctl(1, number)
    if os.getppid() != parent:  # it ended before that
        os._exit(1)


class _Messages:
    """Complete JSON lines from a non-blocking pipe."""

    def __init__(self, descriptor: int, receive: Callable[[dict[str, Any]], None]) -> None:
        self.descriptor, self.receive, self.rest = descriptor, receive, b""

    def poll(self) -> None:
        while True:
            try:
                data = os.read(self.descriptor, 65536)
            except BlockingIOError:
                return
            if not data:
                return
            *lines, self.rest = (self.rest + data).split(b"\n")
            for line in lines:
                self.receive(json.loads(line))


@dataclass
class _Rank:
    """A forked process: its rank, the pipe on which it reports an error, its exit code (negative: a signal)."""

    number: int
    pid: int
    report: int
    code: int | None = None

    def kill(self, number: int) -> None:
        if self.code is None:  # until then the process exists, at least as a zombie: nobody else has its id
            os.kill(self.pid, number)

    def reap(self, wait: bool = False) -> bool:
        """Whether it has ended by now."""
        if self.code is None:
            done, status = os.waitpid(self.pid, 0 if wait else os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if done else None
        return self.code is not None

    def read_report(self) -> dict[str, Any] | None:
        try:
            return json.loads(os.read(self.report, PIPE_SIZE) or "null")
        except BlockingIOError:  # it left without a word, but a child of its own lives
            return None


def _child(
    function: Callable[[], None], environment: dict[str, str], report: int, parent: int, threads: int, mask: set
) -> NoReturn:
    """A rank's whole life."""
    code = 1
    try:
        _die_with(parent, signal.SIGKILL)  # no rank is ever left behind
        os.environ.update(environment)
        for number in SIGNALS:
            signal.signal(number, _leave)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        gc.freeze()  # what the parent made is no garbage of ours; looking through it would copy its memory
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
        code = run_rank(function)
    except AdaptError as error:
        code = 2
        _report(report, type(error).__name__, str(error))
    except BaseException:
        _report(report, "", traceback.format_exc())
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _leave(number: int, frame: object) -> None:
    """Before training takes the signals over there is nothing to save. A terminal and the parent may both send one."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def _report(descriptor: int, kind: str, text: str) -> None:
    """Through a pipe rather than a file: the error may be that the disk is full."""
    message = {"when": time.monotonic(), "kind": kind, "text": text[-LONGEST_REPORT:]}
    os.write(descriptor, json.dumps(message).encode())


def run_rank(function: Callable[[], None]) -> int:
    """Exit code of a rank's work: 0, or ``STOPPED`` after a request to stop."""
    try:
        function()
    except KeyboardInterrupt:
        return STOPPED
    except Exception as error:
        if type(error).__name__ == "Stopped":  # engine.stopping.Stopped: naming it would import Megatron
            return STOPPED
        raise
    return 0


def _wait(ranks: list[_Rank], messages: _Messages, mask: set) -> Outcome:
    """Reap all ranks. Once one has failed or left, the others have a moment to do so, too."""
    asked: list[int] = []
    forwarded = 0
    handlers = {number: signal.signal(number, lambda n, _: asked.append(n)) for number in SIGNALS}
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    deadline = math.inf
    try:
        while not all([rank.reap() for rank in ranks]) and time.monotonic() < deadline:
            while forwarded < len(asked):
                for rank in ranks:
                    rank.kill(asked[forwarded])
                forwarded += 1
            # Peers of a dead rank hang or fail in their next collective.
            if deadline == math.inf and any(rank.code for rank in ranks):
                deadline = time.monotonic() + GRACE
            messages.poll()
            time.sleep(0.02)
    finally:
        messages.poll()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    # A rank that left on request before training began may have made its peers fail: nothing is wrong.
    if any(rank.code == STOPPED for rank in ranks):
        return Outcome(stopped=True)
    failed = [rank for rank in ranks if rank.code]
    if failed:
        _raise(failed)
    return Outcome(stopped=bool(asked))


def _raise(failed: list[_Rank]) -> None:
    """Raise the cause: a rank that was killed, else the error that was reported first."""
    for rank in failed:
        if rank.code < 0:
            raise StepFailed(
                f"rank {rank.number} was killed by signal {-rank.code} ({signal.Signals(-rank.code).name}); finished "
                f"checkpoints are intact, run the same command again to continue."
            )
    reports = []
    for rank in failed:
        report = rank.read_report()
        if report is None:
            raise StepFailed(f"rank {rank.number} ended with exit code {rank.code} and without a message.")
        reports.append((report["when"], rank.number, report["kind"], report["text"]))
    _, number, kind, text = min(reports)
    if kind:
        raise getattr(errors, kind, AdaptError)(text)
    raise StepFailed(f"rank {number} failed:\n{text}")
