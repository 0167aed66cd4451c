"""Forked ranks: errors keep their type, the cause is found, signals arrive, and nobody is left behind."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable

import pytest
from harness import ROOT

from megatron_adapt import launch
from megatron_adapt.errors import CheckpointError, ConfigError, DataError
from megatron_adapt.launch import StepFailed

FOREVER = 60  # seconds, much longer than any of these tests may take


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "GRACE", 0.5)


def rank() -> int:
    return int(os.environ["RANK"])


def wait_for(condition: Callable[[], Any], seconds: float = 15) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return value


def is_gone(pid: int) -> bool:
    """Whether a process has ended (a zombie that somebody else has to reap counts as ended)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError as error:
        assert error.errno in (errno.ENOENT, errno.ESRCH)
        return True


def launcher(folder: Path, count: int, function: Callable[[], None]) -> int:
    """The id of a process that calls ``launch.fork`` and pickles what became of it to ``folder/result``."""
    pid = os.fork()
    if pid == 0:
        try:
            result: Any = launch.fork(count, function)
        except BaseException as error:
            result = error
        (folder / "result").write_bytes(pickle.dumps(result))
        os._exit(0)
    return pid


def result_of(folder: Path, pid: int) -> Any:
    os.waitpid(pid, 0)
    return pickle.loads((folder / "result").read_bytes())


def sleeper(folder: Path) -> Callable[[], None]:
    """A rank that writes its process id to ``folder`` and waits."""

    def work() -> None:
        (folder / f"pid-{rank()}.tmp").write_text(str(os.getpid()))
        os.replace(folder / f"pid-{rank()}.tmp", folder / f"pid-{rank()}")
        time.sleep(FOREVER)

    return work


def ids(folder: Path, count: int) -> list[int]:
    files = [folder / f"pid-{number}" for number in range(count)]
    wait_for(lambda: all(file.exists() for file in files))
    return [int(file.read_text()) for file in files]


def test_every_rank_runs_once_in_its_own_environment(tmp_path: Path):
    def work() -> None:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
        (tmp_path / str(rank())).write_text(" ".join(os.environ[name] for name in names))

    before = dict(os.environ)
    assert launch.fork(3, work) == launch.Outcome(stopped=False)
    assert [(tmp_path / str(n)).read_text() for n in range(3)] == [f"{n} {n} 3" for n in range(3)]
    assert sorted(os.listdir(tmp_path)) == ["0", "1", "2"] and dict(os.environ) == before


def test_messages_arrive_in_order():
    def work() -> None:
        for number in range(200):
            line = f'{{"rank": {rank()}, "number": {number}}}\n'
            os.write(int(os.environ["MEGATRON_ADAPT_MESSAGES"]), line.encode())

    received: list[dict] = []
    launch.fork(2, work, receive=received.append)
    for which in (0, 1):
        assert [message["number"] for message in received if message["rank"] == which] == list(range(200))


@pytest.mark.parametrize("kind", [ConfigError, DataError, CheckpointError])
def test_an_error_of_ours_keeps_its_type_and_text(kind):
    def work() -> None:
        if rank() == 1:
            raise kind("the key »lr« of\nrecipe.yaml:3 is wrong")
        time.sleep(FOREVER)

    with pytest.raises(kind, match="the key »lr« of\nrecipe.yaml:3 is wrong"):
        launch.fork(2, work)


def test_another_error_shows_its_rank_and_traceback():
    def work() -> None:
        if rank() == 1:
            [][3]
        time.sleep(FOREVER)

    with pytest.raises(StepFailed, match=r"(?s)rank 1 failed:\nTraceback.*\[\]\[3\].*IndexError: list index"):
        launch.fork(3, work)


def test_a_long_error_is_cut_at_its_front():
    def work() -> None:
        raise ValueError("\N{GRINNING FACE}" * 100_000 + "the end")

    with pytest.raises(StepFailed, match="the end\n$"):
        launch.fork(1, work)


def test_the_first_error_counts_not_what_follows_from_it(tmp_path: Path):
    def work() -> None:
        if rank() == 2:
            try:
                raise DataError("the cause")
            finally:
                (tmp_path / "raised").touch()
        wait_for((tmp_path / "raised").exists)
        time.sleep(0.2)
        raise CheckpointError("a consequence")

    with pytest.raises(DataError, match="the cause"):
        launch.fork(3, work)


