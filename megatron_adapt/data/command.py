"""``tools/preprocess_data.py`` and ``megatron-adapt preprocess``: Megatron's flag spellings, parsed and passed on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_adapt.data.preprocess import preprocess_keys, tokenizer_file
from megatron_adapt.errors import AdaptError


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Returns the exit code: 0, or 2 after one sentence on stderr about what the user can correct."""
    arguments = _parser(prog).parse_args(argv)
    try:
        from megatron_adapt.hf.tokenizer import Tokenizer

        tokenizer = Tokenizer.load(tokenizer_file(arguments.tokenizer_model, arguments.tokenizer_type))
        results = preprocess_keys(
            arguments.input,
            tokenizer,
            arguments.output_prefix,
            arguments.json_keys,
            append_bos=arguments.append_bos,
            append_eod=arguments.append_eod,
            on_error=arguments.on_error,
            on_skip=lambda message: print(f"skipped {message}", file=sys.stderr),
            held_out=arguments.held_out,
            held_out_path=arguments.held_out_path,
            max_documents=arguments.max_documents,
            on_progress=_Progress(arguments.log_interval),
        )
    except AdaptError as error:
        print(error, file=sys.stderr)
        return 2
    for prefix, stats in results.items():
        print(_summary(prefix, stats))
    return 0


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Tokenize a corpus into Megatron's <output-prefix>_<key>_document.bin and .idx.",
    )
    add = parser.add_argument
    add("--input", nargs="+", required=True, metavar="PATH", help="files, folders, globs: .jsonl .json .txt, or .gz")
    add("--output-prefix", required=True, type=Path, metavar="PREFIX", help="begin of the output's path")
    add("--json-keys", nargs="+", default=["text"], metavar="KEY", help="keys of the text (text); a corpus each")
    types = ["HuggingFaceTokenizer", "SentencePieceTokenizer"]
    add("--tokenizer-type", choices=types, help="without it: what --tokenizer-model holds")
    add("--tokenizer-model", required=True, type=Path, metavar="PATH", help="directory, tokenizer.json or .model")
    add("--append-eod", action="store_true", help="end every document with the end-of-text token")
    add("--append-bos", action="store_true", help="begin every document with the begin-of-text token")
    add("--on-error", choices=["stop", "skip"], default="stop", help="at a bad line; default: stop")
    add("--held-out", type=float, default=0.0, metavar="SHARE", help="share of documents for held_out.jsonl")
    add("--held-out-path", nargs="+", metavar="PATH", help="held-out text of its own instead")
    add("--max-documents", type=int, metavar="N", help="stop after N documents")
    add("--log-interval", type=int, default=1000, metavar="N", help="report every N documents, 0: never; default: 1000")
    return parser


class _Progress:
    """Prints a line whenever another ``interval`` documents are done."""

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self.reported = 0

    def __call__(self, done: dict[str, Any]) -> None:
        if self.interval < 1 or done["documents"] // self.interval == self.reported // self.interval:
            return
        self.reported = done["documents"]
        seconds = max(done["seconds"], 1e-9)
        print(
            f"Processed {done['documents']} documents ({done['documents'] / seconds:.0f} docs/s, "
            f"{done['bytes'] / seconds / 1e6:.2f} MB/s).",
            file=sys.stderr,
            flush=True,
        )


def _summary(prefix: str, stats: dict[str, Any]) -> str:
    extra = {
        "held out": stats["held_out_documents"],
        "bad lines skipped": stats["skipped"],
        "empty documents left out": stats["empty"],
        "lone surrogates replaced": stats["replaced_surrogates"],
        "unknown tokens": stats["unknown_tokens"],
    }
    return ", ".join([
        f"{prefix}: {stats['documents']} documents",
        f"{stats['tokens']} tokens ({stats['dtype']})",
        f"{stats['bytes']} bytes of text",
        f"{stats['seconds']:.1f} s",
        *(f"{count} {name}" for name, count in extra.items() if count),
    ])  # fmt: skip
