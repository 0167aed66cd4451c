"""A recipe whose corpus is cleaned first: what is dropped reaches neither tokenizer nor training nor evaluation."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import tiny
from commands import Shop

from megatron_adapt.data import filters

SPAM = "Seite zyxwvuz nicht gefunden"


def texts(file: Path) -> list[str]:
    return [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]


def metrics(folder: Path) -> dict:
    return json.loads((folder / "receipt.json").read_text())["metrics"]


@pytest.fixture
def planted(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """German text once more in other words' case, a page that is everywhere, English text; which German texts there are."""
    german, english = texts(shop / "de.jsonl"), texts(shop / "en.jsonl")
    dirty = []
    for at, text in enumerate(german):
        dirty += [text, text.upper() if at % 2 else english[at], *(SPAM + "!" * (at % 3) for _ in range(8))]
    (shop / "dirty.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*dirty, "Behind all of it."]))
    corpus = {"path": "dirty.jsonl", "held_out": 0.05, "filters": ["exact", {"name": "near", "threshold": 0.7}], "against": ["english"]}
    tree = tiny.recipe(
        name="clean", output="clean", parallel={}, phases=[tiny.phase("full", None, epochs=0.05)],
        data={"english": {"path": "en.jsonl"}, "german": {**corpus, "max_documents": len(dirty)}},
    )  # fmt: skip
    tree["model"]["from_scratch"]["phases"] = []
    tiny.write(shop.folder, tree, "clean.yaml")
    return german


def test_a_corpus_is_cleaned_before_all_else(shop: Shop, planted: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shop / "clean/filtered/german"
    inner = filters.run

    def killed(name: str, *given):
        if name == "near":
            os.killpg(0, signal.SIGKILL)  # this rank and the command that has forked it
        return inner(name, *given)

    with monkeypatch.context() as patch:
        patch.setattr(filters, "run", killed)
        assert shop.run("run", "clean.yaml").code == -signal.SIGKILL
    assert sorted(path.name for path in folder.iterdir()) == ["begun.json", "text.jsonl.parts"]
    ran = shop / "ran"

    def told(name: str, *given):
        ran.write_text(ran.read_text() + name if ran.exists() else name)
        return inner(name, *given)

    with monkeypatch.context() as patch:
        patch.setattr(filters, "run", told)
        line = next(line for line in shop.run("plan", "clean.yaml").succeeded().out.splitlines() if " filter " in line)
        assert line == "megatron-adapt filter clean.yaml --step filtered/german"
        shop.run(*line.split()[1:]).succeeded()
    assert ran.read_text() == "near"
    assert sorted(path.name for path in folder.iterdir()) == ["begun.json", "receipt.json", "text.jsonl", "text.jsonl.report.json"]
    clean = texts(folder / "text.jsonl")
    assert [text for text in clean if not text.startswith("Seite")] == planted and len(clean) == len(planted) + 1

    out = shop.run("run", "clean.yaml").succeeded().out
    assert "[1/11] tokenizers/target (tokenizer)" in out
    vocabulary = json.loads((shop / "clean/tokenizers/target/tokenizer.json").read_text())["model"]["vocab"]
    assert not [token for token in vocabulary if "zyx" in token]  # of one document no tokenizer learns a word
    held_out = texts(shop / "clean/data/target/german/held_out.jsonl")
    share = len(clean) * 5 // 100
    assert held_out == [clean[-(-number * 100 // 5) - 1] for number in range(1, share + 1)] and share > 2
    found = metrics(shop / "clean/data/target/german")
    assert found["documents"] == len(clean) - share
    assert found["bytes"] == sum(len(text.encode()) for text in clean) - sum(len(text.encode()) for text in held_out)
    lines = (shop / "clean/copy/full/metrics.jsonl").read_text()
    assert len(lines.splitlines()) == -(-found["tokens"] // (20 * 128))
    table = (shop / "clean/report/report.md").read_text()
    dropped = metrics(folder)["filters"]
    counts = [sum(each["dropped"].values()) for each in dropped]
    assert f"| german | {10 * len(planted)} | exact {counts[0]}, near {counts[1]} | {len(clean)} | " in table
    assert sum(counts) == 9 * len(planted) - 1

    refused = shop.run("run", "clean.yaml", "data.german.filters.near.threshold=0.8")
    refused.refused("step 'filtered/german' was finished with other settings or inputs: filters.1.near.threshold was 0.7, is now 0.8.")
    assert refused.err.split("choose another output: ")[1].split()[:2] == ["clean/filtered/german", "clean/tokenizers/target"]
    raw = ("data.german.filters=[]", "data.german.against=[]", "output=raw")
    shop.run("tokenizer", "clean.yaml", *raw).succeeded()
    assert "zyxwvuz" in (shop / "raw/tokenizers/target/tokenizer.json").read_text()
    shop.run("preprocess", "clean.yaml", *raw, "vocabulary.tokenizer.path=clean/tokenizers/target").succeeded()
    assert metrics(shop / "raw/data/target/german")["tokens"] > 1.5 * found["tokens"]
