"""What a tokenized corpus holds: header facts, how long its documents are, and the text of one of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_adapt.data import loss_mask
from megatron_adapt.data.indexed import VERSION, IndexedReader
from megatron_adapt.errors import ConfigError, DataError

if TYPE_CHECKING:
    from megatron_adapt.hf.tokenizer import Tokenizer

_EDGES = 2 ** np.arange(32, dtype=np.int64)  # of the histogram: 0 | 1 | 2-3 | 4-7 | ...
_CHUNK = 1 << 20  # documents counted at a time


def describe(prefix: str | Path) -> dict[str, Any]:
    """Facts of a corpus, any that Megatron can read; ready for JSON.

    Returns:
        "prefix", "dtype", "version", "documents", "sequences", "tokens", "bin_bytes", "idx_bytes"; "mean", "shortest"
        and "longest" in tokens a document; "histogram" [{"from", "to" (inclusive), "documents", "tokens"}] without empty
        bins; "description": the content of PREFIX.json, None without one; of chats "trained_tokens", those that are learnt.

    Raises:
        DataError: a file is missing or damaged.
    """
    reader = IndexedReader(prefix)
    sizes, description = reader.sizes, _description(prefix)
    trained = {"trained_tokens": _trained(reader, description)} if loss_mask.has_mask(prefix, description) else {}
    return {
        "prefix": str(prefix), "dtype": reader.dtype.name, "version": VERSION,
        "documents": reader.num_documents, "sequences": reader.num_sequences, "tokens": reader.num_tokens,
        "bin_bytes": Path(f"{prefix}.bin").stat().st_size, "idx_bytes": Path(f"{prefix}.idx").stat().st_size,
        "mean": reader.num_tokens / len(sizes) if len(sizes) else 0.0,
        "shortest": int(sizes.min(initial=2**31 - 1)) if len(sizes) else 0, "longest": int(sizes.max(initial=0)),
        "histogram": histogram(sizes), "description": description, **trained,
    }  # fmt: skip


def _trained(reader: IndexedReader, description: dict[str, Any] | None) -> int:
    found = int(np.count_nonzero(loss_mask.open_mask(reader)))
    if (described := (description or {}).get("trained_tokens", found)) != found:
        raise DataError(
            f"by {reader.prefix}{loss_mask.SUFFIX} {found} tokens are learnt, by {reader.prefix}.json {described}; preprocess the corpus again"
        )
    return found


def histogram(sizes: np.ndarray) -> list[dict[str, int]]:
    """Documents and tokens by length, a bin for each power of two (see :func:`describe`); sizes: [documents] integers."""
    documents, tokens = np.zeros(len(_EDGES) + 1, dtype=np.int64), np.zeros(len(_EDGES) + 1, dtype=np.int64)
    for start in range(0, len(sizes), _CHUNK):
        part = sizes[start : start + _CHUNK].astype(np.int64)
        bins = np.searchsorted(_EDGES, part, side="right")
        documents += np.bincount(bins, minlength=len(documents))
        np.add.at(tokens, bins, part)
    first = [0, *_EDGES.tolist()]
    last = [0, *(2 * _EDGES - 1).tolist()]
    return [
        {"from": first[i], "to": last[i], "documents": int(documents[i]), "tokens": int(tokens[i])}
        for i in np.flatnonzero(documents)
    ]


def read_document(prefix: str | Path, number: int, tokenizer: str | Path | None = None) -> dict[str, Any]:
    """One document as ids and text: {"number", "ids", "text", "tokenizer"}; of chats "runs", too: [{"begin", "end" (of ids), "learnt"
    (true or false), "text"}], of which each goes on as far as what is learnt does not change.

    Args:
        number: from 0, or from the end where negative.
        tokenizer: directory or file; None: the one that PREFIX.json names.

    Raises:
        ConfigError: there is no such document, or no tokenizer is known.
        DataError: the corpus was made with another tokenizer.
    """
    from megatron_adapt.hf.tokenizer import Tokenizer

    reader = IndexedReader(prefix)
    count = reader.num_documents
    if not -count <= number < count:
        has = f"the documents 0 to {count - 1}" if count else "no document"
        raise ConfigError(f"{prefix} has {has}, none of number {number}")
    description = _description(prefix)
    stats = description or {}
    path = tokenizer or stats.get("tokenizer_path")
    if path is None:
        raise ConfigError(f"{prefix}.json does not say which tokenizer made this corpus; name it with --tokenizer")
    if not Path(path).exists():
        raise ConfigError(f"the tokenizer {path} does not exist; name the one that made {prefix} with --tokenizer")
    loaded = Tokenizer.load(path)
    if stats.get("tokenizer_digest", loaded.digest) != loaded.digest:
        raise DataError(f"{prefix} was made with another tokenizer than {path}; {prefix}.json names {stats['tokenizer_path']}")
    ids = reader[number].tolist()
    if ids and not 0 <= min(ids) <= max(ids) < loaded.vocab_size:
        raise DataError(
            f"document {number} of {prefix} has ids of {min(ids)} to {max(ids)}, the tokenizer {path} has 0 to "
            f"{loaded.vocab_size - 1}: another one made this corpus; name it with --tokenizer"
        )
    found = {"number": number % count, "ids": ids, "text": loaded.decode(ids), "tokenizer": str(path)}
    if not loss_mask.has_mask(prefix, description):
        return found
    first = reader.first_token(number % count)
    return found | {"runs": runs(ids, loss_mask.open_mask(reader)[first : first + len(ids)], loaded)}


def runs(ids: list[int], mask: np.ndarray, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """As "runs" of :func:`read_document`; ``mask``: [tokens], what is learnt of the ids."""
    edges = [0, *(np.flatnonzero(np.diff(mask)) + 1).tolist(), len(ids)] if ids else []
    found, before = [], ""
    for begin, end in zip(edges, edges[1:]):
        through = tokenizer.decode(ids[:end])
        # As a part of the whole, since some decoders drop the first space; where a character is cut, alone.
        text = through[len(before) :] if through.startswith(before) else tokenizer.decode(ids[begin:end])
        found.append({"begin": begin, "end": end, "learnt": bool(mask[begin]), "text": text})
        before = through
    return found


def _description(prefix: str | Path) -> dict[str, Any] | None:
    path = Path(f"{prefix}.json")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path} ({error}); preprocess {prefix} again or remove it") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} is not a description of a corpus; preprocess {prefix} again or remove it")
    return found


def show(facts: dict[str, Any], document: dict[str, Any] | None = None) -> None:
    """Print what :func:`describe` and :func:`read_document` return, on a terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    lines = {
        "corpus": facts["prefix"],
        "format": f"Megatron indexed dataset, version {facts['version']}, ids {facts['dtype']}",
        "documents": f"{facts['documents']:,}"
        + (f" of {facts['sequences']:,} sequences" if facts["sequences"] != facts["documents"] else ""),
        "tokens": f"{facts['tokens']:,} ({facts['mean']:,.1f} a document, {facts['shortest']:,} to {facts['longest']:,})",
        "size": f"{facts['bin_bytes']:,} bytes of ids, {facts['idx_bytes']:,} of index",
    }
    stats = facts["description"]
    if stats is not None and "bytes" in stats and facts["tokens"]:
        lines["text"] = f"{stats['bytes']:,} bytes, {stats['bytes'] / facts['tokens']:.2f} a token"
    if "trained_tokens" in facts:
        trained = facts["trained_tokens"]
        lines["learnt"] = f"{trained:,} tokens, {trained / max(facts['tokens'], 1):.1%}"
    if stats is not None and "tokenizer_path" in stats:
        lines["tokenizer"] = stats["tokenizer_path"]
    for name, value in lines.items():
        console.print(f"{name:<10} {value}", markup=False)
    if facts["documents"]:
        table = Table("tokens a document", "documents", "", "tokens", "")
        for column in table.columns[1:]:
            column.justify = "right"
        for row in facts["histogram"]:
            name = f"{row['from']:,} - {row['to']:,}" if row["to"] > row["from"] else f"{row['from']:,}"
            documents, tokens = row["documents"] / facts["documents"], row["tokens"] / max(facts["tokens"], 1)
            table.add_row(name, f"{row['documents']:,}", f"{documents:.1%}", f"{row['tokens']:,}", f"{tokens:.1%}")
        console.print(table)
    if document is not None:
        console.print(f"document {document['number']:,}, {len(document['ids']):,} tokens, by {document['tokenizer']}:", markup=False)
        if "runs" not in document:
            console.print(document["text"], markup=False, end="\n")
        for run in document.get("runs", []):
            shown = json.dumps(run["text"], ensure_ascii=False)
            console.print(f"{'learnt' if run['learnt'] else '-':<6} {shown}", markup=False, style="green" if run["learnt"] else None)
