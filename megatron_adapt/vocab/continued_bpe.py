"""Byte-pair encoding learnt on top of the merges that a tokenizer has: its old merges come first, the new ones behind.

To append the merges of another tokenizer leaves half of the new tokens unreachable, because the old merges have cut the
text elsewhere by then. Here pairs are counted in the text as the tokenizer cuts it (Sennrich et al. 2016, continued), so
every new token is one that it really makes. Three rules keep this exact:

* A new merge never makes a string that is a token already; so old merges never apply to what new ones have made.
* Byte-fallback tokens take no part: ``<0xC3><0xA4>`` would no longer be read as bytes.
* Where the tokenizer cuts words by no pattern of its own, a token is letters or signs or digits, as in sentencepiece,
  and digits are joined only if the tokenizer joins some.
"""

from __future__ import annotations

import heapq
import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Callable, Iterable, Mapping

COVERAGE = 0.9995  # of the characters of a text, as sentencepiece has it; rarer ones stay bytes
BARRIER = -1  # in place of a character that is no token


@dataclass(frozen=True)
class Learnt:
    """What continued BPE adds.

    Attributes:
        characters: new tokens of one character. merges: (left, right) of the others, in the order in which they apply.
        words: every distinct word with how it is cut now (tokens as strings, None for a character that is none).
        tokens_before: of the text, as it was cut.
    """

    characters: list[str]
    merges: list[tuple[str, str]]
    words: dict[str, list[str | None]]
    tokens_before: int

    @property
    def tokens(self) -> list[str]:
        return [*self.characters, *(left + right for left, right in self.merges)]


def learn(
    words: Mapping[str, int], vocabulary: Iterable[str], cut: Callable[[str], list[str]], count: int, min_count: int,
    shaped: bool,
) -> Learnt:
    """Learn up to ``count`` new tokens.

    Args:
        words: pre-tokenised text, spelt as the vocabulary spells it, with how often each comes.
        vocabulary: all tokens there are.
        cut: the tokens of a string whose characters are all in the vocabulary.
        min_count: a pair is merged if it comes so often, a character added if it does.
        shaped: whether a token may only be letters, or signs, or digits.
    """
    known = set(vocabulary)
    characters = _new_characters(words, known, min_count)[:count]
    before = _count(words, known, cut)
    table = _Table(words, known, characters, cut, min_count, _shape(known) if shaped else None)
    merges = table.merge(count - len(characters))
    cuts = {word: [None if index == BARRIER else table.texts[index] for index in ids] for word, ids in zip(words, table.words)}
    return Learnt(characters, merges, cuts, before)


def _count(words: Mapping[str, int], known: set[str], cut: Callable[[str], list[str]]) -> int:
    """Tokens of the text with the vocabulary as it is; a character that is no token counts with its bytes."""
    total = 0
    for word, number in words.items():
        parts = _parts(word, known)
        total += number * sum(len(cut(part)) if len(part) > 1 or part in known else len(part.encode()) for part in parts)
    return total


def _new_characters(words: Mapping[str, int], known: set[str], min_count: int) -> list[str]:
    """Visible characters that are no token, most frequent first, without the rarest 0.05 % of the text."""
    counts: Counter[str] = Counter()
    for word, number in words.items():
        for character in word:
            counts[character] += number
    covered, total, found = 0, sum(counts.values()), []
    for character, number in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if covered >= COVERAGE * total or number < min_count:
            break
        covered += number
        if character not in known and unicodedata.category(character)[0] in "LMNPS":
            found.append(character)
    return found


def _parts(word: str, known: set[str]) -> list[str]:
    """A word cut around characters that are no token; each of those is a part of its own."""
    if all(character in known for character in word):
        return [word]
    parts = [""]
    for character in word:
        if character in known:
            parts[-1] += character
        else:
            parts += [character, ""]
    return [part for part in parts if part]


def _shape(known: set[str]) -> Callable[[str], str]:
    """What a string consists of behind its spaces: letters L, digits N, signs S, nothing W; "" for a mixture, and for
    digits in a row or behind a space where no token has them so."""
    rows, spaced = (any(re.fullmatch(pattern, token) for token in known) for pattern in (r"▁?\d{2,}", r"▁+\d+"))

    def shape(text: str) -> str:
        bare = text.lstrip("▁")
        kinds = {_kind(character) for character in bare}
        if len(kinds) > 1 or (kinds == {"N"} and ((len(bare) > 1 and not rows) or (bare != text and not spaced))):
            return ""
        return kinds.pop() if kinds else "W"

    return shape


