"""Laws of the loss over parameters, tokens and unique tokens; published constants; what a repeated token is worth.

The loss is in nats a token, on text that was not trained on. Of the absolute loss by constants that others have fitted
nothing should be expected: it hangs on their tokenizer and text. Comparisons of two losses by one law carry over.

Sources: Hoffmann et al. 2022, "Training Compute-Optimal Large Language Models" (arXiv 2203.15556), section 3.3;
Muennighoff et al. 2023, "Scaling Data-Constrained Language Models" (arXiv 2305.16264), section 3 and appendix A.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from megatron_adapt.config_types import did_you_mean, got
from megatron_adapt.errors import ConfigError

MAY_BE_NEGATIVE = ("kappa",)
LONG = 40  # epochs, from which on the next repetition adds less than 8 % of what new data would
NONE = -1e30  # ln of a term that is not there; -inf would have no gradient


@dataclass(frozen=True)
class Form:
    """E + A / N^alpha + B / D^beta, and what it makes of repetition.

    N parameters, D tokens, U <= D different ones among them, R = D / U - 1 repetitions. ``data_decays``: D becomes
    U + U rd_star (1 - exp(-R / rd_star)); ``parameters_decay``: N, beyond the U_N that suit U tokens best, likewise with
    rn_star. ``is_penalized``: P R^delta (N / U)^kappa is added, with which repeating and too many parameters can do harm.
    """

    name: str
    summary: str
    data_decays: bool = False
    parameters_decay: bool = False
    is_penalized: bool = False

    @property
    def constants(self) -> tuple[str, ...]:
        decay = ("rd_star",) * self.data_decays + ("rn_star",) * self.parameters_decay
        return ("E", "A", "alpha", "B", "beta", *decay, *(("P", "delta", "kappa") if self.is_penalized else ()))

    @property
    def sees_repeats(self) -> bool:
        return self.data_decays or self.is_penalized

    def log_loss(self, xp: ModuleType, c: Mapping[str, Any], n: Any, d: Any, u: Any) -> Any:
        """ln of the loss. ``xp``: numpy, or torch with tensors throughout; shapes broadcast."""
        ln_n, ln_d = xp.log(n), xp.log(d)
        ln_u = xp.minimum(xp.log(u), ln_d)
        x, y = ln_n, ln_d
        if self.data_decays:
            y = _saturating(xp, ln_u, ln_d, c["rd_star"])
        if self.parameters_decay:
            x = _saturating(xp, xp.minimum(ln_n, _ln_best_parameters(xp, c, ln_u)), ln_n, c["rn_star"])
        terms = xp.logaddexp(xp.log(c["A"]) - c["alpha"] * x, xp.log(c["B"]) - c["beta"] * y)
        terms = xp.logaddexp(terms, xp.log(c["E"]) + 0 * terms)
        if self.is_penalized:
            repeats = xp.expm1(ln_d - ln_u)
            size = xp.log(c["P"]) + c["delta"] * xp.log(xp.where(repeats > 0, repeats, repeats + 1)) + c["kappa"] * (ln_n - ln_u)
            terms = xp.logaddexp(terms, xp.where(repeats > 0, size, NONE + 0 * size))
        return terms


def _saturating(xp: ModuleType, ln_unique: Any, ln_all: Any, star: Any) -> Any:
    """ln of unique + unique star (1 - exp(-R / star)) with R = all / unique - 1 (Muennighoff et al., equations 5 and 6)."""
    return ln_unique + xp.log1p(-star * xp.expm1(-xp.expm1(ln_all - ln_unique) / star))


def _ln_best_parameters(xp: ModuleType, c: Mapping[str, Any], ln_tokens: Any) -> Any:
    """ln of the parameters for which so many tokens are compute-optimal: G (G D)^(beta / alpha)."""
    ln_g = (xp.log(c["alpha"] * c["A"]) - xp.log(c["beta"] * c["B"])) / (c["alpha"] + c["beta"])
    return ln_g + c["beta"] / c["alpha"] * (ln_g + ln_tokens)


FORMS = {
    form.name: form
    for form in (
        Form("chinchilla", "every token counts as new"),
        Form("repeated-data", "repeated tokens are worth less and less", data_decays=True),
        Form("data-constrained", "repeated tokens and excess parameters are worth less and less", True, True),
        Form("penalty", "repeated tokens do harm, the more parameters the more", is_penalized=True),
    )
}


@dataclass(frozen=True)
class Law:
    """A form with its constants. ``ranges``: smallest and largest of what the runs had that they were fitted to."""

    name: str
    form: Form
    constants: Mapping[str, float]
    source: str
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    caution: str = ""

    def loss(self, parameters: Any, tokens: Any, unique: Any = None) -> Any:
        """Nats a token; numbers or arrays. ``unique``: different tokens; None, or more than ``tokens``: all."""
        unique = tokens if unique is None else unique
        for name, values in (("parameters", parameters), ("tokens", tokens), ("unique tokens", unique)):
            if not (np.all(np.isfinite(values)) and np.all(np.asarray(values) > 0)):
                raise ConfigError(f"{name} must be above 0, not {values}.")
        value = np.exp(self.form.log_loss(np, self.constants, *(np.asarray(v, float) for v in (parameters, tokens, unique))))
        return float(value) if value.ndim == 0 else value

    def effective_tokens(self, tokens: float, unique: float, parameters: float | None = None) -> float:
        """As many new tokens would teach as much. By the penalty form that depends on the parameters."""
        unique, c = min(unique, tokens), self.constants
        if self.form.data_decays:
            return float(np.exp(_saturating(np, math.log(unique), math.log(tokens), c["rd_star"])))
        if not self.form.is_penalized or tokens <= unique:
            return tokens
        if parameters is None:
            raise ConfigError(f"by the law {self.name}, what repeats are worth depends on the model: give --parameters.")
        harm = c["P"] * (tokens / unique - 1) ** c["delta"] * (parameters / unique) ** c["kappa"]
        return (tokens ** -c["beta"] + harm / c["B"]) ** (-1 / c["beta"])

    def effective_parameters(self, parameters: float, unique: float) -> float:
        """What they count as on so many unique tokens, those beyond the ones that suit these best for less."""
        best = self.best_parameters(unique)
        if not self.form.parameters_decay or parameters <= best:
            return parameters
        return float(np.exp(_saturating(np, math.log(best), math.log(parameters), self.constants["rn_star"])))

    def next_token(self, tokens: float, unique: float, parameters: float | None = None) -> float | None:
        """New tokens that one more is worth, a repeated one (exp(-R / rd_star)); below 0 it does harm.

        None by the penalty form before the first repetition, where its slope has no end.
        """
        unique = min(unique, tokens)
        if self.form.data_decays:
            return math.exp(-(tokens / unique - 1) / self.constants["rd_star"])
        if not self.form.is_penalized:
            return 1.0
        if tokens <= unique:
            return None
        step = 1e-4 * (tokens - unique)
        ends = (self.effective_tokens(tokens + sign * step, unique, parameters) for sign in (1, -1))
        return (next(ends) - next(ends)) / (2 * step)

    def best_parameters(self, tokens: float) -> float:
        """Parameters for which so many new tokens are compute-optimal."""
        return float(np.exp(_ln_best_parameters(np, self.constants, math.log(tokens))))

    def cautions(self, **values: float) -> list[str]:
        """What to bear in mind: the law's own, and which of ``values`` (by the names of ``ranges``, ``epochs``) lie outside."""
        own = [f"{self.name}: {self.caution}"] if self.caution else []
        if values.get("epochs", 1) > LONG and self.form.data_decays:
            own.append(
                f"beyond some {LONG} epochs repeats are worth nearly nothing, and often did harm, which this form cannot express"
            )
        return own + [
            f"{name.replace('_', ' ')} {readable(value)}: outside of the {readable(self.ranges[name][0])} to "
            f"{readable(self.ranges[name][1])} of the runs behind '{self.name}'"
            for name, value in values.items()
            if name in self.ranges and not 0.99 * self.ranges[name][0] <= value <= 1.01 * self.ranges[name][1]
        ]


