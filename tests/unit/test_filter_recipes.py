"""Filters in a recipe: what is wrong with them is told before anything runs, and whoever reads a filtered corpus reads what is left."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny

from megatron_adapt import checks, plan, recipe
from megatron_adapt.analysis import report
from megatron_adapt.data import filters
from megatron_adapt.errors import ConfigError
from megatron_adapt.plan import Plan
from megatron_adapt.steps import receipt
from megatron_adapt.steps.reporter import Reporter
from megatron_adapt.vocab import methods

FILTERED = "data.german.filters=[exact, {name: near, threshold: 0.7}]"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("en", "de", "own"):
        Path(f"{name}.jsonl").write_text('{"text": "a"}\n')
    return tmp_path


def load(*overrides: str, **changes: Any) -> recipe.Recipe:
    tree = tiny.recipe(**{"model": {"source": "base"}, "vocabulary": None, **changes})
    return recipe.load([tiny.write(Path("."), tree)], overrides, methods=methods.checks(), filters=filters.kinds())


def build(*overrides: str, **changes: Any) -> Plan:
    return plan.build(load(*overrides, **changes))


# ------------------------------------------------------------------------------------------------ what is refused


REFUSED = {
    "name": ("filters=[exct]", "filters[0].name: unknown filter 'exct'. Did you mean 'exact'?"),
    "no name": ("filters=[{threshold: 0.7}]", "filters[0].name: missing; name of the filter"),
    "no filter": ("filters=[exact, 7]", "filters[1]: expected the name of a filter or a mapping with 'name' and options, got the number 7"),
    "no list": ("filters=exact", "filters: expected a list, got 'exact'"),
    "option": ("filters=[exact, {name: near, treshold: 0.7}]", "filters[1].treshold: unknown option. Did you mean 'threshold'?"),
    "range": ("filters=[{name: near, threshold: 7}]", "filters[0].threshold: must be at least 0.01 and at most 1, got 7"),
    "choice": ("filters=[{name: exact, compare: words}]", "filters[0].compare: expected bytes or spaces or letters, got 'words'"),
    "missing": ("filters=[perplexity]", "filters[0]: option model of perplexity is missing; KenLM's model, .arpa or .bin"),
    "together": ("filters=[{name: rules, min_words: 9, max_words: 5}]", "filters[0]: rules: min_words is above max_words: no document would be left"),
    "unknown": ("against=[englsh]", "against[0]: unknown corpus 'englsh'. Did you mean 'english'?"),
    "itself": ("against=[german]", "against[0]: a corpus is compared with itself anyway; remove it"),
    "twice": ("against=[english, english]", "against[1]: 'english' is named twice; remove one of them"),
    "alone": ("filters=[]", "against: names what filters compare this corpus with, and it has none; give 'filters', too"),
    "rules": ("filters=[rules]", "against: of the filters exact, near, substring compare documents, not rules; add one of them, or remove this"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    change, message = REFUSED[name]
    corpus = {"path": "de.jsonl", "filters": ["exact"], "against": ["english"] if message.startswith("against: ") else []}
    with pytest.raises(ConfigError) as caught:
        load(f"data.german.{change}", data={"english": {"path": "en.jsonl", "held_out": 0.1}, "german": corpus})
    place = "recipe.yaml:21" if message.startswith("against: ") else f"override 'data.german.{change}'"
    assert str(caught.value) == f"{place}: data.german.{message}"


def test_all_problems_at_once_with_file_and_line() -> None:
    german = {"path": "de.jsonl", "filters": [{"name": "near", "rows": 0}, "exakt"], "against": ["talk", "english"]}
    english = {"path": "en.jsonl", "held_out": 0.1, "filters": ["exact"], "against": ["french"]}
    french = {"path": "en.jsonl", "filters": ["exact"], "against": ["german"]}
    talk = {"path": "talk.jsonl", "messages": "messages", "filters": ["exact"]}
    with pytest.raises(ConfigError) as caught:
        load(data={"german": german, "english": english, "french": french, "talk": talk})
    lines = Path("recipe.yaml").read_text().splitlines()
    found = [line.split(": ", 2) for line in str(caught.value).splitlines()]
    assert [(lines[int(place.split(":")[1]) - 1].strip(' ,"'), key, text.partition(";")[0]) for place, key, text in found] == [
        ('rows": 0', "data.german.filters[0].rows", "must be at least 1 and at most 100, got 0"),
        ("exakt", "data.german.filters[1].name", "unknown filter 'exakt'. Did you mean 'exact'?"),
        ("talk", "data.german.against[0]", "'talk' holds chats, and only text is read here"),
        ("english", "data.german.against[1]", "'english' is itself cleaned of what stands in 'german', and one of them has to come first"),
        ("french", "data.english.against[0]", "'french' is itself cleaned of what stands in 'english', and one of them has to come first"),
        ("german", "data.french.against[0]", "'german' is itself cleaned of what stands in 'french', and one of them has to come first"),
        ('filters": [', "data.talk.filters", "filters read text and know nothing of who speaks, and 'messages' says that these are chats"),
    ]  # fmt: skip


def test_written_out_it_is_the_same(folder: Path) -> None:
    given = load(FILTERED, "data.german.filters.near.rows=5")
    assert [(one.name, one.options) for one in given.data["german"].filters] == [("exact", {}), ("near", {"threshold": 0.7, "rows": 5})]
    (folder / "again.yaml").write_text(recipe.dump(given))
    assert recipe.load([folder / "again.yaml"]) == given


# ------------------------------------------------------------------------------------------------ the plan


def test_a_corpus_with_filters_is_read_after_them() -> None:
    built = build(FILTERED, vocabulary={"tokenizer": {"train": {"corpora": ["german"], "vocab_size": 400}}, "method": "focus", "compare": ["copy"]})
    names = [step.name for step in built.steps]
    assert names[:4] == ["filtered/german", "tokenizers/target", "data/target/english", "data/target/german"]
    place = Path("out/filtered/german")
    assert built.step("tokenizers/target").inputs == {"german": place}
    assert built.step("data/target/german").inputs["corpus"] == place == built.step("focus/swap").inputs["corpus german"]
    assert built.step("report").inputs["filtered/german"] == place
    raw = {Path("de.jsonl")}
    assert [step.name for step in built.steps if raw & set(step.places)] == ["filtered/german"]
    step = built.step("filtered/german")
    assert (step.verb, step.ranks, step.resumable) == ("filter", 1, True) and step.inputs == {"corpus": (Path("de.jsonl"),)}
    assert {number: list(kind) for number, kind in step.settings["filters"].items()} == {"0": ["exact"], "1": ["near"]}


@pytest.mark.parametrize(
    ("vocabulary", "step", "module", "function", "corpora"),
    [
        ({"method": "copy"}, "tokenizers/target", "tokenizer", "make", lambda given: given[2]),
        ({"method": "copy"}, "data/target/german", "preprocess", "run", lambda given: given[:1]),
        ({"method": "focus"}, "focus/swap", "swap", "run", lambda given: given[3].corpora),
        ({"method": "default"}, "default/swap", "swap", "run", lambda given: given[3].corpora),
        ({"method": "auto"}, "auto/swap", "compare", "run", lambda given: given[3].corpora),
    ],
)
def test_every_step_is_given_the_clean_text(monkeypatch: pytest.MonkeyPatch, vocabulary, step, module, function, corpora) -> None:
    changes = ["data.german.max_documents=9", "data.german.on_error=skip", "data.german.text_documents=lines", "data.german.text_key=body"]
    making = {"tokenizer": {"train": {"corpora": ["german"], "vocab_size": 400}}}
    built = build(FILTERED, *changes, vocabulary=making | vocabulary)
    given: list[Any] = []
    module = __import__(f"megatron_adapt.steps.{module}", fromlist=[function])
    monkeypatch.setattr(module, function, lambda *arguments: given.extend(arguments))
    built.step(step).action(Path("place"), Reporter())
    (corpus,) = corpora(given)
    assert (corpus.path, corpus.held_out, corpus.text_key) == ("out/filtered/german/text.jsonl", 0.05, "body")
    # What is said about the files of the recipe has been done.
    assert (corpus.max_documents, corpus.on_error, corpus.text_documents, corpus.filters) == (None, "stop", "blocks", [])


def digests(*overrides: str, **changes: Any) -> dict[str, str]:
    known: dict[Path, str] = {}
    found = {}
    for step in build(*overrides, **changes).steps:
        found[step.name] = known[step.output] = receipt.state(step, known).digest
    return found


def test_without_filters_nothing_is_another() -> None:
    assert digests("data.german.filters=[]") == digests() and "filtered/german" not in digests()


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("data.german.filters.near.threshold=0.8", True),
        ("data.german.filters=[{name: near, threshold: 0.7}, exact]", True),
        ("data.german.max_documents=5", True),
        ("data.german.text_documents=lines", True),
        ("data.german.path=[hf:org/name]", True),
        ("data.german.against=[english]", True),
        ("data.german.held_out_path=own.jsonl", True),
        ("data.german.held_out=0.1", False),
        ("data.german.unique_tokens=5K", False),
        ("data.german.path=copy.jsonl", False),
        ("seed=5", False),
    ],
)
def test_what_the_clean_text_depends_on(override: str, changed: bool) -> None:
    Path("copy.jsonl").write_text(Path("de.jsonl").read_text())
    before, after = digests(FILTERED), digests(FILTERED, override)
    assert (before["filtered/german"] != after["filtered/german"]) == changed
    tokenized = changed or "held_out" in override
    assert (before["data/base/german"] != after["data/base/german"]) == tokenized


def test_a_model_that_a_filter_reads_counts() -> None:
    Path("de.arpa").write_text("one")
    words = ("data.german.filters=[{name: perplexity, model: de.arpa, max: 900}]",)
    before = digests(*words)
    assert build(*words).step("filtered/german").inputs["filters.0.perplexity.model"] == Path("de.arpa")
    Path("de.arpa").write_text("another")
    assert digests(*words)["filtered/german"] != before["filtered/german"]


def test_a_filter_that_cannot_run_here_is_told_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("de.arpa").touch()
    built = build("data.german.filters=[exact, {name: perplexity, model: de.arpa, max: 900}]")
    monkeypatch.setitem(sys.modules, "kenlm", None)
    needs = "perplexity needs the library kenlm: pip install 'megatron_adapt[filter]'"
    assert list(checks._filter_problems(built)) == [f"data.german.filters[1]: {needs}"]
    assert not list(checks._filter_problems(build(FILTERED)))


def test_corpora_that_are_compared_with_come_first() -> None:
    """As they are read: filtered ones when they are clean, all with what they hold out in a file."""
    data = {
        "german": {"path": "de.jsonl", "held_out_path": "own.jsonl", "filters": ["exact"], "against": ["english", "books"]},
        "english": {"path": "en.jsonl", "held_out": 0.1, "filters": ["rules"]},
        "books": {"path": "de.jsonl", "held_out_path": "own.jsonl", "max_documents": 3},
    }
    built = build(data=data)
    assert [step.name for step in built.steps][:4] == ["filtered/english", "filtered/german", "data/base/german", "data/base/english"]
    step = built.step("filtered/german")
    assert step.inputs == {
        "corpus": (Path("de.jsonl"),), "against english": Path("out/filtered/english"), "against books": (Path("de.jsonl"),),
        "held out of books": Path("own.jsonl"), "held_out": Path("own.jsonl"),
    }  # fmt: skip
    assert step.settings["against"]["books"] == "max_documents 3, on_error stop, text_key text"
    assert "held_out" not in build("data.german.filters=[rules]", "data.german.against=[]", data=data).step("filtered/german").inputs


def test_what_is_held_out_in_a_file_is_not_trained_on(folder: Path) -> None:
    """Of this corpus and of those that it is compared with; what these read counts as far as they read it."""
    def write(name: str, *texts: str) -> None:
        Path(name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    write("de.jsonl", "eins", "zwei", "drei", "vier", "fünf", "sechs", "zwei")
    write("own.jsonl", "zwei")
    write("en.jsonl", "drei", "vier")
    write("theirs.jsonl", "fünf")
    german = {"path": "de.jsonl", "held_out_path": "own.jsonl", "filters": ["exact"], "against": ["english"], "max_documents": 5}
    data = {"german": german, "english": {"path": "en.jsonl", "held_out_path": "theirs.jsonl", "max_documents": 1}}
    step = build(data=data).step("filtered/german")
    metrics = step.action(folder / "clean", Reporter())
    assert [json.loads(line)["text"] for line in (folder / "clean" / "text.jsonl").read_text().splitlines()] == ["eins", "vier"]
    assert metrics["read"]["documents"] == 5 and [other["documents"] for other in metrics["against"]] == [1, 1, 1]


def test_data_sets_are_known_by_their_names() -> None:
    step = build(FILTERED, "data.german.path=[hf:org/name@de:validation, de.jsonl]").step("filtered/german")
    assert step.settings["data_sets"] == ["hf:org/name@de:validation"] and step.inputs["corpus"] == (Path("de.jsonl"),)
    assert "data_sets" not in build(FILTERED, "data.german.path=[hf:org/name]").step("data/base/german").settings


# ------------------------------------------------------------------------------------------------ interrupted, changed


def test_a_step_that_has_begun_may_be_changed_and_a_finished_one_not(folder: Path) -> None:
    """What it has read and found is kept with what it was made of, so that a filter that drops too much can be loosened."""
    step = build(FILTERED).step("filtered/german")
    step.output.mkdir(parents=True)
    receipt.write_json(step.output / receipt.BEGUN, receipt.identity(step))
    loosened = build(FILTERED, "data.german.filters.near.threshold=0.9", "data.german.against=[english]").step("filtered/german")
    assert receipt.state(loosened).differences == ()
    Path("de.jsonl").write_text('{"text": "b"}\n')
    assert [text for text, _ in receipt.state(step).differences] == ["the content of its input 'corpus' changed"]
    Path("de.jsonl").write_text('{"text": "a"}\n')
    receipt.sign(step, step.output, {}, 1.0)
    assert [text for text, _ in receipt.state(loosened).differences] == [
        "against.english was absent, is now max_documents None, on_error stop, text_key text",
        "filters.1.near.threshold was 0.7, is now 0.9",
        "its input 'against english' was absent, is now there",
    ]


# ------------------------------------------------------------------------------------------------ the report


def test_the_report_has_a_line_for_each_filtered_corpus() -> None:
    entries = [
        {"filter": "exact", "dropped": {"duplicate": 1200}},
        {"filter": "substring", "dropped": {"nothing is left": 3}, "spans": 4500},
        {"filter": "rules", "dropped": {"min_words": 2, "max_digits": 5}},
    ]
    found = {"read": {"documents": 9000, "bytes": 1234567}, "filters": entries, "documents": 7790, "bytes": 1000000}
    assert report.filter_notes({"german": found})[-1] == (
        "| german | 9,000 | exact 1,200, substring 3 (4,500 passages cut), rules 7 | 7,790 | 1,234,567 | 1,000,000 |"
    )
    assert report.filter_notes({}) == []
