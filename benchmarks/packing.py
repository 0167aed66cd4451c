"""Fill and tokens per second of packed documents against padding, for one forward and backward pass over the same text.

    python benchmarks/packing.py [--size 260k|20m] [--length 512 --batch 8 --documents 400 --mean 150]

Claim: `packing: documents` leaves no position empty, gives every document the loss that it has alone, and trains more real
tokens a second than padding documents to the sequence length, or to the longest of their batch. Lengths are log-normal, as
on the web. All four ways go through the engine's model and forward step, taking turns. Exits with 1 when a loss differs or
packing is slower than padding.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import workload

from megatron_adapt import launch
from megatron_adapt.engine import backend, convert, model as models
from megatron_adapt.engine.batches import Batch
from megatron_adapt.engine.losses import language_model_loss, micro_batches
from megatron_adapt.families import find_family
from megatron_adapt.hf.directory import HFDirectory

AGREEMENT = 1e-5  # relative, float32


def draw(count: int, mean: float, length: int, vocabulary: int) -> list[np.ndarray]:
    """Documents of 2 to ``length`` tokens; log-normal with sigma 1, whose mean is exp(mu + 1/2)."""
    generator = np.random.default_rng(workload.SEED)
    sizes = np.clip(generator.lognormal(np.log(mean) - 0.5, 1.0, count), 2, length).astype(int)
    return [generator.integers(3, vocabulary, size) for size in sizes]


def padded(documents: list[np.ndarray], length: int, batch: int, longest: bool) -> list[tuple[Batch, torch.Tensor]]:
    """One document a row, its last token without a target. ``longest``: rows as long as the longest of their batch."""
    made = []
    for begin in range(0, len(documents), batch):
        part = documents[begin : begin + batch]
        width = max(map(len, part)) if longest else length
        rows, mask = torch.zeros(len(part), width + 1, dtype=torch.int64), torch.zeros(len(part), width)
        for row, document in enumerate(part):
            rows[row, : len(document)] = torch.from_numpy(document)
            mask[row, : len(document) - 1] = 1
        made.append((Batch(rows[None], torch.zeros(1, len(part), dtype=torch.int64)), mask))
    return made


def packed(documents: list[np.ndarray], length: int, batch: int, apart: bool) -> list[tuple[Batch, torch.Tensor]]:
    """Rows of the documents' stream, a document that does not fit going on in the next row as one of its own.

    ``apart``: none sees another, and its last token has no target; otherwise as concatenate-and-chunk has it.
    """
    stream = np.concatenate(documents)
    ends = np.cumsum([len(document) for document in documents])
    made = []
    for begin in range(0, len(stream) - batch * length, batch * length):
        inner = ends[(ends > begin) & (ends < begin + batch * length)] - begin
        bounds = np.unique(np.concatenate([inner, np.arange(batch + 1) * length]))
        starts = range(begin, begin + batch * length, length)
        rows = torch.from_numpy(np.stack([stream[start : start + length + 1] for start in starts]))
        mask = torch.ones(batch * length)
        mask[torch.from_numpy(bounds[1:] - 1)] = 0
        result = Batch(rows[None], torch.zeros(1, batch, dtype=torch.int64))
        if apart:
            result.lengths, result.weights = [tuple(np.diff(bounds).tolist())], mask.view(1, batch, length)
        made.append((result, mask.view(batch, length)))
    return made


def measure(model: torch.nn.Module, batches: list[tuple[Batch, torch.Tensor]]) -> float:
    """Seconds of one forward and backward pass over all of them."""
    step = language_model_loss(1)
    backend.synchronize()
    began = time.perf_counter()
    for batch, _ in batches:
        losses, finish = step(micro_batches(batch, 1.0), model)
        finish(losses)[0].backward()
        model.zero_grad()
    backend.synchronize()
    return time.perf_counter() - began


@torch.no_grad()
def loss(model: torch.nn.Module, batches: list[tuple[Batch, torch.Tensor]]) -> float:
    """Sum over all targets of the batches, nats."""
    step, total = language_model_loss(1), 0.0
    for batch, mask in batches:
        losses, _ = step(micro_batches(batch, 1.0), model)
        total += float((losses.view(mask.shape).double().cpu() * mask).sum())
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=("260k", "20m"), default="260k", help="parameters of the model")
    parser.add_argument("--length", type=int, default=512, help="tokens per sequence")
    parser.add_argument("--batch", type=int, default=8, help="sequences, or padded documents, per forward pass")
    parser.add_argument("--documents", type=int, default=400)
    parser.add_argument("--mean", type=float, default=150.0, help="tokens per document")
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    length, batch = arguments.length, arguments.batch
    torch.set_num_threads(launch.cores())
    with tempfile.TemporaryDirectory() as folder:
        hf = workload.write_model(Path(folder) / "hf", workload.SIZES[arguments.size])
        backend.start(workload.Layout(), workload.SEED)
        directory = HFDirectory.open(hf)
        shape = find_family(directory.config).read_config(directory.config)
        model = models.build(shape, workload.Layout(), "fp32")
        convert.load_hf(model, directory, shape)
    documents = draw(arguments.documents, arguments.mean, length, shape.vocab_size)
    # The same pieces of text in every way: what the packed rows hold.
    whole = packed(documents, length, batch, apart=True)
    pieces = []
    for made, _ in whole:
        pieces += np.split(made.tokens[0, :, :-1].reshape(-1).numpy(), np.cumsum(made.lengths[0])[:-1])
    ways = {
        f"padded to {length}": padded(pieces, length, batch, longest=False),
        "padded to the longest": padded(pieces, length, batch, longest=True),
        "packed, seeing one another": packed(documents, length, batch, apart=False),
        "packed, each alone": whole,
    }
    tokens = sum(map(len, pieces))
    print(f"{len(pieces)} documents and parts of such, {tokens:,} tokens, {tokens / len(pieces):.0f} on average")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(arguments.repeat + 1):
        for name, batches in ways.items():
            taken = measure(model, batches)
            if turn:  # the first one warms up
                seconds[name].append(taken)
    speed = {name: tokens / statistics.median(values) for name, values in seconds.items()}
    for name, batches in ways.items():
        positions = sum(made.tokens[0, :, :-1].numel() for made, _ in batches)
        print(f"{name:28} fill {tokens / positions:6.1%}   {speed[name]:9,.0f} tokens/s")
    sums = [loss(model, ways[name]) for name in ("padded to the longest", "packed, each alone")]
    difference = abs(sums[1] / sums[0] - 1)
    best = max(value for name, value in speed.items() if name.startswith("padded"))
    print(f"packed / best padding {speed['packed, each alone'] / best:.2f}x, relative difference of the losses {difference:.1e}")
    return 0 if difference < AGREEMENT and speed["packed, each alone"] >= best else 1


if __name__ == "__main__":
    sys.exit(main())
