"""Pictures of what a recipe will do, and of how vocabulary methods rank."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def draw_learning_rates(curves: Sequence[tuple[str, Sequence[float]]], path: Path) -> None:
    """The learning rate over the steps of consecutive phases, (name, rate of each step), as PNG, PDF or SVG by suffix."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 3.6))
    first = 1
    for name, rates in curves:
        axis.plot(range(first, first + len(rates)), rates, label=name)
        first += len(rates)
        axis.axvline(first - 0.5, color="0.85", linewidth=1, zorder=0)
    axis.set_xlabel("optimizer step")
    axis.set_ylabel("learning rate")
    axis.set_ylim(bottom=0)
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw_ranking(
    rows: Sequence[tuple[str, Sequence[float]]], marks: Sequence[str], reference: tuple[str, float], path: Path
) -> None:
    """Bars of (method, bits per byte at every mark), the first on top, and a line at the reference."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 1.2 + 0.45 * len(rows)))
    height = 0.8 / len(marks)
    for number, mark in enumerate(marks):
        places = [row + (number - (len(marks) - 1) / 2) * height for row in range(len(rows))]
        values = [bits[number] for _, bits in rows]
        axis.barh(places, values, height, label=mark, color=f"C{number}")
        for place, value in zip(places, values):
            axis.text(value, place, f" {value:.3f}", va="center", fontsize=7)
    axis.axvline(reference[1], color="0.5", linestyle=":", label=reference[0])
    axis.set_yticks(range(len(rows)), [name for name, _ in rows])
    axis.invert_yaxis()
    lowest = min(value for _, bits in rows for value in bits)
    axis.set_xlim(left=0.9 * lowest)
    axis.set_xlabel("bits per byte on held-out text, lower is better")
    axis.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
