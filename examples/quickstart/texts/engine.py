"""What both languages of the corpus generator share: random choice without early repetition, templates, sentences.

A template is text with ``<one|another>`` alternatives (they nest) and ``{slots}``, which a language fills with words in
the right form.
"""

from __future__ import annotations

import random
import re
from typing import Callable, Sequence, TypeVar

T = TypeVar("T")

ALTERNATIVES = re.compile(r"<([^<>]*)>")
SLOT = re.compile(r"\{([^{}]*)\}")


class Chooser:
    """Random choices from a seed; ``bag`` deals a list out completely before any entry comes again."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._bags: dict[int, tuple[Sequence, list[int]]] = {}  # with the list itself, so that its id stays taken

    def bag(self, entries: Sequence[T]) -> T:
        _, left = self._bags.setdefault(id(entries), (entries, []))
        if not left:
            left.extend(range(len(entries)))
            self.random.shuffle(left)
        return entries[left.pop()]

    def of(self, entries: Sequence[T]) -> T:
        return entries[self.random.randrange(len(entries))]

    def number(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def weighted(self, table: Sequence[tuple[float, T]]) -> T:
        point = self.random.random() * sum(weight for weight, _ in table)
        for weight, entry in table:
            point -= weight
            if point < 0:
                return entry
        return table[-1][1]

    def alternatives(self, template: str) -> str:
        """Resolve ``<a|b|>``, innermost first."""
        while ALTERNATIVES.search(template):
            template = ALTERNATIVES.sub(lambda match: self.of(match.group(1).split("|")), template, count=1)
        return template

    def fill(self, template: str, slot: Callable[[str], str]) -> str:
        """Resolve alternatives, then every slot from left to right."""
        return SLOT.sub(lambda match: slot(match.group(1)), self.alternatives(template))


def block(text: str) -> list[str]:
    """The templates of a data block: one a line, a line that starts with two spaces continues the one before."""
    lines: list[str] = []
    for line in text.strip("\n").split("\n"):
        if line.startswith("  ") and lines:
            lines[-1] += " " + line.strip()
        elif line.strip():
            lines.append(line.strip())
    return lines


def sections(text: str) -> dict[str, list[str]]:
    """A data block with ``[name]`` headings."""
    found: dict[str, list[str]] = {}
    for part in re.split(r"^\[", text, flags=re.MULTILINE)[1:]:
        name, _, body = part.partition("]")
        found[name] = block(body)
    return found


def sentence(text: str) -> str:
    """Spacing, the capital at the start and the final punctuation of one sentence."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r" ([,.;:!?])", r"\1", text)
    if text[-1] not in ".!?:“”…":
        text += "."
    text = re.sub(r",+([,.;:!?“])", r"\1", text)
    text = re.sub(r"(?<=[?!] )[a-zäöü]", lambda match: match.group().upper(), text)
    first = next(i for i, c in enumerate(text) if c.isalnum())
    return text[:first] + text[first].upper() + text[first + 1 :]
