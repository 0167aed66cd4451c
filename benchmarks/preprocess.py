"""Raw text to .bin/.idx against three peers, in this run and on this machine.

Each measurement is a process of its own that has imported what it needs, and nothing else: tokenizer loaded, text read and
encoded, files written; imports do not count. The disk has been given what earlier ones wrote: ours alone waits until its files
are there, and would wait for theirs, too.

* ours: ``preprocess`` with the given number of workers.
* megatron: the algorithm of Megatron-LM's tools/preprocess_data.py, written from its description: a pool of processes,
  json.loads and a transformers tokenizer call for each line, lists of ids into Megatron's IndexedDatasetBuilder.
* tokenizers: json.loads, encode_batch_fast on batches of 1,000 lines, Megatron's builder, one process (its own threads).
* gigatoken: encode_files of the same file into memory; writes nothing.

The first two are slow: they read the first --peer-bytes of the file, and rates are compared. On that part the files of all
three are compared byte for byte. Memory (PSS of all processes together) is that of one more run of each, which is not timed.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import threading
import time
from itertools import islice
from pathlib import Path
from typing import Any, Iterable, Iterator

PIECE = 3000  # characters: novels and lists of sentences are cut into documents of a usual length
_encode: Any = None


def write_corpus(texts: Iterable[str], target: Path, size: int | None) -> int:
    """The pieces of all texts shuffled, again and again up to ``size`` bytes (None: once); returns the bytes written."""
    pieces = [text[begin : begin + PIECE] for text in texts for begin in range(0, len(text), PIECE)]
    chance, written = random.Random(1), 0
    with target.open("wb") as stream:
        while not written or (size or 0) > written:
            chance.shuffle(pieces)
            written += sum(stream.write(json.dumps({"text": piece}, ensure_ascii=False).encode() + b"\n") for piece in pieces)
    return written


def asset_texts(assets: Path) -> Iterator[str]:
    for file in sorted([*assets.glob("text/*"), *assets.glob("web/*"), *assets.glob("chat/*.jsonl*")]):
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
            yield from (_text(json.loads(line)) for line in lines) if ".jsonl" in file.name else ["".join(lines)]


def folder_texts(folder: Path) -> Iterator[str]:
    """Of a folder's text files and Python files, all that are UTF-8, each distinct one once."""
    seen = set()
    for file in sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".txt", ".md", ".rst") and path.is_file()):
        data = file.read_bytes()
        if (digest := hashlib.sha256(data).digest()) not in seen:
            seen.add(digest)
            with contextlib.suppress(UnicodeDecodeError):
                yield data.decode()


def _text(record: dict[str, Any]) -> str:
    """Of a document, or of a conversation."""
    turns = [turn["content"] for turn in record.get("messages") or ()] + (record.get("turns") or [])
    return record.get("text") or "\n".join(turns)


def ours(source: Path, tokenizer: Path, prefix: Path, workers: int) -> None:
    from megatron_adapt.data.preprocess import preprocess
    from megatron_adapt.hf.tokenizer import Tokenizer

    preprocess(source, Tokenizer.load(tokenizer, deferred=True), prefix, append_eod=True, workers=workers)


def megatron(source: Path, tokenizer: Path, prefix: Path, workers: int) -> None:
    builder, _ = _builder(tokenizer, prefix)
    context = multiprocessing.get_context("fork")
    with context.Pool(workers, _load_tokenizer, (tokenizer,)) as pool, source.open(encoding="utf-8") as lines:
        for ids in pool.imap(_encode_line, lines, 32):
            builder.add_document(ids, [len(ids)])
    builder.finalize(f"{prefix}.idx")


def _load_tokenizer(path: Path) -> None:
    global _encode
    from transformers import PreTrainedTokenizerFast

    from megatron_adapt.hf.tokenizer import Tokenizer

    end = Tokenizer.load(path).eos_id
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"), split_special_tokens=True)
    _encode = lambda text: [*tokenizer(text, add_special_tokens=False)["input_ids"], end]  # noqa: E731


def _encode_line(line: str) -> list[int]:
    return _encode(json.loads(line)["text"])


def batches(source: Path, tokenizer: Path, prefix: Path, workers: int) -> None:
    from tokenizers import Tokenizer as Rust

    builder, end = _builder(tokenizer, prefix)
    rust = Rust.from_file(str(tokenizer / "tokenizer.json"))
    rust.encode_special_tokens = True  # a special token's string inside text is plain text, as for us
    with source.open(encoding="utf-8") as lines:
        while batch := [json.loads(line)["text"] for line in islice(lines, 1000)]:
            for encoding in rust.encode_batch_fast(batch, add_special_tokens=False):
                builder.add_document([*encoding.ids, end], [len(encoding.ids) + 1])
    builder.finalize(f"{prefix}.idx")


def _builder(tokenizer: Path, prefix: Path) -> tuple[Any, int]:
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    from megatron_adapt.hf.tokenizer import Tokenizer

    loaded = Tokenizer.load(tokenizer)
    return IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(loaded.vocab_size)), loaded.eos_id


def gigatoken(source: Path, tokenizer: Path, prefix: Path, workers: int) -> None:
    import gigatoken as library

    library.Tokenizer(str(tokenizer)).encode_files(library.JsonlFileSource([str(source)]), parallel=True)


