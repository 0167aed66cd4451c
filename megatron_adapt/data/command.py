"""``tools/preprocess_data.py`` and ``megatron-adapt preprocess``: Megatron's flag spellings, parsed and passed on."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_adapt.data.arguments import Parser, check_reading
from megatron_adapt.data.encoder import BACKENDS
from megatron_adapt.data.loss_mask import SUFFIX as LOSS_MASK
from megatron_adapt.data.preprocess import preprocess_keys, tokenizer_file
from megatron_adapt.data.sources import TEXT_DOCUMENTS
from megatron_adapt.errors import AdaptError, ConfigError

if TYPE_CHECKING:
    from megatron_adapt.hf.tokenizer import Tokenizer

# Flags of Megatron's tool that have nothing to switch here, and what they take.
_NEEDLESS: dict[str, tuple[dict[str, Any], str]] = {
    "partitions": ({"type": int}, "large files are cut by themselves, and --workers counts processes"),
    "keep-sequential-samples": ({"action": "store_true"}, "documents always stay in the order of the input"),
    "find-optimal-num-workers": ({"action": "store_true"}, "without --workers there is one for each core"),
    "workers-to-check": ({"nargs": "+", "type": int}, "without --workers there is one for each core"),
    "make-vocab-size-divisible-by": ({"type": int}, "ids do not depend on how the model pads its vocabulary"),
    "dataset-impl": ({"choices": ["mmap"]}, "there is no other format"),
}
# Flags that say how text is read or ends; of chats their template says it.
_OF_TEXT = ("json-keys", "append-eod", "append-bos", "parse-special-tokens", "split-sentences", "keep-newlines")
_OF_CHATS = ("chat-template", "chat-template-kwargs", "tools", "system", "loss-on")


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Returns the exit code: 0, or 2 after one sentence on stderr about what the user can correct."""
    arguments = _parser(prog).parse_args(argv)
    for flag, (_, reason) in _NEEDLESS.items():
        if getattr(arguments, flag.replace("-", "_")):
            print(f"--{flag} changes nothing: {reason}", file=sys.stderr)
    shown = _Progress(arguments.log_interval)
    try:
        _check(arguments)
        if arguments.vocab_file or arguments.merge_file:
            raise ConfigError(
                "--vocab-file and --merge-file are not read: load them with transformers' AutoTokenizer, save_pretrained() "
                "it, and name that directory by --tokenizer-model"
            )
        from megatron_adapt.hf.tokenizer import Tokenizer

        tokenizer = Tokenizer.load(tokenizer_file(arguments.tokenizer_model, arguments.tokenizer_type), deferred=True)
        with shown:
            results = preprocess_keys(
                arguments.input,
                tokenizer,
                arguments.output_prefix,
                [arguments.messages] if arguments.messages is not None else arguments.json_keys or ["text"],
                on_skip=shown.skipped,
                on_progress=shown,
                **_options(arguments),
                **_chats(arguments, tokenizer),
            )
    except AdaptError as error:
        print(error, file=sys.stderr)
        return 2
    for prefix, stats in results.items():
        print(_summary(prefix, stats))
    return 0


