"""Random recipes of two phases, each stopped once and continued in another layout: the losses of one rank that nobody stopped."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from worlds import LAYOUTS, Outcome, World, phase

from megatron_adapt import launch
from megatron_adapt.data.sampling import Passes
from megatron_adapt.engine import backend, checkpoint, loop

RELATIVE = 1e-5  # float32; sums are taken in another order
TRAINED = ("all", "embedding", "output", ["norms", "output"], "layers[1:3]", "regex:mlp")


def random_phase(draw: random.Random, number: int, kind: str) -> dict[str, Any]:
    data = draw.sample(["first", "second"], draw.randint(1, 2))
    found: dict[str, Any] = {
        "name": f"phase{number}", "steps": 3, "save_every": 1, "batch_size": 8, "micro_batch_size": draw.choice([1, 2]),
        "sequence_length": draw.choice([16, 32]), "data": {name: draw.choice([1, 0.3]) for name in data}, "train": draw.choice(TRAINED),
        "packing": draw.choice(["chunks", "documents"]), "recompute": draw.choice(["none", "selective", "full"]),
        "logits": draw.choice(["whole", "sliced"]), "init_state": draw.choice(["keep", "reset"]) if number else "reset",
        "schedule": draw.choice([{"type": "constant"}, {"type": "cosine", "warmup": 1}, {"type": "wsd", "decay": 2}]),
        "optimizer": {
            "type": kind, "lr": 1e-4 if kind == "lionw" else 1e-3, "embedding_lr": draw.choice([None, 2e-4]), "z_loss": draw.choice([0, 1e-2]),
            "decay_embeddings": draw.choice([True, False]), "clip_grad": draw.choice([0, 0.1, 1]), "embedding_gradient": draw.choice([1, 0.3]),
        },
    }  # fmt: skip
    if found["packing"] == "documents":
        found["loss_per"] = draw.choice(["token", "sequence", "document"])
    if draw.random() < 0.3:
        found |= {"ramp_up": {"start": 4, "by": 4, "over": 2}, "micro_batch_size": 1}  # of which every rank of every layout has some
    return found


def train(job: loop.Job, ranks: int, stop: int | None) -> None:
    def work() -> None:
        def progress(done: int, total: int) -> None:
            if done == stop and backend.rank() == 0:
                os.kill(os.getpid(), signal.SIGTERM)

        with backend.session(job.layout, job.seed):
            loop.train(job, log=lambda line: None, progress=progress)

    assert launch.fork(ranks, work, threads=1).stopped == (stop is not None)


@pytest.mark.parametrize("seed", [276, 1332])  # any number will do
def test_a_random_recipe(world: World, tmp_path: Path, seed):
    draw = random.Random(seed)
    model, kind = draw.choice(["untied", "tied", "mha"]), draw.choice(["adamw", "adamw", "lionw"])
    passes = {"first": Passes(draw.choice([None, 700]), draw.choice([1, 2]))}
    starts = [world.imported(model)] * 2
    for settings in (random_phase(draw, number, kind) for number in range(2)):
        print(settings)
        folders = [tmp_path / f"{settings['name']}-{which}" for which in ("one", "some")]
        parts = [("one", None)], [(draw.choice(list(LAYOUTS)), draw.choice([1, 2])), (draw.choice(list(LAYOUTS)), None)]
        for start, folder, layouts in zip(starts, folders, parts):
            for name, stop in layouts:
                print(name)
                job = world.job(folder, LAYOUTS[name][0], phase(**settings), start)
                job.passes = passes
                train(job, LAYOUTS[name][1], stop)
        alone, together = map(Outcome, folders)
        assert together.losses == pytest.approx(alone.losses, rel=RELATIVE)
        assert together.norms == pytest.approx(alone.norms, rel=10 * RELATIVE)
        ends = [checkpoint.resolve(folder).position for folder in folders]
        assert (ends[0].consumed, ends[0].trained, ends[0].ages) == (ends[1].consumed, ends[1].trained, ends[1].ages)
        starts = folders