WORK = {"ours": ours, "gigatoken": gigatoken, "megatron": megatron, "tokenizers": batches}


def imports(label: str) -> None:
    """What a measured process needs, as a user's program would have it: a process with more is slower to fork."""
    if label == "ours":
        import megatron_adapt.data.preprocess
        import megatron_adapt.hf.compiled_bpe
        import megatron_adapt.hf.flat_encoding
        import megatron_adapt.hf.tokenizer  # noqa: F401
    elif label == "gigatoken":
        import awkward  # noqa: F401
        import gigatoken  # noqa: F401
    else:
        import megatron.core.datasets.indexed_dataset  # noqa: F401
        import tokenizers  # noqa: F401

        import megatron_adapt.hf.tokenizer  # noqa: F401
    if label == "megatron":
        import transformers

        transformers.PreTrainedTokenizerFast  # noqa: B018 (a lazy import)


def measure(label: str, *arguments: Any, watched: bool = False) -> tuple[float, float]:
    """Seconds, and the most memory of the process and its children together, in MB: of one that is ``watched``, which takes
    time from it (the kernel counts the pages of all its processes ten times a second)."""
    for suffix in (".bin", ".idx"):  # of the run before: to overwrite would take time
        Path(f"{arguments[2]}{suffix}").unlink(missing_ok=True)
    os.sync()
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(label, arguments, there))
    process.start()
    most, done = [0.0], threading.Event()
    watcher = threading.Thread(target=lambda: _watch(process.pid, most, done))
    if watched:
        watcher.start()
    process.join()
    done.set()
    if watched:
        watcher.join()
    if process.exitcode:
        raise SystemExit(f"{label} failed")
    return here.recv(), most[0]


def _run(label: str, arguments: Any, there: Any) -> None:
    imports(label)
    began = time.perf_counter()
    WORK[label](*arguments)
    there.send(time.perf_counter() - began)


def _watch(root: int, most: list[float], done: threading.Event) -> None:
    while not done.wait(0.1):
        pids, total = [root], 0
        for pid in pids:  # grows while it is walked
            try:
                pids += [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
            except (OSError, StopIteration):  # it has just ended
                continue
        most[0] = max(most[0], total / 1e3)


def compare(name: str, source: Path, tokenizer: Path, folder: Path, options: argparse.Namespace) -> None:
    part = folder / "part.jsonl"
    with source.open("rb") as stream, part.open("wb") as cut:
        cut.write(stream.read(options.peer_bytes) + stream.readline())
    runs = [("ours", source), ("gigatoken", source), ("megatron", part), ("tokenizers", part)]
    rates: dict[str, list[float]] = {label: [] for label, _ in runs}
    for _ in range(options.repeat):
        for label, text in runs:
            seconds, _ = measure(label, text, tokenizer, folder / label, options.workers)
            rates[label].append(text.stat().st_size / 1e6 / seconds)
    memory = {
        label: measure(label, text, tokenizer, folder / label, options.workers, watched=True)[1] for label, text in runs
    }
    measure("ours", part, tokenizer, folder / "ours_part", options.workers)
    for label in ("megatron", "tokenizers"):
        for suffix in (".bin", ".idx"):
            if Path(f"{folder / 'ours_part'}{suffix}").read_bytes() != Path(f"{folder / label}{suffix}").read_bytes():
                raise SystemExit(f"{name}: our {suffix} file is not that of {label}")
    middle = {label: statistics.median(found) for label, found in rates.items()}
    cells = [f"{middle[label]:.1f} MB/s, {memory[label]:.0f} MB" for label in rates]
    ratios = [f"{middle['ours'] / middle[label]:.2f}" for label in ("gigatoken", "megatron", "tokenizers")]
    print(f"| {name} | {' | '.join(cells)} | {' | '.join(ratios)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--assets", type=Path, default=os.environ.get("MEGATRON_ADAPT_ASSETS"), help="folder with text/ and tokenizers/")
    add("--texts", type=Path, help="a folder whose text and Python files are read instead of the assets' text, such as site-packages")
    add("--tokenizers", nargs="+", default=["gpt2", "mistral-7b-v0.1", "de-32k"])
    add("--sizes", nargs="+", type=int, default=[0, 1000], help="MB of text, repeated and shuffled; 0: everything once")
    add("--workers", type=int, default=2)
    add("--repeat", type=int, default=3)
    add("--peer-bytes", type=int, default=20_000_000)
    options = parser.parse_args()
    if options.assets is None:
        raise SystemExit("name the folder of the texts: --assets or MEGATRON_ADAPT_ASSETS")
    print("| text, tokenizer | ours | gigatoken | megatron | tokenizers | / gigatoken | / megatron | / tokenizers |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            source = Path(folder, "text.jsonl")
            texts = asset_texts(Path(options.assets)) if options.texts is None else folder_texts(options.texts)
            written = write_corpus(texts, source, size * 1_000_000 or None)
            for name in options.tokenizers:
                label = f"{written / 1e6:.0f} MB {'repeated' if size else 'once'}, {name}"
                compare(label, source, Path(options.assets, "tokenizers", name), Path(folder), options)


if __name__ == "__main__":
    main()
