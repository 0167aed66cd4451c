"""A corpus of a recipe through its filters -> a directory with the text that is left, which all other steps read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_adapt.config import Corpus
from megatron_adapt.data import filters
from megatron_adapt.data.filter_work import Reading
from megatron_adapt.data.filtering import filter_corpus
from megatron_adapt.steps.reporter import Reporter

TEXT = "text.jsonl"  # not compressed: its parts are tokenized side by side


def compares(corpus: Corpus) -> bool:
    """Whether any filter of a corpus compares documents, with its held-out text, too."""
    return any(filters.compares(one.name) for one in corpus.filters)


def run(corpus: Corpus, against: Sequence[Corpus], output: Path, reporter: Reporter) -> dict[str, Any]:
    """``against``: other corpora, as steps read them. Text held out in files of its own counts as theirs, and as having stood before.

    What an earlier run that was killed has read and found stands in ``output``, and is not repeated where it still applies.
    """
    own = _reading(corpus, corpus.path)
    others = [reading for other in against for reading in (_reading(other, other.path), *_held_out(other))]
    report = filter_corpus(
        own.paths,
        output / TEXT,
        [(one.name, one.options) for one in corpus.filters],
        **own.settings(),
        against=[*others, *(_held_out(corpus) if compares(corpus) else [])],
        on_skip=lambda message: reporter.log(f"skipped {message}"),
        tell=reporter.log,
    )
    return {
        "read": _counts(report["read"]),
        "against": [_counts(other["read"]) for other in report.get("against", [])],
        **{key: report[key] for key in ("filters", "documents", "bytes")},
    }


def _counts(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if key != "inputs"}  # these may be thousands, and are in the report beside the text


def _reading(corpus: Corpus, paths: str | list[str], limit: bool = True) -> Reading:
    return Reading(paths, corpus.text_key, corpus.text_documents, corpus.on_error, corpus.max_documents if limit else None)


def _held_out(corpus: Corpus) -> Iterator[Reading]:
    if corpus.held_out_path:
        yield _reading(corpus, corpus.held_out_path, limit=False)
