"""``megatron-adapt merge`` and ``tools/merge_datasets.py``: corpora of .bin/.idx to one, by the flags of Megatron's tool."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_adapt.data.arguments import Parser
from megatron_adapt.data.merge import find_prefixes, merge
from megatron_adapt.errors import AdaptError


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The exit code: 0, or 2 where something can be corrected, with one message."""
    parser = Parser(
        prog=prog, description="Several corpora of .bin/.idx (of chats .loss_mask, too) to one, in order, in constant memory."
    )
    add = parser.add_argument
    add("--input", nargs="+", required=True, type=Path, metavar="PATH", help="a folder of corpora, or their prefixes in order")
    add("--output-prefix", required=True, type=Path, metavar="PREFIX", help="prefix of the merged corpus")
    add("--mixed", action="store_true", help="join corpora whose documents were encoded differently (BOS, EOS, special tokens, sentences), too")
    given = parser.parse_args(arguments)
    try:
        paths = [found for path in given.input for found in (find_prefixes(path) if path.is_dir() else [path])]
        stats, missing = merge(paths, given.output_prefix, given.mixed)
    except AdaptError as error:
        print(error, file=sys.stderr)
        return 2
    learnt = f", {stats['trained_tokens']} of them learnt" if "trained_tokens" in stats else ""
    print(f"{given.output_prefix}: {len(paths)} corpora, {stats['documents']} documents, {stats['tokens']} tokens{learnt}")
    if missing:
        print(f"no {given.output_prefix}.json: {', '.join(map(str, missing[:3]))} missing", file=sys.stderr)
    return 0