_C4 = {"parameters": (7.1e6, 8.67e9), "tokens": (1e8, 900e9), "unique_tokens": (1e8, 178e9)}
PUBLISHED = {
    law.name: law
    for law in (
        Law(
            "c4", FORMS["data-constrained"],
            {"E": math.exp(0.6254804), "A": math.exp(6.255414), "alpha": 0.3526596, "B": math.exp(7.3049974), "beta": 0.3526596,
             "rd_star": 15.387756, "rn_star": 5.309743},
            "Muennighoff et al. 2023: 182 runs on C4, GPT-2's tokenizer", _C4,
            "runs whose loss rose were left out of its fit; it knows no harm from repeating (c4-penalty does)",
        ),
        Law(
            "massivetext", FORMS["chinchilla"],
            {"E": math.exp(0.52473), "A": math.exp(6.0073), "alpha": 0.34, "B": math.exp(6.0162), "beta": 0.28},
            "Hoffmann et al. 2022: runs on MassiveText", {"parameters": (44e6, 16e9), "tokens": (1e9, 500e9)},
            "every token counts as new, however often it comes",
        ),
        Law(
            "c4-penalty", FORMS["penalty"],
            {"E": math.exp(0.7433), "A": math.exp(6.451), "alpha": 0.356, "B": math.exp(10.019), "beta": 0.469,
             "P": math.exp(-3.037), "delta": 0.423, "kappa": 0.832},
            "fitted anew to 230 runs of Muennighoff et al. 2023, those included that they left out", _C4,
            "a few runs that blew up weigh on it: a direction rather than a law",
        ),
    )
}  # fmt: skip


