"""Corpora of chats merged: which tokens are learnt goes with the tokens, and whatever happens no mask is another corpus's."""

from __future__ import annotations

import fcntl
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from chats import TEMPLATES, chat, write_chats, write_tokenizer
from harness import ROOT
from test_indexed import files, write

from megatron_adapt.data.chat import Chats
from megatron_adapt.data.indexed import IndexedReader
from megatron_adapt.data.loss_mask import open_mask
from megatron_adapt.data.merge import merge, merge_indexed
from megatron_adapt.data.packing import PackedOrder
from megatron_adapt.data.preprocess import open_corpus, preprocess
from megatron_adapt.errors import DataError
from megatron_adapt.hf.chat_template import ChatTemplate
from megatron_adapt.hf.tokenizer import Tokenizer

TALKS = [chat(f"Sag {number}", "Igel " * (number % 7 + 1), "Und?", "Ja.") for number in range(40)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_tokenizer(tmp_path_factory.mktemp("tokenizer"), TEMPLATES["chatml"]))


def made(tokenizer: Tokenizer, folder: Path, name: str, talks=TALKS, loss_on: str = "answers", **options) -> Path:
    chats = Chats("messages", ChatTemplate.load(tokenizer), loss_on)
    preprocess([write_chats(folder / f"{name}.jsonl", talks)], tokenizer, folder / name, chats=chats, append_eod=False, **options)
    return folder / name


