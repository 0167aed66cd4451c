"""``megatron-adapt`` commands as processes of their own, without paying for their imports each time.

A command is forked from the test process, which imports once what the verbs import, and runs the same ``main`` as the
installed script. ``fresh`` starts a real interpreter instead.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from harness import ROOT

from megatron_adapt import cli, launch
from megatron_adapt.pipeline import preload_files, preload_transformers

TIMEOUT = 300  # seconds, for any one command on however busy a machine


@dataclass
class Result:
    """How a command ended: its exit code (negative: a signal), and what it printed."""

    code: int
    out: str
    err: str

    def refused(self, *words: str) -> None:
        """It ended as bad input has to: exit code 2, one message with these words, no traceback."""
        assert self.code == 2, (self.code, self.out, self.err)
        assert self.err.startswith("error: ") and self.err.count("\nerror:") == 0, self.err
        assert "Traceback" not in self.out + self.err
        for word in words:
            assert word in self.err, (word, self.err)

    def succeeded(self) -> Result:
        assert self.code == 0, (self.code, self.out, self.err)
        return self


@dataclass
class Running:
    """A command that has been started in a folder."""

    pid: int
    stdout: Path
    stderr: Path
    result: Result | None = None

    def kill(self, number: int) -> None:
        os.kill(self.pid, number)

    def ended(self) -> bool:
        if self.result is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self.result = Result(code, self.stdout.read_text(), self.stderr.read_text())
        return self.result is not None

    def wait(self) -> Result:
        try:
            wait_for(self.ended, "the command to end")
        finally:
            if self.result is None:
                os.kill(self.pid, signal.SIGKILL)
        assert self.result is not None
        return self.result

    def ranks(self) -> list[int]:
        """Process ids of its children."""
        threads = Path(f"/proc/{self.pid}/task").glob("*/children")
        return sorted(int(pid) for file in threads for pid in file.read_text().split())


def wait_for(condition: Callable[[], Any], what: str, seconds: float = TIMEOUT) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.005)
    return value


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextlib.contextmanager
def signals_kept() -> Iterator[None]:
    """For commands in this process, which take signals over."""
    handlers = {number: signal.getsignal(number) for number in launch.SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def in_process(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *first: str) -> Callable[..., Result]:
    """What runs the command line in this process, beginning with the words ``first``."""

    def call(*words: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["megatron-adapt", *first, *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
            sys.exit(0)
        printed = capfd.readouterr()
        return Result(int(end.value.code or 0), printed.out, printed.err)

    return call


def preload() -> None:
    """What the verbs import, so that no command has to."""
    import matplotlib.pyplot  # noqa: F401
    import torch

    import megatron_adapt.steps.export_hf  # noqa: F401
    import megatron_adapt.steps.import_hf  # noqa: F401
    import megatron_adapt.steps.train  # noqa: F401
    from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401

    preload_files()
    preload_transformers()
    torch.set_num_threads(1)  # threads do not survive a fork
    gc.freeze()  # looking through all this for garbage would copy its memory in every child


def in_child(function: Callable[[], Any]) -> int:
    """Fork; the process id of a child that calls ``function`` and ends with its exit code."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        launch._die_with(parent, signal.SIGKILL)  # however the tests end
        function()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


@dataclass
class Shop:
    """A folder to run commands in."""

    folder: Path
    started: int = field(default=0)

    def __truediv__(self, path: str) -> Path:
        return self.folder / path

    def start(self, *words: object, environment: dict[str, str] | None = None, limit: int | None = None) -> Running:
        """Start ``megatron-adapt WORDS`` in the folder. ``limit``: no file may grow beyond so many bytes."""
        preload()
        self.started += 1
        out, err = (self.folder / f".{self.started}.{kind}" for kind in ("out", "err"))

        def run() -> None:
            os.setsid()
            os.chdir(self.folder)
            for number, file in ((1, out), (2, err)):
                descriptor = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
                os.dup2(descriptor, number)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            sys.argv = ["megatron-adapt", *map(str, words)]
            os.environ.update(environment or {})
            if limit is not None:
                import resource

                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            from megatron_adapt.cli import main

            main()

        return Running(in_child(run), out, err)

    def run(self, *words: object, **options: Any) -> Result:
        return self.start(*words, **options).wait()

    def fresh(self, *command: object, timeout: float = TIMEOUT) -> Result:
        """Run a command line (``python`` and installed scripts are those of this environment) from scratch."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        done = subprocess.run(
            [str(word) for word in command], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=timeout
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def compute(self, function: Callable[[], Any]) -> Any:
        """What ``function`` returns in a child: the test process itself must not start torch's threads."""
        import pickle

        file = self.folder / ".value"

        def work() -> None:
            os.chdir(self.folder)
            file.write_bytes(pickle.dumps(function()))

        _, status = os.waitpid(in_child(work), 0)
        assert status == 0, "the child failed: see its traceback above"
        return pickle.loads(file.read_bytes())


def entries(folder: Path) -> set[str]:
    """Every file below a folder, hidden ones included."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
