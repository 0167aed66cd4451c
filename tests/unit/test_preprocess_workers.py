"""Several processes, interruptions and shards: always the same files."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import assets
from test_preprocess import ByteTokenizer, corpus, documents, files, held_out

from megatron_adapt.data import worker
from megatron_adapt.data.merge import merge
from megatron_adapt.data.pool import WorkerFailed
from megatron_adapt.data.preprocess import preprocess
from megatron_adapt.errors import DataError

TEXTS = [f"{number} " + "äöü😀 x" * (number * 7919 % 40) for number in range(600)]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def sources(folder: Path) -> list[Path]:
    """The texts in order, in plain and compressed files of both kinds; of plain text a line and a block are the same."""
    plain = corpus(folder, *TEXTS[:300], name="a.jsonl")
    text = folder / "b.txt"
    text.write_text("\n\n\n".join(TEXTS[300:450]) + "\n", encoding="utf-8")
    packed = corpus(folder, *TEXTS[450:], name="c.jsonl")
    with gzip.open(folder / "c.jsonl.gz", "wb") as stream:
        stream.write(packed.read_bytes())
    packed.unlink()
    return [plain, text, folder / "c.jsonl.gz"]


@pytest.mark.parametrize("options", [{}, {"text_documents": "lines"}, {"held_out": 0.1}, {"held_out": 0.0001}, {"max_documents": 333, "held_out": 0.02}])
def test_workers_and_chunks_do_not_change_the_result(tmp_path, options):
    inputs = sources(tmp_path / "in")
    preprocess(inputs, ByteTokenizer(), tmp_path / "one" / "c", append_bos=True, workers=1, **options)
    expected = content(tmp_path / "one")
    expected.pop("c.json")  # lists the chunks
    for workers, chunk_bytes in ((1, 500), (2, 500), (3, 4000)):
        out = tmp_path / f"{workers}-{chunk_bytes}"
        stats = preprocess(
            inputs, ByteTokenizer(), out / "c", append_bos=True, workers=workers, chunk_bytes=chunk_bytes, **options
        )
        found = content(out)
        assert json.loads(found.pop("c.json")) == {key: stats[key] for key in stats if key != "seconds"}
        assert found == expected
        assert len(stats["shards"]) >= (10 if chunk_bytes == 500 else 3)
        assert sum(shard[1] for shard in stats["shards"]) == stats["tokens"]
    texts = TEXTS[: options.get("max_documents")]
    kept = held_out(tmp_path / "one") if "held_out" in options else []
    assert [bytes(ids[1:-1]).decode() for ids in documents(tmp_path / "one" / "c")] == [
        text.strip() for text in texts if text not in kept
    ]
    assert len(kept) == {0.1: 60, 0.0001: 1, 0.02: 6}.get(options.get("held_out"), 0)


def test_ids_that_wait_on_disk(tmp_path, monkeypatch):
    inputs = sources(tmp_path / "in")
    preprocess(inputs, ByteTokenizer(), tmp_path / "one" / "c", workers=1, chunk_bytes=700)
    monkeypatch.setattr(worker, "_MEMORY", 100)
    for workers in (1, 2):
        preprocess(inputs, ByteTokenizer(), tmp_path / "two" / "c", workers=workers, chunk_bytes=700)
        assert content(tmp_path / "two") == content(tmp_path / "one")


@pytest.mark.parametrize("workers, chunk_bytes", [(1, None), (1, 300), (2, 300)])
def test_bad_lines_are_named_by_file_and_line(tmp_path, workers, chunk_bytes):
    lines = [json.dumps({"text": text}) for text in TEXTS[:200]]
    lines[120] = '{"text": 1}'
    lines[60] = "{broken \x00"
    lines[61:61] = ["", "  "]
    source = tmp_path / "a.jsonl"
    source.write_text("\n".join(lines), encoding="utf-8")
    options = {"workers": workers, "chunk_bytes": chunk_bytes}
    with pytest.raises(DataError, match=r"a.jsonl:61: not JSON \(.*; correct it or skip bad lines \(on_error 'skip'\)"):
        preprocess(source, ByteTokenizer(), tmp_path / "out" / "c", **options)
    messages: list[str] = []
    stats = preprocess(
        source, ByteTokenizer(), tmp_path / "out" / "c", on_error="skip", on_skip=messages.append, **options
    )
    assert stats["skipped"] == 2 and stats["documents"] == 198
    assert [message.split(": ")[0] for message in messages] == [f"{source}:61", f"{source}:123"]
    side = [json.loads(line) for line in (tmp_path / "out" / "c.skipped.jsonl").read_text().splitlines()]
    assert [(entry["line"], entry["data"]) for entry in side] == [(61, lines[60]), (123, '{"text": 1}')]
    preprocess(source, ByteTokenizer(), tmp_path / "out" / "c", on_error="skip", max_documents=5)
    assert "c.skipped.jsonl" not in files(tmp_path / "out")


@pytest.mark.parametrize("kind", ["blocks", "lines"])
def test_shards_join_to_the_whole(tmp_path, kind):
    inputs = sources(tmp_path / "in")
    preprocess(inputs, ByteTokenizer(), tmp_path / "one" / "c", chunk_bytes=700)
    assert len(documents(tmp_path / "one" / "c")) == len(TEXTS)
    parts = []
    for index in range(5):
        options = {"chunk_bytes": 700, "shard": (index, 5), "text_documents": kind}
        stats = preprocess(inputs, ByteTokenizer(), tmp_path / "parts" / "c", **options)
        parts.append(tmp_path / "parts" / f"c_{index:05d}-of-00005")
        assert stats["documents"] == len(documents(parts[-1]))
    merge(parts, tmp_path / "merged" / "c")
    for suffix in (".bin", ".idx"):
        assert (tmp_path / "merged" / f"c{suffix}").read_bytes() == (tmp_path / "one" / f"c{suffix}").read_bytes()
    preprocess(inputs, ByteTokenizer(), tmp_path / "few" / "c", shard=(3, 9))
    assert documents(tmp_path / "few" / "c_00003-of-00009") == []
    with pytest.raises(DataError, match=r"b.txt:\d+: not UTF-8"):
        inputs[1].write_bytes(inputs[1].read_bytes()[:-1] + b"\xff\n")
        preprocess(inputs, ByteTokenizer(), tmp_path / "bad" / "c", chunk_bytes=700, shard=(4, 5), text_documents=kind)


def test_bad_line_in_a_later_shard_has_the_number_of_the_file(tmp_path):
    source = corpus(tmp_path, *TEXTS[:100])
    with source.open("a") as stream:
        stream.write("broken\n")
    with pytest.raises(DataError, match="in.jsonl:101: not JSON"):
        preprocess(source, ByteTokenizer(), tmp_path / "c", chunk_bytes=300, shard=(9, 10))


class Failing(ByteTokenizer):
    """Fails in its own way at the text "5"."""

    def __init__(self, failure: str) -> None:
        super().__init__()
        self.failure = failure

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        if "5" in texts:
            if self.failure == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.failure == "exit":
                os._exit(3)
            raise ZeroDivisionError("a defect")
        return super().encode(texts)


@pytest.mark.parametrize(
    "failure, error, message",
    [
        ("raise", WorkerFailed, "(?s)a worker process failed:\nTraceback.*ZeroDivisionError: a defect"),
        ("kill", DataError, r"worker process \d+ was killed by SIGKILL; if the machine was out of memory use fewer workers"),
        ("exit", DataError, r"worker process \d+ ended with exit code 3; if the machine"),
    ],
)
def test_failing_worker_ends_the_run(tmp_path, failure, error, message):
    source = corpus(tmp_path / "in", *"0123456789")
    started = time.monotonic()
    with pytest.raises(error, match=message):
        preprocess(source, Failing(failure), tmp_path / "out" / "c", workers=2, chunk_bytes=1)
    assert time.monotonic() - started < 5
    finished = list((tmp_path / "out" / "c.parts").glob("*[0-9].json")) if (tmp_path / "out" / "c.parts").exists() else []
    assert len(finished) <= 5
    assert preprocess(source, ByteTokenizer(), tmp_path / "out" / "c", workers=2, chunk_bytes=1)["documents"] == 10
    assert files(tmp_path / "out") == ["c.bin", "c.idx", "c.json"]


class Slow(ByteTokenizer):
    def encode(self, texts: list[str]) -> list[np.ndarray]:
        time.sleep(0.002)
        return super().encode(texts)


class Stuck(ByteTokenizer):
    """Writes the number of its process to a file and stays."""

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        self.file.write_text(str(os.getpid()))
        time.sleep(60)
        raise AssertionError


def state(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().split()[2]


def start(*arguments: object, **options: object) -> Any:
    process = multiprocessing.get_context("fork").Process(target=preprocess, args=arguments, kwargs=options)
    process.start()
    return process


def test_killed_anywhere_it_continues_to_the_same_files(tmp_path):
    """kill -9 at random moments, until one run gets through; at least 20 kills over several such corpora."""
    inputs = sources(tmp_path / "in")
    with inputs[0].open("a") as stream:
        stream.write("broken\n")
    options = {"chunk_bytes": 400, "append_bos": True, "held_out": 0.05, "on_error": "skip"}
    expected = {}
    for kind in ("blocks", "lines"):
        preprocess(inputs, ByteTokenizer(), tmp_path / kind / "c", workers=1, text_documents=kind, **options)
        expected[kind] = content(tmp_path / kind)
    chance, kills, kept, attempt = random.Random(1), 0, 0, 0
    while kills < 20:
        out, kind = tmp_path / f"out{attempt}", ("blocks", "lines")[attempt % 2]
        attempt += 1
        done, patience = False, 0.05
        while not done:
            process = start(inputs, Slow(), out / "c", workers=chance.choice([1, 2, 2]), text_documents=kind, **options)
            process.join(chance.uniform(0.01, patience))
            done = process.exitcode is not None
            process.kill()
            process.join()
            kills += not done
            patience *= 1.2
            kept += (out / "c.parts").exists() and any((out / "c.parts").glob("*[0-9].json"))
        assert process.exitcode == 0
        assert content(out) == expected[kind]
    assert kept >= 5  # most kills came when something was finished


def test_finished_parts_are_used_and_damaged_ones_are_not(tmp_path):
    source = corpus(tmp_path / "in", *"0123456789")
    parts = tmp_path / "out" / "c.parts"
    with pytest.raises(ZeroDivisionError):
        preprocess(source, Failing("raise"), tmp_path / "out" / "c", workers=1, chunk_bytes=1)
    assert len(list(parts.glob("*[0-9].json"))) == 5
    data = bytearray((parts / "data").read_bytes())
    data[0] ^= 1
    (parts / "data").write_bytes(data)
    (parts / "00000001.sizes").write_bytes(b"\0" * 4)

    class Counting(ByteTokenizer):
        seen: list[str] = []

        def encode(self, texts: list[str]) -> list[np.ndarray]:
            self.seen.extend(texts)
            return super().encode(texts)

    preprocess(source, Counting(), tmp_path / "out" / "c", workers=1, chunk_bytes=1)
    assert Counting.seen == [*"01", *"56789"]
    assert [bytes(ids[:-1]).decode() for ids in documents(tmp_path / "out" / "c")] == [*"0123456789"]


def test_parts_of_another_run_are_not_used(tmp_path):
    source = corpus(tmp_path / "in", *"0123456789")
    with pytest.raises(ZeroDivisionError):
        preprocess(source, Failing("raise"), tmp_path / "out" / "c", workers=1, chunk_bytes=1)
    preprocess(source, ByteTokenizer(), tmp_path / "out" / "c", workers=1, chunk_bytes=1, append_bos=True)
    assert [ids[0] for ids in documents(tmp_path / "out" / "c")] == [256] * 10


def test_two_runs_at_once(tmp_path, monkeypatch):
    from megatron_adapt.data import locking, parts

    monkeypatch.setattr(locking, "PATIENCE", 0.3)
    source = corpus(tmp_path / "in", "a", "b")
    holder = parts.Parts.open(tmp_path / "c", {"of": "somebody"})
    with pytest.raises(DataError, match="c: another process is writing this corpus; wait for it or choose another name"):
        preprocess(source, ByteTokenizer(), tmp_path / "c")
    holder.close()
    assert preprocess(source, ByteTokenizer(), tmp_path / "c")["documents"] == 2


def test_killed_parent_leaves_no_worker(tmp_path):
    """A worker that outlived its parent would hold the lock and write into what the next run writes."""
    source = corpus(tmp_path / "in", *TEXTS)
    file = tmp_path / "worker"
    process = start(source, Stuck(file=file), tmp_path / "c", workers=2, chunk_bytes=1000)
    while not file.exists() or not file.read_text():
        time.sleep(0.01)
    process.kill()
    process.join()
    orphan = int(file.read_text())
    for _ in range(50):
        if not Path(f"/proc/{orphan}").exists() or state(orphan) == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail(f"process {orphan} is still there")


@pytest.mark.parametrize("name,backend", [("gpt2", "gigatoken"), ("de-32k", "gigatoken"), ("de-32k", "compiled")])
def test_real_text(tmp_path, name, backend):
    from megatron_adapt.hf.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(assets("tokenizers", name))
    source = assets("text", "de_ud_gsd.jsonl.gz")
    plain = preprocess(source, tokenizer, tmp_path / "plain" / "c", tokenizer_backend="tokenizers", append_bos=name != "gpt2")
    lines = gzip.decompress(source.read_bytes())
    (tmp_path / "in.jsonl").write_bytes(lines)
    fast = preprocess(
        tmp_path / "in.jsonl", tokenizer, tmp_path / "fast" / "c", tokenizer_backend=backend, workers=2,
        chunk_bytes=50_000, append_bos=name != "gpt2",
    )  # fmt: skip
    assert (plain["tokenizer_backend"], fast["tokenizer_backend"]) == ("tokenizers", backend)
    for suffix in (".bin", ".idx"):
        assert (tmp_path / "plain" / f"c{suffix}").read_bytes() == (tmp_path / "fast" / f"c{suffix}").read_bytes()
