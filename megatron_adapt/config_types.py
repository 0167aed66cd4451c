"""How one value of a recipe is read: numbers with suffixes, text, names, the parts of a model that train.

Each type is strict about what it accepts and says in plain words what it expected (`ValueError`); `recipe.load` puts
the file, line and key in front.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainValidator

from megatron_adapt.errors import ConfigError

_NUMBER = re.compile(r"([+-]?(?:[0-9][0-9_]*(?:\.[0-9]*)?|\.[0-9]+))(?:[eE]([+-]?[0-9]{1,4}))?\s*([KMBGTkmbgt]?)")
_SCALE = {"": 0, "K": 3, "M": 6, "B": 9, "G": 9, "T": 12}
_LARGEST_EXPONENT = 30  # beyond any count of tokens or bytes; without a bound '1e9999' would be an int of 10,000 digits
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_LAYERS = re.compile(r"layers\[(-?\d+)?:(-?\d+)?\]")
DTYPES = ("keep", "float32", "bfloat16", "float16")
TIES = ("keep", "untie", "tie")
VERIFY = ("off", "weights", "logits")
PARTS = ("all", "embedding", "output", "norms")
RECOMPUTE = ("none", "selective", "full", "auto")
INVALID: Any = type("Invalid", (), {"__repr__": lambda self: "INVALID"})()  # reported already: checks pass over it


def got(value: Any) -> str:
    """`value` as an error message names it: 'nothing', 'a mapping', 'a list', or the value itself, shortened."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = repr(value) if isinstance(value, str) else f"the number {value}"
    return text if len(text) <= 60 else text[:57] + "..."


def did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    """' Did you mean ...?' for the nearest known word, else `otherwise` and all known words (nothing without any)."""
    known = list(known)
    nearest = difflib.get_close_matches(word, known, n=1)
    if nearest:
        return f" Did you mean '{nearest[0]}'?"
    return f" {otherwise}: {', '.join(known)}." if known else ""


def _decimal(value: Any, expected: str) -> Decimal:
    """The exact decimal value of a number or of text such as '1e-4', '500M', '1.5T', '10_000'."""
    match = _NUMBER.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is not None:
        exponent = int(match[2] or 0) + _SCALE[match[3].upper()]
        decimal = Decimal(f"{match[1].replace('_', '')}E{exponent}")  # exact, unlike arithmetic on decimals
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        decimal = Decimal(repr(value))
    else:
        raise ValueError(f"expected {expected}, got {got(value)}")
    if decimal and decimal.adjusted() > _LARGEST_EXPONENT:
        raise ValueError(f"expected {expected}, got {got(value)}, which is too large")
    return decimal


def integer(value: Any) -> int:
    """A whole number, exactly: 8, 2K, 1e6, '500M', '1.5T'; 1.5 is an error.

    Raises ValueError: not a number, not whole, larger than 1e30.
    """
    decimal = _decimal(value, "a whole number (such as 8, 2K or 500M)")
    if decimal and (decimal.adjusted() < 0 or decimal != decimal.to_integral_value()):
        raise ValueError(f"expected a whole number (such as 8, 2K or 500M), got {got(value)}")
    return int(decimal)


def number(value: Any) -> float:
    """A finite number: 0.1, 1e-4, '1e-4', '500M'. Raises ValueError for anything else."""
    return float(_decimal(value, "a number (such as 0.1, 1e-4 or 500M)"))


def byte_count(value: Any) -> int:
    """A number of bytes; '5GB' is the same as '5G'. Raises ValueError."""
    return integer(re.sub(r"(?<=[KMGTkmgt])[Bb]$", "", value.strip()) if isinstance(value, str) else value)


def choice(option: str, value: str | None, known: tuple[str, ...]) -> str | None:
    """The value of a command's option, one of those known (or none given). Raises ConfigError."""
    if value is not None and value not in known:
        raise ConfigError(f"--{option} {value}: choose {', '.join(known[:-1])} or {known[-1]}.")
    return value


