"""Merging: equal to Megatron's add_index byte for byte, all problems at once, nothing half-written."""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from harness import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_indexed import files, write

from megatron_adapt.data.indexed import IndexedReader, IndexedWriter
from megatron_adapt.data.merge import find_prefixes, merge, merge_indexed
from megatron_adapt.data.merge_command import main
from megatron_adapt.errors import ConfigError, DataError

STATS = {
    "documents": 4, "tokens": 6, "bytes": 20, "skipped": 1, "held_out": "held_out.jsonl", "held_out_documents": 2,
    "held_out_bytes": 9, "unknown_tokens": 0, "tokenizer_digest": "d" * 64, "tokenizer_path": "tokenizer", "dtype": "uint16",
    "sequences": 4, "skipped_lines": "a.skipped.jsonl", "shards": [[4, 6, "f" * 64]],
}  # fmt: skip


def describe(prefix: Path, **changes: object) -> Path:
    Path(f"{prefix}.json").write_text(json.dumps({**STATS, **changes}))
    return prefix


def merge_with_megatron(prefixes: list[Path], output: Path) -> None:
    module = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    builder = module.IndexedDatasetBuilder(f"{output}.bin", dtype=IndexedReader(prefixes[0]).dtype.type)
    with mock.patch.object(module, "gc"):  # it collects garbage after every index, which takes longer than all else here
        for prefix in prefixes:
            builder.add_index(str(prefix))
    builder.finalize(f"{output}.idx")


def write_sequences(prefix: Path, documents: list[list[list[int]]], dtype: type) -> None:
    """Documents of any number of sequences, as Megatron's --split-sentences makes them."""
    module = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    builder = module.IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in documents:
        builder.add_document(np.array(sum(document, []), dtype=dtype), [len(sequence) for sequence in document])
    builder.finalize(f"{prefix}.idx")


sequences = st.lists(st.lists(st.integers(0, 120), max_size=6), max_size=3)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    corpora=st.lists(st.lists(sequences, max_size=6), min_size=1, max_size=5),
    dtype=st.sampled_from([np.uint16, np.int32, np.uint8, np.int64]),
)
def test_same_bytes_as_megatron(tmp_path, corpora, dtype):
    prefixes = [tmp_path / f"part_{number}" for number in range(len(corpora))]
    for prefix, documents in zip(prefixes, corpora):
        write_sequences(prefix, documents, dtype)
    stats, missing = merge(prefixes, tmp_path / "ours")
    merge_with_megatron(prefixes, tmp_path / "theirs")
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"ours.{suffix}").read_bytes() == (tmp_path / f"theirs.{suffix}").read_bytes()
    flat = [sum(document, []) for documents in corpora for document in documents]
    assert stats == {"documents": len(flat), "tokens": sum(map(len, flat))} and len(missing) == len(prefixes)
    reader = IndexedReader(tmp_path / "ours")
    assert [reader[i].tolist() for i in range(len(reader))] == flat
    for prefix in prefixes:
        for suffix in ("bin", "idx"):
            os.unlink(f"{prefix}.{suffix}")


def test_more_than_a_block_and_a_buffer(tmp_path):
    rng = np.random.default_rng(0)
    parts = []
    for number, count in enumerate((100_000, 0, 70_000)):
        lengths = rng.integers(0, 12, size=count)
        with IndexedWriter(tmp_path / f"p{number}", 70_000) as writer:
            writer.add(rng.integers(0, 70_000, size=lengths.sum()), lengths)
        parts.append(IndexedReader(tmp_path / f"p{number}"))
    merge([part.prefix for part in parts], tmp_path / "all")
    whole = IndexedReader(tmp_path / "all")
    assert np.array_equal(whole.tokens, np.concatenate([part.tokens for part in parts]))
    assert np.array_equal(whole.sizes, np.concatenate([part.sizes for part in parts]))


def test_descriptions_are_merged(tmp_path):
    one = describe(write(tmp_path / "a", [[1], [2, 3]]), bytes=20, skipped=1, part="a")
    two = describe(write(tmp_path / "b", [[4]]), documents=1, tokens=1, bytes=5, skipped=2, tokenizer_path="moved", part="b")
    Path(f"{tmp_path}/all.json").write_text("{}")
    stats, missing = merge([one, two], tmp_path / "all")
    assert missing == [] and stats == json.loads((tmp_path / "all.json").read_text())
    assert stats == {
        **STATS, "documents": 5, "tokens": 7, "bytes": 25, "skipped": 3, "held_out": None, "held_out_documents": 0,
        "held_out_bytes": 0, "sequences": 8, "skipped_lines": None, "shards": STATS["shards"] * 2,
    }  # fmt: skip
    assert files(tmp_path) == ["a.bin", "a.idx", "a.json", "all.bin", "all.idx", "all.json", "b.bin", "b.idx", "b.json"]


