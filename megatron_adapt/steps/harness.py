"""Tasks of EleutherAI's lm-evaluation-harness on a model: what it can do, besides the bits per byte of text.

The harness computes with transformers, on one GPU or the CPU, and asks questions of its own tokenizer: that has to give the ids that the model
was trained on. For some names of classes transformers rebuilds a tokenizer from its vocabulary, without what its tokenizer.json
says, which is noticed here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from megatron_adapt.analysis.report import shown
from megatron_adapt.config import Harness
from megatron_adapt.errors import ConfigError, DataError
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.steps.reporter import Reporter

_TEXTS = (
    "Am Ende der Stra\u00dfe  stand, um 12:30 Uhr, ein Caf\u00e9.\n\tUnd dann?", "don't WE'LL 3.14159 a1b2 \u200b\u00a0x ", " ",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645 \u4f60\u597d \U0001f600 e\u0301\u00e9 \ufb01",
)  # fmt: skip


def problems(wanted: Harness) -> Iterator[str]:
    """What is known without the harness."""
    if importlib.util.find_spec("lm_eval") is None:
        yield "evaluation.harness: tasks need EleutherAI's lm-evaluation-harness: pip install 'megatron_adapt[harness]'"
    if wanted.folder is not None and not Path(wanted.folder).is_dir():
        yield f"evaluation.harness.folder (--task-folder): there is no folder {wanted.folder}"


def run(model: Path, wanted: Harness, reporter: Reporter) -> dict[str, Any]:
    """Scores of a Hugging Face directory or a Megatron checkpoint.

    Returns:
        "tasks": {task: {"scores": {metric: {"value", "error" (standard error or None), "higher_is_better" (or None)}},
        "shots", "questions" (None of groups), "version"}}; "harness": its version.

    Raises:
        ConfigError: the harness is not installed, or does not know a task, or cannot get a task's data.
        DataError: transformers reads the tokenizer otherwise than the model was trained with.
    """
    from megatron_adapt.engine import backend

    manager = _manager(wanted)
    with _directory(model, reporter) as directory:
        settings = {
            "pretrained": str(directory), "tokenizer": _tokenizer(directory, reporter),
            "dtype": "auto" if backend.has_gpu() else "float32",
        }  # fmt: skip
        import lm_eval

        try:
            with _no_ranks():
                found = lm_eval.simple_evaluate(
                    "hf", settings, tasks=list(wanted.tasks), task_manager=manager, num_fewshot=wanted.num_fewshot, limit=wanted.limit,
                    batch_size=wanted.batch_size, device=str(backend.device()), apply_chat_template=wanted.apply_chat_template,
                    log_samples=False,
                )  # fmt: skip
        except ConnectionError as error:
            raise ConfigError(
                f"the data of the tasks {', '.join(wanted.tasks)} is not on this machine and cannot be fetched ({' '.join(str(error).split())[:200]}): "
                "run once where there is a network, with HF_HOME on a disk that both see."
            ) from None
    tasks = {name: _task(found, name) for name in found["results"]}
    for name, task in tasks.items():
        for metric, score in task["scores"].items():
            reporter.log(f"{name}: {metric} {shown(score)}")
    return {"tasks": tasks, "harness": found.get("lm_eval_version", lm_eval.__version__)}


def _manager(wanted: Harness) -> Any:
    """The harness's task manager, which knows all tasks that are wanted."""
    if found := list(problems(wanted)):
        raise ConfigError(f"{'; '.join(found)}.")
    try:
        from lm_eval.models import huggingface  # noqa: F401 (here it is said what is missing)
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(f"lm-evaluation-harness cannot be imported ({error}): pip install 'megatron_adapt[harness]'.") from None
    manager = TaskManager(include_path=wanted.folder)
    unknown = [name for name in wanted.tasks if not manager.match_tasks([name])]
    if unknown:
        named = [f"'{name}'" + "".join(f" (did you mean '{near}'?)" for near in get_close_matches(name, manager.all_tasks, 1)) for name in unknown]
        raise ConfigError(f"the harness has no task {', '.join(named)}; `lm-eval ls tasks` lists them all.")
    return manager


@contextlib.contextmanager
def _directory(model: Path, reporter: Reporter) -> Iterator[Path]:
    """A Hugging Face directory of the model; of a checkpoint one that is gone afterwards."""
    if (model / "config.json").is_file():
        yield model
        return
    from megatron_adapt.steps import export_hf

    with tempfile.TemporaryDirectory() as folder:
        export_hf.run(model, Path(folder), reporter, verify="off")
        yield Path(folder)


@contextlib.contextmanager
def _no_ranks() -> Iterator[None]:
    """A step's process is a rank, whose variables the harness would take for those of its own ranks."""
    hidden = {name: os.environ.pop(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE") if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _tokenizer(directory: Path, reporter: Reporter) -> Any:
    """That of transformers which gives our ids."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    ours = Tokenizer.load(directory)
    theirs = AutoTokenizer.from_pretrained(directory)
    if _agree(theirs, ours):
        return theirs
    file = directory / "tokenizer.json"
    if file.is_file():
        plain = PreTrainedTokenizerFast(tokenizer_file=str(file), **theirs.special_tokens_map)
        plain.chat_template = theirs.chat_template
        if _agree(plain, ours):
            reporter.log(f"transformers' {type(theirs).__name__} does not give the ids of {file}: the file is used as it stands")
            return plain
    raise DataError(
        f"transformers' {type(theirs).__name__} gives other ids than the tokenizer in {directory} that the model is trained with; "
        "remove tokenizer_class from its tokenizer_config.json, or convert the tokenizer into a tokenizer.json."
    )


def _agree(theirs: Any, ours: Tokenizer) -> bool:
    expected = [ids.tolist() for ids in ours.encode(list(_TEXTS))]
    return [theirs(text, add_special_tokens=False)["input_ids"] for text in _TEXTS] == expected


def _task(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The harness writes metrics as "name,filter", and their standard errors as "name_stderr,filter"."""
    result, better = found["results"][name], found.get("higher_is_better", {}).get(name) or {}
    scores = {}
    for key, value in result.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        error = result.get(f"{metric}_stderr,{filtered}")
        scores[metric if filtered == "none" else key] = {
            "value": float(value), "error": float(error) if isinstance(error, (int, float)) else None,
            "higher_is_better": better.get(metric),
        }  # fmt: skip
    questions = found.get("n-samples", {}).get(name)
    return {
        "scores": scores, "shots": found.get("n-shot", {}).get(name),
        "questions": questions and questions["effective"], "version": found.get("versions", {}).get(name),
    }  # fmt: skip
