"""The command line: what it refuses, with which words and exit codes, and what it prints without doing anything."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
import tiny
from commands import Result, entries, in_process, signals_kept
from megatron_adapt import checks, launch, pipeline
from megatron_adapt.launch import Outcome, StepFailed

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    tiny.corpora(tmp_path)
    with signals_kept():
        yield tmp_path


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command line in this process."""
    return in_process(capfd, monkeypatch)


def written(**changes: Any) -> Path:
    return tiny.write(Path("."), tiny.recipe(**changes))


def untouched(run: Run, *words: object) -> Result:
    """Run something that must not write anything."""
    before = entries(Path("."))
    result = run(*words)
    assert entries(Path(".")) == before
    return result


# ---------------------------------------------------------------------------------------------- help, check, plan


def test_help(run: Run) -> None:
    result = run("--help")
    assert result.code == 0
    recipes = ("check", "plan", "run", "tokenizer", "swap", "import", "train", "export", "evaluate", "report")
    for verb in (*recipes, "preprocess", "inspect", "law"):
        assert re.search(rf"^\W*{verb} ", result.out, re.MULTILINE), verb
        shown = run(verb, "--help")
        assert shown.code == 0 and verb in shown.out
    assert "--append-eod" in run("preprocess", "--help").out


def test_check_prints_the_recipe_and_what_follows(run: Run) -> None:
    result = untouched(run, "check", written(), "phases.full.data.english=null").succeeded()
    assert "weight_decay: 0.1" in result.out  # a default
    *lines, disk, last = result.out.splitlines()
    assert last == "18 steps, 2 ranks, output in out"
    size = r"[1-9\d.]+(e-\d+)?"
    parts = rf"checkpoints {size}, corpora {size}, models {size}"
    assert re.fullmatch(rf"disk: ~{size} GB \({parts}\), 0 GB of it there, {size} GB free", disk), disk
    assert lines[-1].startswith(
        "copy/full: parameters 41,120, steps 8, tokens 1,024, batch 4 x 32 = 128 tokens, split 1 data ranks x 2 "
        "micro-batches of 2, memory per rank ~0.00 GB"
    ), lines[-1]
    assert [line.split(":")[0] for line in lines[-3:]] == ["base/pretrain", "copy/embeddings", "copy/full"]


def test_check_knows_epochs_once_the_corpus_is_tokenized(run: Run) -> None:
    recipe = written()
    epochs = ("phases.full.epochs=2", "model.from_scratch.phases.pretrain.epochs=1")
    lines = untouched(run, "check", recipe, *epochs).succeeded().out.splitlines()
    assert "steps 2 epochs, tokens known after preprocessing" in lines[-3]
    assert "steps 1 epochs, tokens known after preprocessing" in lines[-5]
    for folder, tokens in (("target/german", 900), ("target/english", 380), ("base/english", 1280)):
        path = Path("out/data") / folder
        path.mkdir(parents=True)
        (path / "receipt.json").write_text(json.dumps({"metrics": {"tokens": tokens}}))
    lines = untouched(run, "check", recipe, *epochs).succeeded().out.splitlines()
    assert "steps 20, tokens 2,560" in lines[-5]
    assert "steps 10, tokens 1,280" in lines[-7]
    assert [line.split(";")[0] for line in lines[-4:-2]] == [
        "copy: german: 3.13 epochs of 900 tokens", "copy: english: 1.35 epochs of 380 tokens"
    ]  # fmt: skip


def test_check_tells_that_the_disk_is_too_small(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: found._replace(free=1000))
    lines = untouched(run, "check", written()).succeeded().out.splitlines()
    assert re.fullmatch(
        rf"the disk of {re.escape(os.getcwd())} is too small: [\d.e-]+ GB more are needed, roughly, and 1e-06 GB are free; "
        r"keep fewer checkpoints \(keep_last, keep_every\) or choose another output", lines[-2]
    )  # fmt: skip