def test_a_corpus_named_twice_counts_twice(tmp_path):
    one, two = describe(write(tmp_path / "a", [[1], [2, 3]])), describe(write(tmp_path / "b", [[4]]))
    stats, _ = merge([one, two, one], tmp_path / "all")
    assert len(IndexedReader(tmp_path / "all")) == 5
    assert (stats["documents"], stats["bytes"], stats["shards"]) == (3 * 4, 3 * 20, STATS["shards"] * 3)


def test_without_all_descriptions_there_is_none(tmp_path):
    one, two = describe(write(tmp_path / "a", [[1]])), write(tmp_path / "b", [[4]])
    describe(tmp_path / "all")  # of a former corpus
    stats, missing = merge([one, two], tmp_path / "all")
    assert stats == {"documents": 2, "tokens": 2} and missing == [tmp_path / "b.json"]
    assert not (tmp_path / "all.json").exists()


def test_all_problems_at_once_and_nothing_written(tmp_path):
    good, wide = write(tmp_path / "good", [[1]]), write(tmp_path / "wide", [[1]], vocab_size=70_000)
    damaged = write(tmp_path / "damaged", [[1], [2]])
    os.truncate(f"{damaged}.bin", 3)
    with pytest.raises(DataError) as caught:
        merge([good, damaged, tmp_path / "nowhere", wide], tmp_path / "all")
    message = str(caught.value)
    assert "damaged.bin has 3 bytes but damaged.idx describes 4" in message and "nowhere.idx: No such file" in message
    assert f"ids of different types cannot be merged: {good} has uint16, {wide} has int32; preprocess all" in message
    assert not list(tmp_path.glob("all*"))


def test_descriptions_that_do_not_fit(tmp_path):
    one = describe(write(tmp_path / "a", [[1]]))
    two = describe(write(tmp_path / "b", [[4]]), tokenizer_digest="e" * 64, tokenizer_path="other")
    with pytest.raises(DataError, match=f"different tokenizers cannot be merged: {one} with tokenizer, {two} with other"):
        merge([one, two], tmp_path / "all")
    Path(f"{two}.json").write_text("[]")
    with pytest.raises(DataError, match="b.json is not a description of a corpus; preprocess .*b again"):
        merge([one, two], tmp_path / "all")
    Path(f"{two}.json").unlink()
    Path(f"{two}.json").mkdir()
    with pytest.raises(DataError, match="cannot read .*b.json: Is a directory"):
        merge([one, two], tmp_path / "all")
    assert not list(tmp_path.glob("all*"))


@pytest.mark.parametrize("key, value, shown", [
    ("append_eod", False, "true, .*b has false"), ("append_bos", True, "false, .*b has true"),
    ("parse_special_tokens", True, "false, .*b has true"), ("split_sentences", "german", 'null, .*b has "german"'),
])  # fmt: skip
def test_corpora_that_were_encoded_differently(tmp_path, key, value, shown):
    alike = {"append_eod": True, "append_bos": False, "parse_special_tokens": False, "split_sentences": None}
    one, two = describe(write(tmp_path / "a", [[1]]), **alike), describe(write(tmp_path / "b", [[4]]), **{**alike, key: value})
    with pytest.raises(DataError, match=f"corpora with different {key} are not merged: {one} has {shown}; preprocess all alike, or say --mixed"):
        merge([one, two], tmp_path / "all")
    assert not list(tmp_path.glob("all*"))
    words = ["--input", str(one), str(two), "--output-prefix", str(tmp_path / "all")]
    assert main(words) == 2 and main([*words, "--mixed"]) == 0
    merged = json.loads((tmp_path / "all.json").read_text())
    assert key not in merged and merged["documents"] == 8 and alike.keys() - merged.keys() == {key}


