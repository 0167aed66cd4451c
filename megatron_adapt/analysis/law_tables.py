"""What laws say, as lines for the terminal and as values for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_adapt.analysis import allocation
from megatron_adapt.analysis.allocation import Choice
from megatron_adapt.analysis.report import columns
from megatron_adapt.analysis.scaling_law import PUBLISHED, Law, readable

EPOCHS = (1, 2, 3, 4, 5, 7, 10, 14, 20, 30, 40, 60)
UNTRUSTED = "absolute losses by constants of others are not to be trusted (tokenizer and text differ); compare them with one another"


def notes(law: Law, has_loss: bool, **values: float) -> list[str]:
    return [UNTRUSTED] * (has_loss and law.name in PUBLISHED) + law.cautions(**values)


def _as_values(choice: Choice) -> dict[str, float]:
    return _of(choice) | {"flops": choice.flops, "loss": choice.loss}


def _cells(choice: Choice, reference: float) -> list[str]:
    sizes = [readable(choice.parameters), readable(choice.tokens), f"{choice.epochs:.3g}"]
    return [*sizes, f"{choice.loss:.4f}", f"{100 * (choice.loss / reference - 1):+.2f} %"]


def _of(choice: Choice) -> dict[str, float]:
    return {"parameters": choice.parameters, "tokens": choice.tokens, "unique_tokens": choice.unique, "epochs": choice.epochs}


def predict(law: Law, now: Choice) -> tuple[list[str], dict[str, Any]]:
    """The loss, what the repeats are worth in it, and what twice as much of each thing would bring."""
    all_new = allocation.choice(law, now.parameters, now.tokens)
    effective = law.effective_tokens(now.tokens, now.unique, now.parameters)
    next_token = law.next_token(now.tokens, now.unique, now.parameters)
    suit, counted = law.best_parameters(now.unique), law.effective_parameters(now.parameters, now.unique)
    excess = []
    if counted < now.parameters:
        excess = [f"{readable(suit)} parameters suit {readable(now.unique)} unique tokens best; this model's count as {readable(counted)}"]
    best = allocation.optimum(law, now.flops, now.unique if now.epochs > 1 else None)
    more = allocation.returns(law, now)
    caution = notes(law, True, **_of(now))
    rows = [["this", *_cells(now, now.loss)], ["all tokens new", *_cells(all_new, now.loss)]]
    rows += [["best at this cost", *_cells(best, now.loss)]] + [[title, *_cells(each, now.loss)] for title, each in more]
    lines = [
        f"by the law {law.name} ({law.source}):",
        *columns(["", "parameters", "tokens", "epochs", "loss", "against this"], rows),
        f"{readable(now.tokens)} tokens of which {readable(now.unique)} are unique teach as much as {readable(effective)} new ones"
        + ("" if next_token is None else f"; the next one is worth {next_token:.2g}"),
        *excess,
        f"{now.flops:.3g} FLOPs",
        *(f"note: {line}" for line in caution),
    ]
    values = {
        "law": law.name, "this": _as_values(now), "all_new": _as_values(all_new), "best_at_this_cost": _as_values(best),
        "effective_tokens": effective, "next_token": next_token, "effective_parameters": counted, "best_parameters": suit,
        "returns": {title: _as_values(each) for title, each in more}, "notes": caution,
    }  # fmt: skip
    return lines, values


def allocate(law: Law, flops: float, unique: float) -> tuple[list[str], dict[str, Any]]:
    found = allocation.alternatives(law, flops, unique)
    best = dict(found)["best"]
    caution = notes(law, True, **_of(best))
    lines = [
        f"{flops:.3g} FLOPs on {readable(unique)} unique tokens, by the law {law.name} ({law.source}):",
        *columns(
            ["", "parameters", "tokens", "epochs", "loss", "against the best"],
            [[title, *_cells(each, best.loss)] for title, each in found],
        ),
        *(f"note: {line}" for line in caution),
    ]
    return lines, {"law": law.name, "choices": {title: _as_values(each) for title, each in found}, "notes": caution}


def epochs(law: Law, unique: float, counts: Sequence[float], parameters: float | None) -> tuple[list[str], dict[str, Any]]:
    rows = allocation.worths(law, unique, counts, parameters)
    header = ["epochs", "tokens", "worth new ones", "of all", "next token"] + (["loss", "against all new"] if parameters else [])
    table = []
    for row in rows:
        cells = [f"{row.epochs:g}", readable(row.tokens), readable(row.effective), f"{100 * row.effective / row.tokens:.0f} %"]
        cells.append("" if row.next_token is None else f"{row.next_token:.2f}")
        if row.loss is not None and row.new is not None:
            cells += [f"{row.loss:.4f}", f"{100 * (row.loss / row.new - 1):+.2f} %"]
        table.append(cells)
    caution = notes(law, parameters is not None, epochs=max(counts))
    lines = [f"{readable(unique)} unique tokens, by the law {law.name} ({law.source}):", *columns(header, table)]
    values: dict[str, Any] = {"law": law.name, "unique_tokens": unique, "epochs": [vars(row) for row in rows], "notes": caution}
    if law.form.data_decays:
        half, most = allocation.half_life(law), 1 + law.constants["rd_star"]
        lines.append(
            f"after {half:.3g} repetitions a token is worth half of a new one; all repeats together at most {most:.3g} times the corpus"
        )
        values |= {"half_life": half, "most": most}
    return lines + [f"note: {line}" for line in caution], values


def unique(law: Law, parameters: float, tokens: float, within: float) -> tuple[list[str], dict[str, Any]]:
    needed = allocation.unique_needed(law, parameters, tokens, within)
    count = tokens / needed
    caution = notes(law, False, parameters=parameters, tokens=tokens, epochs=count)
    lines = [
        f"{readable(parameters)} parameters on {readable(tokens)} tokens: {readable(needed)} unique ones ({count:.3g} epochs) "
        f"keep the loss within {100 * within:g} % of that of all new ones, by the law {law.name} ({law.source})",
        *(f"note: {line}" for line in caution),
    ]
    return lines, {"law": law.name, "unique_tokens": needed, "epochs": count, "within": within, "notes": caution}