def _kind(character: str) -> str:
    category = unicodedata.category(character)[0]
    return "L" if category in "LM" else "N" if category == "N" else "S"


class _Table:
    """Distinct words as lists of token numbers, and where each pair of neighbours is."""

    def __init__(
        self, words: Mapping[str, int], known: set[str], characters: list[str], cut: Callable[[str], list[str]],
        min_count: int, shape: Callable[[str], str] | None,
    ) -> None:
        self.shape, self.min_count = shape, min_count
        self.texts: list[str] = []
        self.numbers: dict[str, int] = {}
        self.counts = list(words.values())
        self.words = [self._cut(word, known, set(characters), cut) for word in words]
        self.known = known.union(characters)
        self.pairs: Counter[tuple[int, int]] = Counter()
        self.places: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
        for place, ids in enumerate(self.words):
            for pair in zip(ids, ids[1:]):
                self.pairs[pair] += self.counts[place]
                self.places[pair].add(place)
        self.refused: set[tuple[int, int]] = set()

    def _cut(self, word: str, known: set[str], characters: set[str], cut: Callable[[str], list[str]]) -> list[int]:
        ids: list[int] = []
        for part in _parts(word, known):
            if len(part) > 1 or part in known:
                ids += map(self._number, cut(part))
            else:
                ids.append(self._number(part) if part in characters else BARRIER)
        return ids

    def _number(self, text: str) -> int:
        if text not in self.numbers:
            self.numbers[text] = len(self.texts)
            self.texts.append(text)
        return self.numbers[text]

    def merge(self, count: int) -> list[tuple[str, str]]:
        """The pairs merged, most frequent first; of equally frequent ones that whose text comes first."""
        heap = [self._entry(pair) for pair in self.pairs if self._is_allowed(pair)]
        heapq.heapify(heap)
        merges: list[tuple[str, str]] = []
        while heap and len(merges) < count:
            number, left_text, right_text, pair = heapq.heappop(heap)
            now = self.pairs.get(pair, 0)
            if now != -number:  # the text has changed since
                if self._is_allowed(pair):
                    heapq.heappush(heap, self._entry(pair))
                continue
            if not self._is_allowed(pair):  # another pair has made this string
                continue
            merges.append((left_text, right_text))
            self.known.add(left_text + right_text)
            for touched in self._apply(pair, self._number(left_text + right_text)):
                if self._is_allowed(touched):
                    heapq.heappush(heap, self._entry(touched))
        return merges

    def _entry(self, pair: tuple[int, int]) -> tuple[int, str, str, tuple[int, int]]:
        return -self.pairs[pair], self.texts[pair[0]], self.texts[pair[1]], pair

    def _is_allowed(self, pair: tuple[int, int]) -> bool:
        if self.pairs.get(pair, 0) < self.min_count or BARRIER in pair or pair in self.refused:
            return False
        text = self.texts[pair[0]] + self.texts[pair[1]]
        if text in self.known or (self.shape is not None and not self.shape(text)):
            self.refused.add(pair)
            return False
        return True

    def _apply(self, pair: tuple[int, int], merged: int) -> set[tuple[int, int]]:
        """Merge a pair wherever it is; returns the pairs that are new."""
        left, right = pair
        made: set[tuple[int, int]] = set()
        for place in self.places.pop(pair, ()):
            ids, number = self.words[place], self.counts[place]
            new: list[int] = []
            at = 0
            while at < len(ids):
                if ids[at] == left and at + 1 < len(ids) and ids[at + 1] == right:
                    new.append(merged)
                    at += 2
                else:
                    new.append(ids[at])
                    at += 1
            for old in zip(ids, ids[1:]):
                self.pairs[old] -= number
            for fresh in zip(new, new[1:]):
                self.pairs[fresh] += number
                if merged in fresh:
                    self.places[fresh].add(place)
                    made.add(fresh)
            self.words[place] = new
        del self.pairs[pair]
        return made
