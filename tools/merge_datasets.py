#!/usr/bin/env python
"""Megatron's merge_datasets.py by its flags: several corpora of .bin/.idx (of chats .loss_mask, too) to one, in order, in constant memory."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_adapt.data.merge import find_prefixes, merge
from megatron_adapt.errors import AdaptError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--input", nargs="+", required=True, type=Path, metavar="PATH", help="a folder of corpora, or their prefixes in order")
    add("--output-prefix", required=True, type=Path, metavar="PREFIX", help="prefix of the merged corpus")
    arguments = parser.parse_args()
    try:
        paths = [found for path in arguments.input for found in (find_prefixes(path) if path.is_dir() else [path])]
        stats, missing = merge(paths, arguments.output_prefix)
    except AdaptError as error:
        print(error, file=sys.stderr)
        return 2
    learnt = f", {stats['trained_tokens']} of them learnt" if "trained_tokens" in stats else ""
    print(f"{arguments.output_prefix}: {len(paths)} corpora, {stats['documents']} documents, {stats['tokens']} tokens{learnt}")
    if missing:
        print(f"no {arguments.output_prefix}.json: {', '.join(map(str, missing[:3]))} missing", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
