"""English documents: stories, letters, diaries, how-tos, portraits of places and animals, notices, logbooks, talks."""

from __future__ import annotations

import re

import frames_en as frames
import lexicon_en as lexicon
from engine import Chooser, sections, sentence
from grammar_en import PRONOUN, English, nouns
from phrases_en import DOMAINS

ALL_DOMAINS = list(DOMAINS)
HOWTO_DOMAINS = list(frames.NEEDS)
# What happens to people is not taught in a how-to.
ACCIDENTS = (
    "look for",
    "search",
    "leave",
    "hear",
    "burn",
    "find",
    "rescue",
    "wait",
    "wave",
    "chase",
    "catch",
    "name",
    "borrow",
    "spell",
)
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()


class Writer:
    """Writes one document after another and avoids sentences that it has written before."""

    def __init__(self, seed: int) -> None:
        self.choose = Chooser(seed)
        self.domains = {name: sections(text) for name, text in DOMAINS.items()}
        self.tasks = {
            name: [task for task in domain["do"] if not task.startswith(ACCIDENTS)]
            for name, domain in self.domains.items()
        }
        self.roles = [entry.strip().rpartition(" ") for entry in lexicon.ROLES.split(";")]
        self.written: set[str] = set()
        self.english = English(self.choose)
        self.last = ""

    def document(self) -> str:
        kind = self.choose.weighted([
            (34, self.story), (15, self.letter), (12, self.diary), (11, self.howto), (7, self.place), (6, self.creature),
            (5, self.notices), (4, self.logbook), (7, self.talk),
        ])  # fmt: skip
        self.english = English(self.choose)
        return "\n\n".join(part for part in kind() if part)

    # ---- sentences ---------------------------------------------------------------------------------------------------

    def fresh(self, make) -> str:
        """A sentence that no document has yet; empty when the frames at hand yield no new one."""
        for _ in range(12):
            text = sentence(make())
            if text not in self.written:
                self.written.add(text)
                return text
        return ""

    def frame(self, entries: list[str], first_person: bool = False) -> str:
        def make() -> str:
            entry = self.choose.bag(entries)
            while first_person and re.search(r"\{((he|him|his) )?[PQ][ }]", entry):
                entry = self.choose.bag(entries)
            return self.english.fill(entry)

        return self.fresh(make)

    def paragraph(self, *sentences: str) -> str:
        return " ".join(filter(None, sentences))

    def cast(self, domain: str) -> None:
        """P, at home in the domain, and Q."""
        names = [(name, "f") for name in lexicon.WOMEN] + [(name, "m") for name in lexicon.MEN]
        first, second = self.choose.random.sample(names, 2)
        self.english.people = {"P": first, "Q": second, "O": second}
        self.english.role = self.choose.of([role[0] for role in self.roles if role[2] == domain])
        self.last = ""

    # ---- clauses about the people of a document ----------------------------------------------------------------------

    def who(self, first_person: bool, allow_pronoun: bool = True) -> tuple[str, str]:
        """Subject and grammatical person; sets who {O} is."""
        english = self.english
        if first_person:
            english.people["O"] = english.people["Q"]
            return ("we", "we") if self.choose.chance(0.2) else ("I", "I")
        roll = self.choose.random.random()
        if roll < 0.12:
            pair = (
                f"{english.people['P'][0]} and {english.people['Q'][0]}"
                if self.choose.chance(0.6)
                else "the two of them"
            )
            english.people["O"] = (self.choose.of(lexicon.WOMEN), "f")
            self.last = ""
            return pair, "p"
        key = "P" if roll < 0.75 else "Q"
        english.people["O"] = english.people["Q" if key == "P" else "P"]
        name, gender = english.people[key]
        if allow_pronoun and self.last == key and self.choose.chance(0.7):
            return PRONOUN[gender][0], gender
        self.last = key
        if key == "P" and self.choose.chance(0.15):
            return f"the {english.role}", gender
        return name, gender

    def phrase(self, domain: str) -> str:
        table = [(6, self.domains[domain]["do"]), (2, frames.ALONE), (2, frames.SOCIAL)]
        return self.choose.bag(self.choose.weighted(table))

    def front(self, domain: str) -> str:
        pool = self.choose.weighted([(4, frames.TIMES), (4, frames.LINKS), (1.5, self.domains[domain]["where"])])
        return self.english.fill(self.choose.bag(pool)) + ","

    def fact(self, domain: str) -> str:
        return self.english.fill(self.choose.bag(self.domains[domain]["fact"]))

    def event(self, domain: str, first_person: bool = False) -> str:
        """One sentence in which somebody does something."""

        def make() -> str:
            english, choose = self.english, self.choose
            subject, person = self.who(first_person)
            again = PRONOUN[person][0]
            tense = "perf" if first_person and choose.chance(0.1) else "past"

            def do(form: str = tense, adverb: str = "") -> str:
                return english.phrase(self.phrase(domain), person, form, adverb)

            roll = choose.random.random()
            if roll < 0.12:
                return f"{subject} {do()}"
            if roll < 0.32:
                return f"{self.front(domain)} {subject} {do('past')}"
            if roll < 0.39:
                return f"{subject} {do(adverb=english.fill(choose.bag(frames.MANNER)))}"
            if roll < 0.48:
                return f"{subject} {do('past')} and {choose.of(['', '', 'then ', 'afterwards '])}{do('past')}"
            if roll < 0.57:
                conjunction, form = choose.of(
                    [("when", "past"), ("while", "prog"), ("as soon as", "past"), ("after", "plup"), ("before", "past")]
                )
                return f"{conjunction} {subject} {do(form)}, {again} {do('past')}"
            if roll < 0.64:
                return (
                    f"{choose.of(['because', 'although', 'since', 'as'])} {self.fact(domain)}, {subject} {do('past')}"
                )
            if roll < 0.70:
                return f"{subject} {do('past')}, {choose.of(['but', 'for', 'and'])} {self.fact(domain)}"
            if roll < 0.75:
                return f"{subject} {do('past')} {choose.of(['in order to', 'to', 'so as to'])} {do('inf')}"
            if roll < 0.81:
                modal = choose.of(frames.MODALS).replace("_", " ")
                if person in ("p", "we"):
                    modal = modal.replace("was", "were")
                start = f"{self.front(domain)} {subject}" if choose.chance(0.5) else subject
                return f"{start} {do(modal)}"
            if roll < 0.87:
                start = f"{self.front(domain)} {subject}" if choose.chance(0.4) else subject
                return f"{start} {choose.of(frames.DECIDED)} to {do('inf')}"
            if roll < 0.92:
                return f"{subject} {choose.of(frames.NOTICED)} that {self.fact(domain)}"
            if roll < 0.95:
                return f"{choose.of(['instead of', 'before', 'after', 'without'])} {do('ing')}, {subject} {do('past')}"
            if roll < 0.98 and person in "mf" and subject[0].isupper():
                return f"{subject}, who {do('plup')}, {do('past')}"
            other = english.people["O"]
            meanwhile = f"{other[0]} {english.phrase(self.choose.bag(self.domains[domain]['do']), other[1], 'past')}"
            return f"{subject} {do('prog')} when {choose.of(['suddenly ', 'all at once ', ''])}{meanwhile}"

        return self.fresh(make)

    def speech(self, domain: str, first_person: bool = False) -> str:
        """Something said, with or without a tag."""

        def make() -> str:
            words = self.frame(self.domains[domain]["say"])
            if not words:
                return self.fact(domain)
            subject, _ = ("I", "I") if first_person else self.who(False, allow_pronoun=False)
            if words.endswith("?"):
                verb = self.choose.of(["asked", "wanted to know", "wondered"])
            elif words.endswith("!"):
                verb = self.choose.of(["cried", "whispered", "laughed", "called"])
            else:
                verb = self.choose.of(["said", "remarked", "murmured", "explained", "grumbled", "sighed", "answered"])
            roll = self.choose.random.random()
            if roll < 0.55:
                words = words[:-1] + "," if words.endswith(".") else words
                inverted = verb in ("said", "asked", "cried", "answered") and subject != "I" and self.choose.chance(0.5)
                return f"“{words}” {f'{verb} {subject}' if inverted else f'{subject} {verb}'}."
            if roll < 0.8:
                return f"{subject} {verb}: “{words}”"
            return f"“{words}”"

        return self.fresh(make)

    def scene(self, domain: str) -> str:
        return self.frame(self.choose.weighted([(3, self.domains[domain]["scene"]), (1, frames.WEATHER)]))

    def mixture(self, domain: str, count: int, first_person: bool = False) -> str:
        return self.paragraph(*(
            self.choose.weighted([
                (6.0, lambda: self.event(domain, first_person)),
                (1.6, lambda: self.scene(domain)),
                (1.2, lambda: self.speech(domain, first_person)),
                (0.7, lambda: self.frame(frames.FEELINGS, first_person)),
                (0.5, lambda: self.fresh(lambda: self.fact(domain))),
            ])()
            for _ in range(count)
        ))  # fmt: skip

    # ---- documents ---------------------------------------------------------------------------------------------------

    def domain(self) -> str:
        return self.choose.bag(ALL_DOMAINS)

    def name_of_place(self) -> str:
        return self.choose.of(lexicon.PLACES).replace("_", " ")

    def story(self) -> list[str]:
        domain = self.domain()
        self.cast(domain)
        parts = []
        if self.choose.chance(0.5):
            parts.append(sentence(self.english.fill(self.choose.bag(self.domains[domain]["title"]))).rstrip("."))
        parts.append(
            self.paragraph(
                self.frame(frames.OPENINGS), self.scene(domain), self.mixture(domain, self.choose.number(1, 3))
            )
        )
        self.last = "P"
        parts.append(self.paragraph(self.frame(frames.INTRODUCE_OTHER), self.mixture(domain, self.choose.number(3, 6))))
        for _ in range(self.choose.number(0, 2)):
            if self.choose.chance(0.3):
                domain = self.domain()
            self.last = ""
            parts.append(self.mixture(domain, self.choose.number(3, 6)))
        self.last = ""
        parts.append(self.paragraph(self.event(domain), self.frame(frames.ENDINGS)))
        return parts

    def letter(self) -> list[str]:
        domain = self.domain()
        self.cast(domain)
        (writer, _), (friend, _) = self.english.people["P"], self.english.people["Q"]
        third = self.choose.of([name for name in lexicon.WOMEN + lexicon.MEN if name not in (writer, friend)])
        self.english.people["Q"] = self.english.people["O"] = (third, "f" if third in lexicon.WOMEN else "m")
        middle = frames.LETTER["middle"]
        parts = [
            f"{self.english.home}, {self.choose.number(1, 28)} {self.choose.of(lexicon.MONTHS)}",
            f"Dear {friend},",
            self.paragraph(self.frame(frames.LETTER["open"]), self.mixture(domain, self.choose.number(2, 4), True)),
            self.paragraph(
                self.frame(middle), self.mixture(domain, self.choose.number(1, 3), True), self.frame(middle)
            ),
        ]
        if self.choose.chance(0.5):
            parts.append(self.paragraph(self.frame(middle), self.mixture(domain, 2, True)))
        parts.append(self.frame(frames.LETTER["close"]))
        parts.append(f"{self.choose.of(frames.LETTER['greeting'])},\n{writer}")
        if self.choose.chance(0.3):
            parts.append("P.S. " + self.frame(middle))
        return parts

    def diary(self) -> list[str]:
        domain = self.domain()
        self.cast(domain)
        month, day, shift = self.choose.of(lexicon.MONTHS), self.choose.number(1, 9), self.choose.number(0, 6)
        parts = []
        for _ in range(self.choose.number(2, 4)):
            start = self.frame(frames.WEATHER) if self.choose.chance(0.5) else ""
            heading = f"{WEEKDAYS[(day + shift) % 7]}, {day} {month}"
            parts.append(f"{heading}\n" + self.paragraph(start, self.mixture(domain, self.choose.number(3, 5), True)))
            day += self.choose.number(1, 6)
            domain = self.domain() if self.choose.chance(0.3) else domain
        return parts

    def howto(self) -> list[str]:
        domain = self.choose.bag(HOWTO_DOMAINS)
        self.english.alias = dict(zip("AB", frames.NEEDS[domain]))
        tasks = self.tasks[domain]
        title = f"How to {self.english.phrase(self.choose.bag(tasks), 'p', 'inf')}"
        steps = []
        for number in range(self.choose.number(4, 7)):
            adverb = (
                ""
                if number == 0
                else self.choose.of(["then ", "after that, ", "next, ", "now ", "finally, ", "", "", "meanwhile, "])
            )
            steps.append(self.fresh(lambda: adverb + self.step(tasks)))
            if self.choose.chance(0.35):
                steps.append(self.frame(frames.HOWTO["tip"]))
        first = self.paragraph(self.frame(frames.HOWTO["open"]), self.fresh(lambda: self.advice(tasks)))
        if self.choose.chance(0.4):
            body = "\n".join(f"{number}. {step}" for number, step in enumerate(filter(None, steps), 1))
        else:
            body = self.paragraph(*steps)
        return [title, first, body, self.frame(frames.HOWTO["close"])]

    def step(self, tasks: list[str]) -> str:
        english = self.english

        def do(form: str) -> str:
            return english.phrase(self.choose.bag(tasks), "p", form)

        roll = self.choose.random.random()
        if roll < 0.6:
            return do("inf")
        if roll < 0.8:
            return f"{do('inf')} before you {do('inf')}"
        return f"if you {do('inf')}, {self.choose.of(['you will save time', 'it will be easier', 'everything will be more even', 'it will last longer'])}"

    def advice(self, tasks: list[str]) -> str:
        english = self.english

        def do(form: str) -> str:
            return english.phrase(self.choose.bag(tasks), "p", form)

        return english.fill(self.choose.of([
            f"To {do('inf')}, one needs {{a A +}} above all.", f"It is also possible to {do('inf')}, but that takes longer.",
            f"Before {do('ing')}, you should get {{the B}} ready.", f"Many people would like to {do('inf')}, but few have {{a A}}.",
        ]))  # fmt: skip

    def place(self) -> list[str]:
        lines = [self.frame(frames.PLACE) for _ in range(self.choose.number(6, 10))]
        half = len(lines) // 2
        return [self.english.home, self.paragraph(*lines[:half]), self.paragraph(*lines[half:])]

    def creature(self) -> list[str]:
        kind = self.choose.of(["beast", "wild"])
        noun = self.choose.of(nouns()[kind])
        self.english.fixed, self.english.alias = {"T": noun}, {"T": kind}
        lines = [self.frame(frames.CREATURE) for _ in range(self.choose.number(5, 8))]
        self.cast("farm")
        return [f"The {noun}", self.paragraph(*lines), self.mixture("woods", 3)]

    def notices(self) -> list[str]:
        return [
            f"News from {self.name_of_place()}",
            *(self.frame(frames.NOTICE) for _ in range(self.choose.number(5, 9))),
        ]

    def logbook(self) -> list[str]:
        heading = f"Log of the “{self.choose.of(lexicon.WOMEN)}”, {self.choose.number(1, 28)} {self.choose.of(lexicon.MONTHS)}"
        lines, hour = [], 4
        for _ in range(self.choose.number(6, 10)):
            hour += self.choose.number(1, 2)
            lines.append(f"{hour:02d}:{self.choose.number(0, 59):02d}. {self.frame(frames.LOG)}")
        self.cast("sea")
        return [heading, "\n".join(lines), self.mixture("sea", 3)]

    def talk(self) -> list[str]:
        domain = self.domain()
        self.cast(domain)
        start = self.paragraph(self.scene(domain), self.event(domain))
        names = [self.english.people["P"][0], self.english.people["Q"][0]]
        lines = []
        for number in range(self.choose.number(6, 11)):
            topic = domain if self.choose.chance(0.8) else self.domain()
            lines.append(f"{names[number % 2]}: {self.frame(self.domains[topic]['say'])}")
        return [start, "\n".join(lines), self.mixture(domain, 2)]
