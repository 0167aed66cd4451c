"""Whether the best learning rate of a narrow model is that of wider ones: by muP, and as models usually are.

    python benchmarks/mup_transfer.py --corpus FILE [--widths 32 64 128] [--seeds 3] [--steps 200]

Trains Llamas of several widths on the bytes of a text, each read once, with AdamW and a cosine, at learning rates that
double from one to the next; by muP they are the narrowest model's. Compared is the mean loss of the last fifth of the
steps, on text that the model has not seen. Exits with 1 unless the narrowest model's best rate costs the widest less by
muP than otherwise.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from pathlib import Path

import coordinate_check
import torch
from coordinate_check import Trained, config
from torch import Tensor

from megatron_adapt.config import Optimizer
from megatron_adapt.data.corpus import read_documents
from megatron_adapt.engine import backend
from megatron_adapt.engine.backend import Layout

LENGTH, BATCH = 64, 8
RATES = [2.0**power for power in range(-11, -3)]
KINDS = ("muP", "as it is")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--heads", choices=("more", "wider"), default="more")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--init-std", type=float, default=0.05, help="initializer_range of all models")
    given = parser.parse_args()
    coordinate_check.VOCABULARY, coordinate_check.LENGTH = 256, LENGTH
    rows = batches(given.corpus, given.steps * given.seeds)
    losses: dict[tuple[str, int, float], list[float]] = {}
    failed = 0
    with backend.session(Layout(), 0):
        for seed in range(given.seeds):
            part = rows[seed * given.steps : (seed + 1) * given.steps]
            for width, kind, rate in itertools.product(given.widths, KINDS, RATES):
                if kind == KINDS[1] and width == given.widths[0]:  # the base is as it is
                    losses[kind, width, rate] = losses[KINDS[0], width, rate]
                    continue
                shape = width, given.widths[0], given.heads, given.init_std
                found = train(*shape, kind == KINDS[0], rate, seed, part)
                losses.setdefault((kind, width, rate), []).append(found)
            failed = report(losses, given.widths, seed + 1)
    sys.exit(failed)


def batches(corpus: Path, count: int) -> list[Tensor]:
    """Stretches of a text's bytes, [b, s + 1] each, none of which comes twice."""
    needed, read = count * BATCH * (LENGTH + 1), bytearray()
    for document in read_documents([corpus]):
        read += document.text.encode() + b"\n\n"
        if len(read) >= needed:
            break
    else:
        sys.exit(f"{corpus} has {len(read):,} bytes; {needed:,} are needed: take fewer --steps or --seeds")
    # Neighbours go to different steps, so that no step is of one document alone.
    whole = torch.tensor(list(read[:needed])).view(-1, LENGTH + 1)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
    return list(whole[order].view(count, BATCH, LENGTH + 1))


def train(
    width: int, narrow: int, heads: str, init_std: float, by_mup: bool, rate: float, seed: int, rows: list[Tensor]
) -> float:
    given, _ = config("llama", width, narrow, heads, tied=False)
    _, base = config("llama", narrow, narrow, heads, tied=False)
    settings = Optimizer(lr=rate, weight_decay=0.1)
    trained = Trained("llama", given | {"initializer_range": init_std}, base if by_mup else None, settings, seed)
    losses = []
    for step, tokens in enumerate(rows):
        warm, rest = min(1.0, (step + 1) / (len(rows) / 10)), step / len(rows)
        losses.append(trained.step(tokens, warm * (0.55 + 0.45 * math.cos(math.pi * rest))))
    last = losses[-(len(losses) // 5) :]
    return sum(last) / len(last)


def report(losses: dict[tuple[str, int, float], list[float]], widths: list[int], seeds: int) -> int:
    mean = {key: sum(found) / len(found) for key, found in losses.items()}
    cost = {}
    for kind in KINDS:
        print(f"\n{kind}: loss by learning rate, mean of {seeds} seeds")
        print(f"{'width':>8}" + "".join(f"{rate:9.2g}" for rate in RATES) + "     best")
        first = min(RATES, key=lambda rate: mean[kind, widths[0], rate])
        for width in widths:
            best = min(RATES, key=lambda rate: mean[kind, width, rate])
            print(f"{width:8}" + "".join(f"{mean[kind, width, rate]:9.3f}" for rate in RATES) + f"{best:9.2g}")
        cost[kind] = mean[kind, widths[-1], first] - min(mean[kind, widths[-1], rate] for rate in RATES)
        lost = f"costs width {widths[-1]} {cost[kind]:.3f} nats against its own best"
        print(f"{first:.2g}, best at width {widths[0]}, {lost}", flush=True)
    return int(not cost[KINDS[0]] < cost[KINDS[1]])


if __name__ == "__main__":
    main()