def size_option(option: str, value: str) -> int:
    """The value of a command's option that is a number of bytes, at least one. Raises ConfigError."""
    try:
        size = byte_count(value)
    except ValueError as error:
        raise ConfigError(f"--{option}: {error}.") from None
    if size < 1:
        raise ConfigError(f"--{option}: must be at least 1 byte, got {value!r}.")
    return size


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, got {got(value)}")
    return value


def _text(value: Any) -> str:
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, (bool, int, float)):
        raise ValueError(f"expected text, got {got(value)}; put it in quotes if it is meant as text")
    raise ValueError(f"expected text, got {got(value)}")


def _name(value: Any) -> str:
    if not _NAME.fullmatch(_text(value)):
        raise ValueError(f"expected a name (letters, digits, '-' and '_', starting with a letter), got {got(value)}")
    return value


def _texts(value: Any) -> str | list[str]:
    if isinstance(value, str):
        return _text(value)
    if not isinstance(value, list):
        raise ValueError(f"expected text or a list of texts, got {got(value)}")
    if not value:
        raise ValueError("must not be an empty list")
    return [_text(item) for item in value]


def _selector(text: str) -> None:
    """Checks one part of a model; raises ValueError."""
    if text in PARTS:
        return
    if text.startswith("regex:"):
        try:
            re.compile(text[6:])
        except re.error as error:
            raise ValueError(f"{text[6:]!r} is not a valid regular expression: {error}") from None
    elif match := _LAYERS.fullmatch(text):
        first, last = (int(bound) if bound else None for bound in match.groups())
        if last == 0 or (first is not None and last is not None and (first < 0) == (last < 0) and first >= last):
            raise ValueError(f"{text!r} selects no layer; the first number must be below the second")
    elif text.startswith("layers"):
        raise ValueError(f"expected layers[a:b] such as 'layers[0:4]' or 'layers[-2:]', got {text!r}")
    else:
        known = did_you_mean(text, PARTS, "Known parts, besides 'layers[a:b]' and 'regex:...'")
        raise ValueError(f"unknown part of a model {text!r}.{known}")


def _selectors(value: Any) -> str | list[str]:
    value = _texts(value)
    for text in [value] if isinstance(value, str) else value:
        _selector(text)
    return value


def _recompute(value: Any) -> str | int:
    if value in RECOMPUTE and isinstance(value, str):
        return value
    try:
        count = integer(value)
    except ValueError:
        hint = did_you_mean(value, RECOMPUTE, "") if isinstance(value, str) else ""
        hint = f".{hint}" if "Did you mean" in hint else ""
        raise ValueError(f"expected {', '.join(RECOMPUTE)} or a number of layers, got {got(value)}{hint}") from None
    if count < 1:
        raise ValueError(f"a number of layers is at least 1, got {got(value)}; to keep everything say 'none'")
    return count


def selected_layers(selector: str, num_layers: int) -> range | None:
    """The global layer indices of 'layers[a:b]', a Python slice: ends optional, negative ones count from the end.

    None for every other selector. The range is empty where the model has fewer layers than `a`.
    """
    match = _LAYERS.fullmatch(selector)
    return range(num_layers)[slice(*(int(bound) if bound else None for bound in match.groups()))] if match else None


Text = Annotated[str, PlainValidator(_text)]
Texts = Annotated[str | list[str], PlainValidator(_texts)]
Name = Annotated[str, PlainValidator(_name)]
Parts = Annotated[str | list[str], PlainValidator(_selectors)]
Recompute = Annotated[str | int, PlainValidator(_recompute)]
Switch = Annotated[bool, PlainValidator(_boolean)]
Integer = Annotated[int, BeforeValidator(integer)]
Count = Annotated[int, Field(ge=1), BeforeValidator(integer)]
Bytes = Annotated[int, Field(ge=1), BeforeValidator(byte_count)]
Number = Annotated[float, BeforeValidator(number)]
Positive = Annotated[float, Field(gt=0), BeforeValidator(number)]
NotNegative = Annotated[float, Field(ge=0), BeforeValidator(number)]
Share = Annotated[float, Field(ge=0, le=1), BeforeValidator(number)]
