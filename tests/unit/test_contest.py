"""Who takes part in a comparison of vocabulary methods, how they rank, and what its command line and recipe accept."""

from __future__ import annotations

import json

import pytest
from harness import ROOT
import yaml
from method_cases import CORPUS, world
from test_surgery import make_model

from megatron_adapt import plan, recipe as recipes
from megatron_adapt.cli import application
from megatron_adapt.config import Corpus, Probe
from megatron_adapt.data.held_out import divided
from megatron_adapt.errors import ConfigError, DataError
from megatron_adapt.steps import compare, receipt, swap
from megatron_adapt.steps.reporter import Reporter
from megatron_adapt.steps.tokenizer import files
from megatron_adapt.vocab import methods


def corpus(**changes) -> Corpus:
    return Corpus.model_construct(path=[str(CORPUS / "de.jsonl")], text_key="text", **changes)


def contest(**changes) -> compare.Contest:
    return compare.Contest(**({"corpora": [corpus(max_documents=100)]} | changes))


def test_methods_that_lack_something_are_listed_with_it(tmp_path):
    names, left_out = compare.candidates(make_model(tmp_path / "model"), contest())
    assert names == [f"{name}+calibrate" for name in ("align", "copy", "focus", "mean", "random", "subwords")]
    assert left_out["clp"] == "needs helper: give clp.helper as options"
    assert left_out["wechsel"].startswith("needs source_vectors, target_vectors, file: give wechsel.source_vectors, wechsel.")
    names, left_out = compare.candidates(tmp_path / "model", contest(options={"clp": {"helper": tmp_path}}, calibrate=False))
    assert "clp" in names and "copy" in names and set(left_out) == {"dictionary", "omp", "wechsel"}
    assert set(names) | set(left_out) == set(methods.names())


def test_a_model_that_cannot_be_calibrated(tmp_path):
    bent = make_model(tmp_path / "bent", tied=True)
    assert "subwords+calibrate" in compare.candidates(bent, contest())[0]
    config = json.loads((bent / "config.json").read_text())
    (bent / "config.json").write_text(json.dumps(config | {"architectures": ["Gemma2ForCausalLM"], "final_logit_softcapping": 30.0}))
    names, left_out = compare.candidates(bent, contest())
    assert "subwords" in names and "bends the logits" in left_out["calibration"]
    with pytest.raises(ConfigError, match="leave calibrate out"):
        compare.candidates(bent, contest(calibrate=True))
    assert compare.candidates(bent, contest(probe=Probe(methods=["mean+calibrate"]))) == (["mean+calibrate"], {})


def test_the_ranking_goes_by_what_training_makes_of_a_start():
    bits = {"a": (2.0, 1.5), "b": (3.0, 1.4), "c": (1.9, 1.5), "d": (1.9, 1.5), compare.OLD: (9.0,)}
    found = {name: {"bits_per_byte": dict(zip(("0", "50"), values))} for name, values in bits.items()}
    assert compare.rank(found) == ["b", "c", "d", "a"]


def test_text_is_measured_on_or_read_but_not_both():
    given = contest(probe=Probe(max_bytes=1000))
    measured, read = compare._held_out(given, Reporter()), list(compare._material(given))
    every = [json.loads(line)["text"] for line in open(CORPUS / "de.jsonl")][:100]
    assert len(measured) == 5 and len(read) == 95 and sum(len(text.encode()) for text in measured) <= 1000
    assert not any(one.startswith(text) for text in measured for one in read)
    assert sorted(read) == sorted(text for text in every if not any(text.startswith(one) for one in measured))
    assert list(divided(iter("abc"), compare.SHARE)) == [("a", False), ("b", False), ("c", True)]
    assert list(divided(iter("a"), compare.SHARE)) == [("a", False)]
    with pytest.raises(DataError, match="documents that they have not seen, and the text has fewer than two: give more"):
        compare._held_out(contest(corpora=[corpus(max_documents=1)]), Reporter())


def test_a_command_line_says_all_that_is_wrong_with_it():
    with pytest.raises(ConfigError) as error:
        compare.contest(["dim=3", "focus.dimm=3", "fokus.dim=3"], ["subword+calibrate", "mean"], 1, 1, [], None, 5)
    assert str(error.value).split("\n") == [
        "methods are compared on text in the target language: name files with --corpus.",
        "--option dim=3: of which method? Several are run: METHOD.dim=3.",
        "no vocabulary method 'subword'. Did you mean 'subwords'?",
        "--option focus.dimm: unknown option. Did you mean 'dim'?",
        "no vocabulary method 'fokus'. Did you mean 'focus'?",
    ]
    text = files([str(ROOT / "examples" / "quickstart" / "corpus" / "de.jsonl")], "body")
    found = compare.contest(["focus.dim=3"], ["focus+calibrate"], 1, 8, text, None, 5)
    assert found.options == {"focus": {"dim": "3"}} and found.probe == Probe(methods=["focus+calibrate"], steps=5)
    assert found.corpora[0].text_key == "body" and found.pad_to_multiple == 8


