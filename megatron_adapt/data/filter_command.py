"""``tools/filter_corpus.py`` and ``megatron-adapt filter``: flags, parsed and passed on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_adapt import options
from megatron_adapt.data import filters
from megatron_adapt.data.arguments import Parser, check_reading
from megatron_adapt.data.filter_work import Reading
from megatron_adapt.data.filtering import filter_corpus
from megatron_adapt.data.sources import TEXT_DOCUMENTS
from megatron_adapt.errors import AdaptError, ConfigError


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Returns the exit code: 0, or 2 after one sentence on stderr about what the user can correct."""
    arguments = _parser(prog).parse_args(argv)
    try:
        _check(arguments)
        chosen = [(name, options.from_words(words)) for name, *words in arguments.filter]
        how = {"text_key": arguments.json_key, "text_documents": arguments.text_documents, "on_error": arguments.on_error}
        report = filter_corpus(
            arguments.input,
            arguments.output,
            chosen,
            **how,
            against=[Reading(arguments.against, **how)] if arguments.against else [],
            dropped=arguments.dropped,
            dry_run=arguments.dry_run,
            workers=arguments.workers,
            on_skip=lambda message: print(f"skipped {message}", file=sys.stderr),
            tell=lambda line: print(line, flush=True),
        )
    except AdaptError as error:
        print(error, file=sys.stderr)
        return 2
    extra = {"bad lines skipped": report["read"]["skipped"], "empty documents left out": report["read"]["empty"]}
    share = report["bytes"] / report["read"]["bytes"]
    facts = [
        f"{report['documents']} of {report['read']['documents']} documents",
        f"{report['bytes']} bytes of text ({share:.1%})",
        *(f"{count} {name}" for name, count in extra.items() if count),
        f"{report['seconds']:.1f} s",
    ]
    print(f"{'would be left' if arguments.dry_run else arguments.output}: {', '.join(facts)}")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if arguments.dry_run and arguments.dropped is not None:
        raise ConfigError("--dropped writes a file, and with --dry-run nothing is written: leave out one of them")
    check_reading([*arguments.input, *(arguments.against or ())], {"text_documents": "--text-documents"}, text_documents=arguments.text_documents)


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = Parser(
        prog=prog,
        description="Filter a corpus: what is left goes to OUTPUT in the order of the input, what was done to OUTPUT.report.json.",
        epilog="filters and their options:\n\n" + "\n".join(f"  {line}" for line in filters.describe()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    inputs = "files, folders, globs (.jsonl .json .txt, also .gz and .zst, .parquet), - or hf:NAME[@CONFIG][:SPLIT]"
    add("--input", nargs="+", required=True, metavar="PATH", help=inputs)
    add("--output", required=True, type=Path, metavar="FILE", help="a .jsonl, .jsonl.gz or .jsonl.zst")
    each = "a filter and its options; several are applied in this order"
    add("--filter", nargs="+", action="append", required=True, metavar=("NAME", "KEY=VALUE"), help=each)
    add("--json-key", default="text", metavar="KEY", help="of the text, or the column of a table (text)")
    add("--text-documents", choices=list(TEXT_DOCUMENTS), default="blocks", help="documents of .txt: between blank lines (blocks)")
    add("--on-error", choices=["stop", "skip"], default="stop", help="at a bad line (stop); skipped: OUTPUT.skipped.jsonl")
    add("--against", nargs="+", metavar="PATH", help="text that what repeats it is dropped for, too; itself it is not written")
    add("--dropped", type=Path, metavar="FILE", help="what is dropped or cut, from where and why, as lines of JSON")
    add("--dry-run", action="store_true", help="figures only: nothing is written")
    add("--workers", type=int, metavar="N", help="threads; without it one for each core")
    return parser
