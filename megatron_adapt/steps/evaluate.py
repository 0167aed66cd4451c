"""Bits per byte of a Hugging Face directory or a Megatron checkpoint on text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Mapping

from megatron_adapt.engine import agreement, backend, checkpoint, convert, evaluate, model as models
from megatron_adapt.engine.backend import Layout
from megatron_adapt.families import find_family
from megatron_adapt.hf.directory import HFDirectory
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.steps.reporter import Reporter


def run(
    model_path: Path,
    texts: Mapping[str, Path],
    reporter: Reporter,
    *,
    layout: Layout = Layout(),
    precision: str = "fp32",
    length: int | None = None,
    max_bytes: int | None = None,
    text_key: str = "text",
    on_error: str = "stop",
) -> dict[str, dict[str, Any]]:
    """Per corpus what ``evaluate.bits_per_byte`` gives; windows of ``length`` tokens."""
    is_hf = (model_path / "config.json").is_file()
    opened = HFDirectory.open(model_path) if is_hf else checkpoint.resolve(model_path)
    where = str((model_path if is_hf else opened.hf) / "config.json")
    shape = find_family(opened.config, where).read_config(opened.config, where)
    layout = replace(layout, virtual_pipeline=1)  # interleaving has something to gain in training only
    if shape.layout_problems(layout.tensor, layout.pipeline):
        # Every rank takes the whole model, and its share of the text.
        layout = Layout()
    length = min(length or shape.max_position_embeddings, shape.max_position_embeddings)
    length -= length % layout.multiple
    tokenizer = Tokenizer.load(opened.path if is_hf else opened.hf)
    results = {}
    with backend.session(layout, seed=0):
        agreement.require_same({"texts": list(texts), "length": length, "max_bytes": max_bytes, "precision": precision})
        model = models.build(shape, layout, precision)
        if is_hf:
            convert.load_hf(model, opened, shape)
        else:
            checkpoint.load(opened, model)
        for name, path in texts.items():
            text = evaluate.read(path, tokenizer, length, text_key, max_bytes, on_error, lambda line: reporter.log(f"skipped {line}"))
            results[name] = evaluate.bits_per_byte(model, text, layout)
            note = f", {text.unknown} unknown tokens: too low" if text.unknown else ""
            reporter.log(f"{name}: {results[name]['bits_per_byte']:.3f} bits per byte over {text.bytes:,} bytes{note}")
    return results
