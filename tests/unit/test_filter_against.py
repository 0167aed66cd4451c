"""Text that a corpus is compared with: what repeats it goes, of itself nothing does; and the first documents alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_filtering import DOCUMENTS, NOTICE, killed, lines, write

from megatron_adapt.data import filter_command, filters
from megatron_adapt.data.filter_work import Reading
from megatron_adapt.data.filtering import filter_corpus
from megatron_adapt.data.texts import Outcome, Texts
from megatron_adapt.errors import ConfigError, DataError

WORDS = " ".join(f"wort{number}" for number in range(40))


def run(name: str, documents: list[str], known: int, **options: Any) -> Outcome:
    return filters.run(name, Texts.of(documents), filters.read_options(name, options), 1, known)


def test_which_filters_compare():
    assert [name for name in filters.names() if filters.compares(name)] == ["exact", "near", "substring"]


def test_known_documents_stay_and_are_compared_with():
    """Also those that say the same as another one of them."""
    outcome = run("exact", ["a b", "a  b", "a b", "c", "c"], 2)
    assert outcome.repeats.tolist() == [-1, -1, 0, -1, 3] and outcome.reasons.tolist() == [-1, -1, 0, -1, 0]
    # The second is so near the first that it would be dropped, and the third is near the second alone.
    near = [WORDS, WORDS.replace("wort9 ", "x "), WORDS.replace("wort9 ", "x ").replace("wort30", "y"), "etwas anderes"]
    assert run("near", near, 0, threshold=0.7).repeats.tolist() == [-1, 0, -1, -1]
    assert run("near", near, 2, threshold=0.7).repeats.tolist() == [-1, -1, 1, -1]


def test_known_passages():
    texts = [f"Eins. {NOTICE}", f"Zwei. {NOTICE} {WORDS}", f"Drei. {WORDS}", "Vier.", f"Fünf. {NOTICE} Ende."]
    spans = run("substring", texts, 2).spans
    assert spans[:, 0].tolist() == [2, 4]
    assert run("substring", texts, 0, action="document").repeats.tolist() == [-1, 0, -1, -1, 0]
    assert run("substring", texts, 2, action="document").repeats.tolist() == [-1, -1, 1, -1, 0]
    assert run("substring", texts, 2, action="all").reasons.tolist() == [-1, -1, 0, -1, 0]


def test_filters_that_do_not_compare_see_nothing_of_them():
    documents = ["zu kurz", "auch", "Das ist ein Satz.", "kurz"]
    outcome, alone = (run("rules", found, known, min_words=3, min_letter_words=0) for found, known in ((documents, 2), (documents[2:], 0)))
    assert outcome.reasons.tolist() == [-1, -1, *alone.reasons.tolist()] and alone.reasons.tolist() == [-1, 0]
    assert np.isnan(outcome.values[:3]).all() and outcome.values[3] == 1


# ------------------------------------------------------------------------------------------------ a whole run


@pytest.fixture
def corpus(tmp_path) -> Path:
    return write(tmp_path / "in" / "a.jsonl", DOCUMENTS)


def test_what_stands_elsewhere_is_dropped_or_cut(corpus, tmp_path):
    first, second = write(tmp_path / "b.jsonl", ["kurz", "kurz"], "body"), write(tmp_path / "c.jsonl", ["", f"Neun. {NOTICE}"])
    output, dropped = tmp_path / "clean.jsonl", tmp_path / "dropped.jsonl"
    told: list[str] = []
    chosen = [("exact", {}), ("rules", {"min_words": 1, "min_letter_words": 0.5}), ("substring", {})]
    against = [Reading([first], text_key="body"), Reading([second])]
    report = filter_corpus(corpus, output, chosen, against=against, dropped=dropped, tell=told.append, workers=1)
    assert [line["text"] for line in lines(output)] == [DOCUMENTS[0], "Drei. ", "Vier Äpfel 😀. Ende."]
    assert [(line["file"], line["line"], line["reason"], line.get("repeats")) for line in lines(dropped)] == [
        (str(corpus), 2, "cut", None), (str(corpus), 3, "duplicate", f"{corpus}:1"), (str(corpus), 4, "cut", None),
        (str(corpus), 5, "duplicate", f"{first}:1"), (str(corpus), 6, "nothing is left", None),
    ]  # fmt: skip
    exact, rules, substring = report["filters"]
    assert (exact["documents_in"], exact["documents_out"], rules["documents_in"], substring["documents_out"]) == (6, 4, 4, 3)
    assert exact["bytes_in"] == report["read"]["bytes"] == sum(len(text.encode()) for text in DOCUMENTS)
    assert substring["bytes_out"] == report["bytes"] == sum(len(line["text"].encode()) for line in lines(output))
    assert [(other["reading"]["text_key"], other["read"]["documents"], other["read"]["empty"]) for other in report["against"]] == [
        ("body", 2, 0), ("text", 1, 1),
    ]  # fmt: skip
    size = len(f"kurzkurzNeun. {NOTICE}".encode())
    assert told[0] == f"read: 6 documents, {report['read']['bytes']} bytes of text, and 3 documents, {size} bytes to compare with"


def test_killed_it_continues(corpus, tmp_path, monkeypatch):
    """With the same texts to compare with, and not with what others have left."""
    other = write(tmp_path / "b.jsonl", ["kurz"])
    output, chosen = tmp_path / "out" / "clean.jsonl", [("exact", {}), ("substring", {})]
    killed("kept", corpus, output, chosen, tmp_path / "out" / "dropped.jsonl")
    ran: list[str] = []
    inner = filters.run
    monkeypatch.setattr(filters, "run", lambda name, *rest: ran.append(name) or inner(name, *rest))
    filter_corpus(corpus, output, chosen, against=[Reading([other])], workers=1)
    assert ran == ["exact", "substring"] and "kurz" not in [line["text"] for line in lines(output)]


@pytest.mark.parametrize(("most", "left"), [(2, 2), (4, 3), (5, 4), (99, 4)])
def test_the_first_documents_alone(corpus, tmp_path, most, left):
    """Counted are those that have text, before any filter; a bad line behind them does no harm."""
    write(tmp_path / "in" / "a.jsonl", ["", *DOCUMENTS[:4], "", DOCUMENTS[4]])
    (tmp_path / "in" / "b.jsonl").write_text("nonsense\n" if most < 6 else "")
    report = filter_corpus(tmp_path / "in", tmp_path / "clean.jsonl", [("exact", {})], max_documents=most)
    assert report["read"]["documents"] == min(most, 5) and report["documents"] == left
    assert report["reading"]["max_documents"] == most and len(report["read"]["inputs"]) == (1 if most < 6 else 2)


def test_bad_lines_among_the_first(corpus, tmp_path):
    (tmp_path / "in" / "a.jsonl").write_text('{"text": "eins"}\nnonsense\n{"text": "zwei"}\nnonsense\n')
    assert filter_corpus(tmp_path / "in", tmp_path / "clean.jsonl", [("exact", {})], max_documents=1)["read"]["skipped"] == 0
    with pytest.raises(DataError, match="a.jsonl:2: not JSON"):
        filter_corpus(tmp_path / "in", tmp_path / "clean.jsonl", [("exact", {})], max_documents=2)


def test_refused(corpus, tmp_path):
    other = write(tmp_path / "b.jsonl", ["kurz"])
    with pytest.raises(ConfigError, match="nothing is compared with the other text: of the filters exact, near, substring compare documents, not rules"):
        filter_corpus(corpus, tmp_path / "clean.jsonl", [("rules", {})], against=[Reading(other)])
    with pytest.raises(ConfigError, match="a.jsonl is among the input and among what this is compared with: all of it would be dropped"):
        filter_corpus(corpus, tmp_path / "clean.jsonl", [("exact", {})], against=[Reading([other, tmp_path / "in"])])
    with pytest.raises(ConfigError, match="b.jsonl is an input and would be overwritten"):
        filter_corpus(corpus, other, [("exact", {})], against=[Reading(other)])


def test_the_command_line(corpus, tmp_path, capsys):
    other = write(tmp_path / "b.jsonl", ["kurz"])
    words = ["--input", str(corpus), "--output", str(tmp_path / "clean.jsonl"), "--filter", "exact", "--against", str(other)]
    assert filter_command.main(words) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("exact: 4 of 6 documents stay, ")
    assert json.loads((tmp_path / "clean.jsonl.report.json").read_text())["against"][0]["read"]["inputs"][0]["name"] == str(other)
