"""Pictures of what a recipe will do, of how vocabulary methods rank, and of what laws of the loss say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megatron_adapt.analysis.allocation import FLOPS, optimum, worths
from megatron_adapt.analysis.scaling_law import Law, readable


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


def draw_returns(law: Law, unique: float, epochs: float, parameters: float | None, path: Path) -> None:
    """Tokens that a corpus of ``unique`` ones is worth by its epochs; with ``parameters`` beside it the loss, in nats."""
    counts = np.geomspace(1, max(epochs, 2), 200)
    rows = worths(law, unique, list(counts), parameters)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 1 if parameters is None else 2, figsize=(6 if parameters is None else 11, 4.2), squeeze=False)
    axes[0][0].plot(counts, counts, color="0.6", linestyle=":", label="all new")
    axes[0][0].plot(counts, [row.effective / unique for row in rows], label="repeated")
    axes[0][0].set_ylabel(f"worth in new tokens, times {readable(unique)}")
    if parameters is not None:
        axes[0][1].plot(counts, [row.new for row in rows], color="0.6", linestyle=":", label="all new")
        axes[0][1].plot(counts, [row.loss for row in rows], label="repeated")
        axes[0][1].set_ylabel(f"loss of {readable(parameters)} parameters, nats a token")
    for axis in axes[0]:
        axis.set_xscale("log")
        axis.set_xlabel("epochs")
        axis.set_title(f"law {law.name}")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw_contours(law: Law, flops: float, unique: float, path: Path) -> None:
    """Lines of equal loss over epochs and parameters, that of equal cost, and the best choice for every cost."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    best = optimum(law, flops, unique)
    epochs = np.geomspace(0.25, max(60.0, 4 * best.tokens / unique), 160)
    parameters = best.parameters * np.geomspace(1 / 30, 30, 160)
    losses = law.loss(parameters[:, None], epochs[None] * unique, unique)
    figure, axis = pyplot.subplots(figsize=(7, 5))
    lowest = losses.min()
    levels = lowest * (1 + np.geomspace(0.002, 1.0, 16))
    lines = axis.contour(epochs, parameters, losses, levels=levels, cmap="viridis", linewidths=1)
    axis.clabel(lines, fmt="%.3f", fontsize=7)
    axis.plot(epochs, flops / FLOPS / (epochs * unique), color="0.4", linestyle="--", label=f"{flops:.3g} FLOPs")
    frontier = [optimum(law, flops * factor, unique) for factor in np.geomspace(1e-3, 1e2, 40)]
    line = [each.tokens / unique for each in frontier], [each.parameters for each in frontier]
    axis.plot(*line, color="C3", label="best at each cost")
    axis.plot([best.tokens / unique], [best.parameters], marker="*", markersize=12, color="C3", linestyle="none")
    axis.set(xscale="log", yscale="log", xlabel=f"epochs of {readable(unique)} tokens", ylabel="parameters")
    axis.set(title=f"loss by the law {law.name}", xlim=(epochs[0], epochs[-1]), ylim=(parameters[0], parameters[-1]))
    axis.legend(loc="lower left")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