def _parser(prog: str | None) -> argparse.ArgumentParser:
    parser = Parser(
        prog=prog,
        description="Tokenize a corpus into Megatron's <output-prefix>_<key>_document.bin and .idx.",
    )
    add = parser.add_argument
    inputs = "files, folders, globs (.jsonl .json .txt, also .gz and .zst, .parquet), - or hf:NAME[@CONFIG][:SPLIT]"
    add("--input", nargs="+", required=True, metavar="PATH", help=inputs)
    add("--output-prefix", required=True, type=Path, metavar="PREFIX", help="begin of the output's path")
    add("--json-keys", nargs="+", metavar="KEY", help="keys of the text (text); a corpus each")
    add("--messages", metavar="KEY", help="chats: key of the list of messages, instead of text; PREFIX.loss_mask says what is learnt")
    add("--chat-template", type=Path, metavar="FILE", help="with --messages: their template (Jinja); without it the tokenizer's")
    keywords = "with --messages: what else the template is given, a JSON object"
    add("--chat-template-kwargs", type=_keywords, metavar="JSON", help=keywords)
    add("--tools", metavar="KEY", help="with --messages: key of the assistant's tools, where a line has it (tools); '': none are read")
    add("--system", metavar="KEY", help="with --messages: key of a system message beside the others (system); '': none is read")
    add("--loss-on", choices=["answers", "last", "all"], help="with --messages: what is learnt (answers)")
    types = ["HuggingFaceTokenizer", "SentencePieceTokenizer"]
    add("--tokenizer-type", choices=types, help="without it: what --tokenizer-model holds")
    add("--tokenizer-model", required=True, type=Path, metavar="PATH", help="directory, tokenizer.json or .model")
    backend = "what encodes; without it the fastest that can, checked on a sample; auto: another one where that differs"
    add("--tokenizer-backend", choices=BACKENDS, help=backend)
    add("--append-eod", action="store_true", help="end every document with the end-of-text token")
    add("--append-bos", action="store_true", help="begin every document with the begin-of-text token")
    add("--parse-special-tokens", action="store_true", help="special tokens spelled in the text get their ids")
    add("--text-documents", choices=list(TEXT_DOCUMENTS), default="blocks", help="documents of .txt: between blank lines (blocks)")
    add("--split-sentences", action="store_true", help="a sequence for each sentence (nltk); <output-prefix>_<key>_sentence")
    add("--keep-newlines", action="store_true", help="with --split-sentences: line ends between sentences stay")
    add("--lang", help="with --split-sentences: language of the model that splits (english)")
    add("--on-error", choices=["stop", "skip"], default="stop", help="at a bad line (stop); skipped: PREFIX.skipped.jsonl")
    add("--held-out", type=float, default=0.0, metavar="SHARE", help="share of documents for held_out.jsonl")
    add("--held-out-path", nargs="+", metavar="PATH", help="held-out text of its own instead")
    add("--max-documents", type=int, metavar="N", help="stop after N documents")
    add("--shard", type=_shard, metavar="I/N", help="only part I (from 0) of N, for N machines; megatron-adapt merge joins them")
    add("--seed", type=int, default=1234, help="of the sample of documents that two libraries encode (1234)")
    add("--workers", type=int, metavar="N", help="processes; without it one for each core where that pays")
    for flag, (takes, _) in _NEEDLESS.items():
        add(f"--{flag}", help=argparse.SUPPRESS, **takes)
    for flag in ("vocab-file", "merge-file"):
        add(f"--{flag}", help=argparse.SUPPRESS)
    add("--log-interval", type=int, default=1000, metavar="N", help="where there is no terminal: a line every N documents (1000)")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    """ConfigError for flags that do not go with one another."""
    is_chats = arguments.messages is not None
    found = [f"--{flag}" for flag in (_OF_TEXT if is_chats else _OF_CHATS) if getattr(arguments, flag.replace("-", "_")) not in (None, False)]
    if is_chats:
        found += [] if arguments.text_documents == "blocks" else [f"--text-documents {arguments.text_documents}"]
        found += [] if arguments.tokenizer_backend in (None, "tokenizers") else [f"--tokenizer-backend {arguments.tokenizer_backend}"]
    if not found:
        if arguments.lang is not None and not arguments.split_sentences:
            raise ConfigError("--lang is the language of the model that splits sentences: give --split-sentences, too, or leave it out")
        flags = {"text_key": "--json-keys", "text_documents": "--text-documents"}
        return None if is_chats else check_reading(arguments.input, flags, arguments.json_keys, arguments.text_documents)
    named = f"{', '.join(found)} {'is' if len(found) == 1 else 'are'} for"
    if not is_chats:
        raise ConfigError(f"{named} chats: give --messages KEY, too, or leave out what is for them")
    raise ConfigError(
        f"{named} text, and --messages says that these are chats: they stay whole, their template writes all special tokens, and "
        "tokenizers knows where these stand; leave out one or the other"
    )


