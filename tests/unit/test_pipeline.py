"""What remains of a plan, which commands do it, and how a run goes through it; the steps here are trivial ones."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Mapping

import pytest
import tiny
from megatron_adapt import launch, nodes, pipeline, plan, recipe
from megatron_adapt.errors import ConfigError
from megatron_adapt.launch import Outcome
from megatron_adapt.nodes import FirstNode
from megatron_adapt.plan import Plan
from megatron_adapt.steps import receipt
from megatron_adapt.steps.receipt import BEGUN, Step
from megatron_adapt.steps.reporter import Reporter


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny.corpora(tmp_path)
    return tmp_path


def step(name: str, *inputs: str, verb: str = "swap", action: Callable[[], Any] | None = None, **settings: Any) -> Step:
    """A step that writes its settings and what it finds in its inputs."""

    def write(output: Path, reporter: Reporter) -> Mapping[str, Any]:
        found = action() if action else None
        texts = [(Path(place) / "text").read_text() for place in inputs]
        output.mkdir(exist_ok=True)
        (output / "text").write_text(json.dumps([settings, texts]))
        reporter.log(f"wrote {name}")
        return {"found": found}

    places = {place: Path(place) for place in inputs}
    return Step(name, verb, Path(name), write, settings, places)


def three(**settings: Any) -> Plan:
    """a -> b -> c, and d from nothing; the settings are those of a."""
    loaded = recipe.load([tiny.write(Path("."), tiny.recipe())])
    return Plan(loaded, [step("a", **settings), step("b", "a"), step("c", "b"), step("d")])


def names(steps: list[Step]) -> list[str]:
    return [one.name for one in steps]


def run(built: Plan, view: pipeline.View | None = None) -> Outcome:
    return pipeline.run(pipeline.remaining(built), view or pipeline.View())


# ---------------------------------------------------------------------------------------------------- what remains


def test_a_run_does_what_remains_once(capfd: pytest.CaptureFixture[str]) -> None:
    assert names(pipeline.remaining(three(x=1))) == ["a", "b", "c", "d"]
    assert run(three(x=1)) == Outcome()
    assert Path("c/text").exists() and pipeline.remaining(three(x=1)) == []
    out = capfd.readouterr().out
    assert [out.index(part) for part in ("[1/4] a (swap)", "wrote a", "done in", "-> a\n", "[2/4] b")] == sorted(
        out.index(part) for part in ("[1/4] a (swap)", "wrote a", "done in", "-> a\n", "[2/4] b")
    )


def test_a_change_names_its_cause_and_all_that_follows_from_it() -> None:
    run(three(x=1))
    with pytest.raises(ConfigError) as caught:
        pipeline.remaining(three(x=2))
    assert str(caught.value) == (
        "step 'a' was finished with other settings or inputs: x was 1, is now 2. "
        "To redo it, delete these, or choose another output: a b c"
    )


def test_several_changes_are_told_one_a_line() -> None:
    def built(value: int) -> Plan:
        plan = three(x=value)
        plan.steps[3] = step("d", y=value)
        return plan

    run(built(1))
    with pytest.raises(ConfigError) as caught:
        pipeline.remaining(built(2))
    assert str(caught.value).splitlines() == [
        "step 'a' was finished with other settings or inputs: x was 1, is now 2.",
        "step 'd' was finished with other settings or inputs: y was 1, is now 2.",
        "To redo it, delete these, or choose another output: a b c d",
    ]


def test_what_is_derived_follows_an_extension() -> None:
    """Report and exported model are made again of what is now the end; with a change of their own they are refused."""

    def built(last: str, **settings: Any) -> Plan:
        plan = three(x=1)
        plan.steps[3] = replace(step("d", last, **settings), inputs={"end": Path(last)}, derived=True)
        return plan

    run(built("b"))
    assert names(pipeline.remaining(built("c"))) == ["d"]
    run(built("c"))
    assert pipeline.remaining(built("c")) == [] and json.loads(Path("d/text").read_text())[1] == [Path("c/text").read_text()]
    with pytest.raises(ConfigError, match="step .d. was finished with other settings or inputs: .*y was absent, is now 1"):
        pipeline.remaining(built("c", y=1))


def test_a_model_of_other_phases_does_not_take_the_place_of_the_one_before() -> None:
    """One of more phases does; one of another method, of a phase with another name, or of fewer is refused, with what it was."""

    def built(*phases: str) -> Plan:
        plan = three(x=1)
        settings = {"trained": {str(number): name for number, name in enumerate(phases, 1)}} if phases else {}
        settings["dtype"] = "keep"
        plan.steps[3] = replace(step("d", **settings), inputs={"checkpoint": Path(phases[-1] if phases else "a")}, derived=True, growing="trained")
        return plan

    run(built())
    assert names(pipeline.remaining(built("a"))) == []  # receipts of before there was such a setting
    assert names(pipeline.remaining(built("a", "b"))) == ["d"]
    shutil.rmtree("d")
    run(built("a", "b"))
    assert names(pipeline.remaining(built("a", "b", "c"))) == ["d"]
    for others, words in ((("a", "c"), "trained.2 was b, is now c"), (("a",), "trained.2 was b, is now absent"), (("c", "a", "b"), "trained.1 was a, is now c")):
        with pytest.raises(ConfigError, match=f"step 'd' was finished with other settings or inputs: {words}.* another output: d$"):
            pipeline.remaining(built(*others))


def test_another_method_or_phase_leaves_the_model_of_the_one_before() -> None:
    def built(*changes: str) -> Plan:
        return plan.build(recipe.load([Path("recipe.yaml")], changes))

    tiny.write(Path("."), tiny.recipe())
    for each in built().steps:
        receipt.perform(replace(each, action=lambda folder, reporter: {}), Reporter())
    assert pipeline.remaining(built()) == []
    for change, words in (
        ("vocabulary.method=mean", "trained.1 was copy/embeddings, is now mean/embeddings; trained.2 was copy/full, is now mean/full"),
        ("phases.full.name=other", "trained.2 was copy/full, is now copy/other"),
    ):
        with pytest.raises(ConfigError, match=f"step 'export' was finished with other settings or inputs: .*{words}(.|\n)*another output: out/model$"):
            pipeline.remaining(built(change))
    more = tiny.recipe()["phases"] + [tiny.phase("more", 2)]
    assert names(pipeline.remaining(built(f"phases={json.dumps(more)}"))) == ["copy/more", "evaluation/copy-more", "export", "report"]


def test_what_is_derived_follows_inputs_that_go() -> None:
    """A method that is compared no more, or one that is new, takes nothing but a new report."""

    def built(*stages: str) -> Plan:
        plan = three(x=1)
        plan.steps[3] = replace(step("d"), inputs={stage: Path(stage) for stage in stages}, derived=True)
        return plan

    run(built("b", "c"))
    for stages in (["b"], ["b", "a"]):
        assert names(pipeline.remaining(built(*stages))) == ["d"]
        run(built(*stages))
        assert pipeline.remaining(built(*stages)) == []


def test_following_the_advice_redoes_all_of_it() -> None:
    """What was made from an old result must never pass for made from the new one."""
    run(three(x=1))
    for name in "ab":
        for file in Path(name).iterdir():
            file.unlink()
        Path(name).rmdir()
    with pytest.raises(ConfigError, match="step 'c' was finished .*: the content of its input 'b' changed.* output: c$"):
        pipeline.remaining(three(x=2))
    assert names(pipeline.remaining(three(x=1))) == ["a", "b"]  # the same again: c is still right
    for file in Path("c").iterdir():
        file.unlink()
    Path("c").rmdir()
    run(three(x=2))
    assert json.loads(Path("c/text").read_text())[1] == [Path("b/text").read_text()]
    assert '"x": 2' in Path("b/text").read_text().replace("\\", "")


def test_a_file_that_changed() -> None:
    Path("corpus").mkdir()
    (Path("corpus") / "text").write_text("before")
    built = three()
    built.steps[3] = step("d", "corpus")
    run(built)
    (Path("corpus") / "text").write_text("after")
    with pytest.raises(ConfigError, match="'d' was finished .*: the content of its input 'corpus' changed. To redo it, .*: d$"):
        pipeline.remaining(built)


def test_only_what_can_be_done_now_is_ready() -> None:
    built = three()
    undone = pipeline.remaining(built)
    assert names(pipeline.ready(undone, undone)) == ["a", "b", "c", "d"]
    assert names(pipeline.ready([built.steps[0], built.steps[2]], undone)) == ["a"]
    with pytest.raises(ConfigError, match=r"step 'c' needs 'b', not done yet: do that first, or everything with run"):
        pipeline.ready([built.steps[2]], undone)
    assert pipeline.ready([], undone) == []


# ------------------------------------------------------------------------------------------------------- how it ends


def test_a_run_that_is_asked_to_stop_stops(capfd: pytest.CaptureFixture[str]) -> None:
    """Before training there is nothing to save: the step is repeated."""
    built = three()
    built.steps[1] = step("b", "a", action=lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert run(built).stopped
    assert "stopped; b begins again with the same command" in capfd.readouterr().out
    assert sorted(path.name for path in Path(".").iterdir() if path.is_dir()) == ["a"]
    built.steps[1] = step("b", "a")
    assert not run(built).stopped


def test_a_step_that_was_just_done_is_the_last_one(capfd: pytest.CaptureFixture[str]) -> None:
    """The signal came to the parent when the rank had nothing left to do."""
    built = three()
    parent = os.getpid()

    def ask() -> None:
        for number in launch.SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        os.kill(parent, signal.SIGTERM)

    built.steps[0] = step("a", action=ask)
    assert run(built).stopped
    assert "stopped; a is done, the same command goes on" in capfd.readouterr().out
    assert names(pipeline.remaining(built)) == ["b", "c", "d"]


def test_an_error_ends_the_run_and_leaves_what_is_done() -> None:
    built = three()

    def fail() -> None:
        raise ConfigError("the tokenizer is broken.")

    built.steps[1] = step("b", "a", action=fail)
    with pytest.raises(ConfigError, match="the tokenizer is broken"):
        run(built)
    assert names(pipeline.remaining(built)) == ["b", "c", "d"]
    assert sorted(path.name for path in Path(".").iterdir() if path.is_dir()) == ["a"]


def test_under_torchrun_a_step_runs_right_here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    pids: list[int] = []
    built = three()
    built.steps[0] = step("a", action=lambda: pids.append(os.getpid()))
    run(built)
    assert pids == [os.getpid()]
    assert "wrote a" in capfd.readouterr().out


def test_other_ranks_are_silent(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "1")
    built = three()
    pipeline.run(built.steps[:1], pipeline.View())
    assert capfd.readouterr().out == ""


def test_too_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="step 'a' runs as 1 processes, but 2 were started"):
        run(three())
    assert not Path("a").exists()


# -------------------------------------------------------------------------------------------------------- commands


def test_commands_of_a_plan() -> None:
    built = plan.build(recipe.load([tiny.write(Path("."), tiny.recipe())]))
    words = ["my recipe.yaml", "name=a b"]
    lines = {one.name: pipeline.command(one, words) for one in built.steps}
    assert lines["copy/swap"] == "megatron-adapt swap 'my recipe.yaml' 'name=a b' --step copy/swap"
    assert lines["copy/full"] == (
        "torchrun --standalone --nproc-per-node 2 -m megatron_adapt train 'my recipe.yaml' 'name=a b' --step copy/full"
    )
    here = pipeline.interpreter_command(built.step("copy/full"), words)
    assert here[1:] == [
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "megatron_adapt", "train",
        "my recipe.yaml", "name=a b", "--step", "copy/full",
    ]  # fmt: skip
    assert pipeline.interpreter_command(built.step("export"), words)[1:4] == ["-m", "megatron_adapt", "export"]


def test_commands_for_several_nodes() -> None:
    built = plan.build(recipe.load([tiny.write(Path("."), tiny.recipe())], ["parallel.pipeline=2"]))
    line = pipeline.command(built.step("copy/full"), ["r.yaml"], pipeline.Nodes(2))
    assert line == (
        "torchrun --nnodes 2 --node-rank $NODE_RANK --master-addr $MASTER_ADDR --master-port $MASTER_PORT "
        "--nproc-per-node 2 -m megatron_adapt train r.yaml --step copy/full"
    )
    assert "$NODE_RANK" in shlex.split(line)
    assert pipeline.command(built.step("export"), ["r.yaml"], pipeline.Nodes(2)) == "megatron-adapt export r.yaml --step export"


def test_with_torchrun_a_step_is_a_command() -> None:
    """The command's ranks end with 0 after they have saved: that the step is not signed tells that they stopped."""
    built = three()
    built.steps[1] = step("b", "a", verb="train")
    script = "import sys; print(sys.argv)"
    steps = pipeline.remaining(built)
    outcome = pipeline.run(steps, pipeline.View(), lambda one: ["python", "-c", script, one.name])
    assert outcome.stopped
    assert names(pipeline.remaining(built)) == ["b", "c", "d"]