def find(name: str) -> Law:
    """A published law by its name, or one that ``law fit --output`` wrote. Raises ConfigError."""
    if name in PUBLISHED:
        return PUBLISHED[name]
    if not name.endswith(".json"):
        raise ConfigError(f"no law '{name}'.{did_you_mean(name, PUBLISHED, 'Besides FILE.json of law fit there are')}")
    return read(Path(name))


def read(path: Path) -> Law:
    """Raises ConfigError: no file, or not one that :func:`as_json` made."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as a law: {error}. `megatron-adapt law fit --output` writes one.") from None
    form = FORMS.get(values.get("form")) if isinstance(values, dict) else None
    if form is None:
        raise ConfigError(f"{path} is no law: 'form' should be one of {', '.join(FORMS)}.")
    constants, ranges = values.get("constants"), values.get("ranges", {})
    if not isinstance(constants, dict) or set(constants) != set(form.constants):
        raise ConfigError(f"{path}: the form {form.name} has the constants {', '.join(form.constants)}.")
    check(constants, str(path))
    if not isinstance(ranges, dict) or not all(_is_span(span) for span in ranges.values()):
        raise ConfigError(f"{path}: 'ranges' should be the smallest and the largest value of each quantity.")
    spans = {name: (low, high) for name, (low, high) in ranges.items()}
    name, source, caution = (str(values.get(key, other)) for key, other in (("name", path.stem), ("source", path), ("caution", "")))
    return Law(name, form, constants, source, spans, caution)


def as_json(law: Law) -> dict[str, Any]:
    return {
        "name": law.name, "form": law.form.name, "constants": dict(law.constants), "source": law.source,
        "ranges": {name: list(span) for name, span in law.ranges.items()}, "caution": law.caution,
    }  # fmt: skip


def check(constants: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError for constants that are no finite numbers, or not above 0 where the form needs that."""
    for name, value in constants.items():
        if not _is_number(value) or not (value > 0 or name in MAY_BE_NEGATIVE):
            above = "" if name in MAY_BE_NEGATIVE else " above 0"
            raise ConfigError(f"{where}: {name} must be a number{above}, got {got(value)}.")


def _is_span(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_number(end) for end in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def readable(value: float) -> str:
    """1.3B for 1.3e9; three digits."""
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= 0.9995 * scale:
            return f"{value / scale:.3g}{letter}" if abs(value) < 1e15 else f"{value:.3g}"
    return f"{value:.3g}"