def test_a_killed_rank_is_named_rather_than_its_peers_errors(tmp_path: Path):
    def work() -> None:
        if rank() == 1:
            (tmp_path / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        wait_for((tmp_path / "killed").exists)
        time.sleep(0.1)
        raise RuntimeError("connection closed by peer")

    with pytest.raises(StepFailed, match=r"rank 1 was killed by signal 9 \(SIGKILL\); finished checkpoints are intact"):
        launch.fork(2, work)


def test_an_exit_without_a_word():
    with pytest.raises(StepFailed, match="rank 0 ended with exit code 7 and without a message"):
        launch.fork(1, lambda: os._exit(7))


def test_sys_exit_of_a_rank_is_a_failure():
    with pytest.raises(StepFailed, match="SystemExit: 3"):
        launch.fork(1, lambda: sys.exit(3))


def test_no_rank_survives_the_failure_of_another(tmp_path: Path):
    def work() -> None:
        if rank() == 0:
            ids(tmp_path, 3)
            raise ConfigError("no")
        sleeper(tmp_path)()

    (tmp_path / "pid-0").write_text("0")
    with pytest.raises(ConfigError):
        launch.fork(3, work)
    for pid in ids(tmp_path, 3)[1:]:
        with pytest.raises(ChildProcessError):  # ended and reaped
            os.waitpid(pid, os.WNOHANG)


@pytest.mark.parametrize("number", launch.SIGNALS)
def test_signals_are_forwarded_to_every_rank(tmp_path: Path, number):
    def work() -> None:
        try:
            sleeper(tmp_path)()
        except KeyboardInterrupt:
            (tmp_path / f"left-{rank()}").touch()
            raise

    pid = launcher(tmp_path, 2, work)
    ranks = ids(tmp_path, 2)
    os.kill(pid, number)
    assert result_of(tmp_path, pid) == launch.Outcome(stopped=True)
    assert (tmp_path / "left-0").exists() and (tmp_path / "left-1").exists()
    assert all(is_gone(rank) for rank in ranks)


def test_signals_may_come_twice(tmp_path: Path):
    """Ctrl-C in a terminal reaches the ranks directly and through the launcher."""

    def work() -> None:
        try:
            sleeper(tmp_path)()
        finally:
            time.sleep(0.3)  # cleaning up is not interrupted
            (tmp_path / f"clean-{rank()}").touch()

    pid = launcher(tmp_path, 2, work)
    for process in [*ids(tmp_path, 2), pid]:
        os.kill(process, signal.SIGINT)
    assert result_of(tmp_path, pid) == launch.Outcome(stopped=True)
    assert (tmp_path / "clean-0").exists() and (tmp_path / "clean-1").exists()


def test_a_signal_to_ranks_that_are_just_done_is_not_forgotten(tmp_path: Path):
    def work() -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: (tmp_path / "got").touch())
        sys.stdout.flush()
        (tmp_path / "ready").touch()
        wait_for((tmp_path / "got").exists)

    pid = launcher(tmp_path, 1, work)
    wait_for((tmp_path / "ready").exists)
    os.kill(pid, signal.SIGTERM)
    assert result_of(tmp_path, pid) == launch.Outcome(stopped=True)


def test_a_rank_that_leaves_on_request_excuses_its_peers(tmp_path: Path):
    """One rank had not begun to train when the signal came; the other then fails in a collective."""

    def work() -> None:
        if rank() == 0:
            sleeper(tmp_path)()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (tmp_path / "pid-1").write_text("0")
        wait_for(lambda: is_gone(ids(tmp_path, 2)[0]))
        raise RuntimeError("connection closed by peer")

    pid = launcher(tmp_path, 2, work)
    ids(tmp_path, 2)
    os.kill(pid, signal.SIGTERM)
    assert result_of(tmp_path, pid) == launch.Outcome(stopped=True)


def test_ranks_die_with_their_launcher(tmp_path: Path):
    pid = launcher(tmp_path, 2, sleeper(tmp_path))
    ranks = ids(tmp_path, 2)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    wait_for(lambda: all(is_gone(rank) for rank in ranks))


