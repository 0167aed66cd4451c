"""How a corpus is tokenized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron_adapt.data.corpus import check_on_error
from megatron_adapt.data.sources import Paths
from megatron_adapt.errors import ConfigError

if TYPE_CHECKING:
    from megatron_adapt.data.chat import Chats


@dataclass(frozen=True)
class Options:
    """The choices of one run; only the last three leave the corpus as it is.

    Attributes:
        chats: how they are read, where the documents are chats: PREFIX.loss_mask says then which tokens are learnt. Their template
            writes all special tokens, so nothing is appended.
        text_key: of the text in a JSON line, or the column of a table.
        text_documents: "blocks" between blank lines, "lines" or whole "files" are the documents of .txt files.
        append_bos, append_eod: begin each document with ``tokenizer.bos_id``, end it with ``tokenizer.eos_id``; not
            where it has that token there already.
        parse_special_tokens: give special tokens spelled in the text their ids; else their spelling is text.
        tokenizer_backend: see :func:`megatron_adapt.data.encoder.choose`.
        split_sentences: language of nltk's punkt models: each sentence is a sequence of its own.
        keep_newlines: with it, line ends between sentences stay where they are.
        on_error: "stop" at a bad line, or "skip" it and write it to PREFIX.skipped.jsonl.
        held_out: share of the documents, evenly spread, that goes as text to ``held_out.jsonl`` beside the prefix
            instead of into the corpus; at least one if the corpus has two.
        held_out_path: held-out text of its own instead, copied to ``held_out.jsonl``.
        max_documents: stop after so many non-empty documents, held-out ones included.
        shard: (i, n): only the i-th (from 0) of n contiguous parts of the corpus.
        seed: of the sample of documents that is encoded by two libraries.
        workers: processes; None: one for each core where the corpus is large enough. Never changes the result.
        chunk_bytes: input of one task, None: 2 to 16 MiB, by the size of the corpus.
    """

    chats: Chats | None = None
    text_key: str = "text"
    text_documents: str = "blocks"
    append_bos: bool = False
    append_eod: bool = True
    parse_special_tokens: bool = False
    tokenizer_backend: str | None = None
    split_sentences: str | None = None
    keep_newlines: bool = False
    on_error: str = "stop"
    held_out: float = 0.0
    held_out_path: Paths | None = None
    max_documents: int | None = None
    shard: tuple[int, int] | None = None
    seed: int = 1234
    workers: int | None = None
    chunk_bytes: int | None = None

    def check(self) -> None:
        """ConfigError with everything that is out of range."""
        problems = []
        if not 0 <= self.held_out < 1:
            problems.append(f"held_out is a share of the documents, at least 0 and below 1, not {self.held_out}")
        if self.held_out and self.held_out_path is not None:
            problems.append("give either held_out, a share of the corpus, or held_out_path, a file of its own, not both")
        for name in ("max_documents", "workers", "chunk_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                problems.append(f"{name} must be at least 1, not {value}")
        if self.shard is not None:
            index, parts = self.shard
            if not 0 <= index < parts:
                problems.append(f"a shard is i/n with 0 <= i < n, not {index}/{parts}")
            if self.held_out or self.held_out_path is not None or self.max_documents is not None:
                problems.append(
                    "held_out and max_documents count the documents of a whole corpus: leave them out of a shard "
                    "(held-out text can be a corpus of its own)"
                )
        appended = self.append_bos or self.append_eod or self.split_sentences
        if self.chats is not None and (appended or self.tokenizer_backend not in (None, "tokenizers")):
            problems.append(
                "of chats their template writes all special tokens, and tokenizers knows where they stand: leave out append_bos, "
                "append_eod, split_sentences and other backends"
            )
        if self.keep_newlines and self.split_sentences is None:
            problems.append("keep_newlines is about sentences: it needs split_sentences")
        if problems:
            raise ConfigError("; ".join(problems))
        check_on_error(self.on_error)
