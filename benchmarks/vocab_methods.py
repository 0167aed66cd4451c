"""Which vocabulary method starts best: bits per byte of a swapped model, at once and after a few embedding-only steps.

An English model gets a German vocabulary by every method and is measured on held-out German text with a plain loop of
transformers and torch: zero-shot and after training nothing but the input and output rows. Peers: the plain methods (random,
mean, copy) in the same run.

    python benchmarks/vocab_methods.py --model DIR --corpus de.jsonl.gz --vocab-size 8192 \
        --methods random mean copy subwords focus --seeds 0 1 2 --steps 0 50 200

A method may carry options, ``subwords:input=last,output=first``, and be calibrated on the corpus: ``subwords+calibrate``. With
--helper-steps a small model with the new tokenizer is trained first, which ``clp`` and ``omp`` take as helper, with --pairs (lines of
JSON with a sentence in two languages) a dictionary for ``dictionary`` and ``wechsel`` is counted, whose vectors of words come from
--source-text and the corpus. The last --held-out documents of the corpus are measured on and never trained on. Prints a table; with
--results FILE it can be stopped, and goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch
import vocab_helpers

from megatron_adapt.data.corpus import read_documents
from megatron_adapt.errors import ConfigError
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.steps import calibrate
from megatron_adapt.steps.reporter import Reporter
from megatron_adapt import options
from megatron_adapt.vocab import surgery
from megatron_adapt.vocab.matching import token_keys
from megatron_adapt.vocab.train import train_tokenizer

WINDOW = 256  # tokens
BATCH = 8  # windows a step
WARMUP = 20  # steps
CHUNK = 512  # positions whose logits are held at a time
CALIBRATED = "+calibrate"
METHODS = ["random", "mean", "copy", "subwords", "align", "focus", "subwords+calibrate", "align+calibrate", "focus+calibrate"]


def windows(ids: np.ndarray) -> torch.Tensor:
    """Whole windows: int64 [n, WINDOW]."""
    count = len(ids) // WINDOW
    return torch.from_numpy(ids[: count * WINDOW].astype(np.int64)).view(count, WINDOW)


def stream(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    return np.concatenate([np.concatenate([ids, end]) for ids in tokenizer.encode(texts)])


class Loss(torch.autograd.Function):
    """Mean cross entropy of ``hidden`` [n, d] times ``weight`` [rows, d], its gradients made with it: no [n, rows] matrix is kept."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
        to_hidden, to_weight, total = torch.empty_like(hidden), torch.zeros_like(weight), 0.0
        for part, gradient, token in zip(hidden.split(CHUNK), to_hidden.split(CHUNK), following.split(CHUNK)):
            scores = part @ weight.T
            scores.sub_(scores.amax(-1, keepdim=True))
            wanted = scores.gather(-1, token[:, None])
            sums = scores.exp_().sum(-1, keepdim=True)
            total += float((sums.log() - wanted).double().sum())
            scores.div_(sums).scatter_add_(-1, token[:, None], torch.full_like(wanted, -1)).div_(len(hidden))
            torch.mm(scores, weight, out=gradient)
            to_weight.addmm_(scores.T, part)
        ctx.save_for_backward(to_hidden, to_weight)
        return hidden.new_tensor(total / len(hidden))

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> Any:
        return *(gradient * scale for gradient in ctx.saved_tensors), None


def loss_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """What ``model(ids, labels=ids).loss`` is where logits are the output matrix times the last hidden state."""
    hidden = model.base_model(ids).last_hidden_state[:, :-1]
    return Loss.apply(hidden.reshape(-1, hidden.shape[-1]), model.get_output_embeddings().weight, ids[:, 1:].reshape(-1))


@torch.no_grad()
def bits_per_byte(model: Any, ids: torch.Tensor, lengths: np.ndarray) -> float:
    """Over all tokens but the first of each window; special tokens are predicted and have no bytes."""
    nats, weight = 0.0, model.get_output_embeddings().weight
    for batch in ids.split(16):
        hidden = model.base_model(batch).last_hidden_state[:, :-1].reshape(-1, weight.shape[1])
        for part, token in zip(hidden.split(CHUNK), batch[:, 1:].reshape(-1).split(CHUNK)):
            scores = part @ weight.T
            nats += float((scores.logsumexp(-1) - scores.gather(-1, token[:, None])[:, 0]).double().sum())
    return nats / math.log(2) / int(lengths[ids[:, 1:].numpy()].sum())


