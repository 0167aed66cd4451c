"""Processes of first_call.py's sections: forked from one that has imported everything, or fresh ones where CUDA does not allow that.

A fresh interpreter takes 10 to 20 seconds for its imports, a fork a moment. CUDA cannot be used in a fork of a process that has
used it, if only to ask whether there is a GPU: while everything is imported, that question is answered by the files in /dev.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, NoReturn

from parts import SECTIONS

NO_CUDA = 77  # exit code of a fork in which CUDA does not start
LIBRARIES = (  # what sections import on first use
    "torch._inductor.compile_fx", "torch.nn.attention.varlen", "torch.profiler", "transformers.modeling_utils",
    "transformers.models.llama.modeling_llama", "megatron.core.optimizer", "triton", "tensorboard",
)  # fmt: skip


def preload(stand_in: bool, before: Callable[[int], None] = lambda gpus: None) -> None:
    """Import what sections need; with ``stand_in`` that of the tests in Transformer Engine's place, which it has to precede.

    ``before``: what comes before Megatron, of the number of GPUs.
    """
    import torch

    answers = torch.cuda.is_available, torch.cuda.device_count
    gpus = sum(path.name.removeprefix("nvidia").isdigit() for path in Path("/dev").glob("nvidia*"))
    torch.cuda.is_available, torch.cuda.device_count = lambda: gpus > 0, lambda: gpus
    try:
        before(gpus)
        if stand_in:
            prepare_stand_in()
        for name in LIBRARIES + ("transformer_engine.pytorch",) * (gpus > 0):
            with contextlib.suppress(ImportError):  # the sections that need it will say so
                importlib.import_module(name)
        for name in {section.module for section in SECTIONS.values()}:
            importlib.import_module(name)
    finally:
        torch.cuda.is_available, torch.cuda.device_count = answers


def prepare_stand_in() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "stand_ins"))
    from megatron_adapt.engine import backend

    backend.transformer_engine_problem = lambda: ""


class Process:
    """A section's process in a group of its own, its output in a file."""

    def __init__(self, environment: dict[str, str], output: Path) -> None:
        self.environment, self.output, self.pid = environment, output, 0

    def fork(self, run: Callable[[], int]) -> Process:
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._work(run)
        return self

    def fresh(self, command: list[str]) -> Process:
        with self.output.open("w") as file:
            environment = os.environ | self.environment
            self.pid = subprocess.Popen(command, stdout=file, stderr=file, env=environment, preexec_fn=_detach).pid
        return self

    def _work(self, run: Callable[[], int]) -> NoReturn:
        code = 1
        try:
            _detach()
            file = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1)
            os.dup2(file, 2)
            os.environ.update(self.environment)
            code = run() if cuda_starts() else NO_CUDA
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)

    def wait(self, seconds: float) -> int | None:
        """Exit code, negative of a signal; None: it took longer, and was ended. What it has started itself ends in any case."""
        end, code = time.monotonic() + seconds, None
        while code is None and time.monotonic() < end:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if done else None
            time.sleep(0 if done else 0.05)
        with contextlib.suppress(ProcessLookupError):  # compilers of torch, for one, would keep the GPU's memory
            os.killpg(self.pid, signal.SIGKILL)
        if code is None:
            os.waitpid(self.pid, 0)
        return code


def _detach() -> None:
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it ends with first_call.py, however that does


def cuda_starts() -> bool:
    """Whether this process can use the GPU, or there is none."""
    import torch

    if not list(Path("/dev").glob("nvidia[0-9]*")):
        return True
    try:
        torch.zeros(1, device="cuda").item()
    except (RuntimeError, AssertionError) as error:
        print(f"CUDA does not start in a fork: {error}", flush=True)
        return False
    return True
