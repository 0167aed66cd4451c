"""Text corpora -> a directory with a trained tokenizer."""

from __future__ import annotations

from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, Iterator, Sequence

from megatron_adapt.config import Corpus
from megatron_adapt.data.corpus import read_documents
from megatron_adapt.data.held_out import without_held_out
from megatron_adapt.steps.reporter import Reporter


def training_texts(corpora: Sequence[Corpus], max_bytes: int | None = None) -> Iterator[str]:
    """The training documents of several corpora, one after the other, up to ``max_bytes`` of UTF-8 altogether."""
    size = 0
    for corpus in corpora:
        paths = [corpus.path] if isinstance(corpus.path, str) else list(corpus.path)
        documents = read_documents(paths, text_key=corpus.text_key, on_error=corpus.on_error)
        texts = islice((document.text for document in documents if document.text), corpus.max_documents)
        share = Fraction(0) if corpus.held_out_path else Fraction(str(corpus.held_out))
        # A tokenizer must not be fitted to what it will be measured on.
        for text in without_held_out(texts, share):
            size += len(text.encode("utf-8", "replace"))
            if max_bytes is not None and size > max_bytes:
                return
            yield text


def run(
    corpora: Sequence[Corpus], vocab_size: int, kind: str, output: Path, reporter: Reporter, max_bytes: int | None = None
) -> dict[str, Any]:
    from megatron_adapt.vocab.train import train_tokenizer

    stats = train_tokenizer(training_texts(corpora, max_bytes), vocab_size, output, kind)
    reporter.log(f"{vocab_size:,} pieces ({kind}), {stats['bytes_per_token']:.2f} bytes a token")
    return stats
