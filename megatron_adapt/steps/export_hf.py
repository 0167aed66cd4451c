"""A Megatron checkpoint -> a Hugging Face directory that transformers loads, verified like an import."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Sequence

from megatron_adapt.engine import backend, checkpoint, convert, model as models, verify
from megatron_adapt.engine.backend import Layout
from megatron_adapt.families import find_family
from megatron_adapt.hf.directory import HFDirectory
from megatron_adapt.hf.weights import WeightWriter
from megatron_adapt.steps.reporter import Reporter


def run(
    source: Path,
    output: Path,
    reporter: Reporter,
    dtype: str = "keep",
    max_shard_bytes: float = 5e9,
    texts: Sequence[str] | None = None,
) -> dict[str, Any]:
    """``source``: a checkpoint, or a folder whose newest is taken, of any layout. ``dtype``: keep = config.json's."""
    import torch

    opened = checkpoint.resolve(source)
    where = str(opened.hf / "config.json")
    shape = find_family(opened.config, where).read_config(opened.config, where)
    if dtype == "keep":
        dtype = opened.config.get("dtype") or opened.config.get("torch_dtype") or "float32"
    with backend.session(Layout(), seed=0):
        model = models.build(shape, Layout(), "fp32").eval()
        checkpoint.load(opened, model)
        HFDirectory.open(opened.hf, weights=False).copy_metadata(output)
        config = {key: value for key, value in opened.config.items() if key not in ("dtype", "torch_dtype")} | {"dtype": dtype}
        (output / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        with WeightWriter(output, max_shard_bytes) as writer:
            for name, tensor in convert.to_hf(model, shape, opened.config, getattr(torch, dtype)):
                writer.add(name, tensor)
        directory = HFDirectory.open(output)
        tensors = verify.weights(model, shape, directory)
        # The weights as exported (rounded, if dtype is narrower), computed in float32 by both.
        convert.load_hf(model, directory, shape)
        logits = verify.logits(model, directory, texts)
    reporter.log(
        f"{shape.num_parameters():,} parameters as {dtype}; {tensors} tensors equal bit for bit, {logits['positions']} positions' "
        f"logits within {logits['max_abs_difference']:.1e} of Megatron's"
    )
    return {"parameters": shape.num_parameters(), "dtype": dtype, "tensors": tensors, **logits}
