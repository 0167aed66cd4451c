"""German documents: stories, letters, diaries, how-tos, portraits of places and animals, notices, logbooks, talks."""

from __future__ import annotations

import re

import frames_de as frames
import lexicon_de as lexicon
from engine import Chooser, sections, sentence
from grammar_de import German, nouns
from phrases_de import DOMAINS

CONTRACTIONS = {
    "in dem": "im",
    "an dem": "am",
    "zu dem": "zum",
    "zu der": "zur",
    "bei dem": "beim",
    "von dem": "vom",
    "in das": "ins",
}

ALL_DOMAINS = list(DOMAINS)
HOWTO_DOMAINS = ["küche", "werkstatt", "maschinen", "meer", "schule", "garten", "hof", "musik", "haus"]
# What happens to people is not taught in a how-to.
ACCIDENTS = (
    "finden",
    "verlieren",
    "vergessen",
    "hören",
    "suchen",
    "entdecken",
    "retten",
    "warten",
    "nach|winken",
    "fangen",
    "vertreiben",
    "verpassen",
)
WEEKDAYS = "Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonntag".split()


class Writer:
    """Writes one document after another and avoids sentences that it has written before."""

    def __init__(self, seed: int) -> None:
        self.choose = Chooser(seed)
        self.domains = {name: sections(text) for name, text in DOMAINS.items()}
        self.roles = [entry.split() for entry in lexicon.ROLES.split(";")]
        self.tasks = {
            name: [task for task in domain["tun"] if not task.startswith(ACCIDENTS)]
            for name, domain in self.domains.items()
        }
        self.written: set[str] = set()
        self.german = German(self.choose)

    def document(self) -> str:
        kind = self.choose.weighted([
            (34, self.story), (16, self.letter), (12, self.diary), (12, self.howto), (7, self.place), (6, self.creature),
            (5, self.notices), (4, self.logbook), (6, self.talk),
        ])  # fmt: skip
        self.german = German(self.choose)
        return "\n\n".join(part for part in kind() if part)

    # ---- sentences ---------------------------------------------------------------------------------------------------

    def finish(self, text: str) -> str:
        for long, short in CONTRACTIONS.items():
            text = re.sub(rf"\b{long}\b", short, text)
            text = re.sub(rf"\b{long.capitalize()}\b", short.capitalize(), text)
        return sentence(text)

    def fresh(self, make) -> str:
        """A sentence that no document has yet; empty when the frames at hand yield no new one."""
        for _ in range(12):
            text = self.finish(make())
            if text not in self.written:
                self.written.add(text)
                return text
        return ""

    def frame(self, entries: list[str], first_person: bool = False) -> str:
        def make() -> str:
            entry = self.choose.bag(entries)
            while first_person and re.search(r"\{(er )?[PQ][ }]", entry):
                entry = self.choose.bag(entries)
            return self.german.fill(entry)

        return self.fresh(make)

    def paragraph(self, *sentences: str) -> str:
        return " ".join(filter(None, sentences))

    def cast(self, domain: str) -> None:
        """P, at home in the domain, and Q."""
        fitting = [role for role in self.roles if role[2] == domain]
        role = self.choose.of(fitting)
        names = [(name, "f") for name in lexicon.WOMEN] + [(name, "m") for name in lexicon.MEN]
        first, second = self.choose.random.sample(names, 2)
        self.german.people = {"P": first, "Q": second, "O": second}
        self.german.role = role[1] if first[1] == "f" else role[0]
        self.last = ""

    # ---- clauses about the people of a document ----------------------------------------------------------------------

    def who(self, first_person: bool, allow_pronoun: bool = True) -> tuple[str, str]:
        """Subject and grammatical person; sets who {O} is."""
        german = self.german
        if first_person:
            german.people["O"] = german.people["Q"]
            return ("wir", "wir") if self.choose.chance(0.2) else ("ich", "ich")
        roll = self.choose.random.random()
        if roll < 0.12:
            pair = f"{german.people['P'][0]} und {german.people['Q'][0]}" if self.choose.chance(0.6) else "die beiden"
            german.people["O"] = (self.choose.of(lexicon.WOMEN), "f")
            self.last = ""
            return pair, "p"
        key = "P" if roll < 0.75 else "Q"
        german.people["O"] = german.people["Q" if key == "P" else "P"]
        name, gender = german.people[key]
        if allow_pronoun and self.last == key and self.choose.chance(0.7):
            return ("er" if gender == "m" else "sie"), gender
        self.last = key
        if key == "P" and self.choose.chance(0.15):
            return ("der " if gender == "m" else "die ") + german.role, gender
        return name, gender

    def again(self, subject: str, person: str) -> str:
        """The pronoun for a subject just named."""
        return {"m": "er", "f": "sie", "p": "sie"}.get(person, subject)

    def phrase(self, domain: str) -> str:
        table = [(6, self.domains[domain]["tun"]), (2, frames.ALONE), (2, frames.SOCIAL)]
        return self.choose.bag(self.choose.weighted(table))

    def front(self, domain: str) -> str:
        pool = self.choose.weighted([(4, frames.TIMES), (4, frames.LINKS), (1.5, self.domains[domain]["ort"])])
        return self.german.fill(self.choose.bag(pool))

    def fact(self, domain: str, subordinate: bool) -> str:
        subject, middle, finite = (
            self.german.fill(part) for part in self.choose.bag(self.domains[domain]["lage"]).split("|")
        )
        return f"{subject} {middle} {finite}" if subordinate else f"{subject} {finite} {middle}"

    def event(self, domain: str, first_person: bool = False, tense: str = "past") -> str:
        """One sentence in which somebody does something."""

        def make() -> str:
            german, choose = self.german, self.choose
            subject, person = self.who(first_person)
            plural = person in ("p", "wir")
            spec = self.phrase(domain)
            roll = choose.random.random()
            if roll < 0.13:
                return german.main(spec, subject, person, tense)
            if roll < 0.36:
                return german.main(spec, subject, person, tense, front=self.front(domain))
            if roll < 0.44:
                return german.main(spec, subject, person, tense, adverb=german.fill(choose.bag(frames.MANNER)))
            if roll < 0.53:
                first = german.main(
                    spec, subject, person, tense, front=self.front(domain) if choose.chance(0.4) else ""
                )
                if tense == "past":
                    return f"{first} und {german.second(self.phrase(domain), person)}"
                return f"{first}, und {german.main(self.phrase(domain), self.again(subject, person), person, tense, front='dann')}"
            if roll < 0.62:
                conjunction = choose.of(["als", "während", "sobald", "nachdem", "bevor"])
                earlier = "plup" if conjunction == "nachdem" else "past"
                clause = german.subordinate(spec, subject, person, earlier)
                after = german.main(self.phrase(domain), self.again(subject, person), person, "past", front="\0")
                return f"{conjunction} {clause}, {after[2:]}"
            if roll < 0.69:
                conjunction = choose.of(["weil", "obwohl", "da"])
                after = german.main(spec, subject, person, tense, front="\0")
                return f"{conjunction} {self.fact(domain, True)}, {after[2:]}"
            if roll < 0.75:
                before = german.main(spec, subject, person, tense)
                return f"{before}, {choose.of(['denn', 'aber', 'doch'])} {self.fact(domain, False)}"
            if roll < 0.81:
                goal = german.infinitive(self.phrase(domain), person)
                return f"{german.main(spec, subject, person, tense)}, um {goal}"
            if roll < 0.88:
                return german.main(
                    spec,
                    subject,
                    person,
                    choose.of(frames.MODALS),
                    front=self.front(domain) if choose.chance(0.5) else "",
                )
            if roll < 0.94:
                verb = self.plural(choose.of(frames.DECIDED)) if plural else choose.of(frames.DECIDED)
                start = f"{self.front(domain)} {verb} {subject}" if choose.chance(0.4) else f"{subject} {verb}"
                return f"{start}, {german.infinitive(spec, person)}"
            verb = self.plural(choose.of(frames.NOTICED)) if plural else choose.of(frames.NOTICED)
            return f"{subject} {verb}, dass {self.fact(domain, True)}"

        return self.fresh(make)

    @staticmethod
    def plural(past: str) -> str:
        return past + ("n" if past.endswith("e") else "en")

    def speech(self, domain: str, first_person: bool = False) -> str:
        """Something said, with or without a tag."""

        def make() -> str:
            words = self.frame(self.domains[domain]["rede"])
            if not words:
                return self.fact(domain, False)
            subject, person = ("ich", "ich") if first_person else self.who(False, allow_pronoun=False)
            if words.endswith("?"):
                verb = self.choose.of(["fragte", "wollte wissen", "erkundigte sich"])
            elif words.endswith("!"):
                verb = self.choose.of(["rief", "flüsterte", "lachte"])
            else:
                verb = self.choose.of(["sagte", "meinte", "murmelte", "erklärte", "brummte", "seufzte", "antwortete"])
            if verb.startswith(("wollte", "erkundigte")) and person in ("p", "wir", "ich"):
                verb = "fragte"
            verb = self.plural(verb) if person in ("p", "wir") else verb
            finite, _, rest = verb.partition(" ")
            tag = " ".join(filter(None, [finite, subject, rest]))
            if rest == "sich":
                tag = f"{finite} sich {subject}"
            roll = self.choose.random.random()
            if roll < 0.55:
                return f"„{words.removesuffix('.')}“, {tag}."
            if roll < 0.8:
                before = f"{subject} {finite} {rest}".strip()
                return f"{before}: „{words}“"
            return f"„{words}“"

        return self.fresh(make)

    def scene(self, domain: str) -> str:
        pool = self.choose.weighted([(3, self.domains[domain]["bild"]), (1, frames.WEATHER)])
        return self.frame(pool)

    def feeling(self, first_person: bool) -> str:
        return self.frame(frames.FEELINGS, first_person)

    def statement(self, domain: str) -> str:
        return self.fresh(lambda: self.fact(domain, False))

    def mixture(self, domain: str, count: int, first_person: bool = False, tense: str = "past") -> str:
        parts = []
        for _ in range(count):
            parts.append(self.choose.weighted([
                (6.0, lambda: self.event(domain, first_person, tense)),
                (1.6, lambda: self.scene(domain)),
                (1.2, lambda: self.speech(domain, first_person)),
                (0.7, lambda: self.feeling(first_person)),
                (0.5, lambda: self.statement(domain)),
            ])())  # fmt: skip
        return self.paragraph(*parts)

    # ---- documents ---------------------------------------------------------------------------------------------------

    def domain(self) -> str:
        return self.choose.bag(ALL_DOMAINS)

    def title(self, domain: str) -> str:
        return self.finish(self.german.fill(self.choose.bag(self.domains[domain]["titel"]))).rstrip(".")

    def story(self) -> list[str]:
        domain = self.domain()
        self.cast(domain)
        german = self.german
        parts = [self.title(domain)] if self.choose.chance(0.5) else []
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
        german.people["O"] = german.people["Q"]
        self.last = ""
        parts.append(self.paragraph(self.event(domain), self.frame(frames.ENDINGS)))
        return parts

    def letter(self) -> list[str]:
        domain = self.domain()
        self.cast(domain)
        (writer, _), (friend, gender) = self.german.people["P"], self.german.people["Q"]
        self.german.people["Q"] = self.german.people["O"] = (self.choose.of(lexicon.WOMEN + lexicon.MEN), "m")
        place, day = self.german.home, self.choose.number(1, 28)
        opening = self.frame(frames.LETTER["anfang"])
        opening = opening[:1].lower() + opening[1:] if not opening.startswith("Du ") else opening
        parts = [
            f"{place}, den {day}. {self.choose.of(lexicon.MONTHS)}",
            f"Liebe{'r' if gender == 'm' else ''} {friend},",
            self.paragraph(opening, self.mixture(domain, self.choose.number(2, 4), True, "perf")),
            self.paragraph(self.frame(frames.LETTER["mitte"]), self.mixture(domain, self.choose.number(1, 3), True, "perf"),
                           self.frame(frames.LETTER["mitte"])),
        ]  # fmt: skip
        if self.choose.chance(0.5):
            parts.append(self.paragraph(self.frame(frames.LETTER["mitte"]), self.mixture(domain, 2, True, "perf")))
        parts.append(self.frame(frames.LETTER["ende"]))
        parts.append(self.choose.of(frames.LETTER["gruß"]) + f"\n{writer}")
        if self.choose.chance(0.3):
            parts.append("P. S.: " + self.frame(frames.LETTER["mitte"]))
        return parts

    def diary(self) -> list[str]:
        domain = self.domain()
        self.cast(domain)
        month, day, shift = self.choose.of(lexicon.MONTHS), self.choose.number(1, 9), self.choose.number(0, 6)
        parts = []
        for _ in range(self.choose.number(2, 4)):
            weekday = WEEKDAYS[(day + shift) % 7]
            start = self.frame(frames.WEATHER) if self.choose.chance(0.5) else ""
            parts.append(
                f"{weekday}, {day}. {month}\n"
                + self.paragraph(start, self.mixture(domain, self.choose.number(3, 5), True))
            )
            day += self.choose.number(1, 6)
            domain = self.domain() if self.choose.chance(0.3) else domain
        return parts

    def howto(self) -> list[str]:
        domain = self.choose.bag(HOWTO_DOMAINS)
        german = self.german
        german.alias = dict(zip("AB", frames.NEEDS[domain]))
        tasks = self.tasks[domain]
        head = german.infinitive(self.choose.bag(tasks), "p", zu=False)
        title = self.finish(self.choose.of([f"Wie Sie {head}", f"{head}: eine Anleitung", head])).rstrip(".")
        steps = []
        for number in range(self.choose.number(4, 7)):
            adverb = (
                ""
                if number == 0
                else self.choose.of(["dann", "danach", "anschließend", "nun", "zuletzt", "", "jetzt", "zwischendurch"])
            )
            steps.append(self.fresh(lambda: self.step(tasks, adverb)))
            if self.choose.chance(0.35):
                steps.append(self.frame(frames.HOWTO["tipp"]))
        first = self.paragraph(self.frame(frames.HOWTO["anfang"]), self.fresh(lambda: self.advice(tasks)))
        if self.choose.chance(0.4):
            body = "\n".join(f"{number}. {step}" for number, step in enumerate(filter(None, steps), 1))
        else:
            body = self.paragraph(*steps)
        return [title, first, body, self.frame(frames.HOWTO["ende"])]

    def step(self, tasks: list[str], adverb: str) -> str:
        german = self.german
        spec = self.choose.bag(tasks)
        roll = self.choose.random.random()
        if roll < 0.6:
            return german.request(spec, adverb)
        if roll < 0.8:
            return (
                f"{german.request(spec, adverb)}, bevor Sie {german.infinitive(self.choose.bag(tasks), 'p', zu=False)}"
            )
        return f"wenn Sie {german.infinitive(spec, 'p', zu=False)}, {self.choose.of(['sparen Sie Zeit', 'geht es leichter', 'wird alles gleichmäßiger', 'hält es länger'])}"

    def advice(self, tasks: list[str]) -> str:
        german = self.german
        goal = german.infinitive(self.choose.bag(tasks), "m", zu=False)
        return german.fill(self.choose.of([
            f"Wer {goal} will, braucht vor allem {{ein A a +}}.", f"Man kann auch {goal}, aber das dauert länger.",
            f"Bevor Sie {goal}, sollten Sie {{der B a}} bereitlegen.", f"Viele möchten {goal}, doch nur wenige haben {{ein A a}}.",
        ]))  # fmt: skip

    def place(self) -> list[str]:
        lines = [self.frame(frames.PLACE) for _ in range(self.choose.number(6, 10))]
        half = len(lines) // 2
        return [self.german.home, self.paragraph(*lines[:half]), self.paragraph(*lines[half:])]

    def creature(self) -> list[str]:
        kind = self.choose.of(["tier", "wildtier"])
        noun = self.choose.of(nouns()[kind])
        self.german.fixed, self.german.alias = {"T": noun}, {"T": kind}
        lines = [self.frame(frames.CREATURE) for _ in range(self.choose.number(5, 8))]
        self.cast("hof")
        return [noun.word, self.paragraph(*lines), self.mixture("wald", 3)]

    def notices(self) -> list[str]:
        place = self.choose.of(lexicon.PLACES)
        return [f"Nachrichten aus {place}", *(self.frame(frames.NOTICE) for _ in range(self.choose.number(5, 9)))]

    def logbook(self) -> list[str]:
        ship, hour = self.choose.of(lexicon.WOMEN), 4
        lines = []
        for _ in range(self.choose.number(6, 10)):
            hour += self.choose.number(1, 2)
            lines.append(f"{hour:02d}:{self.choose.number(0, 59):02d} Uhr. {self.frame(frames.LOG)}")
        self.cast("meer")
        return [f"Logbuch der „{ship}“, {self.choose.number(1, 28)}. {self.choose.of(lexicon.MONTHS)}", "\n".join(lines),
                self.mixture("meer", 3)]  # fmt: skip

    def talk(self) -> list[str]:
        domain = self.domain()
        self.cast(domain)
        parts = [self.paragraph(self.scene(domain), self.event(domain))]
        names = [self.german.people["P"][0], self.german.people["Q"][0]]
        lines = []
        for number in range(self.choose.number(6, 11)):
            topic = domain if self.choose.chance(0.8) else self.domain()
            lines.append(f"{names[number % 2]}: {self.frame(self.domains[topic]['rede'])}")
        return [*parts, "\n".join(lines), self.mixture(domain, 2)]
