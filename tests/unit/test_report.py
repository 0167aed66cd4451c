"""The table, notes and curves of a run, from hand-made measurements."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny
from megatron_adapt import recipe
from megatron_adapt.analysis import report
from megatron_adapt.analysis.report import Curve, Measured
from megatron_adapt.plan import Stage
from megatron_adapt.steps import report as step
from megatron_adapt.steps.reporter import Reporter

BASE = Measured("base", "before", {"german": 7.0, "english": 2.0})
COPY = [
    Measured("copy", "vocabulary swapped", {"german": 6.0, "english": 5.0}),
    Measured("copy", "phase embeddings", {"german": 4.0, "english": 4.5}),
    Measured("copy", "phase full", {"german": 2.0, "english": 2.5}),
]
RANDOM = [Measured("random", one.title, {name: value + 1 for name, value in one.bits_per_byte.items()}) for one in COPY]


def row(step: int, tokens: int, **more: float) -> dict[str, float]:
    return {"step": step, "tokens": tokens, "loss": 3.0 / step, "tokens_per_second": 1000.0 * step, **more}


def curves(branch: str) -> list[Curve]:
    return [
        Curve(branch, "embeddings", [row(1, 100), row(2, 200, **{"held_out/german": 5.0}), row(3, 300, **{"held_out/german": 4.0})]),
        Curve(branch, "full", [row(1, 100), row(2, 200)]),
    ]


def test_one_branch_has_a_column_for_each_corpus() -> None:
    header, rows = report.table([BASE, *COPY], ["german", "english"])
    assert header == ["stage", "german", "english"]
    assert rows == [
        ["before", "7.000", "2.000"],
        ["vocabulary swapped", "6.000", "5.000"],
        ["phase embeddings", "4.000", "4.500"],
        ["phase full", "2.000", "2.500"],
    ]


def test_several_branches_stand_side_by_side() -> None:
    header, rows = report.table([BASE, *COPY, *RANDOM[:2]], ["german"])
    assert header == ["stage", "german (copy)", "german (random)"]
    assert rows == [
        ["before", "7.000", "7.000"],  # the base is that of both
        ["vocabulary swapped", "6.000", "7.000"],
        ["phase embeddings", "4.000", "5.000"],
        ["phase full", "2.000", ""],
    ]


def test_markdown() -> None:
    header, rows = report.table([BASE, *COPY], ["german", "english"])
    text = report.markdown("my run", header, rows, report.training_notes(curves("copy")))
    assert text.startswith("# my run\n\nBits per byte on held-out text")
    assert "| stage | german | english |\n| --- | --- | --- |\n| before | 7.000 | 2.000 |\n" in text
    assert "![curves](report.png)" in text
    assert "| copy/embeddings | 3 | 300 | 1.0000 | 2,000 |\n| copy/full | 2 | 200 | 1.5000 | 2,000 |\n" in text


def test_notes_leave_out_what_trained_nothing() -> None:
    assert len(report.training_notes([Curve("copy", "full", [])])) == 2


def test_points_of_a_curve() -> None:
    """Stages and evaluations while training, by the tokens trained so far; each phase's end is a bound."""
    x, y, bounds = report._points("copy", "german", curves("copy"), [BASE, *COPY])
    assert (x, y) == ([0, 200, 300, 500], [6.0, 5.0, 4.0, 2.0])
    assert bounds == [300, 500]
    x, y, _ = report._points("copy", "english", curves("copy"), [BASE, *COPY])
    assert (x, y) == ([0, 300, 500], [5.0, 4.5, 2.5])


def test_without_a_swap_a_curve_begins_at_the_base() -> None:
    measured = [BASE, Measured("adapted", "phase full", {"german": 3.0})]
    x, y, _ = report._points("adapted", "german", [Curve("adapted", "full", [row(1, 50)])], measured)
    assert (x, y) == ([0, 50], [7.0, 3.0])


@pytest.mark.parametrize("corpora", [["german"], ["german", "english"]])
def test_plot(tmp_path: Path, corpora: list[str]) -> None:
    report.plot([*curves("copy"), *curves("random")], [BASE, *COPY, *RANDOM], corpora, tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) > 10_000


def test_a_run_without_held_out_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = recipe.load([tiny.write(tmp_path, tiny.recipe())], ["evaluation.corpora=[]"])
    folder = tmp_path / "copy" / "full"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(json.dumps(row(1, 100)) + "\n")
    assert step.run(loaded, [], tmp_path, {"copy/full": folder}, tmp_path / "report", Reporter()) == {}
    text = (tmp_path / "report" / "report.md").read_text()
    assert text.startswith("# tiny\n\nNo held-out text to evaluate on.\n") and "| copy/full | 1 | 100 |" in text
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"report.md"}


def test_a_run_with_held_out_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = recipe.load([tiny.write(tmp_path, tiny.recipe())], ["evaluation.corpora=[german]"])
    stages = [Stage("base", "before", tmp_path, "evaluation/base"), Stage("copy", "phase full", tmp_path, "evaluation/copy-full")]
    for stage, bits in zip(stages, (7.0, 3.5)):
        (tmp_path / stage.step).mkdir(parents=True)
        metrics = {"german": {"bits_per_byte": bits, "token_loss": bits / 2, "document_loss": bits / 4}}
        (tmp_path / stage.step / "receipt.json").write_text(json.dumps({"metrics": metrics}))
    result = step.run(loaded, stages, tmp_path, {}, tmp_path / "report", Reporter())
    assert result["table"] == [["stage", "german"], ["before", "7.000"], ["phase full", "3.500"]]
    assert capsys.readouterr().out.splitlines()[1:] == ["stage       german", "before       7.000", "phase full   3.500"]
    assert (tmp_path / "report" / "report.png").exists()
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| base: before | german | 3.5000 | 1.7500 |\n| copy: phase full | german | 1.7500 | 0.8750 |\n" in text


def test_spikes_are_told() -> None:
    events = [
        {"phase": "full", "step": 1200, "spike": "loss 9, 3 times the mean of the last 100 steps", "action": "skip"},
        {"phase": "full", "step": 1300, "spike": "loss nan and gradient norm nan", "action": "rollback"},
    ]
    assert report.event_notes(events) == [
        "", "Spikes of the loss:", "",
        "- phase full, step 1,200: loss 9, 3 times the mean of the last 100 steps; update left out",
        "- phase full, step 1,300: loss nan and gradient norm nan; rolled back, data left out",
    ]  # fmt: skip
    assert report.event_notes([]) == []


def test_the_history_of_the_data() -> None:
    """What a phase drew of each corpus, stretch by stretch."""
    first = {"steps": [0, 2], "tokens": [0, 512], "samples": {"a": 16, "b": 0}, "settings": {"data": {"a": 3.0}}}
    second = {"steps": [2, 1002], "tokens": [512, 3512], "samples": {"b": 1500}, "settings": {"data": {"a": 0.5, "b": 1.0}}}
    lines = report.data_notes({"copy/full": [first, second], "copy/none": []})
    assert lines[-2:] == [
        "| copy/full | 1 to 2 | 512 | a 3 | a 16 |",
        "| copy/full | 3 to 1,002 | 3,000 | a 0.5, b 1 | b 1,500 |",
    ]
    assert report.data_notes({}) == []