def masked(prefix: Path, mask: bytes, documents: int = 1) -> Path:
    """A corpus of others: so many documents, a token for each byte of the mask, no description."""
    write(prefix, [list(range(len(mask) // documents))] * documents)
    Path(f"{prefix}.loss_mask").write_bytes(mask)
    return prefix


def test_shards_become_the_whole_corpus(tokenizer, tmp_path):
    """All four files are what one machine writes."""
    whole = made(tokenizer, tmp_path, "whole", chunk_bytes=900)
    for part in range(3):
        made(tokenizer, tmp_path, "whole", chunk_bytes=900, shard=(part, 3))
    stats, missing = merge([tmp_path / f"whole_0000{part}-of-00003" for part in range(3)], tmp_path / "all")
    for suffix in (".bin", ".idx", ".loss_mask"):
        assert Path(f"{whole}{suffix}").read_bytes() == Path(f"{tmp_path}/all{suffix}").read_bytes(), suffix
    expected = json.loads((tmp_path / "whole.json").read_text()) | {"loss_mask": "all.loss_mask"}
    assert stats == json.loads((tmp_path / "all.json").read_text()) == expected and not missing and len(stats["shards"]) > 3
    assert stats["trained_tokens"] == open_mask(open_corpus(tmp_path / "all")[0]).sum()
    assert PackedOrder(open_corpus(tmp_path / "all")[0], 96, 0).samples == PackedOrder(open_corpus(whole)[0], 96, 0).samples


def test_one_that_has_nothing_and_one_that_is_named_twice(tokenizer, tmp_path):
    one = made(tokenizer, tmp_path, "one", TALKS[:3])
    made(tokenizer, tmp_path, "few", TALKS[:1], shard=(0, 2))  # a single task, which is the other machine's
    empty = tmp_path / "few_00000-of-00002"
    assert IndexedReader(empty).num_tokens == 0
    stats, _ = merge([one, empty, one], tmp_path / "all")
    assert Path(f"{tmp_path}/all.loss_mask").read_bytes() == 2 * Path(f"{one}.loss_mask").read_bytes()
    assert stats["trained_tokens"] == 2 * open_corpus(one)[1]["trained_tokens"] and stats["documents"] == 6
    assert stats["trained_bytes"] == 2 * open_corpus(one)[1]["trained_bytes"]


def test_without_descriptions(tmp_path):
    one, two = masked(tmp_path / "a", b"\0\1\1"), masked(tmp_path / "b", b"\1\0", 2)
    stats, missing = merge([two, one], tmp_path / "all")
    assert stats == {"documents": 3, "tokens": 5} and len(missing) == 2
    assert Path(f"{tmp_path}/all.loss_mask").read_bytes() == b"\1\0\0\1\1" and IndexedReader(tmp_path / "all").num_documents == 3


def test_all_problems_at_once_and_nothing_written(tokenizer, tmp_path):
    talks, text = made(tokenizer, tmp_path, "talks"), write(tmp_path / "text", [[1]])
    short, lost, odd = masked(tmp_path / "short", b"\1\1"), made(tokenizer, tmp_path, "lost"), made(tokenizer, tmp_path, "odd")
    Path(f"{short}.loss_mask").write_bytes(b"\1")
    Path(f"{lost}.loss_mask").unlink()
    stats = open_corpus(odd)[1]
    Path(f"{odd}.json").write_text(json.dumps({key: value for key, value in stats.items() if key != "loss_mask"}))
    with pytest.raises(DataError) as caught:
        merge([talks, text, short, talks, lost, odd], tmp_path / "all")
    message = str(caught.value)
    assert f"chats ({talks}) and text ({text}) cannot be merged: chats are never cut, and of them answers alone are learnt; keep two corpora" in message
    assert "short.loss_mask has 1 bytes, one for each token, but the corpus 2 tokens; preprocess it again" in message
    assert "cannot open " in message and "lost.loss_mask: No such file or directory; preprocess the corpus of chats again" in message
    assert f"odd.loss_mask lies beside {odd}.json, which describes text, of which all is learnt" in message and message.count(";\n") == 3
    assert not list(tmp_path.glob("all*"))


def test_text_over_chats_has_no_mask(tmp_path):
    """And the other way round; what a reader cannot know is of which of the two a mask is that stays."""
    talks, text = masked(tmp_path / "talks", b"\1\0"), write(tmp_path / "text", [[5, 6]])
    for _ in range(2):
        merge([talks], tmp_path / "all")
        assert files(tmp_path) == sorted([*(f"{n}.{s}" for n in ("all", "talks") for s in ("bin", "idx", "loss_mask")), "text.bin", "text.idx"])
        merge([text], tmp_path / "all")
        assert not Path(f"{tmp_path}/all.loss_mask").exists()


def test_a_mask_that_changes_meanwhile(tmp_path):
    """What the compiled part checks itself: it never copies more or less than the index says."""
    one = masked(tmp_path / "a", b"\1\0")
    for content, message in ((b"\1", "a.loss_mask is shorter than its index"), (b"\1\0\1", "a.loss_mask is longer than its index")):
        Path(f"{one}.loss_mask").write_bytes(content)
        with pytest.raises(DataError, match=message):
            merge_indexed([one], tmp_path / "all", True)
    Path(f"{one}.loss_mask").unlink()
    with pytest.raises(DataError, match=r"cannot read .*a.loss_mask: No such file or directory; .*all was not completed"):
        merge_indexed([one], tmp_path / "all", True)
    assert not list(tmp_path.glob("all*"))


def test_two_at_once(tmp_path):
    one = masked(tmp_path / "a", b"\1\0")
    with (tmp_path / "all.loss_mask.tmp").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="all: another process is writing this corpus"):
            merge([one], tmp_path / "all")
    assert files(tmp_path) == ["a.bin", "a.idx", "a.loss_mask", "all.loss_mask.tmp"]


def test_a_full_disk_leaves_the_former_corpus(tmp_path):
    one = masked(tmp_path / "a", bytes(1000), 20)
    merge([masked(tmp_path / "b", b"\1")], tmp_path / "all")
    before = {path.name: path.read_bytes() for path in tmp_path.glob("all*")}
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(DataError, match="cannot write .*all.bin.tmp: File too large; .*all was not completed"):
            merge([one, one], tmp_path / "all")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("all*")} == before


def test_killed_at_any_time(tokenizer, tmp_path):
    """Two corpora of as many documents and tokens, of which other tokens are learnt, are merged in turn under one name: whenever that
    is killed, what opens is one of them or the other."""
    pairs = {name: made(tokenizer, tmp_path, name, talks) for name, talks in (("one", TALKS), ("two", TALKS[::-1]))}
    pairs["all"] = made(tokenizer, tmp_path, "every", TALKS, "all")
    output, chance, seen = tmp_path / "all", random.Random(0), set()
    known = {}
    for prefix in pairs.values():
        stats, _ = merge([prefix], output)
        known[tuple(Path(f"{output}{suffix}").read_bytes() for suffix in (".bin", ".loss_mask"))] = stats
    for kill in range(500):
        if kill >= 50 and len(seen) == 2:  # a busy machine comes to few merges between two kills
            break
        child = os.fork()
        if child == 0:
            try:
                while True:
                    for prefix in pairs.values():
                        merge([prefix], output)
            finally:
                os._exit(1)
        time.sleep(chance.random() * 0.02)
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        try:
            reader, stats = open_corpus(output)
        except DataError:  # "unfinished": not all of its files are there
            seen.add("unfinished")
            continue
        assert known[reader.tokens.tobytes(), open_mask(reader).tobytes()] == stats
        seen.add("whole")
    assert seen == {"whole", "unfinished"}
    merge([pairs["one"]], output)
    assert not [file.name for file in tmp_path.glob("all*") if file.name.endswith(".tmp")]


def test_the_tool_tells_what_is_learnt(tokenizer, tmp_path):
    prefix = made(tokenizer, tmp_path, "one", TALKS[:3])
    command = [sys.executable, str(ROOT / "tools" / "merge_datasets.py"), "--input", str(prefix), str(prefix), "--output-prefix", str(tmp_path / "all")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=60)
    stats = open_corpus(tmp_path / "all")[1]
    learnt = int(np.fromfile(tmp_path / "all.loss_mask", np.uint8).sum())
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/all: 2 corpora, 6 documents, {stats['tokens']} tokens, {learnt} of them learnt\n")
