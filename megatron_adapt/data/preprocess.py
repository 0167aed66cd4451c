"""Raw text -> PREFIX.bin and PREFIX.idx: read, encoded and written in input order by all cores, in bounded memory.

Tasks of 2 to 16 MiB (``ranges.py``) go to workers (``worker.py``), each finished one is kept in PREFIX.parts
(``parts.py``) and lies at its final place in what becomes PREFIX.bin: there is nothing to merge, and a killed run
continues. Memory: about 300 MB for this process, 200 MB for each worker and for one more that compares samples, and what
documents above 16 MiB need: a few times their size, but a hundred times where only the tokenizers library can encode
them. A .gz or .zst file is one task.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_adapt.data import assembly
from megatron_adapt.data.corpus import read_documents
from megatron_adapt.data.documents import Task
from megatron_adapt.data.encoder import Difference, Encoder, Reference, choose, may_be_fast
from megatron_adapt.data.held_out import HeldOutWriter, refuse_shared
from megatron_adapt.data.indexed import IndexedReader
from megatron_adapt.data.loss_mask import SUFFIX as LOSS_MASK
from megatron_adapt.data.options import Options
from megatron_adapt.data.parts import Parts
from megatron_adapt.data.pool import Pool
from megatron_adapt.data.ranges import plan
from megatron_adapt.data.schedule import Encoding, count
from megatron_adapt.data.sources import COMPRESSIONS, STDIN, Paths, find_files, find_sources, is_stream
from megatron_adapt.data.tracker import Progress, Tracker
from megatron_adapt.data.worker import BadInput, Comparer, Job, Worker
from megatron_adapt.errors import ConfigError, DataError

if TYPE_CHECKING:
    from megatron_adapt.hf.tokenizer import Tokenizer

_SMALL_CORPUS = 8 << 20  # bytes below which one process is as fast as several
_COMPRESSED = 4  # bytes of text in a byte of a compressed file, about
_NOT_IN_PARTS = ("workers", "held_out_path", "on_error")  # parts with skipped lines are told apart by their headers
_FORMAT = 2  # of the parts: raise it when those of older versions must not be used


def preprocess(
    paths: Paths,
    tokenizer: Tokenizer,
    output_prefix: str | Path,
    *,
    on_skip: Callable[[str], None] | None = None,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Tokenize a corpus into PREFIX.bin and PREFIX.idx, and write what was done to PREFIX.json, last.

    Nothing appears under these names before all is written. What a failed or killed run has finished waits in
    PREFIX.parts, and the same call continues with it; the result does not depend on that, nor on the number of workers.
    A document that is empty or becomes no token is left out and counted.

    Args:
        paths: files, folders, globs, "-" (JSON lines on standard input), "hf:NAME[@CONFIG][:SPLIT]".
        on_skip: receives the message of every skipped line, in order.
        on_progress: receives {"documents", "tokens", "bytes" of text, "read" and "total" bytes of input, "seconds"}.
        options: of :class:`Options`.

    Returns:
        The content of PREFIX.json (see ``_describe``), and "seconds", which is not in it: equal input, equal files.

    Raises:
        ConfigError: an argument is out of its range, or an output would overwrite an input.
        DataError: bad input, no text at all, an id outside the vocabulary, a full disk, a worker that was killed.
    """
    started = time.monotonic()
    chosen = Options(**options)
    chosen.check()
    prefix = Path(output_prefix)
    names = find_sources(paths)
    held_out_files = [] if chosen.held_out_path is None else find_files(chosen.held_out_path)
    files = [Path(name) for name in names if not is_stream(name)]
    _check_paths(prefix, files, held_out_files, writes_held_out=bool(chosen.held_out or held_out_files))
    if STDIN in names and (chosen.held_out or chosen.max_documents):
        raise ConfigError("standard input can be read once, and held_out and max_documents read twice: save it to a file")
    prefix = Path(_with_shard(prefix, chosen.shard))
    run = _Run(prefix, plan(names, chosen.text_documents, chosen.chunk_bytes), tokenizer, chosen, on_skip)
    try:
        stats = run.do(held_out_files, Progress(on_progress, run.size, started))
    except Difference:
        if chosen.tokenizer_backend != "auto":
            raise
        run.options = replace(chosen, tokenizer_backend=tokenizer.library)
        stats = run.do(held_out_files, Progress(on_progress, run.size, started))
    return {**stats, "seconds": time.monotonic() - started}


