"""A recipe as a list of steps: which there are, in what order, and what their results depend on."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from megatron_adapt import checks, plan, recipe
from megatron_adapt.errors import ConfigError, DataError
from megatron_adapt.plan import Plan
from megatron_adapt.steps import receipt
from megatron_adapt.steps.reporter import Reporter
from megatron_adapt.vocab import methods

from harness import ROOT

SCRATCH = [
    "tokenizers/base", "tokenizers/target", "data/base/english", "data/target/english", "data/target/german",
    "base/initial", "base/import", "base/pretrain", "base/export", "evaluation/base", "copy/swap",
    "evaluation/copy-swapped", "copy/import", "copy/embeddings", "evaluation/copy-embeddings", "copy/full",
    "evaluation/copy-full", "export", "report",
]  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("en", "de"):
        Path(f"{name}.jsonl").write_text('{"text": "a"}\n')
    return tmp_path


def build(*overrides: str, **changes: Any) -> Plan:
    return plan.build(recipe.load([tiny.write(Path("."), tiny.recipe(**changes))], overrides, methods=methods.checks()))


def names(built: Plan) -> list[str]:
    return [step.name for step in built.steps]


def assert_in_order(built: Plan) -> None:
    """Nothing is used before it is made, every name and place is used once, everything lies below the output."""
    made: set[Path] = set()
    outputs = {step.output for step in built.steps}
    for step in built.steps:
        assert set(step.places) & outputs <= made, step.name
        assert Path("out") in step.output.parents
        made.add(step.output)
    assert len(made) == len(built.steps) == len(set(names(built)))


def test_from_scratch_with_a_swap() -> None:
    built = build()
    assert names(built) == SCRATCH
    assert_in_order(built)
    assert [(stage.branch, stage.title) for stage in built.stages] == [
        ("base", "before"), ("copy", "vocabulary swapped"), ("copy", "phase embeddings"), ("copy", "phase full"),
    ]  # fmt: skip
    assert {step.verb for step in built.steps if step.ranks == 2} == {"train", "evaluate"}
    more = build("parallel.context=2")
    assert {step.verb for step in more.steps if step.ranks == 4} == {"train", "evaluate"} and names(more) == SCRATCH
    assert {step.verb for step in built.steps if step.resumable} == {"preprocess", "train"}
    assert built.step("copy/full").output == Path("out/copy/full")
    assert built.step("export").output == Path("out/model")


def test_methods_are_compared_in_branches_of_their_own() -> None:
    built = build("vocabulary.compare=[random, mean]")
    extra = [
        f"{name}"
        for method in ("random", "mean")
        for name in (
            f"{method}/swap", f"evaluation/{method}-swapped", f"{method}/import", f"{method}/embeddings",
            f"evaluation/{method}-embeddings", f"{method}/full", f"evaluation/{method}-full",
        )
    ]  # fmt: skip
    assert names(built) == SCRATCH[:-1] + extra + ["report"]
    assert_in_order(built)


def test_domain_adaptation_keeps_the_vocabulary() -> None:
    built = build(model={"source": "base"}, vocabulary=None)
    assert names(built) == [
        "data/base/english", "data/base/german", "evaluation/base", "adapted/import", "adapted/embeddings",
        "evaluation/adapted-embeddings", "adapted/full", "evaluation/adapted-full", "export", "report",
    ]  # fmt: skip
    assert_in_order(built)


def test_a_pretrained_model_and_a_given_tokenizer() -> None:
    built = build("model.source=base", "vocabulary.tokenizer.path=tok", "evaluation.corpora=[german]", "phases.full.data.english=null")
    assert names(built)[:4] == ["data/target/german", "evaluation/base", "copy/swap", "evaluation/copy-swapped"]
    assert_in_order(built)


def test_from_scratch_without_vocabulary() -> None:
    scratch = {key: value for key, value in tiny.recipe()["model"]["from_scratch"].items() if key != "phases"}
    built = build("evaluation.corpora=[]", model={"from_scratch": scratch}, vocabulary=None)
    assert names(built) == [
        "tokenizers/base", "data/base/english", "data/base/german", "base/initial", "adapted/import",
        "adapted/embeddings", "adapted/full", "export", "report",
    ]  # fmt: skip
    assert_in_order(built)


def test_unused_corpora_are_not_tokenized() -> None:
    built = build("data.other.path=nowhere.txt", "evaluation.corpora=[german]", "phases.full.data.english=null")
    assert not [name for name in names(built) if "other" in name or name == "data/target/english"]


@pytest.mark.parametrize(
    "override",
    [
        "parallel.tensor=1", "parallel.data=2", "parallel.sequence=true", "phases.full.micro_batch_size=1",
        "phases.full.log_every=1", "phases.full.save_every=1", "phases.full.keep_last=3", "phases.full.evaluate_every=5",
        "output=elsewhere", "name=another", "data.german.path=copy.jsonl", "export.verify=off",
    ],
)  # fmt: skip
def test_what_no_result_depends_on(override: str) -> None:
    Path("copy.jsonl").write_text(Path("de.jsonl").read_text())

    def digests(*overrides: str) -> list[str]:
        known: dict[Path, str] = {}
        for step in build(*overrides).steps:
            known[step.output] = receipt.state(step, known).digest
        return list(known.values())

    assert digests(override) == digests()


@pytest.mark.parametrize(
    ("override", "first"),
    [
        ("seed=5", "base/initial"),
        ("model.mup.base={hidden_size: 16}", "base/initial"),
        ("precision=bf16-true", "base/pretrain"),
        ("phases.embeddings.optimizer.lr=1", "copy/embeddings"),
        ("phases.full.steps=9", "copy/full"),
        ("phases.full.batch_size=8", "copy/full"),
        ("vocabulary.method=mean", "mean/swap"),
        ("vocabulary.pad_to_multiple=8", "copy/swap"),
        ("data.german.held_out=0.1", "tokenizers/target"),
        ("data.german.max_documents=5", "tokenizers/target"),
        ("data.german.path=other.jsonl", "tokenizers/target"),
        ("data.german.text_documents=lines", "tokenizers/target"),
        ("data.german.unique_tokens=5K", "copy/embeddings"),
        ("data.english.shuffled_epochs=2", "base/pretrain"),
        ("vocabulary.tokenizer.train.vocab_size=500", "tokenizers/target"),
        ("evaluation.max_bytes=1K", "evaluation/base"),
        ("export.dtype=bfloat16", "export"),
    ],
)
def test_what_results_depend_on(override: str, first: str) -> None:
    Path("other.jsonl").write_text('{"text": "b"}\n')
    before: dict[Path, str] = {}
    for step in build().steps:
        before[step.output] = receipt.state(step, before).digest
    after: dict[Path, str] = {}
    changed = []
    for step in build(override).steps:
        after[step.output] = receipt.state(step, after).digest
        if before.get(step.output) != after[step.output]:
            changed.append(step.name)
    assert changed[0] == first
    assert changed[-1] == "report" or first == "export"


@pytest.mark.parametrize("name", ["import", "imported", "swap"])
def test_a_phase_cannot_take_the_name_of_a_step(name: str) -> None:
    with pytest.raises(ConfigError, match=f"a phase cannot be called .*{name}.*: that is a step of its own; rename the phase"):
        build(f"phases.full.name={name}")


@pytest.mark.parametrize("name", ["initial", "import", "imported", "export", "model"])
def test_nor_can_a_phase_of_the_base(name: str) -> None:
    with pytest.raises(ConfigError, match=f"a phase cannot be called .*{name}.*: that is a step of its own; rename the phase"):
        build(f"model.from_scratch.phases.pretrain.name={name}")


def test_what_methods_read_is_input_of_the_swap(tmp_path, monkeypatch):
    (tmp_path / "helper").mkdir()
    built = build("vocabulary.method=clp", "vocabulary.compare=[focus]", f"vocabulary.options.clp.helper={tmp_path / 'helper'}")
    clp, focus = built.step("clp/swap"), built.step("focus/swap")
    assert clp.inputs["helper"] == tmp_path / "helper" and clp.settings["options"]["weights"] == "sparsemax"
    assert "helper" not in clp.settings["options"] and not clp.settings["corpora"]
    assert set(focus.settings["corpora"]) == {"german"} and "corpus german" in focus.inputs  # the tokenizer's
    given = build("vocabulary.method=align", "vocabulary.corpora=[english]").step("align/swap")
    assert set(given.settings["corpora"]) == {"english"}
    with pytest.raises(ConfigError, match="vocabulary.calibrate reads text in the target language: name corpora under"):
        build("vocabulary.calibrate=true", f"vocabulary.tokenizer={tmp_path}")
    assert set(build("vocabulary.calibrate=true").step("copy/swap").settings["corpora"]) == {"german"}
    with pytest.raises(ConfigError, match="vocabulary method focus reads text in the target language: name corpora under"):
        build("vocabulary.method=focus", f"vocabulary.tokenizer={tmp_path}")
    step = build("vocabulary.method=default").step("default/swap")
    assert step.settings["calibrate"] is None and set(step.settings["corpora"]) == {"german"}
    assert not build("vocabulary.method=default", f"vocabulary.tokenizer={tmp_path}").step("default/swap").settings["corpora"]


def test_an_unknown_step() -> None:
    with pytest.raises(ConfigError, match="no step 'copy/ful' in this recipe; there are: tokenizers/base, .*, copy/full, .*, report"):
        build().step("copy/ful")


def test_data_sets_of_the_hub() -> None:
    """Receipts know a data set by its name; the files beside it by their content."""
    built = build("data.german.path=[hf:org/name@de:validation, de.jsonl]")
    step = next(step for step in built.steps if step.name == "data/target/german")
    assert step.settings["data_sets"] == ["hf:org/name@de:validation"] and step.inputs["corpus"] == (Path("de.jsonl"),)
    trained = next(step for step in built.steps if step.name == "tokenizers/target")
    assert trained.settings["corpora"]["german"]["data_sets"] == ["hf:org/name@de:validation"]
    assert "data_sets" not in next(step for step in built.steps if step.name == "data/target/english").settings
    with pytest.raises(DataError, match="standard input can be read once, and this is read several times: save it"):
        build("data.german.path=-")


def test_a_corpus_that_does_not_exist() -> None:
    with pytest.raises(DataError, match="the corpus nowhere.jsonl does not exist"):
        build("data.german.path=nowhere.jsonl")




def test_the_quickstart_can_be_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    built = plan.build(recipe.load([ROOT / "examples/quickstart/recipe.yaml"], methods=methods.checks()))
    assert checks.check(built) and list(checks.summary(built))
    (tmp_path / "dumped.yaml").write_text(recipe.dump(built.recipe), encoding="utf-8")
    assert recipe.load([tmp_path / "dumped.yaml"], methods=methods.checks()) == built.recipe


def test_check_tells_what_repeats_are_worth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all phases of a branch together; embeddings: 768 tokens of German, full: 1,024 of both."""
    known: dict[str, dict[str, Any]] = {"base": {"english": 512}, "adapted": {"german": 500, "english": 10_000}}
    monkeypatch.setattr(checks, "_known_tokens", lambda plan: known)

    def told(*overrides: str) -> list[str]:
        return [line for line in checks.summary(build(*overrides)) if " epochs of " in line]

    assert told() == [
        "copy: german: 3.17 epochs of 500 tokens; the repeated 1.09K are worth 1.01K new ones, one more 0.87 (law fitted to pretraining on C4)"
    ]  # English, once in the base and 0.02 times later, is not repeated
    known["adapted"]["german"] = lambda length: 500  # chats
    assert not told()
    del known["adapted"]["german"]
    assert told("data.german.unique_tokens=400")[0].startswith("copy: german: 3.97 epochs of 400 tokens")
    assert not told("data.german.unique_tokens=400", "phases.full.steps=null", "phases.full.epochs=2")  # so long is not known yet
    known["base"]["english"] = 128
    assert told()[0].startswith("base: english: 4 epochs of 128 tokens; the repeated 384 are worth 349 new ones")