def test_a_command_that_fails() -> None:
    built = three()
    built.steps[0] = step("a", verb="train")
    with pytest.raises(launch.StepFailed, match="python -c raise SystemExit.3. ended with exit code 3"):
        pipeline.run(built.steps, pipeline.View(), lambda one: ["python", "-c", "raise SystemExit(3)"])


# ------------------------------------------------------------------------------------------------------------- view


def test_where_everything_lies(capfd: pytest.CaptureFixture[str]) -> None:
    built = three()
    pipeline.View().finished(built)
    assert capfd.readouterr().out == "everything of 'tiny' is done.\n"
    for path in ("out/model", "out/report/report.md", "out/tensorboard"):
        Path(path).mkdir(parents=True)
    pipeline.View().finished(built, "train")
    out = capfd.readouterr().out.splitlines()
    assert out[0] == "every 'train' step of 'tiny' is done."
    assert [line.split()[-1] for line in out[1:]] == ["out/model", "out/report/report.md", "out/tensorboard"]
    pipeline.View().finished(built, "train", "copy/full")
    assert capfd.readouterr().out.startswith("step 'copy/full' of 'tiny' is done.")


def test_messages_are_shown_as_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    """What looks like rich's markup in a corpus or path is text."""
    view = pipeline.View()
    view.message({"log": "skipped [bold]a[/bold].jsonl:3"})
    view.message({"progress": [1, 2]})
    view.message({"progress": [2, 2]})
    view.done(step("[x]"), 1.25)
    out = capfd.readouterr().out
    assert "skipped [bold]a[/bold].jsonl:3" in out
    assert "done in 1.2 s -> [x]" in out


