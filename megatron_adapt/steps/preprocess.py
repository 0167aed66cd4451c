"""A corpus -> ``text.bin`` / ``text.idx`` under one tokenizer, and its held-out text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_adapt.config import Corpus
from megatron_adapt.data.indexed import IndexedReader
from megatron_adapt.data.preprocess import preprocess
from megatron_adapt.data.sampling import Passes, SampleOrder
from megatron_adapt.errors import DataError
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.steps.reporter import Reporter

PREFIX = "text"


def run(corpus: Corpus, tokenizer_dir: Path, output: Path, reporter: Reporter, seed: int, name: str) -> dict[str, Any]:
    """Every document becomes [BOS] tokens [EOS]; unless the recipe says, BOS where the tokenizer has one besides its EOS.

    ``seed`` and ``name`` are the recipe's: with them the index of the order in which its first epoch is read is built here,
    and no process waits for it later. Another seed builds another one when it is first used.
    """
    tokenizer = Tokenizer.load(tokenizer_dir)
    has_bos = tokenizer.bos_id not in (None, tokenizer.eos_id)
    stats = preprocess(
        [corpus.path] if isinstance(corpus.path, str) else list(corpus.path),
        tokenizer,
        output / PREFIX,
        text_key=corpus.text_key,
        append_bos=has_bos if corpus.bos is None else corpus.bos,
        append_eod=corpus.eos,
        tokenizer_backend="auto",
        on_error=corpus.on_error,
        on_skip=lambda message: reporter.log(f"skipped {message}"),
        held_out=0.0 if corpus.held_out_path else corpus.held_out,
        held_out_path=corpus.held_out_path,
        max_documents=corpus.max_documents,
    )
    reporter.log(
        f"{stats['documents']:,} documents, {stats['tokens']:,} tokens, {stats['bytes'] / stats['tokens']:.2f} bytes a token, "
        f"{stats['held_out_documents']:,} documents held out, {stats['skipped']:,} skipped, "
        f"tokenized by {stats['tokenizer_backend']}"
    )
    if corpus.held_out and not stats["held_out_documents"]:
        raise DataError(
            f"{corpus.path}: nothing to hold out (held_out {corpus.held_out:g}): a single document. Split it (blank lines separate "
            f"the documents of a .txt file; text with one on each line is JSON lines to be), give a held_out_path, or set held_out to 0."
        )
    passes = Passes(corpus.unique_tokens, corpus.shuffled_epochs)
    if stats["tokens"] > 1:  # else it can be evaluated at most
        SampleOrder(IndexedReader(output / PREFIX), 1, seed, name, passes).build()
    return {key: value for key, value in stats.items() if key != "shards"}  # they are in text.json
