"""Repeated substrings: what the compiled search finds is what looking at every window finds."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from harness import assets
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_adapt import _C
from megatron_adapt.data import filters, folding
from megatron_adapt.data.corpus import read_documents
from megatron_adapt.data.texts import Outcome, Texts, cut

LETTERS = st.sampled_from("aabcö漢😀\n ")
DOCUMENTS = st.lists(
    st.one_of(
        st.text(LETTERS, max_size=40),
        st.builds(lambda unit, times: unit * times, st.text(LETTERS, max_size=5), st.integers(0, 12)),
    ),
    max_size=5,
)
LENGTHS = st.sampled_from([2, 3, 4, 5, 7, 8])
ROOMS = st.sampled_from([20_000, 1 << 30])  # little memory: several passes


def where(texts: Texts) -> tuple[np.ndarray, ...]:
    return texts.text, texts.begins, texts.ends


def apply(texts: Texts, outcome: Outcome, tmp_path) -> list[str]:
    """The documents that are left."""
    left = cut(texts, outcome.spans, tmp_path / "text")
    return [left[number] for number in range(len(left)) if outcome.reasons[number] < 0]


def windows(document: str, length: int) -> list[str]:
    return [document[at : at + length] for at in range(len(document) - length + 1)]


def brute_spans(documents: list[str], length: int) -> list[tuple[int, int, int]]:
    """(document, begin, end) in characters."""
    first: dict[str, tuple[int, int]] = {}
    found = []
    for number, document in enumerate(documents):
        covered: set[int] = set()
        for at, window in enumerate(windows(document, length)):
            where, begin = first.setdefault(window, (number, at))
            if where != number or at >= begin + length:
                covered.update(range(at, at + length))
        ends = [at for at in sorted(covered) if at + 1 not in covered]
        found += [(number, at, end + 1) for at, end in zip((at for at in sorted(covered) if at - 1 not in covered), ends)]
    return found


def brute_documents(documents: list[str], length: int) -> list[int]:
    keepers: dict[str, int] = {}
    found = []
    for number, document in enumerate(documents):
        others = [keepers[window] for window in windows(document, length) if window in keepers]
        found.append(min(others, default=-1))
        if not others:
            keepers.update(dict.fromkeys(windows(document, length), number))
    return found


def brute_all(documents: list[str], length: int) -> list[int]:
    places = defaultdict(list)
    for number, document in enumerate(documents):
        for at, window in enumerate(windows(document, length)):
            places[window].append((number, at))
    found = [0] * len(documents)
    for where in places.values():
        if where[0][0] != where[-1][0] or where[-1][1] >= where[0][1] + length:
            for number, _ in where:
                found[number] = 1
    return found


@settings(max_examples=120, deadline=None)
@given(DOCUMENTS, LENGTHS, st.sampled_from([1, 3]), ROOMS)
def test_the_same_as_by_brute_force(documents, length, threads, memory):
    texts = Texts.of(documents)
    search = {"characters": length, "memory": memory, "threads": threads}
    spans = _C.repeated_spans(*where(texts), folding.table(), whole_words=False, **search)
    found = [
        (number, len(texts.text[texts.begins[number] : begin].tobytes().decode()), len(texts.text[begin:end].tobytes().decode()))
        for number, begin, end in spans.tolist()
    ]
    assert [(number, begin, begin + size) for number, begin, size in found] == brute_spans(documents, length)
    assert _C.repeating_documents(*where(texts), **search).tolist() == brute_documents(documents, length)
    assert _C.documents_with_repeats(*where(texts), **search).tolist() == brute_all(documents, length)


def test_the_same_in_many_passes_and_by_many_threads():
    """Several thousand characters with repeats of every length, and runs of one character."""
    chance = np.random.default_rng(0)
    source = "".join(chr(0x61 + letter) for letter in chance.integers(0, 26, 3000))
    documents = []
    for _ in range(60):
        at, size = chance.integers(0, 2900), chance.integers(0, 300)
        documents.append(source[at : at + size] + "-" * int(chance.integers(0, 90)) + str(chance.integers(0, 1 << 60)))
    texts = Texts.of(documents)
    for length in (20, 51):
        expected = [
            (number, texts.begins[number] + begin, texts.begins[number] + end) for number, begin, end in brute_spans(documents, length)
        ]
        assert len(expected) > 20
        for threads, memory in ((1, 1 << 30), (4, 1 << 30), (2, 1)):
            search = {"characters": length, "memory": memory, "threads": threads}
            found = _C.repeated_spans(*where(texts), folding.table(), whole_words=False, **search)
            assert [tuple(span) for span in found.tolist()] == expected
            assert _C.repeating_documents(*where(texts), **search).tolist() == brute_documents(documents, length)


def test_documents_in_gaps_do_not_count():
    """Of documents that an earlier filter dropped nothing is found."""
    texts = Texts.of(["x" + "abcdefgh", "abcdefgh", "abcdefghy"]).where(np.array([False, True, True]))
    found = _C.repeating_documents(*where(texts), characters=8, memory=1 << 30, threads=1)
    assert found.tolist() == [-1, 0]


def run(texts: Texts, **options) -> Outcome:
    return filters.run("substring", texts, filters.read_options("substring", options), 1)


NOTICE = "Alle Rechte vorbehalten. Jede Verwendung dieses Textes bedarf der schriftlichen Zustimmung des Verlages und seiner Autoren"


def test_spans_end_at_words(tmp_path):
    documents = [f"eins {NOTICE} zwei", f"drei vier{NOTICE}fünf sechs", f"{NOTICE} sieben", f"acht\n{NOTICE}\nneun"]
    outcome = run(Texts.of(documents))
    left = apply(Texts.of(documents), outcome, tmp_path)
    assert left[0] == documents[0]
    assert left[1] == "drei vierAlle Autorenfünf sechs"  # parts of words stay, and are not glued to one another
    assert left[2].split() == ["sieben"] and left[3].split() == ["acht", "neun"]
    assert outcome.facts["spans"] == outcome.facts["documents_cut"] == 3
    assert outcome.facts["bytes_cut"] == sum(len(document.encode()) for document in documents) - sum(len(text.encode()) for text in left)


def test_without_spaces_characters_stay_whole(tmp_path):
    text = "".join(chr(0x4E00 + number * 7) for number in range(150))
    documents = [f"一{text}二", f"三{text}四", text]
    texts = Texts.of(documents)
    outcome = run(texts)
    assert apply(texts, outcome, tmp_path) == [documents[0], "三四"]
    assert [outcome.names[reason] for reason in outcome.reasons if reason >= 0] == ["nothing is left"]


def test_one_character_below_the_length_stays(tmp_path):
    text = NOTICE[:100]
    outcome = run(Texts.of([f"Ä{text}Ö", f"ä{text}ö"]))
    assert len(outcome.spans) == 1
    outcome = run(Texts.of([f"Ä{text}Ö", f"ä{text}ö"]), characters=101)
    assert len(outcome.spans) == 0 and (outcome.reasons < 0).all()


def test_the_two_ways_to_drop():
    texts = Texts.of(["eins " + NOTICE, "zwei", NOTICE + " drei"])
    later, both = run(texts, action="document"), run(texts, action="all")
    assert later.reasons.tolist() == [-1, -1, 0] and later.repeats.tolist() == [-1, -1, 0]
    assert both.reasons.tolist() == [0, -1, 0]  # as published: the first copy goes, too


@pytest.mark.parametrize(
    "file", ["en_wikipedia_demo.jsonl.gz", "de_ud_gsd.jsonl.gz", "ar_arcd_wikipedia.jsonl.gz", "en_tinystories_sample.jsonl.gz"]
)
def test_real_text(file, tmp_path):
    """Text in three languages, and parts of it again: afterwards nothing long stands twice, and all else is there."""
    documents = [document.text[:3000] for document in read_documents(assets("text", file))][:100]
    half = [document[len(document) // 3 :] for document in documents[::5]]
    texts = Texts.of([*documents, *half])
    outcome = run(texts)
    left = cut(texts, outcome.spans, tmp_path / "text").where(outcome.reasons < 0)
    spans = _C.repeated_spans(*where(left), folding.table(), characters=140, whole_words=False, memory=1 << 30, threads=1)
    assert len(spans) == 0  # a cut leaves parts of words at its ends, but no more
    assert [tuple(span) for span in outcome.spans.tolist()] == [tuple(span) for span in run(texts).spans.tolist()]
    assert left.bytes <= Texts.of(documents).bytes + 400 * len(half)
    assert _C.repeating_documents(
        texts.text, texts.begins, texts.ends, characters=100, memory=1 << 30, threads=2
    ).tolist() == brute_documents([*documents, *half], 100)