def test_check_draws_the_learning_rates(run: Run) -> None:
    recipe = written()
    result = run("check", recipe, "phases.full.schedule={type: linear, warmup: 4}", "--schedule", "rates.png").succeeded()
    lines = result.out.splitlines()
    assert lines[-1] == "drawn in rates.png" and Path("rates.png").read_bytes().startswith(b"\x89PNG")
    assert lines[-2].startswith("full: learning rate 0.00075 at step 1, 0.0015 at step 2, 0.003 at step 4,"), lines[-2]
    assert [line.split(":")[0] for line in lines[-4:-1]] == ["pretrain", "embeddings", "full"]
    run("check", recipe, "--schedule", "rates").refused("--schedule rates: a picture's name ends in .png, .pdf or .svg.")
    run("check", recipe, "--schedule", "no/r.png").refused("--schedule no/r.png: the folder no does not exist.")
    run("check", recipe, "phases.full.epochs=2", "--schedule", "rates.png").refused(
        "the length of full is given in epochs of corpora that are not tokenized yet; run `megatron-adapt preprocess`"
    )


def test_plan_prints_one_command_a_line(run: Run) -> None:
    lines = untouched(run, "plan", written(), "name=a b").succeeded().out.splitlines()
    assert len(lines) == 19
    assert lines[0] == "megatron-adapt tokenizer recipe.yaml 'name=a b' --step tokenizers/base"
    assert lines[7].startswith("torchrun --standalone --nproc-per-node 2 -m megatron_adapt train recipe.yaml 'name=a b' --step ")


def test_plan_for_a_cluster(run: Run) -> None:
    lines = untouched(run, "plan", written(), "--cluster", "gpus=2,gpu=h100").succeeded().out.splitlines()
    assert lines[0].startswith("1 x 2 h100; training at 40% of 989 TFLOP/s, assumed")
    assert lines[1] == "recommended: parallel.tensor=1 parallel.pipeline=1 parallel.data=2 parallel.sequence=false parallel.distributed_optimizer=true"
    assert "base/pretrain: " in lines[2] and "tokens/s predicted" in lines[2]
    run("plan", written(), "--measured", "x.json").refused("--measured is for --cluster")
    run("plan", written(), "--cluster", "gpus=2").refused("gpu= is none of a100")


def test_plan_for_more_ranks(run: Run) -> None:
    lines = run("plan", written(), "--nproc", 4, "--nnodes", 2).succeeded().out.splitlines()
    assert "--nnodes 2 " in lines[7] and "--nproc-per-node 2 " in lines[7] and " parallel.data=2 --step " in lines[7]


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, ("MASTER_ADDR is not set; MASTER_PORT is not set; NODE_RANK (under Slurm SLURM_NODEID) is '', not a number below 2",)),
        ({"MASTER_ADDR": "a", "MASTER_PORT": "1", "NODE_RANK": "2"}, ("NODE_RANK (under Slurm SLURM_NODEID) is '2', not",)),
        ({"MASTER_ADDR": "a", "SLURM_NODEID": "1"}, ("--nnodes 2: MASTER_PORT is not set. Start the same command once on each",)),
    ],
)
def test_a_node_has_to_know_its_place(run: Run, monkeypatch: pytest.MonkeyPatch, environment: Any, words: Any) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "SLURM_NODEID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    untouched(run, "run", written(), "--nnodes", 2).refused(*words)


def test_several_files_and_overrides(run: Run) -> None:
    other = tiny.write(Path("."), {"name": "other", "phases": [tiny.phase("only", 3)]}, "other.yml")
    result = run("check", written(), other, "phases.only.steps=5", "seed=9").succeeded()
    assert "name: other" in result.out and "seed: 9" in result.out and "copy/only: parameters 41,120, steps 5" in result.out


# ------------------------------------------------------------------------------------------------ recipes it refuses


