"""Where the runs of a fit come from: tables, and the folders that recipes leave behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT
from megatron_adapt.analysis import law_evidence as evidence, law_runs
from megatron_adapt.analysis.law_runs import Run
from megatron_adapt.analysis.scaling_law import PUBLISHED
from megatron_adapt.errors import DataError
from megatron_adapt.steps.trained_runs import read_run


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_csv(tmp_path: Path) -> None:
    file = written(tmp_path / "runs.csv", "\ufeffname, parameters, tokens, unique_tokens, loss, note\nsmall,1.3B,4e9,2B,2.5,x\n,400M,8B,9B,3,\n")
    assert law_runs.read(file) == [Run("small", 1.3e9, 4e9, 2e9, 2.5), Run("runs.csv:3", 4e8, 8e9, 9e9, 3.0)]
    runs = law_runs.gather(law_runs.read(file))
    assert list(runs.unique) == [2e9, 8e9] and list(runs.epochs) == [2, 1]  # there are no more than were read
    assert runs.part(runs.losses > 2.6).names == ("runs.csv:3",)
    assert law_runs.describe(runs) == (
        "2 runs: 2 sizes from 400M to 1.3B parameters, 2 lengths from 4B to 8B tokens, 2B to 8B of them unique, up to 2 epochs"
    )


def test_json_lines(tmp_path: Path) -> None:
    row = {"parameters": "1M", "tokens": 4e6, "unique_tokens": 1_000_000, "loss": 3.5, "name": "a", "seed": 1}
    file = written(tmp_path / "runs.jsonl", json.dumps(row) + "\n\n" + json.dumps({**row, "name": None}) + "\n")
    assert law_runs.read(file) == [Run("a", 1e6, 4e6, 1e6, 3.5), Run("runs.jsonl:3", 1e6, 4e6, 1e6, 3.5)]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.txt", "", ["a.txt: runs are read from .csv, .jsonl, or the folder of a recipe's run"]),
        ("a.csv", "", ["the first line should name the columns parameters, tokens, unique_tokens, loss (and name)"]),
        ("a.csv", "parameters,tokens,unique_token,loss\n", ["unique_tokens missing. Did you mean 'unique_token'?"]),
        ("a.csv", "parameters,tokens,unique_tokens,loss\n", ["a.csv has no runs; it needs lines with parameters"]),
        (
            "a.csv", "parameters,tokens,unique_tokens,loss\n1M,1M,1M,0\n1M,x,1M,\n",
            ["no run is left out silently", "line 2: loss must be above 0, got 0", "line 3: tokens: expected a number", "line 3: loss: expected"],
        ),
        ("a.jsonl", "{\n[1]\n", ["line 1: no JSON", "line 2: expected an object with parameters"]),
        ("a.jsonl", '{"tokens": 1}\n' * 20, ["line 1: parameters: expected a number", "... and 50 more"]),
    ],
)  # fmt: skip
def test_tables_that_are_wrong(tmp_path: Path, name: str, text: str, told: list[str]) -> None:
    with pytest.raises(DataError) as error:
        law_runs.read(written(tmp_path / name, text))
    for words in told:
        assert words in str(error.value)
    with pytest.raises(DataError, match="cannot be read"):
        law_runs.read(tmp_path / "absent.csv")


def test_the_published_runs() -> None:
    """The published constants describe them as badly as is known, the penalty form better."""
    runs = law_runs.gather(law_runs.read(ROOT / "examples" / "scratch-repeated-data" / "published_runs.csv"))
    assert len(runs) == 296 and runs.ranges["tokens"] == (1e8, 9e11)
    assert evidence.of_law(PUBLISHED["c4"], runs).r2 == pytest.approx(0.447, abs=0.001)
    assert evidence.of_law(PUBLISHED["c4-penalty"], runs).r2 == pytest.approx(0.731, abs=0.001)
    gentle = runs.part((runs.epochs < 4.5) & (runs.parameters > 2e9) & (runs.tokens > 5e10))
    assert evidence.of_law(PUBLISHED["c4"], gentle).log_rmse > 0.07 > 0.02 > evidence.of_law(PUBLISHED["c4-penalty"], gentle).log_rmse
    measured = {28e9: 2.579 / 2.574, 14e9: 2.589 / 2.574, 9e9: 2.611 / 2.574, 4e9: 2.696 / 2.574}
    for unique, ratio in measured.items():  # of one run to another both are right
        for name in ("c4", "c4-penalty"):
            law = PUBLISHED[name]
            assert law.loss(2.81e9, 55e9, unique) / law.loss(2.81e9, 55e9) == pytest.approx(ratio, abs=0.007)


# --------------------------------------------------------------------------------------------------- recipes' outputs


def receipt(folder: Path, verb: str, metrics: dict[str, Any], **settings: Any) -> None:
    folder.mkdir(parents=True)
    (folder / "receipt.json").write_text(json.dumps({"verb": verb, "settings": settings, "inputs": {}, "metrics": metrics}))


def phase(folder: Path, number: int, samples: dict[str, int], **unique: int) -> None:
    trained = [{"samples": samples}, {"samples": {name: 1 for name in samples}}]
    corpora = {name: {"unique_tokens": unique.get(name)} for name in samples}
    receipt(folder, "train", {"trained": trained}, number=number, sequence_length=100, corpora=corpora)


def run_folder(root: Path) -> Path:
    """Two corpora, the first cut to 1,000 tokens and read 41 times, the second not read to its end."""
    receipt(root / "base" / "initial", "initialize", {"parameters": 12345})
    for name in ("de", "en"):
        receipt(root / "data" / "base" / name, "preprocess", {"tokens": 50_000, "tokenizer_digest": "t"})
    receipt(root / "adapted" / "imported", "import", {})
    phase(root / "adapted" / "b", 0, {"de": 199, "en": 99}, de=1000)
    phase(root / "adapted" / "a", 1, {"de": 209}, de=1000)
    losses = {"de": {"token_loss": 3.25, "bits_per_byte": 2.0}, "en": {"token_loss": 4.0}}
    receipt(root / "evaluation" / "adapted-a", "evaluate", losses)
    return root


def test_a_run_of_a_recipe(tmp_path: Path) -> None:
    run, digest = read_run(run_folder(tmp_path / "one"), "de")
    assert run == Run("one", 12345, 41_000 + 10_000, 1000 + 10_000, 3.25) and digest == "t"


def test_before_the_vocabulary_is_swapped(tmp_path: Path) -> None:
    receipt(tmp_path / "base" / "initial", "initialize", {"parameters": 7})
    receipt(tmp_path / "data" / "base" / "en", "preprocess", {"tokens": 500, "tokenizer_digest": "t"})
    phase(tmp_path / "base" / "pretrain", 0, {"en": 9})
    phase(tmp_path / "copy" / "full", 0, {"de": 9})
    receipt(tmp_path / "evaluation" / "base", "evaluate", {"en": {"token_loss": 5.0}})
    run, _ = read_run(tmp_path)
    assert (run.tokens, run.unique_tokens, run.loss) == (1000, 500, 5.0)


def test_folders_that_hold_no_run(tmp_path: Path) -> None:
    def told(folder: Path, *words: str, corpus: str | None = None) -> None:
        with pytest.raises(DataError) as error:
            read_run(folder, corpus)
        for word in words:
            assert word in str(error.value)

    told(tmp_path, "no model from scratch (base/initial)", "no phase has been trained to its end")
    folder = run_folder(tmp_path / "one")
    told(folder, "say with --corpus on which of its texts: de, en")
    told(folder, "no loss on the text of 'fr'; there are: de, en", corpus="fr")
    (folder / "data" / "base" / "en" / "receipt.json").unlink()
    told(folder, "data/base/en is missing, which tells how many tokens the corpus has", corpus="de")
    (folder / "evaluation" / "adapted-a" / "receipt.json").unlink()
    told(folder, "no evaluation of it (evaluation/adapted-a): hold text out of its corpora", corpus="de")
    receipt(tmp_path / "x" / "evaluation" / "base", "evaluate", {"en": {"token_loss": float("nan")}})
    receipt(tmp_path / "x" / "data" / "base" / "en", "preprocess", {"tokens": 5, "loss_mask": True})
    phase(tmp_path / "x" / "base" / "p", 0, {"en": 9})
    told(tmp_path / "x", "its loss is no number: training diverged", "the corpus en is of chats, of which only answers are learnt")
    receipt(tmp_path / "y" / "base" / "p", "train", {"trained": []}, number=0, sequence_length=8, corpora={})
    told(tmp_path / "y", "no model from scratch")
