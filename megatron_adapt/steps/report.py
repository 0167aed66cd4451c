"""All evaluations and curves of a run -> table in the terminal, report.md, report.png."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Mapping, Sequence

from megatron_adapt import recipe as recipes
from megatron_adapt.analysis import report
from megatron_adapt.config import Recipe
from megatron_adapt.steps.receipt import read
from megatron_adapt.steps.reporter import Reporter


def run(
    recipe: Recipe, stages: Sequence[Any], root: Path, curves: Mapping[str, Path], output: Path, reporter: Reporter,
    asked: Mapping[str, Path] = {}, filtered: Mapping[str, Path] = {},
) -> dict[str, Any]:  # fmt: skip
    """``stages`` have ``branch``, ``title`` and ``step`` (a folder below ``root`` with a signed evaluation); ``asked``: folders with
    answers to tasks, by when they were given; ``filtered``: folders of clean corpora, by name."""
    output.mkdir(parents=True, exist_ok=True)
    corpora = recipes.evaluated_corpora(recipe)
    measured = []
    for stage in stages:
        metrics = read(root / stage.step)["metrics"]
        bits = {name: metrics[name]["bits_per_byte"] for name in corpora}
        losses = {name: (metrics[name]["token_loss"], metrics[name]["document_loss"]) for name in corpora if "token_loss" in metrics[name]}
        measured.append(report.Measured(stage.branch, stage.title, bits, losses))
    phases = []
    for name, folder in curves.items():
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        phases.append(report.Curve(*name.split("/", 1), rows))
    receipts = [read(folder) for folder in curves.values()]
    events = [event for receipt in receipts if receipt for event in receipt["metrics"].get("events", [])]
    trained = {name: receipt["metrics"].get("trained", []) for name, receipt in zip(curves, receipts) if receipt}
    tasks = {when: read(folder)["metrics"]["tasks"] for when, folder in asked.items()}
    cleaned = report.filter_notes({name: read(folder)["metrics"] for name, folder in filtered.items()})
    notes = report.training_notes(phases) + report.data_notes(trained) + report.event_notes(events) + cleaned
    if not measured:
        lines = [f"# {recipe.name}", "", "No held-out text to evaluate on.", "", *report.task_notes(tasks), *notes, ""]
        (output / "report.md").write_text("\n".join(lines))
        _show("answers", *report.task_table(tasks), reporter)
        return {}
    header, rows = report.table(measured, corpora)
    (output / "report.md").write_text(report.markdown(recipe.name, header, rows, [*report.task_notes(tasks), *report.loss_notes(measured), *notes]))
    report.plot(phases, measured, corpora, output / "report.png")
    _show("bits per byte on held-out text", header, rows, reporter)
    _show("answers", *report.task_table(tasks), reporter)
    return {"table": [header, *rows]}


def _show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], reporter: Reporter) -> None:
    if not rows:
        return
    reporter.log(title)
    for line in report.columns(header, rows):
        reporter.log(line)