def test_wrong_arguments(tmp_path):
    one = write(tmp_path / "a", [[1]])
    with pytest.raises(ConfigError, match="a is an input and would be overwritten; choose another output prefix"):
        merge([one], tmp_path / "." / "a")
    with pytest.raises(ConfigError, match="there is nothing to merge: name at least one corpus"):
        merge([], tmp_path / "all")
    with pytest.raises(ConfigError, match="nowhere is not a folder of corpora"):
        find_prefixes(tmp_path / "nowhere")
    (tmp_path / "b.idx").touch(), (tmp_path / "c.bin").touch()
    with pytest.raises(ConfigError, match="b.idx, c.bin without the other file of the pair .bin and .idx"):
        find_prefixes(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty holds no corpus"):
        find_prefixes(tmp_path / "empty")


def test_a_file_that_changes_meanwhile(tmp_path):
    """What the compiled part checks itself: it never copies more or less than the index says."""
    one = write(tmp_path / "a", [[1, 2]])
    for data, message in ((b"123", "a.bin is shorter than its index"), (b"12345", "a.bin is longer than its index")):
        Path(f"{one}.bin").write_bytes(data)
        with pytest.raises(DataError, match=message):
            merge_indexed([one], tmp_path / "all")
    wide = write(tmp_path / "wide", [[1]], vocab_size=70_000)
    with pytest.raises(DataError, match="wide has another type of ids than .*a"):
        merge_indexed([one, wide], tmp_path / "all")
    Path(f"{one}.bin").write_bytes(b"1234")
    index = Path(f"{one}.idx").read_bytes()
    for content, message in ((index[:20], "a.idx ends before what its header"), (b"x" * 40, "a.idx is not the index of a corpus")):
        Path(f"{one}.idx").write_bytes(content)
        with pytest.raises(DataError, match=message):
            merge_indexed([one], tmp_path / "all")
    os.unlink(f"{one}.idx")
    with pytest.raises(DataError, match=r"cannot read .*a.idx: No such file or directory; .*all was not completed"):
        merge_indexed([one], tmp_path / "all")
    assert not list(tmp_path.glob("all*"))


def test_a_full_disk_leaves_the_former_corpus(tmp_path):
    one = describe(write(tmp_path / "a", [[1] * 5000]))
    former = describe(write(tmp_path / "all", [[7]]), documents=1, tokens=1)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("all*")}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(DataError, match="cannot write .*all.bin.tmp: File too large; .*all was not completed"):
            merge([one, one], former)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("all*")} == before


MEMORY = """
import resource, sys
from megatron_adapt.data.merge import merge
merge([sys.argv[1]], sys.argv[2])  # warm
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
merge([sys.argv[1]] * 20, sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_documents(tmp_path):
    """20 times 200,000 documents: Megatron's add_index would need 320 MB for them."""
    documents = 200_000
    index = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 8, documents, documents + 1)
    index += np.ones(documents, "<i4").tobytes() + (2 * np.arange(documents)).tobytes() + np.arange(documents + 1).tobytes()
    (tmp_path / "a.idx").write_bytes(index)
    (tmp_path / "a.bin").write_bytes(bytes(2 * documents))
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "a"), str(tmp_path / "all")]
    grown = int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert IndexedReader(tmp_path / "all").num_documents == 20 * documents
    assert grown < 8_000, f"{grown} KB"


def tool(*arguments: object, program: tuple[str, ...] = (str(ROOT / "tools" / "merge_datasets.py"),)) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *program, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


def test_the_tool_takes_folders_and_prefixes(tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    for name, token in (("part_1", 1), ("part_0", 0), ("part_10", 10)):
        write(folder / name, [[token]])
    done = tool("--input", folder, "--output-prefix", tmp_path / "all")
    assert done.returncode == 0 and done.stdout == f"{tmp_path}/all: 3 corpora, 3 documents, 3 tokens\n"
    assert done.stderr == f"no {tmp_path}/all.json: {folder}/part_0.json, {folder}/part_1.json, {folder}/part_10.json missing\n"
    assert IndexedReader(tmp_path / "all").tokens.tolist() == [0, 1, 10]
    verb = ("-m", "megatron_adapt", "merge")
    done = tool("--input", folder / "part_10", folder / "part_0", "--output-prefix", tmp_path / "two", program=verb)
    assert done.returncode == 0 and IndexedReader(tmp_path / "two").tokens.tolist() == [10, 0]
    failed = tool("--input", tmp_path / "nowhere", "--output-prefix", tmp_path / "x")
    assert failed.returncode == 2 and "cannot open" in failed.stderr and "Traceback" not in failed.stderr
