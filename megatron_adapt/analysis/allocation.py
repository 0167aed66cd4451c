"""What to spend computation and data on, by a law: the best model for a budget, the worth of repeats, the data that is needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_adapt.analysis.scaling_law import PUBLISHED, Law, readable
from megatron_adapt.errors import ConfigError

FLOPS = 6  # of a token's forward and backward pass, for each parameter (Kaplan et al. 2020, section 2.1)
_GOLDEN = (math.sqrt(5) - 1) / 2
_BEYOND = 12.0  # how much further the search for ln N goes


@dataclass(frozen=True)
class Choice:
    """A model and how long it is trained; ``loss`` in nats a token by the law."""

    parameters: float
    tokens: float
    unique: float  # different tokens, at most ``tokens``
    loss: float

    @property
    def epochs(self) -> float:
        return self.tokens / self.unique

    @property
    def flops(self) -> float:
        return FLOPS * self.parameters * self.tokens


def choice(law: Law, parameters: float, tokens: float, unique: float | None = None) -> Choice:
    used = tokens if unique is None else min(unique, tokens)
    return Choice(parameters, tokens, used, law.loss(parameters, tokens, used))


def optimum(law: Law, flops: float, unique: float | None = None) -> Choice:
    """The lowest loss for so many FLOPs = 6 N D, with at most so many different tokens (None: as many as wanted).

    While the data lasts, in closed form: N = G (C / 6)^(beta / (alpha + beta)) (Hoffmann et al. 2022, equation 4).
    Beyond, a search over ln N.
    """
    _positive(flops=flops, unique=unique)
    c, cost = law.constants, flops / FLOPS
    g = (c["alpha"] * c["A"] / (c["beta"] * c["B"])) ** (1 / (c["alpha"] + c["beta"]))
    free = g * cost ** (c["beta"] / (c["alpha"] + c["beta"]))
    if unique is None or cost / free <= unique or not law.form.sees_repeats:
        return choice(law, free, cost / free, unique)
    # The best lies near one of these or between; by the penalty form one epoch itself may be best, at a kink.
    ends = sorted((math.log(free), math.log(cost / unique)))
    grid = np.sort(np.append(np.arange(ends[0] - _BEYOND, ends[1] + _BEYOND, 0.01), math.log(cost / unique)))
    losses = law.loss(np.exp(grid), cost / np.exp(grid), np.full_like(grid, unique))
    best = int(np.argmin(losses))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]

    def at(x: float) -> float:
        return law.loss(math.exp(x), cost / math.exp(x), unique)

    while high - low > 1e-9:
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        low, high = (low, right) if at(left) < at(right) else (left, high)
    found = (choice(law, math.exp(x), cost / math.exp(x), unique) for x in ((low + high) / 2, grid[best]))
    return min(found, key=lambda each: each.loss)


def alternatives(law: Law, flops: float, unique: float, epochs: Sequence[float] = (1, 2, 4)) -> list[tuple[str, Choice]]:
    """The best choice, that without a limit of data, and those that read the data so many times, at the same cost."""
    found = [("no limit of data", optimum(law, flops)), ("best", optimum(law, flops, unique))]
    for count in epochs:
        tokens = count * unique
        found.append((f"{count:g} epoch{'s' * (count != 1)}", choice(law, flops / FLOPS / tokens, tokens, unique)))
    return found


def unique_needed(law: Law, parameters: float, tokens: float, within: float) -> float:
    """The fewest different tokens with which the loss is at most ``within`` (0.01: 1 %) above that of all new ones."""
    _positive(parameters=parameters, tokens=tokens, within=within)
    if not law.form.sees_repeats:
        raise ConfigError(f"by the law {law.name} repeated tokens count as new: it cannot say how many different ones are needed.")
    bound = (1 + within) * law.loss(parameters, tokens)
    low, high = math.log(tokens) - 40, math.log(tokens)
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (low, middle) if law.loss(parameters, tokens, math.exp(middle)) <= bound else (middle, high)
    return math.exp(high)


def half_life(law: Law) -> float:
    """Repetitions after which a token is worth half of a new one: rd_star ln 2."""
    return law.constants["rd_star"] * math.log(2)


@dataclass(frozen=True)
class Worth:
    """What the first ``epochs`` passes over a corpus are worth. ``next_token`` in new ones, None where it has no bound."""

    epochs: float
    tokens: float
    effective: float
    next_token: float | None
    loss: float | None  # in nats a token, where the parameters are known
    new: float | None  # the same with all tokens new


def worths(law: Law, unique: float, epochs: Sequence[float], parameters: float | None = None) -> list[Worth]:
    _positive(unique=unique, parameters=parameters, **{f"epochs {count:g}": count for count in epochs})
    rows = []
    for count in epochs:
        tokens = count * unique
        losses = (None, None) if parameters is None else (law.loss(parameters, tokens, unique), law.loss(parameters, tokens))
        effective = law.effective_tokens(tokens, unique, parameters)
        rows.append(Worth(count, tokens, effective, law.next_token(tokens, unique, parameters), *losses))
    return rows


def returns(law: Law, now: Choice) -> list[tuple[str, Choice]]:
    """What twice as much of each would bring."""
    n, d, u = now.parameters, now.tokens, now.unique
    return [
        ("twice the parameters", choice(law, 2 * n, d, u)),
        ("twice the tokens, by repeating", choice(law, n, 2 * d, u)),
        ("twice the unique tokens, as many in all", choice(law, n, d, 2 * u)),
        ("twice the unique tokens and tokens", choice(law, n, 2 * d, 2 * u)),
    ]


def repeats(tokens: float, unique: float) -> str:
    """'4 epochs: its 300M repeated tokens are worth 273M new ones ...' by the published law, for a phase of a recipe."""
    law = PUBLISHED["c4"]
    worth = law.effective_tokens(tokens, unique) - unique
    next_token = law.next_token(tokens, unique)
    return (
        f"{tokens / unique:.3g} epochs of {readable(unique)} tokens; the repeated {readable(tokens - unique)} are worth "
        f"{readable(worth)} new ones, one more {next_token:.2g} (law fitted to pretraining on C4)"
    )


def _positive(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name} must be above 0, not {value:g}.")