def test_handlers_and_signal_mask_are_as_before():
    before = [signal.getsignal(number) for number in launch.SIGNALS], signal.pthread_sigmask(signal.SIG_BLOCK, ())
    launch.fork(1, lambda: None)
    with pytest.raises(ConfigError):
        launch.fork(1, lambda: (_ for _ in ()).throw(ConfigError("no")))
    assert before == ([signal.getsignal(n) for n in launch.SIGNALS], signal.pthread_sigmask(signal.SIG_BLOCK, ()))


def test_no_descriptor_is_left_open():
    before = len(os.listdir("/proc/self/fd"))
    launch.fork(2, lambda: None)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_command_in_the_foreground():
    python = [sys.executable, "-c"]
    assert launch.child([*python, ""]) == launch.Outcome(stopped=False)
    assert launch.child([*python, f"raise SystemExit({launch.STOPPED})"]) == launch.Outcome(stopped=True)
    with pytest.raises(StepFailed, match="ended with exit code 3"):
        launch.child([*python, "raise SystemExit(3)"])


LIKE_TORCHRUN = """
import os, signal, subprocess, sys
rank = "import os, signal, sys; print(os.getpid(), flush=True); sys.exit(signal.sigwait([15, 2]) and 0)"
signal.pthread_sigmask(signal.SIG_BLOCK, [2, 15])
process = subprocess.Popen([sys.executable, "-c", rank], stdout=open(sys.argv[1], "w"))
signal.pthread_sigmask(signal.SIG_SETMASK, [])
sys.exit(process.wait())
"""


@pytest.mark.parametrize("number", launch.SIGNALS)
def test_a_signal_goes_to_the_ranks_of_a_command(tmp_path: Path, number: int):
    """torchrun would make a failure of it; its ranks leave with 0."""
    parent = os.getpid()
    asker = os.fork()
    if asker == 0:
        try:
            wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), FOREVER)
        finally:  # whatever happens: else the test would wait for ever, and this copy of it would run the tests that follow
            os.kill(parent, number)
            os._exit(0)
    assert launch.child([sys.executable, "-c", LIKE_TORCHRUN, str(tmp_path / "pid")]) == launch.Outcome(stopped=True)
    os.waitpid(asker, 0)
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_a_signal_to_a_command_without_ranks(tmp_path: Path):
    parent = os.getpid()
    script = f"import os, time; os.kill({parent}, {signal.SIGTERM}); time.sleep({FOREVER})"
    assert launch.child([sys.executable, "-c", script]) == launch.Outcome(stopped=True)


def test_a_command_ends_with_its_launcher(tmp_path: Path):
    pid = os.fork()
    if pid == 0:
        script = f"import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep({FOREVER})"
        launch.child([sys.executable, "-c", script, str(tmp_path / "pid")])
        os._exit(0)
    command = int(wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    wait_for(lambda: is_gone(command))


COMPUTES = """
import torch
from megatron_adapt import launch

torch.set_num_threads(2)

def compute():
    x = torch.ones(400, 4000)
    assert (x.cos() @ x.T).isfinite().all() and torch.get_num_threads() == 2

compute()  # leaves OpenMP's threads behind
assert not launch.fork(2, lambda: launch.fork(1, compute, threads=2), threads=2).stopped
compute()
print("fine")
"""


def test_ranks_compute_whatever_their_parent_has_computed() -> None:
    done = subprocess.run([sys.executable, "-c", COMPUTES], cwd=ROOT, capture_output=True, text=True, timeout=5 * FOREVER)
    assert done.stdout == "fine\n", done.stderr


@pytest.mark.parametrize("said, threads", [("3", 3), ("3,2", 3), ("", 2), ("0", 2), ("many", 2)])
def test_ranks_take_as_many_threads_as_openmp_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said, threads) -> None:
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", said)
    monkeypatch.setattr(launch, "cores", lambda: 4)
    launch.fork(2, lambda: (tmp_path / str(rank())).write_text(str(torch.get_num_threads())))
    assert [(tmp_path / str(number)).read_text() for number in range(2)] == [str(threads)] * 2