def train(model: Any, ids: torch.Tensor, seed: int, marks: list[int], measure: Any) -> dict[int, float]:
    """AdamW 1e-3 on the rows of the vocabulary; measured at every mark."""
    rows = {id(layer.weight): layer.weight for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in rows)
    optimizer = torch.optim.AdamW(rows.values(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        assert abs(float(loss_of(model, ids[:1]) - model(ids[:1], labels=ids[:1]).loss)) < 1e-4
    found = {}
    for step in range(max(marks) + 1):
        if step in marks:
            found[step] = measure()
        if step == max(marks):
            return found
        chosen = order[torch.arange(step * BATCH, (step + 1) * BATCH) % len(order)]
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / WARMUP)
        loss_of(model, ids[chosen]).backward()
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
    parser.add_argument("--helper-steps", type=int, default=0, help="of training a helper for clp and omp; 0: none")
    parser.add_argument("--pairs", help="sentence pairs that a dictionary is counted in, keys --languages")
    parser.add_argument("--source-text", help="text in the source language, for vectors of its words (wechsel)")
    parser.add_argument("--languages", nargs=2, default=["eng", "deu"], help="source and target in --pairs")
    parser.add_argument("--results", type=Path, help="a line of JSON for every run; what it already holds is not run again")
    given = parser.parse_args()
    torch.set_flush_denormal(True)  # probabilities of 1e-40 change nothing and are slow
    texts = [document.text for document in read_documents(given.corpus)]
    training, held_out = texts[: -given.held_out], [text[: given.characters] for text in texts[-given.held_out :]]
    with tempfile.TemporaryDirectory() as folder:
        target_path = given.tokenizer or Path(folder) / "target"
        if given.tokenizer is None:
            train_tokenizer(training, given.vocab_size, target_path)
        measure_all(given, Path(folder), target_path, training, held_out)


class Results:
    """Runs done so far, from the file and into it; those of other settings stay, and do not count."""

    def __init__(self, path: Path | None, setting: dict[str, Any]) -> None:
        self.path, self._setting = path, setting
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path and path.exists() else []
        self._found = {(run["method"], run["seed"]): run for run in lines if {key: run.get(key) for key in setting} == setting}

    def get(self, method: str, seed: int, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if (method, seed) not in self._found:
            run = {**self._setting, "method": method, "seed": seed, **measure()}
            self._found[method, seed] = run
            if self.path:
                with self.path.open("a") as file:
                    file.write(json.dumps(run) + "\n")
        return self._found[method, seed]


def measure_all(given: Any, folder: Path, target_path: Path, training: list[str], held_out: list[str]) -> None:
    source, target = Tokenizer.load(given.model), Tokenizer.load(target_path)
    source_bytes, target_bytes = (
        np.array([len(key) if isinstance(key, bytes) else 0 for key in token_keys(one).keys]) for one in (source, target)
    )
    evaluated = windows(stream(target, held_out))
    trained = windows(stream(target, training)) if max(given.steps) else evaluated
    setting = {
        "model": given.model.resolve().name, "corpus": Path(given.corpus).name, "tokenizer": target.digest, "steps": given.steps,
        "held_out": given.held_out, "characters": given.characters,
    }  # fmt: skip
    results = Results(given.results, setting)

    made: dict[str, dict[str, str]] = {}

    def materials(method: str) -> dict[str, str]:
        """Options of a method that this run can make itself, made when first wanted."""
        if method in ("clp", "omp") and given.helper_steps and "helper" not in made:
            vocab_helpers.train_helper(target, trained, given.helper_steps, 0, folder / "helper")
            made["helper"] = {"helper": str(folder / "helper")}
        if method in ("dictionary", "wechsel") and given.pairs and "file" not in made:
            sides = [(document.text for document in read_documents(given.pairs, language)) for language in given.languages]
            print(vocab_helpers.write_dictionary(zip(*sides), folder / "words.tsv"), "pairs of words", flush=True)
            made["file"] = {"file": str(folder / "words.tsv")}
        if method == "wechsel" and given.source_text and "vectors" not in made:
            sources = (document.text for document in read_documents(given.source_text))
            for side, texts in (("source", sources), ("target", training)):
                found = vocab_helpers.write_word_vectors(texts, folder / f"{side}.vec")
                print(found, f"vectors of {side} words", flush=True)
            made["vectors"] = {f"{side}_vectors": str(folder / f"{side}.vec") for side in ("source", "target")}
        kinds = {"clp": ["helper"], "omp": ["helper"], "dictionary": ["file"], "wechsel": ["file", "vectors"]}.get(method, [])
        return {key: value for kind in kinds for key, value in made.get(kind, {}).items()}

    def measure_old() -> dict[str, Any]:
        return {"bits_per_byte": {"0": bits_per_byte(load(given.model), windows(stream(source, held_out)), source_bytes)}}

    def measure(name: str, seed: int) -> dict[str, Any]:
        method, _, words = name.removesuffix(CALIBRATED).partition(":")
        output, needed = folder / "swapped", materials(method)
        shutil.rmtree(output, ignore_errors=True)
        began = time.process_time()
        surgery.swap(
            given.model, target_path, output, method, seed, options=needed | options.from_words(filter(None, words.split(","))),
            texts=lambda: iter(training),
        )  # fmt: skip
        report = calibrate.run(output, training, seed, Reporter()) if name.endswith(CALIBRATED) else None
        seconds = time.process_time() - began
        model = load(output)
        marks = train(model, trained, seed, given.steps, lambda: bits_per_byte(model, evaluated, target_bytes))
        found = {"bits_per_byte": {str(step): value for step, value in marks.items()}, "seconds": round(seconds, 1)}
        return found | ({"calibration": report} if report else {})

    old = results.get("old vocabulary", 0, measure_old)["bits_per_byte"]["0"]
    print(f"old vocabulary: {old:.3f} bits per byte\n{'method':<44}{''.join(f'{step:>14}' for step in given.steps)}  processor s", flush=True)
    for name in given.methods:
        if name.endswith(CALIBRATED):
            try:
                calibrate.check(given.model)
            except ConfigError as error:
                print(f"{name:<44} not run: {error}", flush=True)
                continue
        runs = [results.get(name, seed, lambda: measure(name, seed)) for seed in given.seeds]
        values = [[run["bits_per_byte"][str(step)] for run in runs] for step in given.steps]
        cells = [f"{statistics.mean(v):.3f}" + (f" ±{statistics.stdev(v):.3f}" if len(v) > 1 else "") for v in values]
        print(f"{name:<44}{''.join(f'{cell:>14}' for cell in cells)}  {statistics.median(run['seconds'] for run in runs):11.1f}", flush=True)


if __name__ == "__main__":
    main()
