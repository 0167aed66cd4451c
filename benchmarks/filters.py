"""Filters of a corpus: processor seconds per MB of text and peak memory, each beside what one would take for it otherwise.

    python benchmarks/filters.py --input DIR [--workers 1] [--repeat 3] [--copies 1]

Peers, on the same text in the same run, one process each, in turns: for exact duplicates a dictionary of SHA-256 of the text with
plain spaces; for near duplicates datasketch (120 hashes by ``update_batch``, an LSH index, the same shingles); for repeated substrings a
suffix array and its common prefixes by pydivsufsort (libdivsufsort); for rules plain Python with ``re`` and ``Counter``. Those that are not
installed (``pip install datasketch pydivsufsort``) are left out. ``--peer-megabytes`` bounds what the peers get.

Claims: near duplicates, substrings and rules take a tenth of their peers' processor seconds, exact duplicates a half; 99 % of the
documents that datasketch finds and whose true index reaches the threshold are found; substrings are the same bytes as by the suffix array.
``--copies`` writes the text so often, each copy of a document with words of its own in between: most of what there is stands twice then.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib.util
import os
import pickle
import re
import resource
import statistics
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from megatron_adapt import _C
from megatron_adapt.data import filters, folding
from megatron_adapt.data.corpus import read_documents
from megatron_adapt.data.texts import Texts

CHARACTERS = 100
THRESHOLD = 0.8


def measure(work: Callable[[], Any]) -> tuple[float, float, float, Any]:
    """Processor seconds, seconds, MB of memory beyond what was there before, result; in a process of its own."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
            size, before, started = peak(), resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
            result = work()
            seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF)
            used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            with os.fdopen(write, "wb") as stream:
                pickle.dump((used, seconds, peak() - size, result), stream)
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        found = pickle.load(stream)
    os.waitpid(child, 0)
    return found


