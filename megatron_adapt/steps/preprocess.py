"""A corpus -> ``text.bin`` / ``text.idx`` under one tokenizer, and its held-out text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from megatron_adapt.config import Corpus, Phase
from megatron_adapt.data.chat import Chats
from megatron_adapt.data.indexed import IndexedReader
from megatron_adapt.data.packing import PackedOrder
from megatron_adapt.data.preprocess import open_corpus, preprocess
from megatron_adapt.data.sampling import Passes, SampleOrder
from megatron_adapt.data.windows import DenoisedOrder
from megatron_adapt.errors import DataError
from megatron_adapt.hf.chat_template import ChatTemplate
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.steps import receipt
from megatron_adapt.steps.reporter import Reporter

PREFIX = "text"


def run(corpus: Corpus, tokenizer_dir: Path, output: Path, reporter: Reporter, seed: int, name: str) -> dict[str, Any]:
    """Every document becomes [BOS] tokens [EOS]; unless the recipe says, BOS where the tokenizer has one besides its EOS.

    ``seed`` and ``name`` are the recipe's: with them the index of the order in which its first epoch is read is built here,
    and no process waits for it later. Another seed builds another one when it is first used.
    """
    tokenizer = Tokenizer.load(tokenizer_dir)
    has_bos = tokenizer.bos_id not in (None, tokenizer.eos_id)
    special = {"append_bos": has_bos if corpus.bos is None else corpus.bos, "append_eod": corpus.eos}
    stats = preprocess(
        [corpus.path] if isinstance(corpus.path, str) else list(corpus.path),
        tokenizer,
        output / PREFIX,
        text_key=corpus.text_key,
        text_documents=corpus.text_documents,
        **(special | {"tokenizer_backend": "auto"} if corpus.messages is None else {"chats": chats(corpus, tokenizer), "append_eod": False}),
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
            f"the documents of a .txt file; with text_documents 'lines' each line is one), give a held_out_path, or set held_out to 0."
        )
    if corpus.messages is not None:
        reporter.log(f"{stats['trained_tokens']:,} tokens are learnt, {stats['empty']:,} chats with nothing to learn left out")
        shortest, most, longest = np.percentile(IndexedReader(output / PREFIX).sizes, [0, 99, 100], method="higher")
        reporter.log(f"chats have {shortest:,} to {longest:,} tokens, 99% of them at most {most:,}")
    passes = Passes(corpus.unique_tokens, corpus.shuffled_epochs)
    if stats["tokens"] > 1 and corpus.messages is None:  # else it can be evaluated at most
        SampleOrder(IndexedReader(output / PREFIX), 1, seed, name, passes).build()
    return {key: value for key, value in stats.items() if key != "shards"}  # they are in text.json


def chats(corpus: Corpus, tokenizer: Tokenizer) -> Chats:
    """How the chats of a corpus are read.

    Raises:
        ConfigError: there is no template for them, or it cannot be used.
    """
    file = Path(corpus.chat_template) if corpus.chat_template else None
    template = ChatTemplate.load(tokenizer, file, corpus.chat_template_kwargs)
    return Chats(str(corpus.messages), template, corpus.loss_on, corpus.tools, corpus.system)


def epoch_tokens(folder: Path, seed: int, name: str, corpus: Corpus, denoised: bool = False) -> int | Callable[[Phase], int]:
    """Tokens of an epoch of a corpus that :func:`run` made; of chats, and where phases may denoise it, those of the samples it fills,
    by phase."""
    metrics = receipt.read(folder)["metrics"]  # type: ignore[index]
    if "loss_mask" not in metrics and not denoised:
        return metrics["tokens"]

    def size(phase: Phase) -> int:
        if "loss_mask" in metrics:
            return PackedOrder(IndexedReader(folder / PREFIX), phase.sequence_length, seed, name).samples * phase.sequence_length
        if not phase.denoises(name):
            return corpus.unique_tokens or metrics["tokens"]
        return round(windows(folder, phase, seed, name, corpus).samples * phase.sequence_length)

    return size


def windows(folder: Path, phase: Phase, seed: int, name: str, corpus: Corpus) -> DenoisedOrder:
    """How a phase packs a corpus that :func:`run` made and that it denoises."""
    assert phase.denoising is not None
    reader, stats = open_corpus(folder / PREFIX)
    return DenoisedOrder(reader, stats, phase.denoising, None, phase.sequence_length, seed, name, Passes(corpus.unique_tokens, corpus.shuffled_epochs))
