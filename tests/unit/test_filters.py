"""Duplicates, near duplicates and rules: compared with plain Python that does the same slowly."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

import numpy as np
import pytest
from harness import ROOT, assets
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_adapt import _C
from megatron_adapt.data import filters, folding
from megatron_adapt.data.corpus import read_documents
from megatron_adapt.data.filters import rules
from megatron_adapt.data.texts import Outcome, Texts
from megatron_adapt.errors import ConfigError, DataError

TEXT = st.text(st.sampled_from("aAbBäÄ.,-!  \n\t\u00a0٣ب漢字\u00ad\u0301😀"), max_size=12)


def run(name: str, documents: list[str], threads: int = 1, **options) -> Outcome:
    return filters.run(name, Texts.of(documents), filters.read_options(name, options), threads)


# ------------------------------------------------------------------------------------------------ all of them


def test_the_filters_are_the_files_and_the_readme_names_them():
    folder = ROOT / "megatron_adapt" / "data" / "filters"
    assert filters.names() == ["exact", "near", "perplexity", "rules", "substring"]
    text = (folder / "README.md").read_text(encoding="utf-8")
    for name in filters.names():
        assert f"| `{name}` |" in text


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("exakt", {}, "no filter 'exakt'. Did you mean 'exact'?"),
        ("near", {"treshold": 0.9}, "filter near: option treshold: unknown option. Did you mean 'threshold'?"),
        ("near", {"threshold": 0}, "filter near: option threshold: must be at least 0.01 and at most 1, got 0"),
        ("exact", {"compare": "words"}, "filter exact: option compare: expected bytes or spaces or letters, got 'words'"),
        ("rules", {"min_words": 9, "max_words": 5}, "filter rules: min_words is above max_words: no document would be left"),
        ("rules", {"stop_words": "nowhere.txt"}, "filter rules: the file of stop words nowhere.txt does not exist"),
    ],
)
def test_wrong_options(name, options, message):
    with pytest.raises(ConfigError) as caught:
        filters.read_options(name, options)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["exact", "near", "rules", "substring"])
def test_no_document_and_one(name):
    assert len(run(name, []).reasons) == 0
    assert len(run(name, ["eins"]).reasons) == 1


# ------------------------------------------------------------------------------------------------ exact


def letters(text: str) -> str:
    kept = "".join(c.lower() for c in text if unicodedata.category(c)[0] in "LNM")
    return kept or " ".join(text.split())


COMPARED = {"bytes": lambda text: text, "spaces": lambda text: " ".join(text.split()), "letters": letters}


@settings(max_examples=150, deadline=None)
@given(st.lists(TEXT, max_size=8), st.sampled_from(sorted(COMPARED)), st.sampled_from([1, 3]))
def test_exact_is_what_a_dictionary_finds(documents, compare, threads):
    first: dict[str, int] = {}
    expected = []
    for number, document in enumerate(documents):
        at = first.setdefault(COMPARED[compare](document), number)
        expected.append(at if at < number else -1)
    assert run("exact", documents, threads, compare=compare).repeats.tolist() == expected


def test_exact_takes_nothing_for_equal_that_is_not():
    """Every document of up to three of these characters, with zero, which as a digit would change no value."""
    units = ["", "\0", "a", "\x01", "ab", "\U0010ffff"]
    documents = sorted({a + b + c for a in units for b in units for c in units})
    assert (run("exact", documents, compare="bytes").reasons < 0).all()
    assert len({a for a in map(len, documents)}) > 3


# ------------------------------------------------------------------------------------------------ near


def words(text: str) -> list[str]:
    """Of text without ideographs."""
    kept = [c.lower() if unicodedata.category(c)[0] in "LNM" else " " for c in text if unicodedata.category(c) != "Cf"]
    return "".join(kept).split()


def shingles(text: str, size: int = 5) -> set[tuple[str, ...]]:
    units = words(text)
    size = min(size, len(units))
    return {tuple(units[at : at + size]) for at in range(len(units) - size + 1)} if size else set()


def jaccard(a: str, b: str) -> float:
    mine, other = shingles(a), shingles(b)
    return len(mine & other) / max(len(mine | other), 1)


def sentences(count: int, seed: int) -> list[str]:
    chance = np.random.default_rng(seed)
    return [" ".join(f"wort{number}" for number in chance.integers(0, 400, 60)) for _ in range(count)]


def changed(text: str, every: int) -> str:
    return " ".join("anders" if at % every == every - 1 else word for at, word in enumerate(text.split()))


def test_near_drops_what_is_similar_and_nothing_else():
    base = sentences(12, 0)
    documents = base + [changed(text, every) for text in base for every in (60, 40, 25, 13, 9)] + [text.upper() + " !" for text in base]
    outcome = run("near", documents, threshold=0.6)
    kept = [number for number in range(len(documents)) if outcome.repeats[number] < 0]
    for number, other in enumerate(outcome.repeats.tolist()):
        if other >= 0:
            assert other < number and other in kept
            assert outcome.values[number] == pytest.approx(jaccard(documents[number], documents[other])) and outcome.values[number] >= 0.6
    missed = [(a, b) for b in kept for a in kept if a < b and jaccard(documents[a], documents[b]) >= 0.75]
    assert not missed  # 97 of 100 pairs are compared there, those above nearly always
    assert set(range(len(base))) <= set(kept) and len(kept) < len(documents) - 3 * len(base)
    for threads in (2, 5):
        again = run("near", documents, threads, threshold=0.6)
        assert again.repeats.tolist() == outcome.repeats.tolist() and again.facts == outcome.facts


@pytest.mark.parametrize(("bands", "rows"), [(20, 6), (5, 4)])
def test_pairs_are_compared_as_often_as_the_formula_says(bands, rows):
    """At a threshold that all pairs reach, a document is dropped if it is compared at all."""
    chance = np.random.default_rng(1)
    documents, indices = [], []
    for pair in range(400):
        own = [f"{pair}x{number}" for number in range(60)]
        both = int(chance.integers(20, 40))
        documents += [" ".join(own[:40]), " ".join(own[40 - both : 80 - both])]
        indices.append(jaccard_of_words(documents[-2], documents[-1]))
    outcome = run("near", documents, size=1, bands=bands, rows=rows, threshold=0.01)
    found = outcome.repeats[1::2] >= 0
    expected = 1 - (1 - np.array(indices) ** rows) ** bands
    deviation = np.sqrt((expected * (1 - expected)).sum())
    assert abs(found.sum() - expected.sum()) < 4 * deviation
    assert outcome.repeats[1::2][found].tolist() == (2 * np.flatnonzero(found)).tolist()


def jaccard_of_words(a: str, b: str) -> float:
    mine, other = set(a.split()), set(b.split())
    return len(mine & other) / len(mine | other)


def test_near_by_characters_and_in_scripts_without_spaces():
    text = "这是一个没有空格的句子它足够长可以比较两个几乎相同的文档因为只有最后一个字不同而其余部分完全一样"
    assert run("near", [text + "甲", text + "乙", "完全不同的另外一句话"]).repeats.tolist() == [-1, 0, -1]
    documents = ["Der schnelle braune Fuchs springt über den Hund", "Derschnelle braune Fuchs springt über den Hund", "Etwas anderes"]
    assert run("near", documents, threshold=0.7).repeats.tolist() == [-1, -1, -1]
    assert run("near", documents, threshold=0.7, shingle="characters", size=5).repeats.tolist() == [-1, 0, -1]


def test_near_says_where_it_did_not_compare_all():
    """400 documents that all share a band and are not similar enough."""
    documents = ["gleich " * 3 + f"nummer{number}" for number in range(400)]
    outcome = run("near", documents, size=1, bands=40, rows=1, threshold=0.9)
    assert (outcome.reasons < 0).all() and 0 < outcome.facts["cut_short"] < 400


@pytest.mark.parametrize("file", ["en_wikipedia_demo.jsonl.gz", "de_ud_gsd.jsonl.gz", "ar_arcd_wikipedia.jsonl.gz"])
def test_near_on_real_text(file):
    documents = [document.text for document in read_documents(assets("text", file)) if len(document.text.split()) > 15][:120]
    kept = run("exact", documents).reasons < 0
    documents = [document for document, is_kept in zip(documents, kept) if is_kept and run("near", [document, document[:-1]]).reasons[1] == 0]
    assert len(documents) > 20
    copies = [" ".join(document.split()[:-1]) + "\n!" for document in documents]
    outcome = run("near", [*documents, *copies])
    assert (outcome.repeats[len(documents) :] >= 0).all()


# ------------------------------------------------------------------------------------------------ rules


def reference(text: str) -> dict[str, float]:
    """The columns of csrc/text_rules.h that take more than counting characters."""
    units = words(text)
    total = sum(map(len, units))
    lines = [line.strip() for line in text.split("\n")]
    full = [line for line in lines if line]
    paragraphs = [part for part in re.split(r"\n(?:\s*\n)+", "\n".join(lines).strip("\n")) if part.strip()]
    found: dict[str, float] = {"words": len(units), "word_length": total / len(units) if units else 0}
    wordless = [token for token in text.split() if not any(unicodedata.category(c)[0] in "LNM" for c in token)]
    with_letter = sum(any(unicodedata.category(c)[0] == "L" for c in unit) for unit in units)
    found["letter_words"] = with_letter / max(len(units) + len(wordless), 1)
    for name, parts in (("line", full), ("paragraph", paragraphs)):
        sizes = [len(part.replace("\n", "")) for part in parts]
        again = [at for at, part in enumerate(parts) if part in parts[:at]]
        found[f"repeated_{name}s"] = len(again) / max(len(parts), 1)
        found[f"repeated_{name}_characters"] = sum(sizes[at] for at in again) / max(sum(sizes), 1)
    for n in range(2, 11):
        grams = [tuple(units[at : at + n]) for at in range(len(units) - n + 1)]
        counts = Counter(grams)
        if n < 5:
            most = max(counts.values(), default=1)
            value = max((count * sum(map(len, gram)) for gram, count in counts.items() if count == most and most > 1), default=0)
            found[f"top_{n}gram"] = value / max(total, 1)
        else:
            covered = {at + k for at, gram in enumerate(grams) if gram in grams[:at] for k in range(n)}
            found[f"repeated_{n}grams"] = sum(len(units[at]) for at in covered) / max(total, 1)
    return found


def measured(text: str, stop_words: str = "") -> dict[str, float]:
    texts = Texts.of([text])
    (row,) = _C.text_rules(texts.text, texts.begins, texts.ends, folding.table(), stop_words=stop_words.encode(), threads=1)
    return {name: row[column] for name, column in rules._COLUMNS.items()}


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(["ein", "Haus", "3", "--", "a.b", "\n", "\n\n", " \n", "بيت", "ein Haus steht\n"]), max_size=40))
def test_rules_measure_what_plain_python_measures(parts):
    text = " ".join(parts)
    found = measured(text)
    for name, value in reference(text).items():
        assert found[name] == pytest.approx(value), (name, text)


def test_what_counts_characters_and_signs():
    text = "# Titel ...\n- eins 22\n• zwei…\nDas ist ein Satz.\n„Zitat!“\n\nEnde"
    found = measured(text, "das IST und ein")
    characters = sum(not c.isspace() for c in text)
    assert found["symbols"] == pytest.approx(3 / found["words"])
    assert found["digits"] == pytest.approx(2 / characters)
    assert found["letters"] == pytest.approx(sum(c.isalpha() for c in text) / characters)
    assert (found["bullets"], found["ellipses"], found["terminals"]) == pytest.approx((2 / 6, 2 / 6, 4 / 6))
    assert found["stop_words"] == 3
    assert measured("汉字没有空格。")["word_length"] == 0 and measured("汉字没有空格。")["words"] == 6
    assert measured("ในภาษาไทย")["words"] == 9


GOOD = """
Am Morgen ging der Müller hinunter zum Bach, weil das Rad seit gestern still stand. Ein Ast hatte sich zwischen den Schaufeln
verkeilt, und mit den bloßen Händen war da wenig zu machen. Er rief nach seinem Sohn, der oben noch schlief! Später kamen auch
zwei Nachbarn mit Seilen und einer langen Stange herbei. Gemeinsam zogen sie so lange, bis das Holz endlich nachgab. Danach
drehte sich alles wieder wie zuvor, nur langsamer, denn im Sommer führt dieser Bach kaum Wasser. Abends saßen die Leute vor der
Mühle, tranken Most und sprachen über die Ernte, über Preise in der Stadt und darüber, ob es im Herbst genug regnen werde.
"""
BAD = {
    "min_words": "Zu kurz.",
    "max_word_length": " ".join(f"Donaudampfschifffahrt{chr(97 + n % 26)}{n}" for n in range(60)),
    "max_digits": " ".join(f"Zahl{n * 7919:06d}" for n in range(80)),
    "max_symbols": " ".join(f"#wort{chr(97 + n % 26)}{n}" for n in range(60)),
    "min_letter_words": GOOD + " --" * 60,
    "max_bullets": "\n".join(f"- {line}" for line in GOOD.strip().split("\n")),
    "max_ellipses": "\n".join(f"{line}..." for line in GOOD.strip().split("\n")[:3]) + GOOD[300:],
    "max_repeated_lines": "\n".join([GOOD] + ["Und noch einmal."] * 9),
    "max_top_2gram": GOOD + " jawohl niemals" * 12,
    "max_repeated_5grams": " ".join(2 * GOOD.split()),
}


@pytest.mark.parametrize("name", BAD)
def test_each_rule_says_which_one_it_is(name):
    outcome = run("rules", [GOOD, BAD[name]])
    assert outcome.reasons[0] == -1
    assert outcome.names[outcome.reasons[1]] == name
    bound = getattr(rules.Options(), name)
    assert outcome.values[1] < bound if name.startswith("min_") else outcome.values[1] > bound
    loose = run("rules", [BAD[name]], **{name: 0 if name.startswith("min_") else 10**6 if bound >= 1 else 1})
    assert loose.reasons[0] < 0 or loose.names[loose.reasons[0]] != name


def test_stop_words(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("der\ndie\nund\nden\n", encoding="utf-8")
    outcome = run("rules", [GOOD, re.sub(r"\b(der|die|und|den)\b", "ob", GOOD)], stop_words=file)
    assert outcome.reasons.tolist() == [-1, outcome.names.index("min_stop_words")]
    assert len(outcome.facts["stop_words_sha256"]) == 64
    file.write_text(" \n", encoding="utf-8")
    with pytest.raises(DataError, match="words.txt is empty"):
        run("rules", [GOOD], stop_words=file)
    file.write_bytes(b"\xff")
    with pytest.raises(DataError, match="words.txt is not UTF-8"):
        run("rules", [GOOD], stop_words=file)


@pytest.mark.parametrize(
    ("file", "least"),
    [("en_wikipedia_demo.jsonl.gz", 0.5), ("ar_arcd_wikipedia.jsonl.gz", 0.5), ("en_presidential.jsonl.gz", 0.9)],
)
def test_rules_let_real_text_through(file, least):
    documents = [document.text for document in read_documents(assets("text", file))]
    outcome = run("rules", documents, min_words=0)
    assert (outcome.reasons < 0).mean() > least, Counter(outcome.names[reason] for reason in outcome.reasons if reason >= 0)
