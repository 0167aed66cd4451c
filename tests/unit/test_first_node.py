"""What the other nodes hear of the first one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from megatron_adapt import nodes
from megatron_adapt.errors import DataError
from megatron_adapt.launch import Outcome, StepFailed
from megatron_adapt.nodes import FirstNode


def fail(output: Path, why: str) -> None:
    with pytest.raises(DataError), nodes.heard(output):
        raise DataError(why)


def test_it_works_and_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = FirstNode(tmp_path / "out")
    assert not first.has_stopped()  # it may begin later
    with nodes.heard(tmp_path / "out") as end:
        assert not first.has_stopped()
        end(Outcome())
    assert not first.has_stopped()  # its last step's receipt may not be visible yet
    monkeypatch.setattr(nodes, "SEEN_WITHIN", 0.0)
    assert first.has_stopped()


def test_it_was_asked_to_stop(tmp_path: Path) -> None:
    first = FirstNode(tmp_path)
    with nodes.heard(tmp_path) as end:
        end(Outcome(stopped=True))
    assert first.has_stopped()


def test_it_failed(tmp_path: Path) -> None:
    first = FirstNode(tmp_path)
    fail(tmp_path, "de.jsonl: line 3 is not JSON.")
    with pytest.raises(StepFailed, match="^the first node failed: de.jsonl: line 3 is not JSON.$"):
        first.has_stopped()


def test_of_a_command_its_own_words_count(tmp_path: Path) -> None:
    first = FirstNode(tmp_path)
    error = StepFailed("torchrun ended with exit code 1")
    error.cause = "the disk is full"
    with pytest.raises(StepFailed), nodes.heard(tmp_path):
        raise error
    with pytest.raises(StepFailed, match="^the first node failed: the disk is full$"):
        first.has_stopped()


def test_an_earlier_run_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(tmp_path, "old")
    first = FirstNode(tmp_path)
    assert not first.has_stopped()
    monkeypatch.setattr(nodes, "LATE", 0.0)
    with pytest.raises(StepFailed, match="has not begun within 0 s .*first-node.json.. Of an earlier run it said: failed: old"):
        first.has_stopped()
    with nodes.heard(tmp_path):
        assert not first.has_stopped()


def test_it_failed_before_this_one_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("JOB_ID", "17"), ("STEP_ID", "0")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    fail(tmp_path, "at once")
    with pytest.raises(StepFailed, match="^the first node failed: at once$"):
        FirstNode(tmp_path).has_stopped()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert not FirstNode(tmp_path).has_stopped()


def test_it_falls_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "BEAT", 0.01)
    monkeypatch.setattr(nodes, "SILENT", 0.3)
    first = FirstNode(tmp_path)
    with nodes.heard(tmp_path):
        until = time.monotonic() + 0.6
        while time.monotonic() < until:
            assert not first.has_stopped()  # it goes on giving signs
            time.sleep(0.02)
        alive = (tmp_path / ".first-node.json").read_text()
    (tmp_path / ".first-node.json").write_text(alive)  # as if it had been killed
    first.has_stopped()
    time.sleep(0.4)
    with pytest.raises(StepFailed, match="the first node has given no sign of life for 0 s"):
        first.has_stopped()
