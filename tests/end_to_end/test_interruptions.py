"""A run that is stopped and killed in every way ends where an undisturbed one does, bit for bit.

The recipe is domain adaptation: the vocabulary stays.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import tiny
from commands import Running, Shop, is_alive, wait_for
from harness import ROOT

STEPS = 100
SAVE_EVERY = 25
PHASE = "adapted/long"
TIMING = ("tokens_per_second", "tflops_per_rank", "memory_gb")


@pytest.fixture(scope="module")
def domain(shop: Shop, model: Path) -> Shop:
    """The shop with the recipe ``domain.yaml``."""
    phases = [tiny.phase("long", STEPS, save_every=SAVE_EVERY, evaluate_every=50, micro_batch_size=4,
                         data={"german": 0.7, "english": 0.3})]  # fmt: skip
    tree = tiny.recipe(model={"source": str(model)}, vocabulary=None, phases=phases)
    tiny.write(shop.folder, tree, "domain.yaml")
    return shop


@pytest.fixture(scope="module")
def calm(domain: Shop) -> Path:
    """Output of an undisturbed run."""
    domain.run("run", "domain.yaml", "output=calm").succeeded()
    return domain / "calm"


def step(output: Path) -> int:
    """The last training step that is written down."""
    file = output / PHASE / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def checkpoints(output: Path) -> list[int]:
    return sorted(int(path.name.split("_")[1]) for path in (output / PHASE).glob("step_*") if not path.name.endswith(".tmp"))


def until(output: Path, running: Running, first: int) -> None:
    """Wait until a run trains at step ``first`` or a later one."""
    wait_for(lambda: running.ended() or step(output) >= first, f"step {first}")
    assert not running.ended() and step(output) < STEPS, "the phase was over before it could be disturbed: more steps are needed"


def metrics(output: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (output / PHASE / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMING} for line in lines]


def test_whatever_happens_the_model_is_the_same(domain: Shop, calm: Path) -> None:
    output = domain / "hurt"
    command = ("run", "domain.yaml", "output=hurt")

    for number, first in ((signal.SIGTERM, 3), (signal.SIGINT, 10)):
        running = domain.start(*command)
        until(output, running, first)
        running.kill(number)
        result = running.wait()
        assert result.code == 75, (result.out, result.err)
        assert result.out.splitlines()[-1].strip() == "stopped; adapted/long continues from its last checkpoint with the same command"
        assert "Traceback" not in result.err
        assert checkpoints(output) == [step(output)] and step(output) % SAVE_EVERY  # saved where it stood, not before

    # A terminal sends Ctrl-C to the ranks as well.
    running = domain.start(*command)
    until(output, running, step(output) + 5)
    os.killpg(running.pid, signal.SIGINT)
    assert running.wait().code == 75 and checkpoints(output) == [step(output)]

    running = domain.start(*command)
    until(output, running, max(SAVE_EVERY, step(output)) + 5)
    ranks = running.ranks()
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    result = running.wait()
    assert result.code == 1
    assert result.err == (
        "error: rank 1 was killed by signal 9 (SIGKILL); finished checkpoints are intact, run the same command again to "
        "continue.\n"
    )
    assert not any(is_alive(rank) for rank in ranks)
    saved = checkpoints(output)
    assert saved and saved[-1] <= step(output)

    running = domain.start(*command)
    until(output, running, step(output) + 1)
    ranks = running.ranks()
    running.kill(signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL
    wait_for(lambda: not any(is_alive(rank) for rank in ranks), "the ranks to follow their parent", seconds=5)
    assert len(ranks) == 2

    domain.run("plan", *command[1:], "phases.long.optimizer.lr=1").refused(
        "step 'adapted/long' was begun with other settings or inputs: optimizer.lr was 0.003, is now 1.0."
    )
    result = domain.run(*command).succeeded()
    assert "(import)" not in result.out and "everything of 'tiny' is done." in result.out
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (output / "model" / name).read_bytes() == (calm / "model" / name).read_bytes(), name
    assert metrics(output) == metrics(calm)
    assert checkpoints(output) == checkpoints(calm) == [STEPS]


def test_ranks_under_torchrun_save_before_they_leave(domain: Shop, calm: Path) -> None:
    """As on a machine with a GPU, where they are not forked."""
    shutil.copytree(calm, domain / "torchrun", ignore=shutil.ignore_patterns("long", "model", "report"))
    running = domain.start("run", "domain.yaml", "output=torchrun", "--launcher", "torchrun", environment={"PYTHONPATH": str(ROOT)})
    until(domain / "torchrun", running, 2)
    running.kill(signal.SIGTERM)
    result = running.wait()
    assert result.code == 75 and "Traceback" not in result.err, (result.out, result.err)
    assert checkpoints(domain / "torchrun") == [step(domain / "torchrun")]
    assert result.out.count("adapted/long (train, 2 ranks)") == 1
    assert "stopped; adapted/long continues from its last checkpoint with the same command" in result.out


def test_a_conversion_that_was_stopped_goes_on(domain: Shop, calm: Path) -> None:
    running = domain.start("import", "out/model", "converted")
    wait_for(lambda: running.ended() or (domain / ".converted.partial").exists(), "the conversion to begin")
    running.kill(signal.SIGTERM)
    result = running.wait()
    assert (result.code, result.err) == (75, "")
    assert not (domain / "converted").exists()
    domain.run("import", "out/model", "converted").succeeded()
    assert not (domain / ".converted.partial").exists()


def test_a_step_that_cannot_be_continued_is_repeated(domain: Shop, calm: Path) -> None:
    """Stopped while it trains a tokenizer: nothing is left of that, and nothing is missing afterwards."""
    train = ("tokenizer", "train", "--input", "de.jsonl", "--vocab-size", 400, "words")
    running = domain.start(*train)
    wait_for(lambda: running.ended() or (domain / ".words.partial").exists(), "the training to begin")
    running.kill(signal.SIGTERM)
    result = running.wait()
    assert (result.code, result.err) == (75, "")
    assert not (domain / "words").exists() and not (domain / ".words.partial").exists()
    domain.run(*train).succeeded()
