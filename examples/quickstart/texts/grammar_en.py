"""English forms: noun phrases, verbs, clauses.

Slots: ``{determiner class [flags]}``: determiners a, the, this, my, our, his (of the subject), 0 (none), num (a number from two up); flags pl,
+ (with adjective), - (without), rel (with a relative clause). ``{P}``, ``{Q}``, ``{O}`` are the people of the document, ``{he P}`` ``{him P}``
``{his P}`` their pronouns, ``{#a-b}`` a number, ``{num a-b}`` the same in words, ``{adj class}``, ``{place}``, ``{name}``, ``{family}``, ``{month}``, ``{kin}``.
"""

from __future__ import annotations

from functools import lru_cache

import lexicon_en as lexicon
from engine import Chooser

PRONOUN = {"m": ("he", "him", "his"), "f": ("she", "her", "her"), "p": ("they", "them", "their"), "I": ("I", "me", "my"),
           "we": ("we", "us", "our")}  # fmt: skip
NUMBERS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen""".split()
TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()
KIN = "uncle aunt grandmother grandfather brother sister cousin great-aunt godfather niece".split()
RELATIVE_CLAUSES = [
    "that {my kin} had once used", "that nobody wanted any more", "that came from {place}", "that somebody had left behind",
    "that had gone unnoticed for years", "that {name} had recommended", "that was far older than it looked", "that was used every day",
    "that smelled a little of smoke", "that could not be found anywhere else", "that had belonged to the vicar", "that was still quite useful",
    "that had caused a great deal of trouble last winter", "that the children loved", "that the whole street talked about",
]  # fmt: skip


@lru_cache(maxsize=None)
def nouns() -> dict[str, list[str]]:
    table: dict[str, list[str]] = {}
    name = ""
    for line in lexicon.NOUNS.strip().split("\n"):
        if not line.startswith(" "):
            name, _, line = line.partition(":")
            table[name] = []
        table[name] += [entry.strip() for entry in line.split(",") if entry.strip()]
    return table


@lru_cache(maxsize=None)
def adjectives() -> dict[str, list[str]]:
    return {name: words.split() for name, words in lexicon.ADJECTIVES.items()}


@lru_cache(maxsize=None)
def irregular() -> dict[str, list[str]]:
    return {entry.split()[0]: entry.split()[1:] for entry in lexicon.IRREGULAR.split(";")}


def plural(noun: str) -> str:
    if noun in lexicon.PLURALS:
        return lexicon.PLURALS[noun]
    if noun.endswith(("s", "x", "ch", "sh", "z")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def past(verb: str) -> str:
    return irregular()[verb][0] if verb in irregular() else _regular(verb)


def participle(verb: str) -> str:
    return irregular()[verb][1] if verb in irregular() else _regular(verb)


def _regular(verb: str) -> str:
    if verb.endswith("e"):
        return verb + "d"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ied"
    return verb + "ed"


def gerund(verb: str) -> str:
    if verb in ("lie", "tie"):
        return verb[0] + "ying"
    if verb in lexicon.DOUBLING:
        return verb + verb[-1] + "ing"
    if verb.endswith("e") and not verb.endswith(("ee", "oe", "ye")):
        return verb[:-1] + "ing"
    return verb + "ing"


def with_article(words: str) -> str:
    first = words.split()[0].lower()
    vowel = first[0] in "aeiou" and not first.startswith(("uni", "use", "eu", "one"))
    return ("an " if vowel or first.startswith(("hour", "honest")) else "a ") + words


def number_word(value: int) -> str:
    if value < 20:
        return NUMBERS[value]
    ten, unit = divmod(value, 10)
    return TENS[ten] + (f"-{NUMBERS[unit]}" if unit else "")


class English:
    """Fills the slots of one document."""

    def __init__(self, chooser: Chooser) -> None:
        self.choose = chooser
        self.people: dict[str, tuple[str, str]] = {}
        self.role = ""
        self.subject = "m"
        self.alias: dict[str, str] = {}
        self.fixed: dict[str, str] = {}
        self.recent: list[str] = []
        self.home = chooser.of(lexicon.PLACES).replace("_", " ")  # {here}

    def fill(self, template: str) -> str:
        return self.choose.fill(template, self.slot)

    def slot(self, spec: str) -> str:
        words = spec.split()
        if words[0].startswith("#"):
            low, high = words[0][1:].split("-")
            return str(self.choose.number(int(low), int(high)))
        if words[0] == "num" and words[1][0].isdigit():
            low, high = words[1].split("-")
            return number_word(self.choose.number(int(low), int(high)))
        if words[0] in self.people:
            return self.people[words[0]][0]
        if words[0] in ("he", "him") or (words[0] == "his" and words[1] in self.people):
            return PRONOUN[self.people[words[1]][1]][("he", "him", "his").index(words[0])]
        if words[0] == "adj":
            return self.choose.of(adjectives()[self.alias.get(words[1], words[1])])
        if words[0] == "ordinal":
            return self.choose.of("third fourth fifth sixth seventh eighth ninth tenth".split())
        if words[0] == "here":
            return self.home
        if words[0] == "R":
            return self.role
        if words[0] == "aR":
            return with_article(self.role)
        lists = {"place": lexicon.PLACES, "family": lexicon.FAMILIES, "month": lexicon.MONTHS,
                 "name": self.choose.of((lexicon.WOMEN, lexicon.MEN))}  # fmt: skip
        if words[0] in lists:
            return self.choose.of(lists[words[0]]).replace("_", " ")
        return self.noun_phrase(words)

    def noun_phrase(self, words: list[str]) -> str:
        determiner, name, *flags = words
        if name == "kin":
            return f"{self.possessive(determiner)} {self.choose.of(KIN)}"
        many = "pl" in flags or determiner == "num"
        noun = self.fixed.get(name) or self.noun(self.alias.get(name, name))
        name = self.alias.get(name, name)
        mass = name in ("supply", "weather")
        text = plural(noun) if many and not mass else noun
        if "+" in flags or ("-" not in flags and self.choose.chance(0.25)):
            text = f"{self.choose.of(adjectives()[name])} {text}"
        if determiner == "a":
            text = text if many else (f"some {text}" if mass else with_article(text))
        elif determiner == "num":
            text = f"{number_word(self.choose.number(2, 12))} {text}"
        elif determiner == "this":
            text = f"{'these' if many else 'this'} {text}"
        elif determiner != "0":
            text = f"{self.possessive(determiner)} {text}"
        if "rel" in flags:
            text += " " + self.fill(self.choose.bag(RELATIVE_CLAUSES))
        return text

    def noun(self, name: str) -> str:
        for _ in range(8):
            noun = self.choose.of(nouns()[name])
            if noun not in self.recent:
                break
        self.recent = [*self.recent[-5:], noun]
        return noun

    def possessive(self, determiner: str) -> str:
        return PRONOUN[self.subject][2] if determiner == "his" else determiner

    # ---- verb phrases are "verb: complement", "pick up: {the tool}" --------------------------------------------------

    def phrase(self, spec: str, person: str, form: str, adverb: str = "") -> str:
        """The verb phrase in a form: past, perf, plup, prog, inf, ing, will, or a modal such as could."""
        head, _, complement = spec.partition(":")
        verb, _, particle = head.partition(" ")
        self.subject = person
        rest = " ".join(filter(None, [particle, self.fill(complement.strip()), adverb]))
        many = person in ("p", "we")
        word = {
            "past": lambda: past(verb), "inf": lambda: verb, "ing": lambda: gerund(verb), "plup": lambda: f"had {participle(verb)}",
            "perf": lambda: f"{'have' if many or person == 'I' else 'has'} {participle(verb)}",
            "prog": lambda: f"{'were' if many else 'was'} {gerund(verb)}", "will": lambda: f"will {verb}",
        }.get(form, lambda: f"{form} {verb}")()  # fmt: skip
        return f"{word} {rest}".strip()
