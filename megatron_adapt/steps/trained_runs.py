"""Runs of recipes as points to fit a law to: parameters, tokens, unique tokens and loss, read from the receipts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_adapt.analysis.law_runs import Run
from megatron_adapt.errors import DataError
from megatron_adapt.steps.receipt import read


def read_run(folder: Path, corpus: str | None = None) -> tuple[Run, str]:
    """The model from scratch in a recipe's ``output``, trained through all its phases, and its tokenizer's digest.

    The loss is that of the last evaluation, in nats a token, on the held-out text of ``corpus`` (None: the only one).
    Where the vocabulary is swapped later, what counts is the model before.

    Raises:
        DataError: something is missing for it, all of it named.
    """
    problems: list[str] = []
    initial = read(folder / "base" / "initial")
    if initial is None:
        problems.append("no model from scratch (base/initial): a law is of training from the first token")
    phases = _phases(folder)
    if not phases:
        problems.append("no phase has been trained to its end")
    found = _loss(folder, phases, corpus, problems)
    counts = _tokens(folder, phases, problems)
    if problems or initial is None:
        raise DataError(f"{folder} is no run to fit a law to: " + "; ".join(problems) + ".")
    total = sum(seen for seen, _ in counts.values())
    unique = sum(min(seen, there) for seen, there in counts.values())
    digest = next(metrics.get("tokenizer_digest", "") for metrics in _corpora(folder).values())
    return Run(folder.name, initial["metrics"]["parameters"], total, unique, found), digest


def _phases(folder: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """(branch/name, receipt) of the phases that are done, in order, up to where the vocabulary is swapped."""
    found = []
    for branch in ("base", "adapted"):
        receipts = [(path.parent, read(path.parent)) for path in folder.glob(f"{branch}/*/receipt.json")]
        own = [(f"{branch}/{place.name}", receipt) for place, receipt in receipts if receipt and receipt["verb"] == "train"]
        found += sorted(own, key=lambda item: item[1]["settings"]["number"])
    return found


def _corpora(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Metrics of the corpora under the first tokenizer."""
    receipts = {path.parent.name: read(path.parent) for path in sorted(folder.glob("data/base/*/receipt.json"))}
    return {name: receipt["metrics"] for name, receipt in receipts.items() if receipt}


def _tokens(folder: Path, phases: list[tuple[str, Mapping[str, Any]]], problems: list[str]) -> dict[str, tuple[int, int]]:
    """Of each corpus: tokens trained on in all phases, and those that there are."""
    corpora, seen, limits = _corpora(folder), dict[str, int](), dict[str, int]()
    for title, receipt in phases:
        for stretch in receipt["metrics"].get("trained", []):
            for name, samples in stretch["samples"].items():
                seen[name] = seen.get(name, 0) + samples * receipt["settings"]["sequence_length"]
        for name, passes in receipt["settings"]["corpora"].items():
            if passes["unique_tokens"]:
                limits[name] = max(limits.get(name, 0), passes["unique_tokens"])
    counts = {}
    for name, tokens in seen.items():
        if name not in corpora:
            problems.append(f"data/base/{name} is missing, which tells how many tokens the corpus has")
        elif "loss_mask" in corpora[name]:
            problems.append(f"the corpus {name} is of chats, of which only answers are learnt")
        elif tokens:
            counts[name] = (tokens, limits.get(name) or corpora[name]["tokens"])
    if phases and not counts and not problems:
        problems.append("its phases have drawn no samples")
    return counts


def _loss(folder: Path, phases: list[tuple[str, Mapping[str, Any]]], corpus: str | None, problems: list[str]) -> float:
    """Nats a token after the last phase; nan after a problem."""
    if not phases:
        return float("nan")
    branch, name = phases[-1][0].split("/")
    stage = "base" if branch == "base" else f"adapted-{name}"
    receipt = read(folder / "evaluation" / stage)
    if receipt is None:
        problems.append(f"no evaluation of it (evaluation/{stage}): hold text out of its corpora (held_out) and run it to the end")
        return float("nan")
    if not all(math.isfinite(values.get("token_loss", 0)) for values in receipt["metrics"].values()):
        problems.append("its loss is no number: training diverged")
        return float("nan")
    losses = {name: values["token_loss"] for name, values in receipt["metrics"].items() if "token_loss" in values}
    if corpus is None and len(losses) == 1:
        return next(iter(losses.values()))
    if corpus not in losses:
        told = "say with --corpus on which of its texts" if corpus is None else f"no loss on the text of '{corpus}'; there are"
        problems.append(f"{told}: {', '.join(losses) or 'none'}")
        return float("nan")
    return losses[corpus]