def jobs(built: Plan, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What each train step would be asked to do, with 640 tokens in every corpus."""
    from megatron_adapt.steps import train

    monkeypatch.setattr(train, "run", lambda job, reporter: {"job": job})
    found = {}
    for step in built.steps:
        if step.verb == "preprocess":
            step.output.mkdir(parents=True)
            (step.output / "receipt.json").write_text(json.dumps({"metrics": {"tokens": 640}}))
        elif step.verb == "train":
            found[step.name] = step.action(step.output, None)["job"]
    return found


def test_a_schedule_over_the_run_spans_its_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    over = ("phases.full.schedule={type: linear, over: run}", "phases.embeddings.epochs=2")
    built = build(*over)
    found = jobs(built, monkeypatch)
    assert found["copy/embeddings"].steps == 10 and found["copy/embeddings"].run == (0, 10)
    assert found["copy/full"].steps == 8 and found["copy/full"].run == (10, 18)
    assert set(found["copy/full"].corpora) == set(recipe_phase(built, "full").data)
    # Another length of an earlier phase changes the rates of the later one.
    longer = build(*over[:1], "phases.embeddings.epochs=3")
    assert built.step("copy/full").settings != longer.step("copy/full").settings
    assert build().step("copy/full").settings == build("phases.embeddings.epochs=3").step("copy/full").settings


def test_what_a_schedule_over_the_run_spans_may_change_once_the_phase_is_begun() -> None:
    step = build("phases.full.schedule={type: linear}").step("copy/full")
    step.output.mkdir(parents=True)
    receipt.write_json(step.output / receipt.BEGUN, receipt.identity(step))
    for changes in (["phases.full.steps=9"], ["phases.full.batch_size=8"]):
        changed = build("phases.full.schedule={type: linear, over: run}", *changes).step("copy/full")
        assert not receipt.state(changed).differences
        receipt.write_json(step.output / receipt.BEGUN, receipt.identity(changed))
    receipt.sign(changed, step.output, {}, 1.0)
    longer = receipt.state(build("phases.full.schedule={type: linear, over: run}", *changes, "phases.embeddings.steps=7").step("copy/full"))
    assert [text.split(" was ")[0] for text, _ in longer.differences] == ["run"]  # it was trained with other rates


def recipe_phase(built: Plan, name: str) -> Any:
    return next(phase for phase in built.recipe.phases if phase.name == name)


def test_a_schedule_longer_than_a_phase_in_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    built = build("phases.full.epochs=1", "phases.full.schedule={type: wsd, warmup: 6, decay: 7}")
    with pytest.raises(ConfigError, match="phase 'full': schedule: warmup 6 . decay 7 are more than all 10 steps"):
        jobs(built, monkeypatch)


def test_an_epoch_is_what_is_read_of_the_corpora(monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_adapt.data.sampling import Passes

    built = build("phases.embeddings.epochs=2", "data.german.unique_tokens=256", "data.english.shuffled_epochs=3")
    found = jobs(built, monkeypatch)
    assert found["copy/embeddings"].steps == 4 and found["copy/embeddings"].passes == {"german": Passes(256)}
    assert found["base/pretrain"].passes == {"english": Passes(None, 3)}


def test_other_passes_are_refused_when_a_phase_was_begun() -> None:
    step = build().step("copy/embeddings")
    step.output.mkdir(parents=True)
    receipt.write_json(step.output / receipt.BEGUN, receipt.identity(step))
    assert not receipt.state(step).differences
    other = build("data.german.unique_tokens=256", "data.german.shuffled_epochs=2").step("copy/embeddings")
    assert [text for text, _ in receipt.state(other).differences] == [
        "corpora.german.shuffled_epochs was 1, is now 2", "corpora.german.unique_tokens was None, is now 256",
    ]  # fmt: skip


def test_corpora_may_be_called_what_steps_call_their_other_inputs() -> None:
    """Else the step would not notice that the checkpoint, model or tokenizer that it starts from has changed."""
    for name in ("start", "model", "tokenizer"):
        corpora = {"english": {"path": "en.jsonl"}, name: {"path": "de.jsonl", "held_out": 0.1}}
        vocabulary = {"tokenizer": {"extend": {"corpora": [name], "tokens": 7}}, "method": "copy"}
        phase = tiny.phase("embeddings", 4, data={name: 1})
        built = build(data=corpora, vocabulary=vocabulary, phases=[phase])
        assert built.step("base/export").output in built.step("evaluation/base").places
        assert built.step("copy/import").output in built.step("copy/embeddings").places
        assert built.step("tokenizers/base").output in built.step("tokenizers/target").places
        assert_in_order(built)


def test_a_tokenizer_derived_from_the_models_own() -> None:
    built = build("vocabulary.tokenizer=null", "vocabulary.tokenizer={extend: {corpora: [german], tokens: 7}}")
    step = built.step("tokenizers/target")
    assert set(step.inputs) == {"german", "tokenizer"} and step.inputs["tokenizer"] == built.step("tokenizers/base").output
    assert step.settings["tokens"] == 7 and step.settings["reuse"] is False
    assert_in_order(built)
    before, after = checks.shapes(built.recipe)
    assert after.vocab_size == before.vocab_size + 7
    pruned = build("vocabulary.method=default", "vocabulary.tokenizer=null", "vocabulary.tokenizer={prune: {corpora: [german], keep: 300}}")
    assert checks.shapes(pruned.recipe)[1].vocab_size == 300
    with pytest.raises(ConfigError, match="a new model has no tokenizer of its own to start from; give 'path' or 'train'"):
        build("model.from_scratch.tokenizer=null", "model.from_scratch.tokenizer={prune: {corpora: [german]}}")


@pytest.mark.parametrize("overrides, kind", [((), None), (("export.verify=off",), "off"), (("export.verify=logits",), "logits")])
def test_how_conversions_are_compared(monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], kind: str | None) -> None:
    """Every import and export of a recipe is asked for the same."""
    from megatron_adapt.steps import export_hf, import_hf

    asked: list[str | None] = []
    for module in (import_hf, export_hf):
        whole = inspect.signature(module.run)
        monkeypatch.setattr(module, "run", lambda *args, whole=whole, **named: asked.append(whole.bind(*args, **named).arguments["verify"]))
    monkeypatch.setattr(plan._Builder, "_samples", lambda self: None)
    for step in build(*overrides).steps:
        if step.verb in ("import", "export"):
            step.action(Path("there"), Reporter())
    assert asked == [kind] * 4


def test_conversions_are_compared_on_several_short_documents(tmp_path: Path) -> None:
    from megatron_adapt.engine.evaluate import sample

    short, long = tmp_path / "short.jsonl", tmp_path / "long.jsonl"
    short.write_text("".join(json.dumps({"text": f"Satz {number}."}) + "\n" for number in range(1000)))
    long.write_text(json.dumps({"text": "x" * 5000}) + "\n")
    assert sample(short, 25) == "Satz 0.\n\nSatz 1.\n\nSatz 2."
    assert sample(long, 2000) == "x" * 2000
