"""A Hugging Face directory -> a Megatron distributed checkpoint, tensor by tensor, verified."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

from megatron_adapt.families import find_family
from megatron_adapt.families.conversion import AsHF, AsMegatron, Canonical
from megatron_adapt.families.rules import check_weights, with_prefix
from megatron_adapt.hf.bits import is_finite, refuse_broken
from megatron_adapt.hf.directory import HFDirectory
from megatron_adapt.steps import verification
from megatron_adapt.steps.reporter import Reporter
from megatron_adapt.torch_dist.directory import PARTIAL, Position, open_checkpoint, seal, step_folder
from megatron_adapt.torch_dist.reader import TensorReader
from megatron_adapt.torch_dist.writer import TensorWriter
from megatron_adapt.vocab.surgery import check_tokenizer

if TYPE_CHECKING:
    from megatron_adapt.families import ModelShape

WORLD = {"size": 1, "tensor": 1, "pipeline": 1}


def run(
    source: Path, output: Path, reporter: Reporter, texts: Sequence[str] | None = None, verify: str | None = None
) -> dict[str, Any]:
    """Write ``output/step_00000000``, in the dtype of the source; any layout and precision may load it.

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
        f"peak memory {result['peak_bytes'] / 1e9:.2f} GB"
    )
    return {"parameters": shape.num_parameters(), **result}


def _convert(directory: HFDirectory, shape: ModelShape, output: Path, verify: bool, reporter: Reporter) -> dict[str, Any]:
    """In a process of its own: write the checkpoint, and compare what it gives back with the source."""
    family = find_family(directory.config)
    final = step_folder(output, 0)
    partial = final.with_suffix(PARTIAL)
    result: dict[str, Any] = {}
    with directory.weights() as opened:
        check_weights(family, shape, opened)
        reader = with_prefix(family, opened)
        _write(AsMegatron(family, shape, reader), partial, reporter)
        if verify:
            written = Canonical(family, shape, TensorReader(partial), str(partial))
            result["tensors"] = verification.imported(AsHF(family, shape, written), reader)
    directory.copy_metadata(partial / "hf")
    copied = HFDirectory.open(partial / "hf", weights=False).config
    verification.configuration(directory.config, copied, set(), str(partial / "hf" / "config.json"))
    seal(partial, final, Position(), WORLD)
    return result | {"peak_bytes": verification.peak_memory()}


def _write(view: AsMegatron, partial: Path, reporter: Reporter) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    names, broken = view.names(), []
    with TensorWriter(partial) as writer:
        for count, name in enumerate(names, 1):
            tensor = view.get(name)
            if not is_finite(tensor):
                broken += [each for each in view.rules[name].hf if not is_finite(view.reader.get(each))]
            writer.add(name, tensor)
            del tensor  # before the next one is read
            reporter.progress(count, len(names))
    refuse_broken(broken, str(view.reader.path))
