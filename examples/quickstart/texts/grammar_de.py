"""German forms: noun phrases, verbs, clauses.

Slots: ``{[preposition] determiner class [case] [flags]}``, e.g. ``{in der raum d}``, ``{ein werkzeug a +}``:
determiners der, ein, kein, dies, jed, sein (of the subject), mein, unser, 0 (none), num (a number from two up, spelled out);
cases n a d g (prepositions that govern one case imply it); flags pl, + (with adjective), - (without), rel (with a
relative clause). ``{P x}`` / ``{Q x}`` are the people of the document, ``{er P d}`` a pronoun, ``{#a-b}`` a number,
``{zahl a-b}`` the same in words, ``{adj class}`` a predicative adjective, ``{ort}``, ``{name}`` invented names.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import lexicon_de as lexicon
from engine import Chooser

CASES = "nadg"
DEFINITE = {"m": ["der", "den", "dem", "des"], "f": ["die", "die", "der", "der"], "n": ["das", "das", "dem", "des"],
            "p": ["die", "die", "den", "der"]}  # fmt: skip
ENDINGS = {"m": ["er", "en", "em", "es"], "f": ["e", "e", "er", "er"], "n": ["es", "es", "em", "es"],
           "p": ["e", "e", "en", "er"]}  # fmt: skip  # of dies-, jed-
EIN = {"m": ["", "en", "em", "es"], "f": ["e", "e", "er", "er"], "n": ["", "", "em", "es"], "p": ["e", "e", "en", "er"]}
WEAK = {"m": ["e", "en", "en", "en"], "f": ["e", "e", "en", "en"], "n": ["e", "e", "en", "en"], "p": ["en"] * 4}
MIXED = {"m": ["er", "en", "en", "en"], "f": ["e", "e", "en", "en"], "n": ["es", "es", "en", "en"], "p": ["en"] * 4}
BARE = {
    "m": ["er", "en", "em", "en"],
    "f": ["e", "e", "er", "er"],
    "n": ["es", "es", "em", "en"],
    "p": ["e", "e", "en", "er"],
}
RELATIVE = {"m": ["der", "den", "dem", "dessen"], "f": ["die", "die", "der", "deren"], "n": ["das", "das", "dem", "dessen"],
            "p": ["die", "die", "denen", "deren"]}  # fmt: skip
PRONOUN = {"m": ["er", "ihn", "ihm"], "f": ["sie", "sie", "ihr"], "n": ["es", "es", "ihm"], "p": ["sie", "sie", "ihnen"],
           "ich": ["ich", "mich", "mir"], "wir": ["wir", "uns", "uns"]}  # fmt: skip
POSSESSIVE = {"m": "sein", "f": "ihr", "n": "sein", "p": "ihr", "ich": "mein", "wir": "unser"}
REFLEXIVE = {"ich": "mich", "wir": "uns"}
FIXED_CASE = {**dict.fromkeys(["mit", "nach", "von", "zu", "bei", "aus", "seit", "gegenüber"], "d"),
              **dict.fromkeys(["durch", "für", "ohne", "gegen", "um"], "a"), "wegen": "g", "während": "g", "trotz": "g"}  # fmt: skip
PREPOSITIONS = {*FIXED_CASE, "in", "an", "auf", "über", "unter", "vor", "hinter", "neben", "zwischen"}
CONTRACTED = {"in dem": "im", "an dem": "am", "bei dem": "beim", "von dem": "vom", "zu dem": "zum", "zu der": "zur",
              "in das": "ins", "an das": "ans"}  # fmt: skip
NUMBERS = "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf".split()
TENS = "_ zehn zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig".split()
RELATIVE_CLAUSES = [
    "a schon {mein verwandt} benutzt hatte", "a niemand mehr haben wollte", "n aus {ort} stammte", "a jemand vergessen hatte",
    "n seit Jahren unbeachtet war", "a {name} empfohlen hatte", "n viel älter war, als man dachte", "n jeden Tag gebraucht wurde",
    "n ein wenig nach Rauch roch", "a man sonst nirgends findet", "n früher dem Pfarrer gehört hatte", "n noch ganz brauchbar war",
    "a keiner so recht kannte", "n im letzten Winter viel Ärger gemacht hatte", "a die Kinder so liebten",
]  # fmt: skip
KIN = [("Onkel", "m"), ("Tante", "f"), ("Großmutter", "f"), ("Großvater", "m"), ("Bruder", "m"), ("Schwester", "f"), ("Vetter", "m"),
       ("Kusine", "f"), ("Urgroßvater", "m"), ("Patentante", "f")]  # fmt: skip


@dataclass(frozen=True)
class Noun:
    word: str
    gender: str
    genitive: str
    plural: str

    def form(self, case: int, plural: bool) -> str:
        if plural:
            return self.plural + ("n" if case == 2 and self.plural[-1] not in "nsai" else "")
        if self.gender == "m" and self.genitive in ("n", "en"):
            return self.word + (self.genitive if case else "")
        return self.word + (self.genitive if case == 3 and self.genitive != "-" else "")


@dataclass(frozen=True)
class Verb:
    infinitive: str
    prefix: str
    present: str
    past: str
    participle: str
    sein: bool

    def finite(self, tense: str, person: str) -> str:
        """tense: pres or past; person: a key of PRONOUN."""
        if tense == "past":
            if person in ("p", "wir"):
                return self.past + ("n" if self.past.endswith("e") else "en")
            return self.past
        if person in ("p", "wir"):
            return self.infinitive
        if person == "ich":
            if self.infinitive.endswith("eln"):
                return self.infinitive[:-3] + "le"
            stem = self.infinitive[:-2] if self.infinitive.endswith("en") else self.infinitive[:-1]
            return stem + "e"
        return self.present

    @property
    def with_zu(self) -> str:
        return f"{self.prefix}zu{self.infinitive}" if self.prefix else f"zu {self.infinitive}"


@lru_cache(maxsize=None)
def nouns() -> dict[str, list[Noun]]:
    table: dict[str, list[Noun]] = {}
    name = ""
    for line in lexicon.NOUNS.strip().split("\n"):
        if not line.startswith(" "):
            name, _, line = line.partition(":")
            table[name] = []
        table[name] += [Noun(*entry.split()) for entry in line.split(",") if entry.strip()]
    return table


@lru_cache(maxsize=None)
def adjectives() -> dict[str, list[str]]:
    return {name: words.split() for name, words in lexicon.ADJECTIVES.items()}


@lru_cache(maxsize=None)
def strong() -> dict[str, list[str]]:
    return {entry.split()[0]: entry.split()[1:] for entry in lexicon.STRONG.split(";")}


INSEPARABLE = ("be", "ver", "er", "ent", "zer", "ge", "über", "unter", "wieder")


@lru_cache(maxsize=None)
def verb(name: str) -> Verb:
    """Forms of ``reparieren`` or, separable, ``auf|räumen``; weak unless the lexicon says otherwise."""
    prefix, _, base = name.rpartition("|")
    forms = strong().get(name) or strong().get(base)
    if forms:
        present, past, participle = forms[:3]
        return Verb(base, prefix, present, past, prefix + participle, "+" in forms)
    stem = base[:-2] if base.endswith("en") else base[:-1]
    e = (
        "e"
        if stem[-1] in "td" or stem.endswith(("chn", "ckn")) or (stem[-1] in "mn" and stem[-2] not in "aeiouäöülrhmn")
        else ""
    )
    bare = base.endswith("ieren") or (not prefix and base.startswith(INSEPARABLE))
    participle = ("" if bare else "ge") + stem + e + "t"
    return Verb(base, prefix, stem + e + "t", stem + e + "te", prefix + participle, False)


def inflected(adjective: str, ending: str) -> str:
    if adjective == "hoch":
        adjective = "hoh"
    elif adjective.endswith("el"):
        adjective = adjective[:-2] + "l"
    elif adjective.endswith(("euer", "auer")):
        adjective = adjective[:-2] + "r"
    return adjective.removesuffix("e") + ending


def number_word(value: int) -> str:
    if value <= 12:
        return NUMBERS[value]
    ten, unit = divmod(value, 10)
    if ten == 1:
        return {6: "sechzehn", 7: "siebzehn"}.get(unit, NUMBERS[unit] + "zehn")
    return ("" if not unit else ("ein" if unit == 1 else NUMBERS[unit]) + "und") + TENS[ten]


class German:
    """Fills the slots of one document."""

    def __init__(self, chooser: Chooser) -> None:
        self.choose = chooser
        self.people: dict[str, tuple[str, str]] = {}  # P, Q -> (name, gender)
        self.role = ""  # occupation of P
        self.subject = "m"  # key of PRONOUN: whose "sein" it is
        self.alias: dict[str, str] = {}  # a class name of this document, such as A for what a how-to needs
        self.fixed: dict[str, Noun] = {}  # and classes that stand for one noun
        self.recent: list[str] = []
        self.home = chooser.of(lexicon.PLACES)  # {hier}

    def fill(self, template: str) -> str:
        return self.choose.fill(template, self.slot)

    def slot(self, spec: str) -> str:
        words = spec.split()
        if words[0].startswith("#"):
            low, high = words[0][1:].split("-")
            return str(self.choose.number(int(low), int(high)))
        if words[0] == "zahl":
            low, high = words[1].split("-")
            return number_word(self.choose.number(int(low), int(high)))
        if words[0] in self.people:
            return self.people[words[0]][0]
        if words[0] == "er":
            return PRONOUN[self.people[words[1]][1]][CASES.index(words[2])]
        if words[0] == "adj":
            return self.choose.of(adjectives()[self.alias.get(words[1], words[1])])
        if words[0] == "familie":
            return self.choose.of(lexicon.FAMILIES)
        if words[0] == "hier":
            return self.home
        if words[0] == "R":
            return self.role
        if words[0] == "ort":
            return self.choose.of(lexicon.PLACES)
        if words[0] == "monat":
            return self.choose.of(lexicon.MONTHS)
        if words[0] == "name":
            return self.choose.of(self.choose.of((lexicon.WOMEN, lexicon.MEN)))
        return self.noun_phrase(words)

    def noun(self, name: str, plural: bool) -> Noun:
        """A noun of the class that did not occur just before."""
        entries = [noun for noun in nouns()[name] if not plural or noun.plural != "-"]
        for _ in range(8):
            noun = self.choose.of(entries)
            if noun.word not in self.recent:
                break
        self.recent = [*self.recent[-5:], noun.word]
        return noun

    def noun_phrase(self, words: list[str]) -> str:
        preposition = words.pop(0) if words[0] in PREPOSITIONS else ""
        determiner, name, *flags = words
        if name == "verwandt":
            word, gender = self.choose.of(KIN)
            case = CASES.index(next((flag for flag in flags if flag in CASES), FIXED_CASE.get(preposition, "n")))
            genitive = "s" if gender == "m" and case == 3 else ""
            return f"{preposition} {self._determiner(determiner, gender, case)[0]} {word}{genitive}".strip()
        plural = "pl" in flags or determiner == "num"
        case = CASES.index(next((flag for flag in flags if flag in CASES), FIXED_CASE.get(preposition, "n")))
        noun = self.fixed.get(name) or self.noun(self.alias.get(name, name), plural)
        name = self.alias.get(name, name)
        gender = "p" if plural else noun.gender
        article, pattern = self._determiner(determiner, gender, case)
        adjective = ""
        if "+" in flags or ("-" not in flags and self.choose.chance(0.25)):
            adjective = inflected(self.choose.of(adjectives()[name]), pattern[gender][case])
        start = f"{preposition} {article}".strip()
        text = " ".join(filter(None, [CONTRACTED.get(start, start), adjective, noun.form(case, plural)]))
        if "rel" in flags and not plural:  # the clauses have singular verbs
            clause = self.choose.bag(RELATIVE_CLAUSES)
            pronoun = RELATIVE[gender][CASES.index(clause[0])]
            clause = self.fill(clause[2:])
            text += f", {pronoun} {clause},"
        return text

    def _determiner(self, name: str, gender: str, case: int) -> tuple[str, dict[str, list[str]]]:
        if name == "der":
            return DEFINITE[gender][case], WEAK
        if name in ("dies", "jed"):
            return name + ENDINGS[gender][case], WEAK
        if name == "num":
            return number_word(self.choose.number(2, 12)), BARE
        if name == "0" or (name == "ein" and gender == "p"):
            return "", BARE
        stem = POSSESSIVE[self.subject] if name == "sein" else name
        if stem == "unser" and EIN[gender][case] in ("e", "en", "em", "er", "es"):
            return "unser" + EIN[gender][case], MIXED
        return stem + EIN[gender][case], MIXED

    # ---- clauses: a verb phrase is "infinitive: complement" or "sich infinitive: complement" ------------------------

    def phrase(self, spec: str, person: str, adverb: str = "") -> tuple[Verb, str]:
        """The verb and everything between it and the end of the clause."""
        head, _, complement = spec.partition(":")
        self.subject = person
        middle = [adverb, self.fill(complement.strip())]
        if head.startswith("sich "):
            middle.insert(0, REFLEXIVE.get(person, "sich"))
        return verb(head.removeprefix("sich ").strip()), " ".join(filter(None, middle))

    def _finite(self, spec: str, person: str, tense: str, adverb: str) -> tuple[str, str, str]:
        """(finite verb, middle field, what closes the clause)."""
        word, middle = self.phrase(spec, person, adverb)
        if tense in ("past", "pres"):
            return word.finite(tense, person), middle, word.prefix
        if tense in ("perf", "plup"):
            singular = {"perf": ("ist", "hat"), "plup": ("war", "hatte")}[tense][0 if word.sein else 1]
            if tense == "plup":
                finite = singular + ({"war": "en", "hatte": "n"}[singular] if person in ("p", "wir") else "")
            elif person in ("p", "wir"):
                finite = "sind" if word.sein else "haben"
            elif person == "ich":
                finite = "bin" if word.sein else "habe"
            else:
                finite = singular
            return finite, middle, word.participle
        if tense == "fut":
            return (
                {"ich": "werde", "wir": "werden", "p": "werden"}.get(person, "wird"),
                middle,
                word.prefix + word.infinitive,
            )
        modal = tense + ("n" if person in ("p", "wir") else "")  # wollte, musste, konnte, ...
        return modal, middle, word.prefix + word.infinitive

    def main(self, spec: str, subject: str, person: str, tense: str = "past", front: str = "", adverb: str = "") -> str:
        finite, middle, end = self._finite(spec, person, tense, adverb)
        order = [front, finite, subject] if front else [subject, finite]
        return " ".join(filter(None, [*order, middle, end]))

    def subordinate(self, spec: str, subject: str, person: str, tense: str = "past", adverb: str = "") -> str:
        finite, middle, end = self._finite(spec, person, tense, adverb)
        closing = end + finite if tense in ("past", "pres") else f"{end} {finite}"
        return " ".join(filter(None, [subject, middle, closing]))

    def second(self, spec: str, person: str, tense: str = "past") -> str:
        """The second half of "S did this and did that": no subject."""
        finite, middle, end = self._finite(spec, person, tense, "")
        return " ".join(filter(None, [finite, middle, end]))

    def infinitive(self, spec: str, person: str, zu: bool = True) -> str:
        word, middle = self.phrase(spec, person)
        return " ".join(filter(None, [middle, word.with_zu if zu else word.prefix + word.infinitive]))

    def request(self, spec: str, adverb: str = "") -> str:
        """The polite imperative: Schneiden Sie ..."""
        word, middle = self.phrase(spec, "p", adverb)
        return " ".join(filter(None, [word.infinitive, "Sie", middle, word.prefix]))
