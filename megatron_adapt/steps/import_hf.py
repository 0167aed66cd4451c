"""A Hugging Face directory -> a Megatron distributed checkpoint, tensor by tensor, verified."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

from megatron_adapt.families import find_family
from megatron_adapt.families.conversion import AsHF, AsMegatron, Canonical
from megatron_adapt.families.rules import check_weights, with_prefix
from megatron_adapt.hf.directory import HFDirectory
from megatron_adapt.steps import verification
from megatron_adapt.steps.reporter import Reporter
from megatron_adapt.streams.bits import broken, differing, refuse_broken
from megatron_adapt.torch_dist import writer
from megatron_adapt.torch_dist.directory import PARTIAL, Position, open_checkpoint, seal, step_folder
from megatron_adapt.torch_dist.reader import TensorReader
from megatron_adapt.vocab.surgery import check_tokenizer

if TYPE_CHECKING:
    from megatron_adapt.families import ModelShape

WORLD = {"size": 1, "tensor": 1, "context": 1, "pipeline": 1}


def run(
    source: Path, output: Path, reporter: Reporter, texts: Sequence[str] | None = None, verify: str | None = None
) -> dict[str, Any]:
    """Write ``output/step_00000000``, in the dtype of the source; any layout and precision may load it. Files that an
    interrupted call has finished are kept.

    Args:
        texts: what logits are compared on; None: samples that come with the program.
        verify: "off", "weights" or "logits"; None: logits if the model fits into memory, else weights.
    """
    directory = HFDirectory.open(source)
    where = str(directory.config_path)
    shape = find_family(directory.config, where).read_config(directory.config, where)
    check_tokenizer(source, shape.vocab_size)
    verify = verification.choose(verify, shape, reporter)
    result = verification.apart(lambda: _convert(directory, shape, output, verify != "off", reporter))
    if verify == "logits":
        from megatron_adapt.engine import checkpoint

        opened = open_checkpoint(step_folder(output, 0))
        result |= verification.logits(source, shape, lambda model: checkpoint.load(opened, model), reporter, texts)
    reporter.log(
        f"{shape.num_parameters():,} parameters; {verification.summary(result)}; "
        f"peak memory {result['peak_bytes'] / 1e9:.2f} GB{verification.kept(result)}"
    )
    return {"parameters": shape.num_parameters(), **result}


def _convert(directory: HFDirectory, shape: ModelShape, output: Path, verify: bool, reporter: Reporter) -> dict[str, Any]:
    """In a process of its own: write the checkpoint, and compare what it gives back with the source."""
    family = find_family(directory.config)
    final = step_folder(output, 0)
    partial = final.with_suffix(PARTIAL)
    _clear(partial, final)
    with directory.weights() as opened:
        check_weights(family, shape, opened)
        reader = with_prefix(family, opened)
        view = AsMegatron(family, shape, reader)
        result: dict[str, Any]
        result, wrong = writer.write(view, partial, reporter.progress)
        refuse_broken(broken(reader, [name for each in wrong for name in view.rules[each].hf]), str(directory.path))
        if verify:
            with TensorReader(partial) as written:
                back = AsHF(family, shape, Canonical(family, shape, written, str(partial)))
                verification.judge(differing(back, reader, back.names()), len(back.names()), str(directory.path))
                result["tensors"] = len(back.names())
    directory.copy_metadata(partial / "hf")
    copied = HFDirectory.open(partial / "hf", weights=False).config
    verification.configuration(directory.config, copied, set(), str(partial / "hf" / "config.json"))
    seal(partial, final, Position(), WORLD)
    return result | {"peak_bytes": verification.peak_memory()}


def _clear(partial: Path, final: Path) -> None:
    """Of what an interrupted import left only the finished files of weights stay."""
    if final.exists() and not partial.exists():
        os.replace(final, partial)
    for path in partial.glob("*"):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.suffix != ".distcp":
            path.unlink()