def peak() -> float:
    """MB that this process has had at most."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def load(path: str, copies: int) -> Texts:
    once = [document.text for document in read_documents(path)]
    documents, chance = list(once), np.random.default_rng(0)
    for text in once * (copies - 1):
        at = int(chance.integers(0, len(text) + 1))
        documents.append(f"{text[:at]} {chance.integers(1 << 60)} {text[at:]}")
    return Texts.of(documents)


def ours(texts: Texts, name: str, workers: int, **options: Any) -> Callable[[], Any]:
    chosen = filters.read_options(name, options)
    return lambda: filters.run(name, texts, chosen, workers)


# ------------------------------------------------------------------------------------------------ peers


def exact_peer(texts: Texts) -> list[int]:
    first: dict[bytes, int] = {}
    digests = (hashlib.sha256(" ".join(texts[number].split()).encode()).digest() for number in range(len(texts)))
    return [number for number, digest in enumerate(digests) if first.setdefault(digest, number) != number]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def shingles(text: str) -> set[bytes]:
    units = words(text)
    size = min(5, len(units))
    return {" ".join(units[at : at + size]).encode() for at in range(len(units) - size + 1)} if size else set()


def near_peer(texts: Texts) -> list[tuple[int, int]]:
    """Documents that the index takes for near duplicates of earlier kept ones, and which."""
    from datasketch import MinHash, MinHashLSH

    index, found = MinHashLSH(threshold=THRESHOLD, num_perm=120), []
    for number in range(len(texts)):
        sketch = MinHash(num_perm=120, seed=1)
        sketch.update_batch(list(shingles(texts[number])))
        others = index.query(sketch)
        if others:
            found.append((number, others[0]))
        else:
            index.insert(number, sketch)
    return found


def substring_peer(texts: Texts) -> np.ndarray:
    """[bytes] bool: inside a window of CHARACTERS bytes that stands before, not overlapping, in the same or another document."""
    import pydivsufsort

    pieces = [texts.encoded(number) for number in range(len(texts))]
    data = np.frombuffer(bytearray(b"\xff".join(pieces)), np.uint8)
    order = pydivsufsort.divsufsort(data)
    common = pydivsufsort.kasai(data, order)  # with the next one
    ends = np.cumsum([len(piece) + 1 for piece in pieces]) - 1  # of documents
    left = np.repeat(ends, [len(piece) + 1 for piece in pieces])[: len(data)] - np.arange(len(data))
    groups = np.concatenate([[0], np.cumsum(common[:-1] < CHARACTERS)])
    firsts = np.minimum.reduceat(np.where(left[order] >= CHARACTERS, order, len(data)), np.flatnonzero(np.diff(groups, prepend=-1)))
    is_later = (order >= firsts[groups] + CHARACTERS) & (left[order] >= CHARACTERS)
    change = np.zeros(len(data) + 1, np.int32)
    np.add.at(change, order[is_later], 1)
    np.add.at(change, order[is_later] + CHARACTERS, -1)
    return np.delete(np.cumsum(change[:-1]) > 0, ends[:-1])


def rules_peer(texts: Texts) -> list[list[float]]:
    found = []
    for number in range(len(texts)):
        text = texts[number]
        units, lines = words(text), [line.strip() for line in text.split("\n") if line.strip()]
        total = max(sum(map(len, units)), 1)
        row = [len(units), total / max(len(units), 1), sum(c.isdigit() for c in text), sum(c.isalpha() for c in text)]
        row += [text.count("#"), text.count("..."), sum(line.endswith("...") for line in lines), sum(line[0] in "-*•" for line in lines)]
        row += [len(lines) - len(set(lines))]
        for n in range(2, 11):
            grams = Counter(zip(*(units[at:] for at in range(n))))
            if n < 5:
                gram, count = grams.most_common(1)[0] if grams else ((), 0)
                row.append(sum(map(len, gram)) * count / total)
            else:
                row.append(sum(sum(map(len, gram)) * (count - 1) for gram, count in grams.items() if count > 1) / total)
        found.append(row)
    return found


# ------------------------------------------------------------------------------------------------ agreement


def jaccard(texts: Texts, a: int, b: int) -> float:
    mine, other = shingles(texts[a]), shingles(texts[b])
    return len(mine & other) / max(len(mine | other), 1)


def near_agreement(texts: Texts, outcome: Any, pairs: list[tuple[int, int]]) -> str:
    true = [number for number, other in pairs if jaccard(texts, number, other) >= THRESHOLD]
    found = sum(outcome.reasons[number] >= 0 for number in true)
    dropped = int((outcome.reasons >= 0).sum())
    return f"drops {dropped}; of the peer's {len(pairs)}, {len(true)} reach the threshold, {found} of these are dropped"


def substring_agreement(texts: Texts, peer: np.ndarray) -> str:
    """On documents in ASCII, where bytes are characters."""
    spans = _C.repeated_spans(
        texts.text, texts.begins, texts.ends, folding.table(), characters=CHARACTERS, whole_words=False, memory=1 << 32, threads=1
    )
    change = np.zeros(texts.bytes + 1, np.int32)
    np.add.at(change, spans[:, 1], 1)
    np.add.at(change, spans[:, 2], -1)
    same = bool((np.cumsum(change[:-1]).astype(bool) == peer).all())
    return f"{int(peer.sum())} bytes in repeats, {'the same as' if same else 'NOT THE SAME AS'} by the suffix array"


def part(texts: Texts, megabytes: float) -> Texts:
    """Some documents from everywhere in the corpus."""
    step = max(1, round(texts.bytes / 1e6 / megabytes))
    return Texts.of([texts[number] for number in range(0, len(texts), step)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--input", required=True, help="a folder or file of text")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--peer-megabytes", type=float, default=30.0)
    arguments = parser.parse_args()
    texts = load(arguments.input, arguments.copies)
    fewer = part(texts, arguments.peer_megabytes)
    ascii_only = Texts.of([texts[number] for number in range(len(texts)) if texts[number].isascii()])
    folding.table()
    ctypes.CDLL(None).malloc_trim(0)  # what is free here would not count there
    workers = arguments.workers
    cases: list[tuple[str, Callable[[], Any], str, Callable[[], Any] | None]] = [
        ("exact", ours(texts, "exact", workers), "dictionary of SHA-256", lambda: exact_peer(fewer)),
        ("near", ours(texts, "near", workers), "datasketch", _if("datasketch", lambda: near_peer(fewer))),
        ("substring", ours(texts, "substring", workers), "suffix array", _if("pydivsufsort", lambda: substring_peer(fewer).sum())),
        ("rules", ours(texts, "rules", workers), "plain Python", lambda: rules_peer(fewer)),
    ]
    print(f"{texts.bytes / 1e6:.1f} MB in {len(texts)} documents, {workers} threads; peers: {fewer.bytes / 1e6:.1f} MB in {len(fewer)}")
    print("| filter | ours: CPU s/MB | seconds | MB/s | memory | peer | CPU s/MB | memory | ours / peer |\n|---|---|---|---|---|---|---|---|---|")
    for name, own, peer_name, peer in cases:
        rows: list[list[tuple[float, float, float, Any]]] = [[], []]
        for _ in range(arguments.repeat):
            rows[0].append(measure(own))
            if peer is not None:
                rows[1].append(measure(peer))
        cpu, seconds, memory = (statistics.median(row[column] for row in rows[0]) for column in range(3))
        size, peer_size = texts.bytes / 1e6, fewer.bytes / 1e6
        line = f"| {name} | {cpu / size:.4f} | {seconds:.2f} | {size / seconds:.0f} | {memory:.0f} MB | {peer_name} |"
        if peer is None:
            print(f"{line} not installed | | |", flush=True)
            continue
        other, peer_memory = (statistics.median(row[column] for row in rows[1]) for column in (0, 2))
        print(f"{line} {other / peer_size:.4f} | {peer_memory:.0f} MB | {other / peer_size / (cpu / size):.1f} times faster |", flush=True)
    if importlib.util.find_spec("datasketch"):
        print(f"near: {near_agreement(fewer, ours(fewer, 'near', workers)(), near_peer(fewer))}")
    if importlib.util.find_spec("pydivsufsort"):
        print(f"substring: {substring_agreement(ascii_only, substring_peer(ascii_only))}")


def _if(library: str, work: Callable[[], Any]) -> Callable[[], Any] | None:
    return work if importlib.util.find_spec(library) else None


if __name__ == "__main__":
    main()
