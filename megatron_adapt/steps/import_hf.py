"""A Hugging Face directory -> a Megatron distributed checkpoint, verified on every tensor and every position."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Sequence

from megatron_adapt.engine import backend, checkpoint, convert, model as models, verify
from megatron_adapt.engine.backend import Layout
from megatron_adapt.families import find_family
from megatron_adapt.hf.directory import HFDirectory
from megatron_adapt.steps.reporter import Reporter
from megatron_adapt.vocab.surgery import check_tokenizer


def run(source: Path, output: Path, reporter: Reporter, texts: Sequence[str] | None = None) -> dict[str, Any]:
    """One process, float32, unsharded: any layout and precision may read the checkpoint ``output/step_00000000``."""
    directory = HFDirectory.open(source)
    shape = find_family(directory.config, str(directory.config_path)).read_config(directory.config, str(directory.config_path))
    check_tokenizer(source, shape.vocab_size)
    with backend.session(Layout(), seed=0):
        model = models.build(shape, Layout(), "fp32").eval()
        convert.load_hf(model, directory, shape)
        tensors = verify.weights(model, shape, directory)
        logits = verify.logits(model, directory, texts)
        checkpoint.save(output, model, None, checkpoint.Position(), directory.path)
    reporter.log(
        f"{shape.num_parameters():,} parameters; {tensors} tensors equal bit for bit, {logits['positions']} positions' logits "
        f"within {logits['max_abs_difference']:.1e}"
    )
    return {"parameters": shape.num_parameters(), "tensors": tensors, **logits}
