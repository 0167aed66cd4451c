"""A swapped model's output matrix calibrated on text in the new language: forward passes, no training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterable

import numpy as np

from megatron_adapt.errors import ConfigError, DataError
from megatron_adapt.hf.directory import HFDirectory
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.steps.reporter import Reporter
from megatron_adapt.vocab import calibration, surgery, tied_calibration

WINDOW = 256  # tokens
WINDOWS = 512
LARGEST = 4 * 10**9  # bytes of weights up to which no one has to ask for a pass on the CPU
MAX_BYTES = 20_000_000  # of text that is counted


def check(model: Path) -> None:
    """Raise ``ConfigError`` where there is an :func:`obstacle`."""
    if found := obstacle(model):
        raise ConfigError(f"{found}: leave calibrate out.")


def obstacle(model: Path) -> str | None:
    """What speaks against calibrating: the output matrix is not all that makes the logits."""
    if HFDirectory.open(model).config.get("final_logit_softcapping"):
        return f"{model}: final_logit_softcapping bends the logits, which calibrate does not know"
    return None


def costly(model: Path) -> str | None:
    """What the pass would cost, where that is more time and memory than is taken without being asked for."""
    size = sum(file.stat().st_size for file in model.iterdir() if file.suffix in (".safetensors", ".bin"))
    if size <= LARGEST:
        return None
    return (
        f"{model}: its weights are {size / 1e9:.1f} GB, and calibrating holds them in float32 and reads {WINDOW * WINDOWS:,} tokens "
        f"with them on the CPU: ask for it (--calibrate, vocabulary.calibrate: true)"
    )


def run(model: Path, texts: Iterable[str], seed: int, reporter: Reporter) -> dict[str, Any]:
    """Rewrite the output matrix of the Hugging Face directory ``model``; of a tied model it is the input, too. Returns what was done.

    Raises:
        DataError: less text than one window.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = Tokenizer.load(model)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    matrix = loaded.get_output_embeddings().weight.detach()
    length = min(WINDOW, getattr(loaded.config, "max_position_embeddings", WINDOW))
    ids = _stream(tokenizer, texts)
    windows = torch.from_numpy(ids[: len(ids) // length * length].astype(np.int64)).view(-1, length)
    if not len(windows):
        raise DataError(f"calibrate needs at least {length} tokens of text in the target language, and there are {len(ids)}.")
    chosen = windows[torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))[:WINDOWS]]

    def states(window: Any) -> Any:
        return loaded.base_model(window[None]).last_hidden_state[0]

    def states_with(rows: Any, window: Any) -> Any:
        embedding.weight.data = rows
        return states(window)

    reporter.log(f"calibrating the new rows on {chosen.numel():,} tokens of text, on the CPU: forward passes of the whole model")
    embedding = loaded.get_input_embeddings()
    tied = embedding.weight is loaded.get_output_embeddings().weight
    with torch.no_grad():
        _same_logits(model, loaded(chosen[:1]).logits[0], states(chosen[0]) @ matrix.T)
        if tied:
            new, report = tied_calibration.calibrated(matrix, chosen, states_with, ids)
        else:
            new, report = calibration.calibrated(matrix, chosen, states, ids)
    surgery.replace_output(model, new)
    reporter.log(
        f"{'matrix of input and output' if tied else 'output matrix'} calibrated on {report['positions']:,} positions: "
        f"{report['nats_before']:.2f} -> {report['nats_after']:.2f} nats a token before any training"
    )
    return report


def _stream(tokenizer: Tokenizer, texts: Iterable[str]) -> np.ndarray:
    """Ids of all documents up to MAX_BYTES, EOS behind each."""
    end = np.array([] if tokenizer.eos_id is None else [tokenizer.eos_id], dtype=np.int32)
    parts: list[np.ndarray] = [end[:0]]
    size = 0
    for text in texts:
        parts += [tokenizer.encode([text])[0], end]
        size += len(text.encode("utf-8", "replace"))
        if size >= MAX_BYTES:
            break
    return np.concatenate(parts)


def _same_logits(model: Path, logits: Any, product: Any) -> None:
    difference = float((logits - product).abs().max() / logits.abs().max().clamp_min(1e-6))
    if difference > 1e-3:
        raise ConfigError(f"{model}: its logits are not its output matrix times the last hidden state; leave calibrate out.")
