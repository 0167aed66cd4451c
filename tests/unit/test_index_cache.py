"""What is computed once and stored: used again, never mistaken for another, and nobody waits for the dead."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from test_sampling import corpus

from megatron_adapt import _C
from megatron_adapt.data import index_cache
from megatron_adapt.data.index_cache import load_or_build
from megatron_adapt.data.sampling import Passes, SampleOrder

ARRAY = np.arange(5)


def build_never() -> np.ndarray:
    raise AssertionError("computed although it is stored")


def anything(array: np.ndarray) -> bool:
    return True


def stored(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_computed_once(tmp_path):
    path, old = tmp_path / "c.order" / "a", tmp_path / "old"
    old.touch()
    assert load_or_build(path, lambda: ARRAY, anything, obsolete=old).tolist() == ARRAY.tolist()
    assert not old.exists() and stored(path.parent) == ["a", "lock"]
    assert load_or_build(path, build_never, anything).tolist() == ARRAY.tolist()
    assert load_or_build(path, lambda: ARRAY + 1, lambda array: array[0] == 1).tolist() == (ARRAY + 1).tolist()
    (path.parent / "a.elsewhere.123.tmp").touch()  # of a process that was killed
    for content in (b"", path.read_bytes()[:-1], b"damaged"):
        path.write_bytes(content)
        assert load_or_build(path, lambda: ARRAY, anything).tolist() == ARRAY.tolist()
        assert load_or_build(path, build_never, anything).tolist() == ARRAY.tolist()
    assert stored(path.parent) == ["a", "lock"]


def test_where_nothing_can_be_stored(tmp_path):
    """A corpus in a folder that is only readable; here a file is in the way, which stops the superuser as well."""
    (tmp_path / "c.order").touch()
    assert load_or_build(tmp_path / "c.order" / "a", lambda: ARRAY, anything) is ARRAY
    (tmp_path / "d.order" / "a").mkdir(parents=True)
    assert load_or_build(tmp_path / "d.order" / "a", lambda: ARRAY, anything) is ARRAY
    assert stored(tmp_path / "d.order") == ["a", "lock"]


def test_no_locks_on_this_file_system(tmp_path, monkeypatch):
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert load_or_build(tmp_path / "c.order" / "a", lambda: ARRAY, anything) is ARRAY
    assert load_or_build(tmp_path / "c.order" / "a", build_never, anything).tolist() == ARRAY.tolist()


def test_many_processes_compute_it_once(tmp_path):
    path, log = tmp_path / "c.order" / "a", tmp_path / "log"

    def build() -> np.ndarray:
        with log.open("a") as stream:
            stream.write("x")
        time.sleep(0.2)
        return ARRAY

    children = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            os._exit(0 if load_or_build(path, build, anything).tolist() == ARRAY.tolist() else 1)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 4
    assert log.read_text() == "x"


def holder(folder: Path) -> int:
    """A process that computes for ever."""
    (folder / "c.order").mkdir()
    pid = os.fork()
    if pid == 0:

        def build() -> np.ndarray:
            (folder / "began").touch()
            time.sleep(60)
            return ARRAY

        load_or_build(folder / "c.order" / "a", build, anything)
        os._exit(1)
    while not (folder / "began").exists():
        time.sleep(0.01)
    return pid


def test_nobody_waits_for_the_dead(tmp_path):
    pid = holder(tmp_path)
    waiting = os.fork()
    if waiting == 0:
        os._exit(0 if load_or_build(tmp_path / "c.order" / "a", lambda: ARRAY, anything) is ARRAY else 1)
    time.sleep(0.1)
    assert os.waitpid(waiting, os.WNOHANG) == (0, 0)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    began = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(waiting, 0)[1]) == 0 and time.monotonic() - began < 5


def test_nobody_waits_for_ever(tmp_path, monkeypatch):
    pid = holder(tmp_path)
    monkeypatch.setattr(index_cache, "PATIENCE", 0.1)
    try:
        assert load_or_build(tmp_path / "c.order" / "a", lambda: ARRAY, anything) is ARRAY
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


# ---------------------------------------------------------------------------------------------- the index of an order


def test_the_index_is_stored_for_everything_that_matters(tmp_path):
    lengths = [5, 7, 20, 1]
    folder = tmp_path / "c.order"

    def files(*arguments: object, documents: list[int] = lengths, length: int = 4) -> set[str]:
        SampleOrder(corpus(tmp_path, documents), length, *arguments).tokens(0)
        return set(stored(folder)) - {"lock"}

    one = files(0, "x")
    assert len(one) == 1 and files(0, "x") == one
    assert files(0, "x", length=5) == one  # the length of samples does not change the order of documents
    found = one
    for others in (
        lambda: files(1, "x"), lambda: files(0, "y"), lambda: files(0, "x", Passes(30)), lambda: files(0, "x", Passes(29)),
        lambda: files(0, "x", Passes(None, 2)), lambda: files(0, "x", documents=[7, 5, 20, 1]),
    ):  # fmt: skip
        assert found < (now := others())
        found = now


def test_built_beforehand_for_any_length(tmp_path, monkeypatch):
    reader = corpus(tmp_path, [5, 7, 20, 1])
    SampleOrder(reader, 1, 3, "german", Passes(30, 2)).build()
    before = stored(tmp_path / "c.order")
    expected = SampleOrder(reader, 4, 3, "german", Passes(30, 2)).tokens(0).tolist()
    assert len(before) == 3 and stored(tmp_path / "c.order") == before  # the lock, the subset, the first span
    monkeypatch.setattr("megatron_adapt._C.DocumentOrder.starts", lambda self: pytest.fail("built again"))
    assert SampleOrder(reader, 4, 3, "german", Passes(30, 2)).tokens(0).tolist() == expected


def test_the_disk_does_not_fill_with_epochs(tmp_path):
    reader = corpus(tmp_path, [50] * 100)
    order = SampleOrder(reader, 100, 0)
    for sample in range(0, 50 * 12, 7):
        order.tokens(sample)
        assert len(stored(tmp_path / "c.order")) <= 3 and len(order._spans) <= 2
    assert order.tokens(0).tolist() == SampleOrder(reader, 100, 0).tokens(0).tolist()  # back at the first


def test_a_damaged_index_never_gives_wrong_data(tmp_path):
    reader = corpus(tmp_path, [50] * 500)
    expected = SampleOrder(reader, 100, 0).tokens(7).tolist()
    (path,) = (tmp_path / "c.order").glob("*.0")
    content = path.read_bytes()
    for place in range(0, len(content), 3):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert SampleOrder(reader, 100, 0).tokens(7).tolist() == expected
    other = load_or_build(path.with_name("other"), lambda: np.arange(9), anything)  # whole, but not an index of this
    path.with_name("other").replace(path)
    assert SampleOrder(reader, 100, 0).tokens(7).tolist() == expected and len(other) == 9


def test_an_index_of_another_order_is_refused():
    sizes = np.arange(500)
    one, two = (_C.DocumentOrder(sizes, 1, key, None, 0) for key in (1, 2))
    with pytest.raises(ValueError, match="tokens 124749 to 124751 of a stream of 124750"):
        one.pieces(one.starts(), 124_749, 124_751)
    wrong = one.starts()
    wrong[3] += 1
    for starts in (two.starts(), wrong[:-1], wrong + 1, wrong):
        with pytest.raises(ValueError, match="the index of the order of documents is damaged or belongs to another corpus"):
            one.pieces(starts, 0, int(starts[-1]))