def preprocess_keys(
    paths: Paths, tokenizer: Tokenizer, output_prefix: str | Path, keys: Iterable[str], **options: Any
) -> dict[str, dict[str, Any]]:
    """One corpus for each JSON key, named PREFIX_<key>_document (or _sentence) as Megatron's tool does.

    Args:
        keys: of the text; of chats the one of their messages.
        options: those of :func:`preprocess`, except ``text_key``.

    Returns:
        {prefix of the corpus as written, with its shard: its stats}
    """
    keys = list(dict.fromkeys(keys))
    if len(keys) > 1 and (options.get("held_out") or options.get("held_out_path")):
        raise ConfigError(f"held-out text can be set aside for one JSON key at a time, not for {', '.join(keys)}")
    if len(keys) > 1 and STDIN in ([paths] if isinstance(paths, (str, Path)) else list(paths)):
        raise ConfigError(f"standard input can be read once, not for each of the keys {', '.join(keys)}: save it to a file")
    level = "sentence" if options.get("split_sentences") else "document"
    prefixes = {key: f"{output_prefix}_{key}_{level}" for key in keys}
    done = {key: preprocess(paths, tokenizer, prefixes[key], text_key=key, **options) for key in keys}
    return {_with_shard(prefixes[key], options.get("shard")): stats for key, stats in done.items()}


def _with_shard(prefix: str | Path, shard: tuple[int, int] | None) -> str:
    return str(prefix) if shard is None else f"{prefix}_{shard[0]:05d}-of-{shard[1]:05d}"


def tokenizer_file(model: str | Path, tokenizer_type: str | None = None) -> Path:
    """What to load for Megatron's ``--tokenizer-model`` and ``--tokenizer-type``.

    Args:
        tokenizer_type: "HuggingFaceTokenizer", "SentencePieceTokenizer" or None for whatever the path holds.

    Raises:
        ConfigError: the path does not hold a tokenizer of that type.
    """
    path = Path(model)
    if tokenizer_type == "SentencePieceTokenizer":
        path = path / "tokenizer.model" if path.is_dir() else path
        if path.suffix != ".model" or not path.is_file():
            raise ConfigError(f"{path} is not a sentencepiece .model file, which SentencePieceTokenizer needs")
    elif tokenizer_type == "HuggingFaceTokenizer" and path.suffix == ".model":
        raise ConfigError(f"{path} is a sentencepiece model; use --tokenizer-type SentencePieceTokenizer")
    return path


def open_corpus(prefix: str | Path, tokenizer_digest: str | None = None) -> tuple[IndexedReader, dict[str, Any]]:
    """A corpus made by :func:`preprocess` and its stats.

    Raises:
        DataError: it is unfinished or damaged, or was made by a tokenizer with another digest than the one given.
    """
    path = Path(f"{prefix}.json")
    try:
        stats = json.loads(path.read_text(encoding="utf-8"))
        found = (stats["documents"], stats["tokens"])
        digest, tokenizer_path, _ = stats["tokenizer_digest"], stats["tokenizer_path"], stats["bytes"]
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: the corpus {prefix} does not exist or is unfinished") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a description of a corpus; preprocess the corpus {prefix} again") from error
    reader = IndexedReader(prefix)
    if found != (reader.num_documents, reader.num_tokens):
        raise DataError(
            f"{path} describes {found[0]} documents with {found[1]} tokens but {prefix}.idx has "
            f"{reader.num_documents} with {reader.num_tokens}; preprocess the corpus again"
        )
    if tokenizer_digest is not None and digest != tokenizer_digest:
        raise DataError(
            f"the corpus {prefix} was tokenized with another tokenizer ({tokenizer_path}, digest {digest[:12]}, "
            f"expected {tokenizer_digest[:12]}); preprocess it again with the tokenizer of this model"
        )
    return reader, stats


