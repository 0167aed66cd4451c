"""Bits per byte of every stage of a run as a table, and the training curves as a picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence


@dataclass(frozen=True)
class Measured:
    """A stage of a branch with its bits per byte by corpus. The branch ``base`` precedes all others.

    ``losses``: by corpus, per token and per document.
    """

    branch: str
    title: str
    bits_per_byte: Mapping[str, float]
    losses: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Curve:
    """Metrics of one phase: rows of metrics.jsonl."""

    branch: str
    phase: str
    rows: Sequence[Mapping[str, float]]


def table(measured: Sequence[Measured], corpora: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): one row for each stage, one column for each corpus and branch."""
    branches = list(dict.fromkeys(stage.branch for stage in measured if stage.branch != "base"))
    header = ["stage"] + [f"{corpus} ({branch})" if len(branches) > 1 else corpus for corpus in corpora for branch in branches]
    rows = []
    for title in dict.fromkeys(stage.title for stage in measured):
        found = {stage.branch: stage.bits_per_byte for stage in measured if stage.title == title}
        values = (found.get(branch, found.get("base", {})).get(corpus) for corpus in corpora for branch in branches)
        rows.append([title] + ["" if value is None else f"{value:.3f}" for value in values])
    return header, rows


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a table; the first column to the left, the others to the right."""
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
    for line in (header, *rows):
        cells = [cell.rjust(width) for cell, width in zip(line, widths)]
        yield "  ".join([line[0].ljust(widths[0]), *cells[1:]]).rstrip()


def markdown(name: str, header: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    lines = [f"# {name}", "", "Bits per byte on held-out text (lower is better; comparable across vocabularies).", ""]
    lines += ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    lines += ["", "![curves](report.png)", ""]
    return "\n".join([*lines, *notes]) + "\n"


def plot(curves: Sequence[Curve], measured: Sequence[Measured], corpora: Sequence[str], path: Path) -> None:
    """One panel a corpus: held-out bits per byte (crosses), and while training where it was measured (lines), by tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    branches = list(dict.fromkeys(stage.branch for stage in measured if stage.branch != "base"))
    figure, axes = pyplot.subplots(1, len(corpora), figsize=(6 * len(corpora), 4.2), squeeze=False)
    for axis, corpus in zip(axes[0], corpora):
        for color, branch in enumerate(branches):
            x, y, bounds = _points(branch, corpus, curves, measured)
            axis.plot(x, y, marker="x", markersize=4, color=f"C{color}", label=branch)
            for bound in bounds if color == 0 else ():
                axis.axvline(bound, color="0.85", linewidth=1, zorder=0)
        before = [stage.bits_per_byte[corpus] for stage in measured if stage.branch == "base" and corpus in stage.bits_per_byte]
        if before:
            axis.axhline(before[0], color="0.5", linestyle=":", label="before")
        axis.set_title(corpus)
        axis.set_xlabel("tokens trained")
        axis.set_ylabel("bits per byte, held out")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _points(
    branch: str, corpus: str, curves: Sequence[Curve], measured: Sequence[Measured]
) -> tuple[list[float], list[float], list[float]]:
    """Tokens and bits per byte of a branch, measured stages and in-training evaluations in order; phase boundaries."""
    stages = [stage for stage in measured if stage.branch == branch and corpus in stage.bits_per_byte]
    of_branch = [curve for curve in curves if curve.branch == branch]
    x, y, bounds, tokens = [], [], [], 0.0
    swapped = [stage for stage in stages if not stage.title.startswith("phase ")]
    base = [stage for stage in measured if stage.branch == "base" and corpus in stage.bits_per_byte]
    for stage in (swapped or base)[-1:]:
        x.append(0.0)
        y.append(stage.bits_per_byte[corpus])
    for curve in of_branch:
        key = f"held_out/{corpus}"
        for row in curve.rows:
            if key in row:
                x.append(tokens + row["tokens"])
                y.append(row[key])
        tokens += curve.rows[-1]["tokens"] if curve.rows else 0
        bounds.append(tokens)
        ended = [stage for stage in stages if stage.title == f"phase {curve.phase}"]
        if ended and (not x or x[-1] != tokens):
            x.append(tokens)
            y.append(ended[0].bits_per_byte[corpus])
    return x, y, bounds


def shown(score: Mapping[str, Any]) -> str:
    """'0.625 \u00b1 0.012': a score and its standard error."""
    return f"{score['value']:.4g}" + ("" if score["error"] is None else f" \u00b1 {score['error']:.2g}")


