"""`tokenizer report`: one tokenizer on a text, or the old and the new one side by side, as a table and as JSON."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any, Iterator, Sequence

from megatron_adapt.config import Corpus
from megatron_adapt.errors import ConfigError
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.steps.receipt import write_json, writing
from megatron_adapt.steps.tokenizer import telling, training_texts
from megatron_adapt.vocab.report import report

MAX_BYTES = 10_000_000
ROWS = {
    "vocab_size": "ids", "unused_ids": "ids without a token", "tokens": "tokens", "tokens_per_word": "tokens per word",
    "bytes_per_token": "bytes per token", "vocabulary_seen": "share of ids seen", "byte_tokens": "share of byte tokens",
    "unknown_tokens": "unknown tokens", "unreachable": "unreachable tokens", "duplicate_bytes": "ids with the bytes of another",
    "digits": "1234567 is", "changed_documents": "documents changed by a round trip",
}  # fmt: skip
CHANGE = {
    "kept_of_vocabulary": "share of the new ids that are old tokens", "kept_of_text": "share of running tokens that are old",
    "pieces_per_new_token": "old tokens for a new one", "new_tokens_without_pieces": "new tokens the old bytes cannot spell",
    "length": "new tokens for an old one",
}  # fmt: skip


def run(paths: Sequence[str], corpora: Sequence[Corpus], output: Path | None, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Measure the tokenizers, and write ``output`` (JSON) where one is named.

    Raises:
        ConfigError: not one or two tokenizers, no corpus, ``output`` cannot be written. DataError: a corpus that cannot be read or holds no text.
    """
    if not 1 <= len(paths) <= 2 or not corpora:
        raise ConfigError("expected: tokenizer report SOURCE [TARGET] --corpus FILE [--json FILE]")
    if output is not None and not output.parent.is_dir():
        raise ConfigError(f"--json {output}: the folder {output.parent} does not exist.")
    tokenizers = [Tokenizer.load(path) for path in paths]
    texts = training_texts(corpora, on_skip=telling(partial(print, file=sys.stderr)))
    found = report(tokenizers[0], tokenizers[1] if len(tokenizers) == 2 else None, texts, max_bytes)
    if output is not None:
        with writing("--json", output):
            write_json(output, found)
    return found


def table(found: dict[str, Any]) -> Iterator[str]:
    """Lines for a terminal."""
    text, columns = found["text"], found["tokenizers"]
    yield f"{text['documents']:,} documents, {text['bytes']:,} bytes, {text['words']:,} words"
    width = max(len(name) for name in (*ROWS.values(), *CHANGE.values())) + 2
    titles = ["source", "target"] if len(columns) == 2 else ["tokenizer"]
    yield f"{'':<{width}}{''.join(f'{title:>18}' for title in titles)}"
    for key, name in ROWS.items():
        yield f"{name:<{width}}{''.join(f'{_cell(column[key]):>18}' for column in columns)}"
    for title, column in zip(titles, columns):
        if column["changed_documents"]:
            yield f"{title} does not give back what it was given: {column['changed_example']}"
        if column["unreachable_examples"]:
            yield f"{title} never makes: {', '.join(map(repr, column['unreachable_examples']))}"
    if "change" in found:
        yield from _change(found["change"], columns, width)


def _change(change: dict[str, Any], columns: list[dict[str, Any]], width: int) -> Iterator[str]:
    kept = ", ".join(f"{name} {count:,}" for name, count in change["kept"].items())
    yield f"kept: {kept}"
    for key, name in CHANGE.items():
        yield f"{name:<{width}}{_cell(change[key]):>18}"
    for entry in change["special_differences"]:
        yield f"{entry['role']}: {entry['source'] or 'none'} in the source, {entry['target'] or 'none'} in the target"
    if [len(part) for part in columns[0]["digits"]] != [len(part) for part in columns[1]["digits"]]:
        yield "numbers are cut in another way: arithmetic that the model has learned will suffer"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return " ".join(part.strip() for part in value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
