"""Phases trained with the Triton kernels in the place of torch's operations, on a CPU in Triton's interpreter.

    TRITON_INTERPRET=1 python tests/unit/kernel_training_checks.py

The other checks give kernels tensors of their own making; here it is the engine that does.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from worlds import Layout, World

from megatron_adapt.engine import cross_entropy, updates

ALLOWED = 2e-2  # of 1: where a GPU rounds float32 to bf16, the interpreter cuts off
CASES: dict[str, dict[str, Any]] = {
    "adamw": {"precision": "bf16-true", "optimizer": {"lr": 3e-3, "rounding": "nearest"}},
    "kahan": {
        "precision": "bf16-true", "optimizer": {"lr": 3e-3, "rounding": "kahan"}, "logits": "sliced", "layout": Layout(distributed_optimizer=True),
    },
    "lionw": {"precision": "bf16-mixed", "optimizer": {"lr": 3e-4, "type": "lionw"}, "packing": "documents"},
}  # fmt: skip


def train(world: World, case: str, fused: bool) -> tuple[list[float], list[float]]:
    updates.is_fused = cross_entropy.is_fused = lambda tensor: fused
    outcome = world.train(world.folder / f"{case}-{fused}", steps=2, batch_size=4, **CASES[case])
    return outcome.losses, outcome.norms


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        for case in CASES:
            ours, theirs = (train(world, case, fused) for fused in (True, False))
            for kind, found, expected in zip(("losses", "norms"), ours, theirs):
                assert all(abs(a / b - 1) <= ALLOWED for a, b in zip(found, expected)), (case, kind, found, expected)
            print(case, flush=True)
