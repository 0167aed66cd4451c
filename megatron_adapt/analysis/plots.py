"""Pictures of what a recipe will do."""

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
