"""Start the ranks of one step: forked on this machine, or as torchrun's children.

Forking costs a quarter of a second where a fresh interpreter pays several for its imports. The parent imports what
the ranks will need, and never runs a tensor operation itself: threads do not survive a fork.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Sequence

from megatron_adapt.errors import AdaptError

STOPPED = 75  # EX_TEMPFAIL: saved and stopped on request; the same command continues
GRACE = 10.0  # seconds that the other ranks get after one has failed


class StepFailed(Exception):
    """A rank ended with an error that is no ``AdaptError``; the message holds its traceback or signal."""


@dataclass(frozen=True)
class Outcome:
    stopped: bool = False


def under_torchrun() -> bool:
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def cores() -> int:
    return len(os.sched_getaffinity(0))


def fork(
    world: int,
    function: Callable[[], None],
    threads: int | None = None,
    receive: Callable[[dict[str, Any]], None] | None = None,
) -> Outcome:
    """Run ``function`` in ``world`` forked processes that can form one gloo group, and wait for them.

    ``receive`` gets every JSON line that they write to the descriptor named by ``MEGATRON_ADAPT_MESSAGES``.

    Raises the ranks' ``AdaptError``, or ``StepFailed`` with the traceback of the rank that failed first.
    ``Outcome.stopped`` says that they saved and left after SIGINT / SIGTERM.
    """
    folder = Path(tempfile.mkdtemp(prefix="megatron-adapt-"))
    sys.stdout.flush()
    sys.stderr.flush()
    children: dict[int, int] = {}
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    os.set_blocking(reader, False)
    if receive is not None:
        os.environ["MEGATRON_ADAPT_MESSAGES"] = str(writer)
    messages = _Messages(reader, receive or (lambda message: None))
    try:
        for rank in range(world):
            pid = os.fork()
            if pid == 0:
                _child(rank, world, function, folder, threads or max(1, cores() // world))
            children[pid] = rank
        os.close(writer)
        return _wait(children, folder, messages)
    finally:
        os.environ.pop("MEGATRON_ADAPT_MESSAGES", None)
        os.close(reader)
        for pid in children:
            _kill(pid, signal.SIGKILL)
        for pid in list(children):
            os.waitpid(pid, 0)
        shutil.rmtree(folder, ignore_errors=True)


def child(command: Sequence[str]) -> Outcome:
    """Run a command in the foreground and pass SIGINT / SIGTERM on to it; raises ``StepFailed`` when it fails."""
    process = subprocess.Popen(command)
    signals = (signal.SIGINT, signal.SIGTERM)
    # A terminal sends SIGINT to the whole foreground group: the command has it already.
    handlers = [signal.signal(signals[0], signal.SIG_IGN), signal.signal(signals[1], lambda n, _: process.send_signal(n))]
    try:
        code = process.wait()
    finally:
        for number, handler in zip(signals, handlers):
            signal.signal(number, handler)
    if code not in (0, STOPPED):
        raise StepFailed(f"{' '.join(command)} ended with exit code {code}")
    return Outcome(stopped=code == STOPPED)


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


def _child(rank: int, world: int, function: Callable[[], None], folder: Path, threads: int) -> None:
    # Die with the parent, however it ends: no rank is ever left behind.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MEGATRON_ADAPT_RENDEZVOUS=str(folder / "rendezvous")
    )
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    code = 1
    try:
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
        code = run_rank(function)
    except AdaptError as error:
        (folder / f"error.{rank}").write_text(f"{type(error).__name__}\n{error}")
        code = 2
    except BaseException:
        (folder / f"traceback.{rank}").write_text(traceback.format_exc())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_rank(function: Callable[[], None]) -> int:
    """Exit code of a rank's work: 0, or ``STOPPED`` after a request to stop."""
    try:
        function()
    except KeyboardInterrupt:
        return STOPPED
    except Exception as error:
        if type(error).__name__ == "Stopped":  # engine.loop.Stopped: naming it would import Megatron
            return STOPPED
        raise
    return 0


def _wait(children: dict[int, int], folder: Path, messages: _Messages) -> Outcome:
    """Reap all children; on the first failure give the others a moment, then kill them and raise."""
    asked: list[int] = []
    handlers = {number: signal.signal(number, lambda n, _: asked.append(n)) for number in (signal.SIGINT, signal.SIGTERM)}
    failed: dict[int, int] = {}
    stopped = False
    deadline = None
    try:
        while children:
            while asked:
                number = asked.pop()
                for pid in children:
                    _kill(pid, number)
            for pid in list(children):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    rank = children.pop(pid)
                    code = os.waitstatus_to_exitcode(status)
                    stopped |= code == STOPPED
                    if code not in (0, STOPPED):
                        failed[rank] = code
            if failed and deadline is None:
                # Peers of a dead rank hang or fail in the next collective: their errors would only hide the cause.
                deadline = time.monotonic() + (1.0 if any(code < 0 for code in failed.values()) else GRACE)
                first = next(iter(failed))
            if deadline is not None and (time.monotonic() > deadline or (folder / f"traceback.{first}").exists()):
                break
            messages.poll()
            time.sleep(0.02)
    finally:
        messages.poll()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if failed:
        _raise(first, failed[first], folder)
    return Outcome(stopped)


def _raise(rank: int, code: int, folder: Path) -> None:
    error = folder / f"error.{rank}"
    if error.exists():
        kind, message = error.read_text().split("\n", 1)
        from megatron_adapt import errors

        raise getattr(errors, kind, AdaptError)(message)
    if code < 0:
        raise StepFailed(
            f"rank {rank} was killed by signal {-code} ({signal.Signals(-code).name}); finished checkpoints are intact, "
            f"run the same command again to continue."
        )
    text = folder / f"traceback.{rank}"
    raise StepFailed(f"rank {rank} failed:\n{text.read_text() if text.exists() else f'exit code {code}'}")


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