# -------------------------------------------------------------------------------------------------- one of several nodes


def test_another_node_says_a_line_for_each_step(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "SEEN_WITHIN", 0.0)
    built = three()
    run(built)
    a, b, c, d = built.steps
    several = pipeline.Nodes(2, "1", "localhost", "29400")
    capfd.readouterr()

    def rest(steps: list[Step], code: int) -> list[str]:
        view = pipeline.NodeView(several)
        outcome = pipeline.run(steps, view, lambda step: ["sh", "-c", f"exit {code}"], FirstNode(Path(".")))
        assert outcome.stopped == (code != 0)
        if not outcome.stopped:
            view.finished(built)
        said = capfd.readouterr()
        assert said.err == ""
        return said.out.splitlines()

    steps = [a, replace(b, ranks=4, verb="train"), replace(c, ranks=2, verb="evaluate"), d]
    assert rest(steps, 0) == [
        "[node 1] [1/4] a (swap): waits for node 0",
        "[node 1] [2/4] b (train): runs ranks 2 to 3 of 4",
        "[node 1] [3/4] c (evaluate): runs rank 1 of 2",
        "[node 1] [4/4] d (swap): waits for node 0",
        "[node 1] done",
    ]
    (Path("b") / "receipt.json").unlink()
    (Path("b") / BEGUN).write_text("")
    assert rest(steps[1:], launch.STOPPED) == [
        "[node 1] [1/3] b (train): runs ranks 2 to 3 of 4",
        "[node 1] stopped; b continues from its last checkpoint with the same command",
    ]
    monkeypatch.setattr(pipeline, "SEEN_WITHIN", 60.0)
    heard = FirstNode(Path("."))
    with nodes.heard(Path(".")) as end:
        end(Outcome(stopped=True))
    monkeypatch.setattr(pipeline.time, "sleep", lambda seconds: pytest.fail("the first node has said that it was stopped"))
    # It alone was asked: this node's ranks have saved and left with the others, as after a step that is done.
    assert pipeline.run(steps[1:], pipeline.NodeView(several), lambda step: ["true"], heard).stopped
    assert "stopped; b continues from its last checkpoint" in capfd.readouterr().out
