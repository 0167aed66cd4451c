"""Which vocabulary method starts best: bits per byte of a swapped model, at once and after a few embedding-only steps.

An English model gets a German vocabulary by every method and is measured on held-out German text with a plain loop of
transformers and torch: zero-shot and after training nothing but the input and output rows. Peers: the plain methods (random,
mean, copy) in the same run.

    python benchmarks/vocab_methods.py --model DIR --corpus de.jsonl.gz --vocab-size 8192 \
        --methods random mean copy subwords focus --seeds 0 1 2 --steps 0 50 200

A method may carry options, ``subwords:input=last,output=first``, and be calibrated on the corpus: ``subwords+calibrate``. The last
--held-out documents of the corpus are measured on and never trained on. Prints a table and, with --json, writes all numbers.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_adapt.data.corpus import read_documents
from megatron_adapt.errors import ConfigError
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.steps import calibrate
from megatron_adapt.steps.reporter import Reporter
from megatron_adapt.vocab import options, surgery
from megatron_adapt.vocab.matching import token_keys
from megatron_adapt.vocab.train import train_tokenizer

WINDOW = 256  # tokens
BATCH = 8  # windows a step
WARMUP = 20  # steps
METHODS = ["random", "mean", "copy", "subwords", "align", "focus", "subwords+calibrate", "align+calibrate", "focus+calibrate"]


def windows(ids: np.ndarray) -> torch.Tensor:
    """Whole windows: int64 [n, WINDOW]."""
    count = len(ids) // WINDOW
    return torch.from_numpy(ids[: count * WINDOW].astype(np.int64)).view(count, WINDOW)


def stream(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    return np.concatenate([np.concatenate([ids, end]) for ids in tokenizer.encode(texts)])


@torch.no_grad()
def bits_per_byte(model: Any, ids: torch.Tensor, lengths: np.ndarray) -> float:
    """Over all tokens but the first of each window; special tokens are predicted and have no bytes."""
    bits, size = 0.0, 0
    for batch in ids.split(16):
        scores = model(batch).logits[:, :-1].float().log_softmax(-1)
        bits -= float(scores.gather(-1, batch[:, 1:, None]).sum()) / math.log(2)
        size += int(lengths[batch[:, 1:].numpy()].sum())
    return bits / size


def train(model: Any, ids: torch.Tensor, seed: int, marks: list[int], measure: Any) -> dict[int, float]:
    """AdamW 1e-3 on the rows of the vocabulary; measured at every mark."""
    rows = {id(layer.weight): layer.weight for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in rows)
    optimizer = torch.optim.AdamW(rows.values(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
    found = {}
    for step in range(max(marks) + 1):
        if step in marks:
            found[step] = measure()
        if step == max(marks):
            return found
        chosen = order[torch.arange(step * BATCH, (step + 1) * BATCH) % len(order)]
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / WARMUP)
        model(ids[chosen], labels=ids[chosen]).loss.backward()
        torch.nn.utils.clip_grad_norm_(list(rows.values()), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return found


def load(path: Path) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face directory of the source model")
    parser.add_argument("--corpus", required=True, help="text in the target language")
    parser.add_argument("--tokenizer", type=Path, help="target tokenizer; default: byte-level BPE trained on the corpus")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 50, 200])
    parser.add_argument("--held-out", type=int, default=15, help="documents at the end of the corpus to measure on")
    parser.add_argument("--characters", type=int, default=15_000, help="of each held-out document")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    given = parser.parse_args()
    texts = [document.text for document in read_documents(given.corpus)]
    training, held_out = texts[: -given.held_out], [text[: given.characters] for text in texts[-given.held_out :]]
    with tempfile.TemporaryDirectory() as folder:
        target_path = given.tokenizer or Path(folder) / "target"
        if given.tokenizer is None:
            train_tokenizer(training, given.vocab_size, target_path)
        results = measure_all(given, Path(folder), target_path, training, held_out)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1))


def measure_all(given: Any, folder: Path, target_path: Path, training: list[str], held_out: list[str]) -> list[dict]:
    source, target = Tokenizer.load(given.model), Tokenizer.load(target_path)
    source_bytes, target_bytes = (
        np.array([len(key) if isinstance(key, bytes) else 0 for key in token_keys(one).keys]) for one in (source, target)
    )
    old = bits_per_byte(load(given.model), windows(stream(source, held_out)), source_bytes)
    print(f"old vocabulary: {old:.3f} bits per byte\n{'method':<44}{''.join(f'{step:>14}' for step in given.steps)}   swap", flush=True)
    evaluated = windows(stream(target, held_out))
    trained = windows(stream(target, training)) if max(given.steps) else evaluated
    results: list[dict] = [{"method": "old vocabulary", "bits_per_byte": {"0": [old]}}]
    for name in given.methods:
        method, _, words = name.removesuffix("+calibrate").partition(":")
        if name.endswith("+calibrate"):
            try:
                calibrate.check(given.model)
            except ConfigError as error:
                print(f"{name:<44} not run: {error}", flush=True)
                continue
        found: dict[int, list[float]] = {step: [] for step in given.steps}
        for seed in given.seeds:
            output = folder / f"{len(results)}-{seed}"
            began = time.perf_counter()
            surgery.swap(
                given.model, target_path, output, method, seed, options=options.from_words(filter(None, words.split(","))),
                texts=lambda: iter(training),
            )  # fmt: skip
            if name.endswith("+calibrate"):
                calibrate.run(output, training, seed, Reporter())
            seconds = time.perf_counter() - began
            model = load(output)
            marks = train(model, trained, seed, given.steps, lambda: bits_per_byte(model, evaluated, target_bytes))
            for step, value in marks.items():
                found[step].append(value)
        cells = [f"{statistics.mean(v):.3f}" + (f" ±{statistics.stdev(v):.3f}" if len(v) > 1 else "") for v in found.values()]
        print(f"{name:<44}{''.join(f'{cell:>14}' for cell in cells)}  {seconds:5.1f} s", flush=True)
        results.append({"method": name, "bits_per_byte": {str(step): values for step, values in found.items()}})
    return results


if __name__ == "__main__":
    main()
