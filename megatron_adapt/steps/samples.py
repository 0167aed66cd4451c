"""`inspect RECIPE --phase NAME`: what a phase shows its model, and which of it is to be predicted, before it is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Iterator

from megatron_adapt.config import Phase, Recipe
from megatron_adapt.data.inspection import runs
from megatron_adapt.errors import ConfigError
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.steps.preprocess import PREFIX
from megatron_adapt.steps.receipt import read


def sample(recipe: Recipe, phase: Phase, folders: dict[str, Path], number: int) -> dict[str, Any]:
    """A sample of a phase that begins its corpora (one that goes on where others stopped comes to it later).

    Args:
        folders: of the tokenized corpora by name. number: of the sample among all of the phase, from 0.

    Returns:
        {"phase", "number", "corpus", "tokenizer", "tokens", "learnt" (how many), "documents": [{"both_ways": so many tokens in
        front see one another in both directions, "runs": as of ``inspection.read_document``}]}

    Raises:
        ConfigError: a corpus is not tokenized yet. DataError: it is damaged, or its tokenizer is another one by now.
    """
    from megatron_adapt.data.denoising import Ids
    from megatron_adapt.data.sampling import Passes
    from megatron_adapt.engine.batches import Batches

    for name, folder in folders.items():
        if read(folder) is None:
            raise ConfigError(f"the corpus {name} is not tokenized yet ({folder}): run megatron-adapt preprocess with this recipe first.")
    stats = json.loads((folders[next(iter(folders))] / f"{PREFIX}.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.load(stats["tokenizer_path"])
    batches = Batches(
        {name: folder / PREFIX for name, folder in folders.items()}, dict(phase.data), tokenizer_digest=tokenizer.digest,
        sequence_length=phase.sequence_length, batch_size=1, micro_batch_size=1, seed=recipe.seed, consumed={}, drawn={},
        passes={name: Passes(**recipe.data[name].model_dump(include={"unique_tokens", "shuffled_epochs"})) for name in folders},
        apart=phase.packing == "documents",
        denoising=phase.denoising and (phase.denoising, Ids.find(phase.denoising, tokenizer)),
    )  # fmt: skip
    name, row, targets = batches.sample(number)
    documents, begin = [], 0
    lengths = row.lengths if phase.packing == "documents" else [len(row.ids)]
    prefixes = row.prefixes if batches.both_ways and row.prefixes else [0] * len(lengths)
    for length, prefix in zip(lengths, prefixes):
        end = begin + length
        documents.append({"both_ways": int(prefix), "runs": runs(row.ids[begin:end].tolist(), targets[begin:end], tokenizer)})
        begin = end
    return {
        "phase": phase.name, "number": number, "corpus": name, "tokenizer": str(tokenizer.path),
        "tokens": len(row.ids), "learnt": int(targets.sum()), "documents": documents,
    }  # fmt: skip


def lines(found: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """What :func:`sample` returns, for a terminal; with each line whether it is learnt."""
    yield (
        f"phase {found['phase']}, sample {found['number']:,}: {found['tokens']:,} tokens of {found['corpus']}, {found['learnt']:,} of them to be "
        f"predicted, by {found['tokenizer']}"
    ), False
    for number, document in enumerate(found["documents"]):
        both = document["both_ways"]
        yield f"document {number}{f', whose first {both:,} tokens see one another in both directions' if both else ''}:", False
        for run in document["runs"]:
            yield f"{'learnt' if run['learnt'] else '-':<6} {json.dumps(run['text'], ensure_ascii=False)}", run["learnt"]
