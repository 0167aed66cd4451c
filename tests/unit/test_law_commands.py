"""`law ...` on the command line: what it prints, draws and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Iterator

import numpy as np
import pytest
from commands import Result, entries, in_process, signals_kept
from megatron_adapt.analysis import law_fit, law_runs, scaling_law
from megatron_adapt.steps import trained_runs

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    with signals_kept():
        yield tmp_path


@pytest.fixture
def law(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return in_process(capfd, monkeypatch, "law")


def values(result: Result) -> Any:
    return json.loads(result.succeeded().out)


def test_help(law: Run) -> None:
    shown = law("--help").succeeded().out
    assert all(f" {verb} " in shown for verb in ("predict", "epochs", "allocate", "unique", "fit"))


def test_predict(law: Run) -> None:
    shown = law("predict", "--parameters", "8.67B", "--tokens", "178B", "--unique", "25B").succeeded().out.splitlines()
    assert shown[0] == "by the law c4 (Muennighoff et al. 2023: 182 runs on C4, GPT-2's tokenizer):"
    assert shown[2].split() == ["this", "8.67B", "178B", "7.12", "2.2270", "+0.00", "%"]
    assert shown[3].startswith("all tokens new") and shown[4].startswith("best at this cost")
    assert "178B tokens of which 25B are unique teach as much as 151B new ones; the next one is worth 0.67" in shown
    assert "1.27B parameters suit 25B unique tokens best; this model's count as 5.77B" in shown
    assert "9.26e+21 FLOPs" in shown
    assert shown[-2].startswith("note: absolute losses by constants of others are not to be trusted")
    assert shown[-1].startswith("note: c4: runs whose loss rose were left out of its fit")


def test_predict_for_machines(law: Run) -> None:
    found = values(law("predict", "--parameters", "8.67B", "--tokens", "178B", "--epochs", "7.12", "--json"))
    assert found["this"]["loss"] == pytest.approx(2.22696, abs=1e-5) and found["this"]["epochs"] == pytest.approx(7.12)
    assert found["best_at_this_cost"]["loss"] < found["this"]["loss"] and len(found["returns"]) == 4 and len(found["notes"]) == 2
    whole = values(law("predict", "--parameters", "8.67B", "--tokens", "178B", "--json"))
    assert whole["effective_parameters"] == whole["this"]["parameters"] < whole["best_parameters"]
    assert whole["this"]["epochs"] == 1 and whole["this"]["loss"] == whole["all_new"]["loss"]


def test_epochs(law: Run) -> None:
    shown = law("epochs", "--unique", "1B", "--epochs", "1,4,44").succeeded().out.splitlines()
    assert shown[1].split() == ["epochs", "tokens", "worth", "new", "ones", "of", "all", "next", "token"]
    assert shown[3].split() == ["4", "4B", "3.73B", "93", "%", "0.82"]
    assert "after 10.7 repetitions a token is worth half of a new one; all repeats together at most 16.4 times the corpus" in shown
    assert not [line for line in shown if "absolute losses" in line]  # none are shown
    found = values(law("epochs", "--unique", "1B", "--parameters", "2.8B", "--json", "--law", "c4-penalty"))
    assert [row["epochs"] for row in found["epochs"]][:4] == [1, 2, 3, 4] and "half_life" not in found
    assert found["epochs"][0]["next_token"] is None and all(row["loss"] >= row["new"] for row in found["epochs"])
    shown = law("epochs", "--unique", "1B", "--parameters", "2.8B").succeeded().out
    assert "against all new" in shown and "absolute losses" in shown and "beyond some 40 epochs" in shown


def test_allocate(law: Run) -> None:
    shown = law("allocate", "--flops", "1e22", "--unique", "25B").succeeded().out.splitlines()
    assert shown[3].split() == ["best", "7.03B", "237B", "9.49", "2.2221", "+0.00", "%"]
    found = values(law("allocate", "--flops", "1e22", "--unique", "25B", "--json"))
    assert found["choices"]["best"]["epochs"] == pytest.approx(9.488, abs=1e-3)
    far = law("allocate", "--flops", "1e27", "--unique", "25B").succeeded().out
    assert "outside of the" in far


def test_unique(law: Run) -> None:
    shown = law("unique", "--parameters", "1B", "--tokens", "40B", "--within", "1%").succeeded().out
    assert shown.startswith("1B parameters on 40B tokens: 6.98B unique ones (5.73 epochs) keep the loss within 1 % of")
    one, other = (values(law("unique", "--parameters", "1B", "--tokens", "40B", "--within", share, "--json")) for share in ("1%", "0.01"))
    assert one == other


def test_pictures(law: Run, folder: Path) -> None:
    assert "drawn in a.svg" in law("epochs", "--unique", "1B", "--parameters", "1B", "--plot", "a.svg").succeeded().out
    values(law("allocate", "--flops", "1e20", "--unique", "1B", "--plot", "b.png", "--json"))
    assert (folder / "a.svg").read_bytes().startswith(b"<?xml") and (folder / "b.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("predict --parameters x --tokens 1B", "--parameters: expected a number (such as 0.1, 1e-4 or 500M), got 'x'."),
        ("predict --parameters 0 --tokens 1B", "--parameters: must be above 0, got 0."),
        ("predict --parameters 1B --tokens 1B --unique 1B --epochs 2", "give --unique or --epochs, not both."),
        ("predict --parameters 1B --tokens 1B --law c4-penalti", "no law 'c4-penalti'. Did you mean 'c4-penalty'?"),
        ("epochs --unique 1B --epochs 1,,2", "--epochs: expected a number (such as 0.1, 1e-4 or 500M), got ''."),
        ("epochs --unique 1B --law c4-penalty", "what repeats are worth depends on the model: give --parameters."),
        ("epochs --unique 1B --plot a.gif", "--plot a.gif: a picture's name ends in .png, .pdf or .svg."),
        ("epochs --unique 1B --plot no/a.png", "--plot no/a.png: the folder no does not exist."),
        ("unique --parameters 1B --tokens 1B --law massivetext", "by the law massivetext repeated tokens count as new"),
        ("unique --parameters 1B --tokens 1B --within x%", "--within: expected a number (such as 0.1, 1e-4 or 500M), got 'x'."),
    ],
)
def test_refusals(law: Run, words: str, told: str, folder: Path) -> None:
    result = law(*words.split())
    result.refused(told)
    assert not result.out and not list(folder.iterdir())


# ------------------------------------------------------------------------------------------------------------ law fit


def table(path: Path, law_name: str = "massivetext", seed: int = 0) -> Path:
    """Single-epoch runs by a published law, with a little noise; few enough for one form alone."""
    truth, generator = scaling_law.PUBLISHED[law_name], np.random.default_rng(seed)
    rows = [(n, d) for n in (1e7, 1e8, 1e9, 1e10) for d in (1e9, 1e10, 1e11)]
    lines = [f"{n:g},{d:g},{d:g},{truth.loss(n, d) * np.exp(0.002 * generator.standard_normal()):.6f}" for n, d in rows]
    path.write_text("parameters,tokens,unique_tokens,loss\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture
def few_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(law_fit, "GRID", {name: values[1:2] for name, values in law_fit.GRID.items()})


def test_fit(law: Run, folder: Path, few_starts: None) -> None:
    table(folder / "runs.csv")
    shown = law("fit", "runs.csv", "--resamples", "20", "--output", "mine.json").succeeded().out
    assert shown.startswith("12 runs: 4 sizes from 10M to 10B parameters, 3 lengths from 1B to 100B tokens")
    assert "chinchilla (every token counts as new):" in shown and "massivetext, as it is" in shown
    assert "left out: the form repeated-data cannot be fitted to these runs: rd_star needs runs" in shown
    assert "starts: 1, of which 1 ended alike at the best, 0 still moved, 0 led" in shown and "of 20 resamples 0 led to no number" in shown
    assert "runs that weigh most (none is taken out):" in shown and shown.endswith("written to mine.json\n")
    found = values(law("predict", "--parameters", "1B", "--tokens", "1e10", "--law", "mine.json", "--json"))
    truth = scaling_law.PUBLISHED["massivetext"].loss(1e9, 1e10)
    assert found["law"] == "mine" and found["this"]["loss"] == pytest.approx(truth, rel=0.01)
    assert not [note for note in found["notes"] if "absolute losses" in note]  # they are the user's own
    outside = law("predict", "--parameters", "1T", "--tokens", "1e10", "--law", "mine.json").succeeded().out
    assert "note: parameters 1T: outside of the 10M to 10B of the runs behind 'mine'" in outside


def test_fit_for_machines(law: Run, folder: Path, few_starts: None) -> None:
    table(folder / "runs.csv")
    words = ["--form", "chinchilla", "--fix", "alpha=0.34", "--fix", "E=1.69", "--resamples", "0", "--json"]
    found = values(law("fit", "runs.csv", *words))
    assert found["law"]["constants"]["alpha"] == 0.34 and found["law"]["constants"]["beta"] == pytest.approx(0.28, abs=0.02)
    assert found["runs"] == 12 and found["intervals"] is None and found["starts"]["failed"] == 0
    assert len(found["influences"]) == 12 and found["forms"][0]["fitted"]["log_rmse"] < 0.01
    assert found["published"]["massivetext"]["log_rmse"] < 0.01 < found["published"]["c4"]["log_rmse"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("fit runs.csv --form chinchila", "--form chinchila: choose chinchilla, repeated-data, data-constrained or penalty."),
        ("fit runs.csv --form chinchilla --fix rd_star=3", "--fix rd_star=3: expected NAME=VALUE of a constant. They are: E, A, alpha, B, beta."),
        ("fit runs.csv --fix alpha", "--fix alpha: expected NAME=VALUE of a constant."),
        ("fit runs.csv --fix alpha=x", "--fix alpha: expected a number"),
        ("fit runs.csv --output mine.yaml", "--output mine.yaml: a file that ends in .json, in a folder that exists."),
        ("fit runs.csv --form penalty --form repeated-data", "the form penalty cannot be fitted to these runs: P needs"),
        ("fit absent.csv here", "here is no run to fit a law to"),
    ],
)
def test_fits_that_are_refused(law: Run, words: str, told: str, folder: Path) -> None:
    table(folder / "runs.csv")
    (folder / "here").mkdir()
    before = entries(folder)
    result = law(*words.split())
    result.refused(told)
    assert not result.out and entries(folder) == before


def test_runs_of_two_tokenizers_do_not_compare(law: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (folder / name).mkdir()
    found = lambda place, corpus: (law_runs.Run("a", 1.0, 1.0, 1.0, 1.0), place.name)  # noqa: E731
    monkeypatch.setattr(trained_runs, "read_run", found)
    law("fit", "one", "two").refused("one and two have different tokenizers: their tokens and losses do not compare.")