def task_table(tasks: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): one row for each task and metric, one column for each time it was asked (``tasks``: by that, what
    ``steps.harness`` found)."""
    names = list(dict.fromkeys((task, metric) for found in tasks.values() for task, each in found.items() for metric in each["scores"]))
    rows = []
    for task, metric in names:
        scores = [found.get(task, {}).get("scores", {}).get(metric) for found in tasks.values()]
        arrow = {True: ", higher is better", False: ", lower is better"}.get(next(s["higher_is_better"] for s in scores if s), "")
        rows.append([f"{task}: {metric}{arrow}", *("" if score is None else shown(score) for score in scores)])
    return ["task", *tasks], rows


def task_notes(tasks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A markdown table of answers, with how they were asked for."""
    header, rows = task_table(tasks)
    if not rows:
        return []
    asked = {task: each for found in tasks.values() for task, each in found.items() if each["shots"] is not None}
    how = "; ".join(
        f"{task}: {each['shots']} examples" + (f", {each['questions']} questions" if each["questions"] else "") for task, each in asked.items()
    )
    lines = [f"Tasks of lm-evaluation-harness, with standard errors ({how}).", "", "| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def loss_notes(measured: Sequence[Measured]) -> list[str]:
    """A markdown table of the losses on held-out text, in nats."""
    lines = [
        "Loss on held-out text in nats, comparable with one tokenizer only: the mean over all tokens, and the mean over documents of",
        "the mean over each one's tokens.",
        "",
        "| stage | corpus | per token | per document |",
        "| --- | --- | --- | --- |",
    ]
    for stage in measured:
        for corpus, (token, document) in stage.losses.items():
            lines.append(f"| {stage.branch}: {stage.title} | {corpus} | {token:.4f} | {document:.4f} |")
    return [*lines, ""]


def training_notes(curves: Sequence[Curve]) -> list[str]:
    """A markdown table of what each phase trained."""
    lines = ["| phase | steps | tokens | last loss | tokens/s (median) |", "| --- | --- | --- | --- | --- |"]
    for curve in curves:
        if curve.rows:
            last = curve.rows[-1]
            speeds = sorted(row["tokens_per_second"] for row in curve.rows)
            values: list[Any] = [f"{curve.branch}/{curve.phase}", f"{last['step']:,}", f"{last['tokens']:,.0f}"]
            values += [f"{last['loss']:.4f}", f"{speeds[len(speeds) // 2]:,.0f}"]
            lines.append("| " + " | ".join(values) + " |")
    return lines


def data_notes(trained: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """A markdown table of the data of every phase (``branch/phase``: its stretches), in the order in which it came."""
    rows = []
    for phase, stretches in trained.items():
        for part in stretches:
            drawn = ", ".join(f"{name} {count:,}" for name, count in part["samples"].items() if count)
            mix = ", ".join(f"{name} {weight:g}" for name, weight in part["settings"]["data"].items())
            steps = f"{part['steps'][0] + 1:,} to {part['steps'][1]:,}"
            rows.append(f"| {phase} | {steps} | {part['tokens'][1] - part['tokens'][0]:,} | {mix} | {drawn} |")
    head = ["", "| phase | steps | tokens | mix | sequences drawn |", "| --- | --- | --- | --- | --- |"]
    return [*head, *rows] if rows else []


def filter_notes(filtered: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A markdown table of what filters left of each corpus (by name, what ``steps.filter_corpus`` found)."""
    rows = []
    for name, found in filtered.items():
        read = found["read"]
        dropped = [f"{each['filter']} {sum(each['dropped'].values()):,}{_cut(each)}" for each in found["filters"]]
        counts = (read["documents"], found["documents"], read["bytes"], found["bytes"])
        read_documents, documents, read_bytes, size = (f"{count:,}" for count in counts)
        rows.append(f"| {name} | {read_documents} | {', '.join(dropped)} | {documents} | {read_bytes} | {size} |")
    head = ["", "| filtered corpus | documents | dropped by | left | bytes | left |", "| --- | --- | --- | --- | --- | --- |"]
    return [*head, *rows] if rows else []


def _cut(entry: Mapping[str, Any]) -> str:
    return f" ({entry['spans']:,} passages cut)" if entry.get("spans") else ""


def event_notes(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines about the spikes of training and what was done about them."""
    actions = {"log": "noted", "skip": "update left out", "rollback": "rolled back, data left out"}
    lines = [f"- phase {event['phase']}, step {event['step']:,}: {event['spike']}; {actions[event['action']]}" for event in events]
    return ["", "Spikes of the loss:", "", *lines] if lines else []