@pytest.mark.parametrize("verb", ["check", "plan", "run", "train", "report"])
def test_all_problems_of_a_recipe_at_once(run: Run, verb: str) -> None:
    tree = tiny.recipe(output=None)
    tree["phases"][1]["optimizer"] = {"lrr": 1}
    result = untouched(run, verb, tiny.write(Path("."), tree))
    result.refused("phases[1].optimizer.lrr: unknown key. Did you mean 'lr'?", "output: missing; directory for everything")
    assert re.search(r"recipe.yaml:\d+: phases\[1\]", result.err)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("parallel.tensor=3", "4 attention heads cannot be divided by parallel.tensor=3"),
        ("parallel.pipeline=3", "2 layers cannot be divided by parallel.pipeline=3"),
        (
            "phases.full.precision=fp8-current-true",
            "phase 'full': precision fp8-current-true takes widths that are multiples of 16, not 24 feed-forward units, which are a "
            "rank's under parallel.tensor=2; choose parallel.tensor=1 or precision bf16-true",
        ),
        ("phases.full.recompute=3", "phase 'full': recompute: 3 is more than a rank has, the model's 2 layers; for all of them use 'full'"),
        ("phases.full.sequence_length=65", "phase 'full': sequence_length 65 exceeds the model's max_position_embeddings 64"),
        ("evaluation.sequence_length=65", "evaluation.sequence_length 65 exceeds the model's max_position_embeddings 64"),
        ("phases.full={packing: documents, restart_positions: false}", "this model's are relative (rope), so it changes nothing"),
        ("phases.full.train=layers[2:4]", "phase 'full': train: layers[2:4] selects none of the model's 2 layers"),
        ("model.from_scratch.config.architectures=[BloomForCausalLM]", "(BloomForCausalLM) is not supported. Supported: "),
        ("model.source=nowhere", "no model at nowhere: not a directory"),
        ("data.german.path=nowhere.jsonl", "the corpus nowhere.jsonl does not exist"),
        ("vocabulary.tokenizer.path=nowhere", "no tokenizer at nowhere"),
        ("vocabulary.method=coppy", "Did you mean 'copy'?"),
        ("phases.full.name=imported", "a phase cannot be called import or imported"),
    ],
)
def test_what_does_not_fit_the_model(run: Run, override: str, words: str) -> None:
    for verb in ("check", "plan", "run"):
        untouched(run, verb, written(), override).refused(words)


def test_what_this_machine_lacks_is_told_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else find(name, *rest))
    monkeypatch.setattr(checks, "_has_gpu", lambda: False)
    result = untouched(run, "check", written(), "phases.full.optimizer={lr: 1e-3, type: adamw8bit, paged: true}")
    result.refused(
        "phase 'full': optimizer.type: adamw8bit needs bitsandbytes; pip install 'megatron_adapt[adamw8bit]'",
        "phase 'full': optimizer.paged needs a GPU, and there is none here; remove it",
    )
    result = untouched(run, "check", written(), "phases.full.optimizer={lr: 1e-3, offload: true}")
    result.refused("phase 'full': optimizer.offload needs a GPU, and there is none here; remove it")


def test_a_new_vocabulary_may_be_padded(run: Run) -> None:
    overrides = ("parallel.tensor=2", "vocabulary.tokenizer.train.vocab_size=401", "vocabulary.pad_to_multiple=8")
    assert "copy/full: parameters 41,632" in run("check", written(), *overrides).succeeded().out
    assert "copy/full: parameters 41,184" in run("check", written(), *overrides[:2]).succeeded().out  # and need not be


def test_a_tokenizer_with_more_ids_than_the_model_has_rows(run: Run) -> None:
    source = Path("model")
    source.mkdir()
    config = {**tiny.CONFIG, "vocab_size": 3, "rms_norm_eps": 1e-5, "model_type": "llama"}
    (source / "config.json").write_text(json.dumps(config))
    (source / "model.safetensors").write_text("")
    tokenizer = {"model": {"type": "WordLevel", "vocab": {word: n for n, word in enumerate("abcde")}, "unk_token": "a"}}
    (source / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], **tokenizer}))
    result = untouched(run, "run", written(), "model.source=model")
    result.refused("model: the tokenizer has ids up to 4, but the model only 3 rows", "Without a row: 'd', 'e'")


