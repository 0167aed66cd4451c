"""A config instead of a source: a Hugging Face directory with freshly drawn weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Mapping

from megatron_adapt.families import find_family, mup
from megatron_adapt.families.initial import initial_tensors
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.hf.weights import WeightWriter


def run(
    config: Mapping[str, Any], tokenizer_dir: Path, output: Path, seed: int, base: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write config.json, random weights and the tokenizer; the same for every parallel layout.

    ``base``: of muP, the keys of its base's config.json that differ.
    """
    tokenizer = Tokenizer.load(tokenizer_dir)
    family = find_family(config, "model.from_scratch.config")
    full = family.complete_config(config, tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    shape = family.read_config(full)
    scalings = mup.scalings(shape, mup.base_fields(family, config, base)) if base is not None else None
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.json").write_text(json.dumps(full, indent=2) + "\n")
    for file in tokenizer.files:
        shutil.copyfile(file, output / file.name)
    with WeightWriter(output) as writer:
        for name, tensor in initial_tensors(family, shape, seed, full["dtype"], scalings):
            writer.add(name, tensor)
    return {"parameters": shape.num_parameters(), "vocab_size": shape.vocab_size}
