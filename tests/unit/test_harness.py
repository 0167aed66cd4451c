"""steps/harness.py: tasks of lm-evaluation-harness, with a stand-in for the library where it is not installed."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from harness import assets

import tiny
from megatron_adapt import checks, plan, recipe as recipes
from megatron_adapt.analysis import report
from megatron_adapt.config import Harness
from megatron_adapt.errors import ConfigError, DataError
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.steps import harness
from megatron_adapt.steps.reporter import Reporter

INSTALLED = importlib.util.find_spec("lm_eval") is not None
RESULTS = {
    "results": {
        "sums": {"name": "sums", "alias": "sums", "acc,none": 0.5, "acc_stderr,none": 0.25, "exact_match,strict": 1, "exact_match_stderr,strict": "N/A"},
        "all": {"alias": "all", "perplexity,none": 12.5, "perplexity_stderr,none": 1.5},
    },
    "higher_is_better": {"sums": {"acc": True, "exact_match": True}, "all": {"perplexity": False}},
    "n-shot": {"sums": 2}, "n-samples": {"sums": {"original": 9, "effective": 4}}, "versions": {"sums": 1.0}, "lm_eval_version": "0.9",
}  # fmt: skip
EXPECTED = {
    "sums": {
        "scores": {
            "acc": {"value": 0.5, "error": 0.25, "higher_is_better": True},
            "exact_match,strict": {"value": 1.0, "error": None, "higher_is_better": True},
        },
        "shots": 2, "questions": 4, "version": 1.0,
    },
    "all": {"scores": {"perplexity": {"value": 12.5, "error": 1.5, "higher_is_better": False}}, "shots": None, "questions": None, "version": None},
}  # fmt: skip


@pytest.fixture
def library(monkeypatch):
    """Stands in for lm_eval; what simple_evaluate is called with lies in ``asked``, an exception in ``error`` is raised."""
    modules = {name: ModuleType(name) for name in ("lm_eval", "lm_eval.tasks", "lm_eval.models", "lm_eval.models.huggingface")}
    for name, module in modules.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        monkeypatch.setitem(sys.modules, name, module)
    top = modules["lm_eval"]
    top.models, top.tasks = modules["lm_eval.models"], modules["lm_eval.tasks"]
    top.models.huggingface = modules["lm_eval.models.huggingface"]
    top.__version__, top.asked, top.error = "0.9", [], None

    class TaskManager:
        all_tasks = ["sums", "all"]

        def __init__(self, include_path):
            self.include_path = include_path

        def match_tasks(self, names):
            return [name for name in names if name in self.all_tasks]

    def simple_evaluate(model, model_args, **options):
        if top.error is not None:
            raise top.error
        top.asked.append({"model": model, **model_args, **options, "ranks": [name for name in ("RANK", "WORLD_SIZE") if name in os.environ]})
        return json.loads(json.dumps(RESULTS))

    top.simple_evaluate, modules["lm_eval.tasks"].TaskManager = simple_evaluate, TaskManager
    return top


class Log(Reporter):
    def __init__(self):
        super().__init__()
        self.lines = []

    def log(self, text):
        self.lines.append(text)


def model(tmp_path: Path, name: str = "stories260K") -> Path:
    return Path(shutil.copytree(assets("models", name), tmp_path / "model", copy_function=shutil.copyfile))


def test_what_the_library_is_asked_and_what_becomes_of_its_answer(tmp_path, library, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    log, folder = Log(), tmp_path / "model"
    (tmp_path / "mine").mkdir()
    wanted = Harness(tasks=["sums", "all"], folder=str(tmp_path / "mine"), num_fewshot=2, limit=4, batch_size=3, apply_chat_template=True)
    found = harness.run(model(tmp_path), wanted, log)
    assert found == {"tasks": EXPECTED, "harness": "0.9"}
    assert log.lines == ["sums: acc 0.5 ± 0.25", "sums: exact_match,strict 1", "all: perplexity 12.5 ± 1.5"]
    (asked,) = library.asked
    tokenizer, manager = asked.pop("tokenizer"), asked.pop("task_manager")
    assert manager.include_path == str(tmp_path / "mine")
    assert asked == {
        "model": "hf", "pretrained": str(folder), "dtype": "float32", "tasks": ["sums", "all"], "num_fewshot": 2, "limit": 4,
        "batch_size": 3, "device": "cpu", "apply_chat_template": True, "log_samples": False, "ranks": [],
    }  # fmt: skip
    assert os.environ["RANK"] == "0"  # back again
    expected = Tokenizer.load(folder).encode(["Once upon a time"])[0].tolist()
    assert tokenizer("Once upon a time", add_special_tokens=False)["input_ids"] == expected


def test_a_tokenizer_that_transformers_rebuilds_otherwise(tmp_path, library, monkeypatch):
    """What is in tokenizer.json counts: where it cannot be had, nothing is measured."""
    import transformers
    from tokenizers.pre_tokenizers import Whitespace

    folder, log = model(tmp_path), Log()
    right = transformers.AutoTokenizer.from_pretrained

    def wrong(path):
        tokenizer = right(path)
        tokenizer.backend_tokenizer.pre_tokenizer = Whitespace()
        return tokenizer

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", wrong)
    harness.run(folder, Harness(tasks=["sums"]), log)
    assert "the file is used as it stands" in log.lines[0]
    tokenizer = library.asked[0]["tokenizer"]
    assert tokenizer("a  b c", add_special_tokens=False)["input_ids"] == Tokenizer.load(folder).encode(["a  b c"])[0].tolist()
    assert tokenizer.eos_token == "</s>"
    monkeypatch.setattr(transformers, "PreTrainedTokenizerFast", lambda tokenizer_file, **roles: wrong(folder))
    with pytest.raises(DataError, match="gives other ids than the tokenizer in .* that the model is trained with; remove tokenizer_class"):
        harness.run(folder, Harness(tasks=["sums"]), log)


def test_refusals(tmp_path, library):
    folder = model(tmp_path)
    with pytest.raises(ConfigError, match=r"^the harness has no task 'summs' \(did you mean 'sums'\?\), 'x'; `lm-eval ls tasks` lists"):
        harness.run(folder, Harness(tasks=["summs", "all", "x"]), Log())
    with pytest.raises(ConfigError, match=r"evaluation.harness.folder \(--task-folder\): there is no folder /nowhere"):
        harness.run(folder, Harness(tasks=["sums"], folder="/nowhere"), Log())
    library.error = ConnectionError("Couldn't reach 'x' on the Hub")
    with pytest.raises(ConfigError, match="the data of the tasks sums is not on this machine .*Couldn't reach 'x' on the Hub.*HF_HOME"):
        harness.run(folder, Harness(tasks=["sums"]), Log())
    assert library.asked == []


def test_a_library_that_is_missing_or_incomplete(tmp_path, library, monkeypatch):
    del library.models.huggingface
    monkeypatch.delitem(sys.modules, "lm_eval.models.huggingface")
    with pytest.raises(ConfigError, match=r"lm-evaluation-harness cannot be imported \(.*\): pip install 'megatron_adapt\[harness\]'"):
        harness.run(tmp_path, Harness(tasks=["sums"]), Log())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"need EleutherAI's lm-evaluation-harness: pip install 'megatron_adapt\[harness\]'"):
        harness.run(tmp_path, Harness(tasks=["sums"]), Log())


def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **evaluation: Any) -> Any:
    monkeypatch.chdir(tmp_path)
    tiny.corpora(tmp_path)
    path = tiny.write(tmp_path, tiny.recipe(evaluation={"max_bytes": "2K", "harness": evaluation}))
    return plan.build(recipes.load([str(path)]))


def test_steps_of_a_recipe(tmp_path, library, monkeypatch):
    (tmp_path / "mine").mkdir()
    found = made(tmp_path, monkeypatch, tasks=["sums"], folder="mine", limit=4, batch_size=2)
    names = [step.name for step in found.steps]
    before, after = found.step("harness/before"), found.step("harness/after")
    assert names.index("harness/before") < names.index("copy/swap") and names.index("export") < names.index("harness/after")
    assert (before.output, after.output) == (Path("out/harness/before"), Path("out/harness/after"))
    assert before.inputs == {"model": Path("out/base/model"), "tasks": Path("mine")} and after.inputs["model"] == Path("out/model")
    assert before.settings == {"tasks": ["sums"], "num_fewshot": None, "limit": 4, "apply_chat_template": False}  # no speed, no place
    assert {before.output, after.output} <= set(found.step("report").places)
    assert checks.check(found)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"evaluation.harness: tasks need EleutherAI's lm-evaluation-harness: pip install"):
        checks.check(found)


@pytest.mark.parametrize("key, value, message", [("tasks", [], "empty"), ("limit", 0, "at least 1"), ("num_fewshot", -1, "at least 0")])
def test_values_of_the_recipe(tmp_path, monkeypatch, key, value, message):
    with pytest.raises(ConfigError, match=f"evaluation.harness.{key}.*{message}"):
        made(tmp_path, monkeypatch, **{"tasks": ["sums"], key: value})


def test_report():
    later = {"sums": {**EXPECTED["sums"], "scores": {"acc": {"value": 0.75, "error": 0.125, "higher_is_better": True}}}}
    lines = report.task_notes({"before": EXPECTED, "after": later})
    assert lines == [
        "Tasks of lm-evaluation-harness, with standard errors (sums: 2 examples, 4 questions).", "",
        "| task | before | after |", "| --- | --- | --- |",
        "| sums: acc, higher is better | 0.5 ± 0.25 | 0.75 ± 0.12 |",
        "| sums: exact_match,strict, higher is better | 1 |  |",
        "| all: perplexity, lower is better | 12.5 ± 1.5 |  |", "",
    ]  # fmt: skip
    assert report.task_notes({}) == []


@pytest.mark.skipif(not INSTALLED, reason="lm-evaluation-harness is not installed")
def test_the_real_library(tmp_path):
    """Its accuracy is that of comparing the log-likelihoods that transformers gives the choices."""
    import torch
    from transformers import AutoModelForCausalLM

    questions = [("Once upon a", [" time", " tomato", " Tuesday"]), ("The little", [" xq", " girl", " 12345"]), ("She was very", [" happy", " door"])]
    with (tmp_path / "questions.jsonl").open("w") as stream:
        for question, choices in questions:
            stream.write(json.dumps({"question": question, "choices": choices, "answer": 0}) + "\n")
    task = {
        "task": "tiny_choice", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "questions.jsonl")}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}",
        "doc_to_choice": "{{choices}}", "target_delimiter": "", "metadata": {"version": 1.0},
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny.yaml").write_text(yaml.safe_dump(task))
    folder = model(tmp_path)
    found = harness.run(folder, Harness(tasks=["tiny_choice"], folder=str(tmp_path / "tasks")), Log())["tasks"]["tiny_choice"]
    network, tokenizer, right = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), Tokenizer.load(folder), 0
    for question, choices in questions:
        scores = []
        for choice in choices:
            context, whole = ([tokenizer.bos_id, *ids.tolist()] for ids in tokenizer.encode([question, question + choice]))
            with torch.no_grad():
                logs = network(torch.tensor([whole])).logits[0].log_softmax(-1)
            scores.append(sum(logs[at - 1, whole[at]].item() for at in range(len(context), len(whole))))
        right += max(range(len(choices)), key=scores.__getitem__) == 0
    assert found["scores"]["acc"]["value"] == pytest.approx(right / len(questions)) and 0 < right < len(questions)
    assert (found["questions"], found["shots"], found["version"]) == (3, 0, 1.0)