# ---------------------------------------------------------------------------------------------- arguments it refuses


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("run recipe.yaml --nproc 3", "--nproc 3 is no multiple of parallel.tensor x parallel.context x parallel.pipeline = 2: start a multiple"),
        ("run recipe.yaml --nproc 0", "parallel.data: must be at least 1, got 0"),
        ("plan recipe.yaml --nnodes 3", "2 ranks cannot be spread over --nnodes 3"),
        ("run recipe.yaml --launcher fork --nnodes 2", "--launcher fork starts the ranks of one machine; --nnodes 2 needs torchrun"),
        ("run recipe.yaml --launcher slurm", "--launcher slurm: choose auto, fork or torchrun"),
        ("run nowhere.yaml", "nowhere.yaml: no such file"),
        ("run seed=1", "No recipe is given"),
        ("train recipe.yaml --step copy/swap", "step 'copy/swap' belongs to the verb 'swap', not to 'train'"),
        ("train recipe.yaml --step copy/ful", "no step 'copy/ful' in this recipe; there are: tokenizers/base, "),
        ("train recipe.yaml --step copy/full", "step 'copy/full' needs 'copy/embeddings' and 'data/target/german' and 'data/target/english', not done yet"),
        ("train recipe.yaml", "step 'base/pretrain' needs 'base/import' and 'data/base/english', not done yet: do that first"),
        ("preprocess recipe.yaml --step=data/base/english", "step 'data/base/english' needs 'tokenizers/base'"),
        ("preprocess --step data/base/english seed=1 recipe.yaml", "step 'data/base/english' needs 'tokenizers/base'"),
        ("train out", "train takes a recipe (.yaml)"),
        ("import model", "expected a recipe (.yaml), or the paths HF_DIR OUT; got model"),
        ("export a b c", "expected a recipe (.yaml), or the paths CHECKPOINT OUT; got a b c"),
        ("evaluate a b", "expected a recipe (.yaml), or the paths HF_DIR_OR_CHECKPOINT; got a b"),
        ("evaluate a", "evaluate HF_DIR_OR_CHECKPOINT needs --data FILE"),
        ("export a b --dtype int8", "--dtype int8: choose keep, float32, bfloat16 or float16"),
        ("export a b --tie yes", "--tie yes: choose keep, untie or tie"),
        ("export a b --verify all", "--verify all: choose off, weights or logits"),
        ("import a b --verify all", "--verify all: choose off, weights or logits"),
        ("export a b --max-shard-size big", "--max-shard-size: expected a whole number"),
        ("export a b --max-shard-size 0", "--max-shard-size: must be at least 1 byte, got '0'."),
        ("export a b --max-shard-size=-5GB", "--max-shard-size: must be at least 1 byte, got '-5GB'."),
        ("swap a b", "swap HF_DIR OUT needs one of --tokenizer DIR, --extend N and --prune, got none."),
        ("swap a b --tokenizer t --method coppy", "no vocabulary method 'coppy'; there are: align, "),
        ("tokenizer report", "expected: tokenizer report SOURCE [TARGET] --corpus FILE"),
        ("swap a b --tokenizer t --method copy --option x=1", "copy: option x: unknown option. Options: others."),
        ("swap a b --tokenizer t --option x", "--option x: expected key=value."),
        ("swap a b --tokenizer t --option x=1 --option x=2", "--option x=2: x is given twice."),
        ("swap a de.jsonl --tokenizer t", "de.jsonl exists already; choose another output or remove it"),
        ("swap a b --tokenizer t --method mean --corpus none.jsonl", "the corpus none.jsonl does not exist"),
        ("export recipe.yaml --dtype float32 --tie untie", "--dtype, --tie: for plain paths only, and without effect on a recipe. Remove"),
        ("import recipe.yaml --verify off", "--verify: for plain paths only"),
        ("evaluate recipe.yaml --data de.jsonl", "--data: for plain paths only"),
        ("tokenizer recipe.yaml --vocab-size 400", "--vocab-size: for plain paths only"),
        ("swap recipe.yaml --no-calibrate", "--calibrate: for plain paths only"),
        ("export a b --step export", "--step: for recipes only, and a b names none (.yaml)."),
        ("train a --nproc 2", "--nproc: for recipes only, and a names none"),
        ("tokenizer train OUT", "expected a recipe (.yaml), or: tokenizer train --input FILE... --vocab-size N OUT"),
        ("tokenizer OUT --input de.jsonl --vocab-size 300", "expected a recipe (.yaml), or: tokenizer train"),
        ("tokenizer train --input en.jsonl de.jsonl --vocab-size 300", "de.jsonl exists already; choose another output"),
    ],
)
def test_wrong_arguments(run: Run, command: str, words: str) -> None:
    written()
    untouched(run, *command.split()).refused(words)