class _Run:
    """One corpus in the making."""

    def __init__(
        self, prefix: Path, tasks: list[Task], tokenizer: Tokenizer, options: Options, on_skip: Callable[[str], None] | None
    ) -> None:
        self.prefix, self.tokenizer, self.options, self.on_skip = prefix, tokenizer, options, on_skip
        self.all_tasks = self.tasks = tasks
        if options.shard is not None:
            index, parts = options.shard
            self.tasks = tasks[index * len(tasks) // parts : (index + 1) * len(tasks) // parts]
        self.size = sum(task.size for task in self.tasks)
        # What is to come out of it: compressed files hold more text than they have bytes.
        self.text_size = sum(
            task.size * (_COMPRESSED if task.files[0].endswith((*COMPRESSIONS, ".parquet")) else 1) for task in self.tasks
        )
        if any(STDIN in task.files for task in tasks):
            self.text_size = max(self.text_size, _SMALL_CORPUS)

    def do(self, held_out_files: list[Path], progress: Progress) -> dict[str, Any]:
        options, cores, chats = self.options, len(os.sched_getaffinity(0)), self.options.chats
        backend = options.tokenizer_backend if chats is None else self.tokenizer.library
        parse = options.parse_special_tokens or chats is not None
        workers = min(self._workers(cores), len(self.tasks))
        if workers > 1:
            from megatron_adapt import _C

            _C.prepare_heap()  # the processes forked from this one share what it has on large pages
        with ExitStack() as stack:
            pool, comparer = stack.enter_context(Pool()), -1
            if workers > 1 and may_be_fast(self.tokenizer, backend, self.text_size):
                comparer = pool.fork(lambda send: Comparer(Reference(self.tokenizer, parse)))
                pool.ask(comparer, "load")  # while all else is prepared
            encoder = choose(self.tokenizer, backend, self.text_size, options.append_bos, options.append_eod, parse)
            if encoder.fast is None:  # nothing to compare after all
                pool.end()
                pool = stack.enter_context(Pool())
            encoder.parallel = workers <= 1 and options.workers != 1 and cores > 1 and self.text_size >= _SMALL_CORPUS
            job = Job(options.text_key, options.on_error, encoder, chats=chats, seed=options.seed)
            if options.split_sentences is not None:
                from megatron_adapt.data.sentences import splitter

                job.split = splitter(options.split_sentences, options.keep_newlines)
            kept = HeldOutWriter(self.prefix.parent / "held_out.jsonl")
            stack.enter_context(kept)
            parts = Parts.open(self.prefix, self._key(encoder, held_out_files))
            stack.callback(parts.close)
            if held_out_files:
                reading = (options.text_key, options.on_error, self.on_skip, chats, options.text_documents)
                for document in read_documents(held_out_files, *reading):
                    if document.text:
                        kept.write({"text": document.text} if chats is None else json.loads(document.text))
            make = lambda send: Worker(job, parts, send)  # noqa: E731
            self._number(job, make, workers)
            tracker = Tracker(parts, self.tasks, self.on_skip)
            stack.callback(tracker.close)
            stack.callback(pool.end)  # before what the workers write to is closed
            odd = None if encoder.fast is None else encoder.odd()
            encoding = Encoding(self.tasks, make, progress, tracker.encoded, odd)
            try:
                encoding.here(Comparer(encoder.reference)) if workers <= 1 else encoding.forked(workers, pool, comparer)
            except BadInput as error:
                raise DataError(tracker.message(error)) from None
            stats = self._finish(parts, encoder, tracker, kept)
            parts.close(done=True)
        return stats

    def _workers(self, cores: int) -> int:
        if any(STDIN in task.files for task in self.tasks) or self.options.workers == 1:
            return 1
        return self.options.workers or (1 if self.text_size < _SMALL_CORPUS else cores)

    def _key(self, encoder: Encoder, held_out_files: Sequence[Path]) -> dict[str, Any]:
        """What parts of another run must have in common with this one."""
        names = [name for task in self.all_tasks for name in task.files]
        inputs = []
        for name in dict.fromkeys(names):
            status = None if is_stream(name) else Path(name).stat()
            inputs.append([name, os.urandom(8).hex() if name == STDIN else status and [status.st_size, status.st_mtime_ns]])
        told = {key: str(value) for key, value in asdict(self.options).items() if key not in _NOT_IN_PARTS}
        key = [inputs, told, self.tokenizer.digest, self.tokenizer.vocab_size, encoder.backend, encoder.bos, encoder.eod]
        return {"format": _FORMAT, "digest": hashlib.sha256(json.dumps(key).encode()).hexdigest()}

    def _number(self, job: Job, make: Callable[..., Worker], workers: int) -> None:
        """Numbers the documents, where which of them are held out, or come at all, depends on that."""
        limit, share = self.options.max_documents, Fraction(str(self.options.held_out))  # 0.29 is 29/100: exact
        if not share and limit is None:
            return
        counts = []
        for documents in count(self.tasks, make, workers, limit):
            counts.append(documents)
            if limit is not None and sum(counts) >= limit:
                break
        starts = list(accumulate(counts, initial=0))
        total = starts[-1] if limit is None else min(starts[-1], limit)
        self.tasks = [
            replace(task, first=first, limit=None if limit is None else limit - first)
            for task, first in zip(self.tasks, starts)
            if limit is None or first < limit
        ]
        job.share = share
        if share and total > 1 and total * share.numerator // share.denominator == 0:
            job.last = total - 1

    def _finish(self, parts: Parts, encoder: Encoder, tracker: Tracker, kept: HeldOutWriter) -> dict[str, Any]:
        total = tracker.total
        if total["tokens"] == 0 and self.options.shard is None:
            parts.close(done=True)  # nothing worth keeping
            names = list(dict.fromkeys(name for task in self.tasks for name in task.files))
            shown = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
            empty = "documents are empty" if self.options.chats is None else "chats have nothing to learn"
            counts = f"{total['skipped']} bad lines were skipped, {total['empty']} {empty}"
            raise DataError(f"the corpus {shown} is empty: no text becomes a token ({counts})")
        assembly.take_held_out(parts, tracker.headers, kept)
        assembly.complete(parts, tracker.headers, encoder.dtype, self.options.split_sentences is not None)
        if self.options.chats is not None:
            assembly.join_masks(parts, tracker.headers)
        stats = _describe(encoder, tracker, kept, self.prefix, self.options)
        assembly.publish(parts, stats, kept, tracker.skipped)
        return stats


def _check_paths(prefix: Path, files: list[Path], held_out_files: list[Path], writes_held_out: bool) -> None:
    if not prefix.name:
        raise ConfigError(f"the output prefix {str(prefix)!r} has no file name; name it like {prefix / 'corpus'}")
    held_out_file = prefix.parent / "held_out.jsonl"
    outputs = {Path(f"{prefix}{suffix}").resolve() for suffix in (".bin", ".idx", ".json", LOSS_MASK)}
    outputs |= {held_out_file.resolve()} if writes_held_out else set()
    inputs = {file.resolve() for file in files}
    for file in (*files, *held_out_files):
        if file.resolve() in outputs:
            raise ConfigError(f"{file} is an input and would be overwritten; choose another prefix than {prefix}")
    for file in held_out_files:
        if file.resolve() in inputs:
            raise ConfigError(f"{file} is both training and held-out text; name another file for one of them")
    if writes_held_out:
        refuse_shared(held_out_file, prefix)


def _describe(encoder: Encoder, tracker: Tracker, held_out: HeldOutWriter, prefix: Path, options: Options) -> dict[str, Any]:
    """What PREFIX.json says: bytes are the UTF-8 bytes of the text behind the tokens, skipped the bad lines; shards have
    documents, tokens and the SHA-256 of their ids, in order. Of chats "empty" are those with nothing to learn, "trained_tokens" the
    ones in PREFIX.loss_mask and "trained_bytes" those of what the answers say."""
    tokenizer, total = encoder.tokenizer, tracker.total
    item = encoder.dtype.itemsize
    learnt = {"loss_mask": f"{prefix.name}{LOSS_MASK}", **{key: total[key] for key in ("trained_tokens", "trained_bytes")}}
    return {
        "documents": total["documents"], "tokens": total["tokens"], "bytes": total["bytes"],
        "skipped": total["skipped"], "empty": total["empty"], "replaced_surrogates": total["replaced_surrogates"],
        "held_out": held_out.path.name if held_out.documents else None,
        "held_out_documents": held_out.documents, "held_out_bytes": held_out.bytes,
        "unknown_tokens": total["unknown_tokens"],
        "tokenizer_digest": tokenizer.digest, "tokenizer_path": str(tokenizer.path),
        "vocab_size": tokenizer.vocab_size, "dtype": encoder.dtype.name,
        "append_bos": encoder.bos >= 0, "append_eod": encoder.eod >= 0,
        "parse_special_tokens": encoder.reference.parse, "tokenizer_backend": encoder.backend,
        "sequences": total["sequences"], "split_sentences": options.split_sentences,
        "skipped_lines": f"{prefix.name}.skipped.jsonl" if tracker.skipped else None,
        **(learnt if options.chats is not None else {}),
        "shards": [[header["documents"], header["size"] // item, header["sha256"]] for header in tracker.headers],
    }  # fmt: skip