def _chats(arguments: argparse.Namespace, tokenizer: Tokenizer) -> dict[str, Any]:
    if arguments.messages is None:
        return {}
    from megatron_adapt.data.chat import Chats
    from megatron_adapt.hf.chat_template import ChatTemplate

    template = ChatTemplate.load(tokenizer, arguments.chat_template, arguments.chat_template_kwargs)
    tools, system = (key if given is None else given or None for key, given in (("tools", arguments.tools), ("system", arguments.system)))
    return {"chats": Chats(arguments.messages, template, arguments.loss_on or "answers", tools, system)}


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    names = (
        "append_bos", "append_eod", "parse_special_tokens", "tokenizer_backend", "text_documents", "keep_newlines",
        "on_error", "held_out", "held_out_path", "max_documents", "shard", "seed", "workers",
    )  # fmt: skip
    split = (arguments.lang or "english") if arguments.split_sentences else None
    return {"split_sentences": split, **{name: getattr(arguments, name) for name in names}}


def _shard(text: str) -> tuple[int, int]:
    index, _, parts = text.partition("/")
    if not (index.isdecimal() and parts.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N, like 0/4")
    return int(index), int(parts)


def _keywords(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object, like '{{\"enable_thinking\": false}}'")
    return found


class _Progress:
    """A bar on a terminal; elsewhere a line whenever another ``interval`` documents are done. ``interval`` 0: nothing."""

    def __init__(self, interval: int) -> None:
        self.interval = interval
        self.reported = 0
        self._bar: Any = None
        self._task: Any = None

    def __call__(self, done: dict[str, Any]) -> None:
        if self.interval < 1:
            return
        if sys.stderr.isatty():
            self._show(done)
        elif done["documents"] // self.interval != self.reported // self.interval:
            self.reported = done["documents"]
            print(f"Processed {_state(done)}", file=sys.stderr, flush=True)

    def skipped(self, message: str) -> None:
        if self._bar is not None:
            self._bar.console.print(f"skipped {message}", markup=False, highlight=False)
        else:
            print(f"skipped {message}", file=sys.stderr)

    def _show(self, done: dict[str, Any]) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            texts = (TextColumn("{task.percentage:>3.0f}%"), TextColumn("{task.fields[state]}"))
            self._bar = Progress(BarColumn(), *texts, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("", total=None, state="")
            self._bar.start()  # here, not before: a thread, and workers are forked before the first report
        read = min(done["read"], done["total"])
        self._bar.update(self._task, completed=read, total=done["total"] or None, state=_state(done))
        if done["total"] and done["read"] >= done["total"]:
            self._stop()  # the next key's workers are forked without a thread beside

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop()


def _state(done: dict[str, Any]) -> str:
    seconds = max(done["seconds"], 1e-9)
    left = done["total"] - done["read"]
    remaining = f", {left / done['read'] * seconds:.0f} s left" if done["read"] and left > 0 else ""
    return (
        f"{done['documents']} documents ({done['documents'] / seconds:.0f} docs/s, {done['bytes'] / seconds / 1e6:.2f} MB/s, "
        f"{done['tokens']} tokens{remaining})"
    )


def _summary(prefix: str, stats: dict[str, Any]) -> str:
    extra = {
        "held out": stats["held_out_documents"],
        "bad lines skipped": stats["skipped"],
        f"{'chats with nothing to learn' if 'loss_mask' in stats else 'empty documents'} left out": stats["empty"],
        "lone surrogates replaced": stats["replaced_surrogates"],
        "unknown tokens": stats["unknown_tokens"],
    }
    suffixes = (".bin", ".idx", LOSS_MASK) if "loss_mask" in stats else (".bin", ".idx")
    size = sum(os.path.getsize(f"{prefix}{suffix}") for suffix in suffixes)
    per_token = f" ({stats['bytes'] / stats['tokens']:.2f} a token)" if stats["tokens"] else ""
    return ", ".join([
        f"{prefix}: {stats['documents']} documents",
        f"{stats['tokens']} tokens ({stats['dtype']}, {stats['tokenizer_backend']})",
        f"{stats['bytes']} bytes of text{per_token}",
        *([f"{stats['trained_tokens']} tokens are learnt"] if "loss_mask" in stats else []),
        f"{size / 1e6:.1f} MB on disk",
        f"{stats['seconds']:.1f} s",
        *(f"{count} {name}" for name, count in extra.items() if count),
    ])  # fmt: skip