@pytest.mark.parametrize(
    "command",
    [
        "plan recipe.yaml --nnodes 0", "evaluate model --data x --sequence-length 0", "evaluate model --data x --max-bytes 0", "launch", "",
        "tokenizer train --input de.jsonl --vocab-size abc out",
    ],
)
def test_wrong_options(run: Run, command: str) -> None:
    """These are told by the parser, with the usage."""
    written()
    result = untouched(run, *command.split())
    assert result.code == 2 and "Traceback" not in result.err + result.out


def test_numbers_are_written_as_in_recipes(run: Run) -> None:
    run(*"tokenizer train --input de.jsonl --vocab-size 0.4K out".split()).succeeded()
    assert json.loads(Path("out/receipt.json").read_text())["metrics"]["vocab_size"] == 400
    told = run(*"swap a b --extend many --corpus de.jsonl".split()).err
    assert "expected a whole number (such as 8, 2K or 500M), got 'many'" in re.sub(r"[│\s]+", " ", told)


# -------------------------------------------------------------------------------------------------- ends and signals


def test_a_defect_is_another_exit_code(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Outcome:
        raise StepFailed("rank 1 was killed by signal 9 (SIGKILL)")

    monkeypatch.setattr(pipeline, "run", fail)
    result = run("run", written())
    assert (result.code, result.err) == (1, "error: rank 1 was killed by signal 9 (SIGKILL)\n")


def test_stopped_on_request(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "run", lambda *_: Outcome(stopped=True))
    assert run("run", written()).code == 75
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run("run", written()).code == 0  # or torchrun would kill the other ranks before they have saved


@pytest.mark.parametrize("number", launch.SIGNALS)
def test_a_signal_between_steps(run: Run, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(pipeline, "run", lambda *_: os.kill(os.getpid(), number))
    result = run("run", written())
    assert (result.code, result.err) == (75, "stopped; the same command continues\n")


def test_under_torchrun_a_message_names_its_rank(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run("run", "nowhere.yaml").err == "[rank 1] error: nowhere.yaml: no such file\n"


@pytest.mark.parametrize("gpus", [0, 4])
def test_torchrun_starts_the_ranks_where_there_is_a_gpu(run: Run, monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    used: list[Any] = []

    def keep(steps: Any, view: Any, torchrun: Any, first: Any) -> Outcome:
        used.append(torchrun and torchrun(steps[7])[-4:])
        return Outcome()

    monkeypatch.setattr(pipeline, "run", keep)
    monkeypatch.setattr(pipeline, "gpus", lambda: gpus)
    run("run", written(), "--nproc", 4)
    run("run", written(), "--launcher", "torchrun")
    run("run", written(), "--launcher", "fork")
    run("tokenizer", written())
    assert used == [
        ["recipe.yaml", "parallel.data=2", "--step", "base/pretrain"] if gpus else None,
        ["train", "recipe.yaml", "--step", "base/pretrain"],
        None,
        None,
    ]  # fmt: skip


def test_fewer_gpus_than_ranks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "gpus", lambda: 1)
    untouched(run, "run", written()).refused("the recipe asks for 2 ranks, and this machine has 1 GPU(s): lower parallel.tensor")
