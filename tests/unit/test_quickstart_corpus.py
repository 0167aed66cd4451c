"""examples/quickstart/make_corpus.py: the committed corpora are what it writes, and are what they should be."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import sys

import pytest
from harness import ROOT

FOLDER = ROOT / "examples" / "quickstart"


def run(script, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True)


def test_committed_files_are_what_the_generator_writes() -> None:
    result = run(FOLDER / "make_corpus.py", "--check")
    assert result.returncode == 0, result.stdout + result.stderr


def test_check_notices_a_difference_and_a_rewrite_repairs_it(tmp_path) -> None:
    shutil.copy(FOLDER / "make_corpus.py", tmp_path)
    shutil.copytree(FOLDER / "texts", tmp_path / "texts")
    result = run(tmp_path / "make_corpus.py", "--check", "--language", "de")
    assert result.returncode == 1 and "differ from what make_corpus.py writes" in result.stdout
    assert run(tmp_path / "make_corpus.py", "--language", "de").returncode == 0
    assert (tmp_path / "corpus" / "de.jsonl").read_bytes() == (FOLDER / "corpus" / "de.jsonl").read_bytes()
    assert [file.name for file in (tmp_path / "corpus").iterdir()] == ["de.jsonl"]


@pytest.mark.parametrize("language", ["en", "de"])
def test_corpus(language: str) -> None:
    data = (FOLDER / "corpus" / f"{language}.jsonl").read_bytes()
    assert 300_000 < len(data) < 800_000
    assert len(data) / len(gzip.compress(data)) < 4.5  # varied: novels reach about 2.7
    records = [json.loads(line) for line in data.decode().splitlines()]
    assert all(set(record) == {"id", "text"} for record in records)
    assert len(records) == len({record["id"] for record in records}) == len({record["text"] for record in records})
    assert len(records) > 300
    text = "\n".join(record["text"] for record in records)
    assert not re.search(r"[{}<>|_\x00]|  |,,|,\.|\.\.|\s[,.;?!]", text)  # nothing of a template is left
    sentences = [s for s in re.split(r"(?<=[.!?”“])\s+", text) if len(s) > 25]
    assert len(sentences) > 8_000
    assert 1 - len(set(sentences)) / len(sentences) < 0.05
    words = re.findall(r"\w+", text.lower())
    assert len(set(words)) > (2_000 if language == "en" else 3_500)


def grammar(language: str):
    sys.path.insert(0, str(FOLDER / "texts"))
    try:
        return __import__(f"grammar_{language}")
    finally:
        sys.path.remove(str(FOLDER / "texts"))


def test_german_forms() -> None:
    german = grammar("de")
    forms = {
        name: german.verb(name)
        for name in ("auf|räumen", "zeichnen", "reparieren", "an|rufen", "öffnen", "sammeln", "überqueren")
    }
    assert [f"{v.present} {v.past} {v.participle} {v.with_zu}" for v in forms.values()] == [
        "räumt räumte aufgeräumt aufzuräumen", "zeichnet zeichnete gezeichnet zu zeichnen", "repariert reparierte repariert zu reparieren",
        "ruft rief angerufen anzurufen", "öffnet öffnete geöffnet zu öffnen", "sammelt sammelte gesammelt zu sammeln",
        "überquert überquerte überquert zu überqueren",
    ]  # fmt: skip
    assert forms["sammeln"].finite("pres", "ich") == "sammle" and forms["an|rufen"].finite("past", "p") == "riefen"
    assert [german.inflected(a, "en") for a in ("dunkel", "teuer", "leise", "hoch", "neu")] == [
        "dunklen",
        "teuren",
        "leisen",
        "hohen",
        "neuen",
    ]
    assert [german.number_word(n) for n in (2, 16, 17, 21, 30, 85)] == [
        "zwei", "sechzehn", "siebzehn", "einundzwanzig", "dreißig", "fünfundachtzig",
    ]  # fmt: skip
    nouns = {noun.word: noun for group in german.nouns().values() for noun in group}
    assert [nouns["Nachbar"].form(case, False) for case in range(4)] == ["Nachbar", "Nachbarn", "Nachbarn", "Nachbarn"]
    assert [nouns["Apfel"].form(2, True), nouns["Cello"].form(2, True), nouns["Kürbis"].form(3, False)] == [
        "Äpfeln",
        "Celli",
        "Kürbisses",
    ]


def test_english_forms() -> None:
    english = grammar("en")
    assert [english.with_article(w) for w in ("apple", "honest boy", "useful rope", "hat", "unusual hail")] == [
        "an apple", "an honest boy", "a useful rope", "a hat", "an unusual hail",
    ]  # fmt: skip
    assert [english.gerund(v) for v in ("tie", "swap", "bake", "carry", "see")] == [
        "tying",
        "swapping",
        "baking",
        "carrying",
        "seeing",
    ]
    assert [english.past(v) for v in ("carry", "swap", "bake", "catch", "play")] == [
        "carried",
        "swapped",
        "baked",
        "caught",
        "played",
    ]
    assert [english.plural(n) for n in ("box", "shelf", "berry", "tray", "bench")] == [
        "boxes",
        "shelves",
        "berries",
        "trays",
        "benches",
    ]
