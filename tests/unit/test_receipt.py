"""Receipts: a step is there whole or not at all, and what it depends on decides whether it is done."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any, Mapping

import pytest
from megatron_adapt.data import locking
from megatron_adapt.errors import ConfigError, DataError
from megatron_adapt.steps import receipt
from megatron_adapt.steps.receipt import BEGUN, NAME, Step
from megatron_adapt.steps.reporter import PipeReporter, Reporter


def make(folder: Path, **changes: Any) -> Step:
    """A step that writes a file and returns a metric."""

    def action(output: Path, reporter: Reporter) -> Mapping[str, Any]:
        output.mkdir(exist_ok=True)
        (output / "result").write_text("42")
        return {"answer": 42, "where": output}

    (folder / "in").mkdir(exist_ok=True)
    (folder / "in" / "text").write_text("hello")
    settings = {"lr": 0.1, "train": ["embedding", "output"], "optimizer": {"beta": 0.9, "eps": None}}
    fields: dict[str, Any] = {
        "name": "full", "verb": "train", "output": folder / "out" / "full", "action": action, "settings": settings,
        "inputs": {"start": folder / "in"},
    }  # fmt: skip
    return Step(**{**fields, **changes})


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def words(step: Step, known: Mapping[Path, str] | None = None) -> list[str]:
    return [text for text, _ in receipt.state(step, known).differences]


@pytest.mark.parametrize("resumable", [False, True])
def test_a_step_is_done_and_signed(tmp_path: Path, resumable: bool) -> None:
    step = make(tmp_path, resumable=resumable)
    assert not receipt.state(step).done
    receipt.perform(step, Reporter())
    assert receipt.state(step).done
    expected = {"full", "full/result", f"full/{NAME}"} | ({f"full/{BEGUN}"} if resumable else set())
    assert names(step.output.parent) == expected
    signed = receipt.read(step.output)
    assert signed is not None
    assert signed["metrics"]["answer"] == 42 and signed["settings"] == step.settings and signed["verb"] == "train"
    assert {"python", "torch"} <= signed["versions"].keys()


@pytest.mark.parametrize("resumable", [False, True])
def test_what_another_run_has_finished_meanwhile_stays(tmp_path: Path, resumable: bool) -> None:
    """Both found the step undone when they began; the second one came to it when the first one was through."""
    step = make(tmp_path, resumable=resumable)
    receipt.perform(step, Reporter())
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in names(tmp_path)}
    with pytest.raises(ConfigError, match="step 'full': another process has finished .*out/full since this one began. .* run the same"):
        receipt.perform(make(tmp_path, resumable=resumable, action=lambda output, reporter: pytest.fail("done twice")), Reporter())
    after = {name: (tmp_path / name).stat().st_mtime_ns for name in names(tmp_path)}
    assert before.keys() == after.keys()
    assert all(after[name] == before[name] for name in before if name.startswith("out/"))


@pytest.mark.parametrize("resumable", [False, True])
def test_two_runs_of_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resumable: bool) -> None:
    monkeypatch.setattr(locking, "PATIENCE", 0.2)

    def action(output: Path, reporter: Reporter) -> Mapping[str, Any]:
        output.mkdir(exist_ok=True)
        with pytest.raises(ConfigError, match="step 'full': another process is writing .*out/full. Wait for it or stop it"):
            receipt.perform(make(tmp_path, resumable=resumable), Reporter())
        assert output.is_dir()
        receipt.perform(make(tmp_path, output=tmp_path / "out" / "other"), Reporter())  # another place is free
        return {}

    receipt.perform(make(tmp_path, action=action, resumable=resumable), Reporter())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"full", "other"}
    (tmp_path / "out" / ".third.lock").touch()  # left by a process that was killed
    receipt.perform(make(tmp_path, output=tmp_path / "out" / "third"), Reporter())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"full", "other", "third"}


def test_a_difference_is_named(tmp_path: Path) -> None:
    receipt.perform(make(tmp_path), Reporter())
    changed = {"lr": 0.2, "train": ["embedding"], "optimizer": {"beta": 0.9}, "new": True}
    assert words(make(tmp_path, settings=changed)) == [
        "lr was 0.1, is now 0.2",
        "new was absent, is now True",
        "train was ['embedding', 'output'], is now ['embedding']",
    ]
    step = make(tmp_path)
    (tmp_path / "in" / "text").write_text("other")
    assert words(step) == ["the content of its input 'start' changed"]
    assert receipt.state(step).differences[0][1] == {tmp_path / "in"}
    assert words(make(tmp_path, inputs={"end": tmp_path / "in"})) == [
        "its input 'end' was absent, is now there",
        "its input 'start' was there, is now absent",
    ]


def test_a_setting_that_is_newer_than_a_receipt_changes_nothing_behind_it(tmp_path: Path) -> None:
    """None is what older versions did: neither the step nor one that takes its output is made again."""
    old = make(tmp_path)
    receipt.perform(old, Reporter())
    behind = make(tmp_path, output=tmp_path / "out" / "behind", inputs={"start": old.output})
    receipt.perform(behind, Reporter())
    state = receipt.state(make(tmp_path, settings={**old.settings, "sentinels": None}))
    assert state.done and not state.differences
    assert words(behind, {old.output: state.digest}) == []


def test_what_a_result_does_not_depend_on(tmp_path: Path) -> None:
    receipt.perform(make(tmp_path), Reporter())
    (tmp_path / "in").rename(tmp_path / "elsewhere")
    step = make(tmp_path, inputs={"start": tmp_path / "elsewhere"}, ranks=4)
    assert not words(step)
    os.utime(tmp_path / "elsewhere" / "text", (1, 1))
    assert not words(step)


def test_a_begun_step_is_continued_with_the_same_settings_only(tmp_path: Path) -> None:
    def interrupted(output: Path, reporter: Reporter) -> Mapping[str, Any]:
        (output / "step_1").mkdir()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        receipt.perform(make(tmp_path, resumable=True, action=interrupted), Reporter())
    assert not receipt.state(make(tmp_path, resumable=True)).done
    state = receipt.state(make(tmp_path, resumable=True, settings={"lr": 1}))
    assert state.word == "begun" and "lr was 0.1, is now 1" in [text for text, _ in state.differences]
    receipt.perform(make(tmp_path, resumable=True), Reporter())
    assert names(tmp_path / "out" / "full") == {BEGUN, NAME, "result", "step_1"}


def test_what_may_change_while_a_step_is_begun(tmp_path: Path) -> None:
    """Settings that it names, and inputs that come or go; nothing once it is done, nothing that it has read already."""

    def interrupted(output: Path, reporter: Reporter) -> Mapping[str, Any]:
        (output / "step_1").mkdir()
        raise KeyboardInterrupt

    def made(data: str, label: str, lr: float = 0.1, **changes: Any) -> Step:
        (tmp_path / "data").mkdir(exist_ok=True)
        settings = {"lr": lr, "data": {data: 1}, "corpora": {data: {"unique_tokens": None}}}
        return make(
            tmp_path, resumable=True, settings=settings, inputs={label: tmp_path / "data"}, adjustable=frozenset({"data"}), **changes
        )

    with pytest.raises(KeyboardInterrupt):
        receipt.perform(made("a", "a", action=interrupted), Reporter())
    assert words(made("b", "b")) == []
    assert words(made("b", "b", lr=1)) == ["lr was 0.1, is now 1"]
    (tmp_path / "data" / "text").write_text("other")
    assert words(made("a", "a")) == ["the content of its input 'a' changed"]
    receipt.perform(made("b", "b"), Reporter())
    assert words(made("b", "b")) == [] and "data.a was absent, is now 1" in words(made("a", "a"))


def test_what_is_made_again(tmp_path: Path) -> None:
    """A derived step replaces its own signed result, and that alone."""
    receipt.perform(make(tmp_path, derived=True), Reporter())
    other = make(tmp_path, derived=True, settings={"lr": 1})
    receipt.perform(other, Reporter())
    assert not words(other) and names(other.output.parent) & {".full.old", ".full.partial"} == set()
    shutil.rmtree(other.output)
    other.output.mkdir()
    (other.output / "mine").touch()
    with pytest.raises(ConfigError, match="no step has signed it"):
        receipt.perform(other, Reporter())


@pytest.mark.parametrize("resumable", [False, True])
@pytest.mark.parametrize("error", [DataError("bad"), KeyboardInterrupt(), RuntimeError("defect")])
def test_an_error_leaves_nothing_behind(tmp_path: Path, resumable: bool, error: BaseException) -> None:
    def fail(output: Path, reporter: Reporter) -> Mapping[str, Any]:
        output.mkdir(exist_ok=True)
        (output / "half").write_text("x")
        (output / "step_1.tmp").mkdir()
        raise error

    with pytest.raises(type(error)):
        receipt.perform(make(tmp_path, resumable=resumable, action=fail), Reporter())
    assert names(tmp_path / "out") == set()


def test_a_killed_step_begins_anew(tmp_path: Path) -> None:
    step = make(tmp_path)
    partial = step.output.with_name(".full.partial")
    partial.mkdir(parents=True)
    (partial / "rubbish").write_text("x")
    receipt.perform(step, Reporter())
    assert names(tmp_path / "out") == {"full", "full/result", f"full/{NAME}"}


def test_only_the_first_rank_signs(tmp_path: Path) -> None:
    step = make(tmp_path, action=lambda output, reporter: {}, ranks=2)
    receipt.perform(step, Reporter(), is_first_rank=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("resumable", [False, True])
def test_what_stands_in_the_way_is_kept(tmp_path: Path, resumable: bool) -> None:
    step = make(tmp_path, resumable=resumable)
    step.output.mkdir(parents=True)
    (step.output / "thesis").write_text("years of work")
    with pytest.raises(ConfigError, match=r"out/full exists, but no step has signed it \(receipt.json is missing\): move it away"):
        receipt.perform(step, Reporter())
    assert names(tmp_path / "out") == {"full", "full/thesis"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_place_that_cannot_be_written(tmp_path: Path, number: int) -> None:
    def fail(output: Path, reporter: Reporter) -> Mapping[str, Any]:
        raise OSError(number, os.strerror(number), "out/weights")

    with pytest.raises(ConfigError, match=rf"step 'full' cannot write out/weights: {os.strerror(number)}. Make room or correct"):
        receipt.perform(make(tmp_path, action=fail), Reporter())


def test_a_file_where_a_folder_is_needed(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigError, match="step 'full' cannot write .*out.*: (Not a directory|File exists)"):
        receipt.perform(make(tmp_path), Reporter())


def test_other_errors_of_the_system_are_defects(tmp_path: Path) -> None:
    def fail(output: Path, reporter: Reporter) -> Mapping[str, Any]:
        return {"text": (tmp_path / "forgotten").read_text()}

    with pytest.raises(FileNotFoundError):
        receipt.perform(make(tmp_path, action=fail), Reporter())


def test_a_damaged_receipt(tmp_path: Path) -> None:
    step = make(tmp_path)
    receipt.perform(step, Reporter())
    (step.output / NAME).write_text('{"step": ')
    with pytest.raises(ConfigError, match=r"out/full/receipt.json is not JSON \(.*\): delete .*out/full to repeat its step"):
        receipt.state(step)


# ------------------------------------------------------------------------------------------------------------ digests


def test_a_signed_folder_counts_by_what_it_was_made_from(tmp_path: Path) -> None:
    step = make(tmp_path)
    expected = receipt.state(step).digest
    receipt.perform(step, Reporter())
    assert receipt.digest(step.output) == expected == receipt.state(step).digest
    (step.output / "result").write_text("the same, written differently")
    assert receipt.digest(step.output) == expected


def test_a_later_step_is_known_before_the_earlier_one_is_done(tmp_path: Path) -> None:
    first = make(tmp_path)
    second = make(tmp_path, name="second", output=tmp_path / "out" / "second", inputs={"start": first.output})
    foreseen = receipt.state(second, {first.output: receipt.state(first).digest}).digest
    receipt.perform(first, Reporter())
    receipt.perform(second, Reporter())
    assert receipt.digest(second.output) == foreseen
    other = receipt.state(make(tmp_path, settings={"lr": 5})).digest
    assert words(second, {first.output: other}) == ["the content of its input 'start' changed"]


def test_digests_of_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    (tmp_path / "y").write_text("1")
    whole = receipt.digest(tmp_path / "a")
    assert receipt.digest(tmp_path / "a" / "x") == receipt.digest(tmp_path / "y")
    assert receipt.digest(tmp_path / "nothing") == "absent"
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "z")
    assert receipt.digest(tmp_path / "a") != whole  # a file's name matters within a folder
    monkeypatch.setattr(receipt, "_WHOLE", 100)
    monkeypatch.setattr(receipt, "_PART", 10)
    digests = set()
    for number, text in enumerate(["a" * 200, "b" + "a" * 199, "a" * 199 + "b", "a" * 201]):
        (tmp_path / f"large{number}").write_text(text)
        digests.add(receipt.digest(tmp_path / f"large{number}"))
    assert len(digests) == 4


def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("before")
    before = receipt.digest(file)
    file.write_text("later!")
    os.utime(file, ns=(1, 1))
    assert receipt.digest(file) != before


def test_several_files_count_in_their_order(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name)
    step = make(tmp_path, inputs={"corpus": (tmp_path / "a", tmp_path / "b")})
    receipt.perform(step, Reporter())
    assert words(make(tmp_path, inputs={"corpus": (tmp_path / "b", tmp_path / "a")}))
    assert step.places == (tmp_path / "a", tmp_path / "b")


# ---------------------------------------------------------------------------------------------------------- reporters


def test_reporters_speak_on_the_first_rank_only(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for number in ("1", "0"):
        monkeypatch.setenv("RANK", number)
        Reporter().log(f"rank {number}")
    assert capfd.readouterr().out == "rank 0\n"
    reader, writer = os.pipe()
    for number in ("1", "0"):
        monkeypatch.setenv("RANK", number)
        PipeReporter(writer).log(f"rank {number}")
        PipeReporter(writer).progress(int(number), 5)
    messages = [json.loads(line) for line in os.read(reader, 1000).splitlines()]
    assert messages == [{"log": "rank 0"}, {"progress": [0, 5]}]
    os.close(reader)
    os.close(writer)