@pytest.mark.parametrize(("words", "message"), [
    (["compare", "a", "b"], "compare HF_DIR OUT needs --tokenizer DIR"),
    (["compare", "a"], "expected .* the paths HF_DIR OUT; got a"),
    (["swap", "a", "b", "--tokenizer", "t", "--methods", "mean"], "--methods: goes with --method auto, or with compare"),
    (["swap", "a", "b", "--tokenizer", "t", "--method", "auto"], "methods are compared on text in the target language: name files with --corpus"),
])  # fmt: skip
def test_verbs(words, message):
    with pytest.raises(ConfigError, match=message):
        application.app(words, standalone_mode=False)


RECIPE = {
    "name": "r", "output": "out", "model": {"source": "m"}, "data": {"german": {"path": "de.jsonl"}},
    "vocabulary": {"tokenizer": "t", "method": "auto", "corpora": ["german"], "options": {"focus": {"dim": 50}}, "probe": {"steps": 7}},
    "phases": [{"name": "all", "data": {"german": 1}, "steps": 1, "sequence_length": 8, "batch_size": 1, "optimizer": {"lr": 1}}],
}  # fmt: skip


def load(tmp_path, *overrides):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(RECIPE))
    return recipes.load([str(tmp_path / "r.yaml")], list(overrides), methods=methods.checks())


def test_a_recipe_may_leave_the_method_to_measuring(tmp_path):
    assert load(tmp_path).vocabulary.probe == Probe(steps=7)
    for override, message in (
        ("vocabulary.options.focus.dimm=3", r"vocabulary.options.focus.dimm: unknown option. Did you mean 'dim'"),
        ("vocabulary.options.fokus.dim=3", r"vocabulary.options.fokus: options of a method that is not run. Did you mean 'focus'"),
        ("vocabulary.probe.methods=[meen+calibrate]", r"vocabulary.probe.methods\[0\]: unknown method 'meen\+calibrate'"),
        ("vocabulary.probe.steps=-1", r"vocabulary.probe.steps: "),
    ):
        with pytest.raises(ConfigError, match=message):
            load(tmp_path, override)


def test_text_in_the_language_of_the_old_tokenizer_is_pointed_out(tmp_path):
    here = world()
    model = make_model(tmp_path / "model", rows=here.source.vocab_size)
    for file in (here.folder / "source").iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    lines = []
    reporter = Reporter()
    reporter.log = lines.append
    for name, number in (("de", 0), ("en", 1)):
        texts = [Corpus.model_construct(path=[str(CORPUS / f"{name}.jsonl")], text_key="text", max_documents=40)]
        report = swap.run(model, here.folder / "target", tmp_path / name, swap.Choice("align", {}, 1, 1, texts), reporter)
        warned = [line for line in report["warnings"] if "is it in the target language" in line and "the old tokenizer cuts" in line]
        assert len(warned) == number and sum("warning: the old tokenizer cuts the text into fewer tokens" in line for line in lines) == number


def test_the_step_of_a_recipe_depends_on_all_that_the_comparison_does(tmp_path):
    file = tmp_path / "de.jsonl"
    file.write_text('{"text": "Ein Haus"}\n')
    (tmp_path / "helper").mkdir()
    overrides = [f"data.german.path={file}", "data.german.held_out=0.1", f"vocabulary.options.clp.helper={tmp_path / 'helper'}"]
    step = plan.build(load(tmp_path, *overrides)).step("auto/swap")
    assert step.keeps_parts and step.settings["options"]["focus"]["dim"] == 50 and step.settings["probe"]["steps"] == 7
    assert step.settings["calibrate"] is None and step.settings["corpora"]["german"]["held_out"] == 0.1
    assert step.inputs["clp.helper"] == tmp_path / "helper" and step.inputs["corpus german"] == (file,)
    with pytest.raises(ConfigError, match="vocabulary method auto reads text in the target language: name corpora under vocabulary.corpora"):
        plan.build(load(tmp_path, *overrides, "vocabulary.corpora=[]"))


def test_data_sets_of_the_hub_are_known_by_name(tmp_path):
    contest = compare.Contest([Corpus(path=["hf:org/name"]), Corpus(path=str(tmp_path / "de.jsonl"))])
    (tmp_path / "de.jsonl").write_text('{"text": "a"}\n')
    names, files = compare._identity(tmp_path / "model", tmp_path / "tokenizer", contest)["corpora"][0]
    assert names == ["hf:org/name"] and files == [receipt.digest(tmp_path / "de.jsonl")]
