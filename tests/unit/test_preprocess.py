"""Raw text to .bin/.idx: what is written and what is counted."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from harness import ROOT, assets

from megatron_adapt.config import Corpus
from megatron_adapt.data.command import main
from megatron_adapt.data.held_out import without_held_out
from megatron_adapt.data.indexed import IndexedReader
from megatron_adapt.data.preprocess import open_corpus, preprocess, preprocess_keys, tokenizer_file
from megatron_adapt.errors import ConfigError, DataError
from megatron_adapt.steps import preprocess as step
from megatron_adapt.steps.reporter import Reporter

BOS, EOS, UNK = 256, 257, 63


class ByteTokenizer:
    """One token per byte; a question mark is the unknown token, and spaces at the ends vanish."""

    vocab_size, bos_id, eos_id, unk_id, pad_id = 300, BOS, EOS, UNK, None
    digest = "b" * 64
    path = Path("byte-tokenizer")
    library, definition = "tokenizers", None

    def __init__(self, **changes: object) -> None:
        self.__dict__.update(changes)

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        named = {"<s>": [BOS], "</s>": [EOS], "<s></s>": [BOS, EOS]}
        return [np.array(named.get(text) or list(text.strip().encode()), dtype=np.int32) for text in texts]


def corpus(folder: Path, *texts: str, name: str = "in.jsonl") -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return folder / name


def documents(prefix: Path) -> list[list[int]]:
    reader = IndexedReader(prefix)
    return [reader[i].tolist() for i in range(len(reader))]


def held_out(folder: Path) -> list[str]:
    return [json.loads(line)["text"] for line in (folder / "held_out.jsonl").read_text(encoding="utf-8").splitlines()]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_ids_stats_and_files(tmp_path):
    source = corpus(tmp_path, "Käse?", "", "  ", "a\ud800", "zwei")
    with source.open("a") as stream:
        stream.write("broken\n")
    skipped: list[str] = []
    out = tmp_path / "new" / "out"
    stats = preprocess(
        source, ByteTokenizer(), out / "c", append_bos=True, on_error="skip", on_skip=skipped.append
    )
    assert documents(out / "c") == [[BOS, *text.encode(), EOS] for text in ("Käse?", "a\ufffd", "zwei")]
    assert files(out) == ["c.bin", "c.idx", "c.json", "c.skipped.jsonl"]
    assert stats.pop("seconds") > 0
    ids = np.array([token for document in documents(out / "c") for token in document], dtype=np.uint16)
    assert stats == json.loads((out / "c.json").read_text()) == {
        "documents": 3, "tokens": 20, "bytes": 14, "skipped": 1, "empty": 2, "replaced_surrogates": 1,
        "held_out": None, "held_out_documents": 0, "held_out_bytes": 0, "unknown_tokens": 1,
        "tokenizer_digest": "b" * 64, "tokenizer_path": "byte-tokenizer", "vocab_size": 300, "dtype": "uint16",
        "append_bos": True, "append_eod": True, "parse_special_tokens": False, "tokenizer_backend": "tokenizers",
        "sequences": 3, "split_sentences": None, "skipped_lines": "c.skipped.jsonl",
        "shards": [[3, 20, hashlib.sha256(ids.tobytes()).hexdigest()]],
    }  # fmt: skip
    assert len(skipped) == 1 and skipped[0].startswith(f"{source}:6: not JSON")
    side = [json.loads(line) for line in (out / "c.skipped.jsonl").read_text().splitlines()]
    assert side == [{"file": str(source), "line": 6, "error": skipped[0].split(": ", 1)[1], "data": "broken"}]


@pytest.mark.parametrize(
    "bos, eod, expected",
    [
        (False, False, [[97], [BOS], [EOS], [BOS, EOS]]),
        (False, True, [[97, EOS], [BOS, EOS], [EOS], [BOS, EOS]]),
        (True, False, [[BOS, 97], [BOS], [BOS, EOS], [BOS, EOS]]),
        (True, True, [[BOS, 97, EOS], [BOS, EOS], [BOS, EOS], [BOS, EOS]]),
    ],
)
def test_special_tokens_are_never_doubled(tmp_path, bos, eod, expected):
    source = corpus(tmp_path, "a", "<s>", "</s>", "<s></s>")
    preprocess(source, ByteTokenizer(), tmp_path / "c", append_bos=bos, append_eod=eod)
    assert documents(tmp_path / "c") == expected


def test_appended_eod_does_not_count_as_unknown(tmp_path):
    stats = preprocess(corpus(tmp_path, "a", "b"), ByteTokenizer(unk_id=EOS), tmp_path / "c")
    assert stats["unknown_tokens"] == 0
    stats = preprocess(corpus(tmp_path, "a?"), ByteTokenizer(unk_id=None), tmp_path / "c")
    assert stats["unknown_tokens"] == 0


def test_progress(tmp_path):
    source = corpus(tmp_path, *(f"document {i} " * (i % 7) + "x" for i in range(100)))
    progress: list[dict] = []
    stats = preprocess(source, ByteTokenizer(), tmp_path / "c", chunk_bytes=1000, on_progress=progress.append)
    assert len(progress) == 5 and [done["documents"] for done in progress] == sorted(done["documents"] for done in progress)
    assert {key: progress[-1][key] for key in ("documents", "tokens", "bytes")} == {
        key: stats[key] for key in ("documents", "tokens", "bytes")
    }
    assert progress[-1]["read"] == progress[-1]["total"] == source.stat().st_size


@pytest.mark.parametrize(
    "count, share, expected",
    [
        (10, 0.2, [4, 9]),
        (10, 0.3, [3, 6, 9]),
        (100, 0.29, 29),  # 100 * 0.29 is 28.999999999999996 as a float
        (4, 0.9, [1, 2, 3]),
        (5, 0.001, [4]),
        (2, 0.1, [1]),
        (1, 0.5, []),
        (10, 0.0, []),
    ],
)
def test_held_out_share(tmp_path, count, share, expected):
    texts = [f"ü{i}" for i in range(count)]
    stats = preprocess(corpus(tmp_path, *texts), ByteTokenizer(), tmp_path / "c", held_out=share, append_eod=False)
    kept = held_out(tmp_path) if stats["held_out"] else []
    if isinstance(expected, int):
        assert len(kept) == expected
    else:
        assert kept == [texts[i] for i in expected]
    trained = [bytes(document).decode() for document in documents(tmp_path / "c")]
    assert trained == list(without_held_out(iter(["", *texts]), Fraction(str(share))))
    assert trained == [text for text in texts if text not in kept]
    assert stats["held_out_documents"] == len(kept) and stats["documents"] == count - len(kept)
    assert stats["held_out_bytes"] == sum(len(text.encode()) for text in kept)
    assert stats["bytes"] == sum(len(text.encode()) for text in trained)
    assert stats["held_out"] == ("held_out.jsonl" if kept else None)


def test_held_out_file(tmp_path):
    own = tmp_path / "valid.txt"
    own.write_text("eins\nzwei\n\n\U0001f600 drei\n", encoding="utf-8")
    source = corpus(tmp_path / "in", "a", "b")
    stats = preprocess(source, ByteTokenizer(), tmp_path / "out" / "c", held_out_path=own)
    assert held_out(tmp_path / "out") == ["eins\nzwei", "\U0001f600 drei"]
    assert (stats["held_out_documents"], stats["held_out_bytes"], stats["documents"]) == (2, 18, 2)
    stats = preprocess(source, ByteTokenizer(), tmp_path / "out" / "c", held_out_path=own, text_documents="lines")
    assert held_out(tmp_path / "out") == ["eins", "zwei", "\U0001f600 drei"]


def test_max_documents(tmp_path):
    source = corpus(tmp_path, *"abcdefgh")
    stats = preprocess(source, ByteTokenizer(), tmp_path / "c", max_documents=5, held_out=0.4, append_eod=False)
    assert held_out(tmp_path) == ["c", "e"] and documents(tmp_path / "c") == [[97], [98], [100]]
    assert stats["documents"] == 3


def test_open_corpus(tmp_path):
    prefix = tmp_path / "c"
    stats = preprocess(corpus(tmp_path, "abc", "d"), ByteTokenizer(), prefix)
    for digest in (None, "b" * 64):
        reader, found = open_corpus(prefix, digest)
        assert reader.num_tokens == found["tokens"] == 6 and found["bytes"] == stats["bytes"] == 4
    message = r"c was tokenized with another tokenizer \(byte-tokenizer, digest b{12}, expected a{12}\); preprocess it"
    with pytest.raises(DataError, match=message):
        open_corpus(prefix, "a" * 64)
    description = (tmp_path / "c.json").read_text()
    for text in ("{", "[]", "{}", description.replace('"bytes"', '"size"')):
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(DataError, match="c.json is not a description of a corpus; preprocess the corpus .*c again"):
            open_corpus(prefix)
    (tmp_path / "c.json").write_text(description.replace('"tokens": 6', '"tokens": 7'))
    with pytest.raises(DataError, match="c.json describes 2 documents with 7 tokens but .*c.idx has 2 with 6"):
        open_corpus(prefix)
    (tmp_path / "c.json").unlink()
    (tmp_path / "c.json").mkdir()
    with pytest.raises(DataError, match="cannot read .*c.json: Is a directory"):
        open_corpus(prefix)


def test_several_keys(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "a", "title": "b"}\n')
    results = preprocess_keys(source, ByteTokenizer(), tmp_path / "c", ["text", "title"], append_eod=False)
    assert list(results) == [f"{tmp_path}/c_text_document", f"{tmp_path}/c_title_document"]
    assert [documents(Path(prefix)) for prefix in results] == [[[97]], [[98]]]
    with pytest.raises(ConfigError, match="held-out text can be set aside for one JSON key at a time, not for text"):
        preprocess_keys(source, ByteTokenizer(), tmp_path / "c", ["text", "title"], held_out=0.1)


def test_tokenizer_file(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"")
    model = tmp_path / "tokenizer.model"
    assert tokenizer_file(tmp_path) == tokenizer_file(tmp_path, "HuggingFaceTokenizer") == tmp_path
    for path in (tmp_path, model):
        assert tokenizer_file(path, "SentencePieceTokenizer") == model
    with pytest.raises(ConfigError, match="is a sentencepiece model; use --tokenizer-type SentencePieceTokenizer"):
        tokenizer_file(model, "HuggingFaceTokenizer")
    model.unlink()
    with pytest.raises(ConfigError, match="tokenizer.model is not a sentencepiece .model file, which Sentenc"):
        tokenizer_file(tmp_path, "SentencePieceTokenizer")


def word_tokenizer(folder: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "ein": 2, "Satz": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["</s>"])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>", "unk_token": "<unk>"}')
    return folder


def test_command(tmp_path, capsys):
    source = corpus(tmp_path, "ein Satz", "noch ein Satz", "ein ein")
    with source.open("a") as stream:
        stream.write("{}\n")
    arguments = ["--input", str(source), "--output-prefix", str(tmp_path / "c"), "--append-eod", "--log-interval", "1"]
    arguments += ["--tokenizer-type", "HuggingFaceTokenizer"]
    arguments += ["--tokenizer-model", str(word_tokenizer(tmp_path / "tok"))]
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1
    assert f"{source}:4: no key 'text'; the keys are none" in output.err
    assert main([*arguments, "--on-error", "skip", "--max-documents", "3", "--held-out", "0.1"]) == 0
    output = capsys.readouterr()
    counts = "2 documents, 7 tokens (uint16, tokenizers), 21 bytes of text (3.00 a token), 0.0 MB on disk, "
    assert output.out.startswith(f"{tmp_path}/c_text_document: {counts}")
    assert output.out.endswith(" s, 1 held out, 1 unknown tokens\n")
    assert "Processed 2 documents (" in output.err
    assert documents(tmp_path / "c_text_document") == [[2, 3, 1], [0, 2, 3, 1]] and held_out(tmp_path) == ["ein ein"]
    assert main([*arguments, "--on-error", "skip", "--log-interval", "0"]) == 0
    output = capsys.readouterr()
    assert "Processed" not in output.err and f"skipped {source}:4: no key 'text'" in output.err
    assert "1 bad lines skipped" in output.out


def test_lines_by_a_recipe(tmp_path):
    (tmp_path / "in.txt").write_text("ein Satz\nein\n", encoding="utf-8")
    recipe = Corpus(path=str(tmp_path / "in.txt"), text_documents="lines")
    step.run(recipe, word_tokenizer(tmp_path / "tok"), tmp_path / "out", Reporter(), 1, "german")
    assert documents(tmp_path / "out" / step.PREFIX) == [[2, 3, 1], [2, 1]]


def test_lines_by_the_command(tmp_path):
    (tmp_path / "in.txt").write_text("ein Satz\r\nein\r\n\r\n", encoding="utf-8", newline="")
    arguments = ["--input", str(tmp_path / "in.txt"), "--tokenizer-model", str(word_tokenizer(tmp_path / "tok"))]
    assert main([*arguments, "--output-prefix", str(tmp_path / "c"), "--text-documents", "lines"]) == 0
    assert documents(tmp_path / "c_text_document") == [[2, 3], [2]]


def test_shards_by_the_command(tmp_path, capsys):
    source = corpus(tmp_path, *["ein Satz"] * 9)
    words = ["--input", str(source), "--output-prefix", str(tmp_path / "c"), "--tokenizer-model", str(word_tokenizer(tmp_path / "t"))]
    assert main([*words, "--shard", "0/2"]) == 0 and main([*words, "--shard", "1/2"]) == 0
    out = capsys.readouterr().out
    assert "c_text_document_00000-of-00002: 0 documents, 0 tokens" in out
    assert "c_text_document_00001-of-00002: 9 documents, 18 tokens" in out


def test_tool_runs(tmp_path):
    def tool(*tokenizer: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / "tools" / "preprocess_data.py"), "--input", str(source)]
        command += ["--output-prefix", str(tmp_path / "c"), "--tokenizer-model", *tokenizer]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    source = corpus(tmp_path, "ein Satz")
    good = tool(str(word_tokenizer(tmp_path / "tok")))
    assert good.returncode == 0 and documents(tmp_path / "c_text_document") == [[2, 3]], good.stderr
    bad = tool(str(tmp_path / "none"))
    assert bad.returncode == 2 and "none" in bad.stderr and "Traceback" not in bad.stderr
    unknown = tool("x", "--vocab-file", "v")
    assert unknown.returncode == 2 and "--vocab-file and --merge-file are not read: load them with" in unknown.stderr
    unknown = tool("x", "--wrokers", "4")
    assert unknown.returncode == 2 and "unrecognized arguments: --wrokers 4" in unknown.stderr


@pytest.mark.parametrize("name", ["de-32k", "gpt2"])
def test_real_text(tmp_path, name):
    from megatron_adapt.hf.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(assets("tokenizers", name))
    source = assets("text", "de_ud_gsd.jsonl.gz")
    stats = preprocess(source, tokenizer, tmp_path / "c", held_out=0.05)
    reader, _ = open_corpus(tmp_path / "c", tokenizer.digest)
    assert (stats["held_out_documents"], stats["documents"]) == (88, 1688)
    assert reader[0][-1] == tokenizer.eos_id
    assert tokenizer.decode(reader[0][:-1]).strip() == "Manasse ist ein einzigartiger Parfümeur."
    builder_module = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    theirs = builder_module.IndexedDataset(str(tmp_path / "c"))
    assert len(theirs) == len(reader) and all(np.array_equal(theirs[i], reader[i]) for i in range(len(reader)))
