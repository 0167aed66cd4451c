"""Tables of runs to fit a law to: CSV or JSON lines with parameters, tokens, unique_tokens and loss."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_adapt.config_types import did_you_mean, number
from megatron_adapt.errors import DataError

NEEDED = ("parameters", "tokens", "unique_tokens", "loss")
_SHOWN = 10  # problems of a file


@dataclass(frozen=True)
class Run:
    """One trained model. ``loss``: on text not trained on, in any unit that is proportional to nats a token."""

    name: str
    parameters: float
    tokens: float
    unique_tokens: float
    loss: float


@dataclass(frozen=True)
class Runs:
    """Columns of [n], float64; unique tokens are at most the tokens."""

    names: tuple[str, ...]
    parameters: np.ndarray
    tokens: np.ndarray
    unique: np.ndarray
    losses: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    @property
    def epochs(self) -> np.ndarray:
        return self.tokens / self.unique

    def part(self, chosen: np.ndarray) -> Runs:
        """Those of an index or a mask."""
        names = tuple(np.asarray(self.names, dtype=object)[chosen])
        return Runs(names, self.parameters[chosen], self.tokens[chosen], self.unique[chosen], self.losses[chosen])

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        columns = {"parameters": self.parameters, "tokens": self.tokens, "unique_tokens": self.unique, "epochs": self.epochs}
        return {name: (float(values.min()), float(values.max())) for name, values in columns.items()}


def gather(runs: Iterable[Run]) -> Runs:
    runs = list(runs)
    columns = [np.array([getattr(run, name) for run in runs], float) for name in NEEDED]
    parameters, tokens, unique, losses = columns
    return Runs(tuple(run.name for run in runs), parameters, tokens, np.minimum(unique, tokens), losses)


def read(path: Path) -> list[Run]:
    """The runs of a .csv or .jsonl file; numbers as 1.3B or 4e9, ``name`` is optional. Raises DataError with all problems."""
    if path.suffix not in (".csv", ".jsonl"):
        raise DataError(f"{path}: runs are read from .csv, .jsonl, or the folder of a recipe's run (its `output`).")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from None
    problems: list[str] = []
    rows = _csv_rows(text, path) if path.suffix == ".csv" else _json_rows(text, problems)
    runs = []
    for line, row in rows:
        run = _run(row, f"{path.name}:{line}", line, problems)
        if run is not None:
            runs.append(run)
    if problems:
        more = f"\n... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise DataError(f"{path}: no run is left out silently; correct or remove\n" + "\n".join(problems[:_SHOWN]) + more)
    if not runs:
        raise DataError(f"{path} has no runs; it needs lines with {', '.join(NEEDED)}.")
    return runs


def _csv_rows(text: str, path: Path) -> list[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(text.splitlines(), skipinitialspace=True)
    header = [name.strip() for name in reader.fieldnames or ()]
    missing = [name for name in NEEDED if name not in header]
    if missing:
        unknown = [name for name in header if name not in NEEDED]
        hints = "".join(did_you_mean(name, unknown, "Other columns") for name in missing if unknown)
        raise DataError(
            f"{path}: the first line should name the columns {', '.join(NEEDED)} (and name); {', '.join(missing)} missing.{hints}"
        )
    reader.fieldnames = header
    return [(reader.line_num, row) for row in reader]


def _json_rows(text: str, problems: list[str]) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for line, part in enumerate(text.splitlines(), start=1):
        if not part.strip():
            continue
        try:
            row = json.loads(part)
        except json.JSONDecodeError as error:
            problems.append(f"line {line}: no JSON: {error}")
            continue
        if isinstance(row, dict):
            rows.append((line, row))
        else:
            problems.append(f"line {line}: expected an object with {', '.join(NEEDED)}")
    return rows


def _run(row: dict[str, Any], default: str, line: int, problems: list[str]) -> Run | None:
    values, wrong = {}, []
    for name in NEEDED:
        try:
            values[name] = number(row.get(name))
        except ValueError as error:
            wrong.append(f"{name}: {error}")
        else:
            if not values[name] > 0:
                wrong.append(f"{name} must be above 0, got {values[name]:g}")
    problems += [f"line {line}: {text}" for text in wrong]
    return None if wrong else Run(str(row.get("name") or default), **values)


def describe(runs: Runs) -> str:
    """'24 runs: 6 sizes of 10K to 1M parameters, ...'"""

    def levels(values: Sequence[float] | np.ndarray) -> int:
        return len(np.unique(np.round(np.log(values), 3)))

    from megatron_adapt.analysis.scaling_law import readable

    low = {name: readable(span[0]) for name, span in runs.ranges.items()}
    high = {name: readable(span[1]) for name, span in runs.ranges.items()}
    return (
        f"{len(runs)} runs: {levels(runs.parameters)} sizes from {low['parameters']} to {high['parameters']} parameters, "
        f"{levels(runs.tokens)} lengths from {low['tokens']} to {high['tokens']} tokens, {low['unique_tokens']} to "
        f"{high['unique_tokens']} of them unique, up to {high['epochs']} epochs"
    )
