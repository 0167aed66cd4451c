"""A model whose own vocabulary is extended or pruned: old rows stay bit for bit, whatever the method, and ids with them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from harness import ROOT
from method_cases import CORPUS, world
from test_surgery import EMBEDDING, HEAD, load, tensors

from megatron_adapt.config import Corpus, TokenizerExtension, TokenizerPruning
from megatron_adapt.errors import ConfigError
from megatron_adapt.families import family_named, initial_tensors
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.hf.weights import WeightWriter
from megatron_adapt.steps import swap as swapping, tokenizer as work, tokenizer_report
from megatron_adapt.steps.reporter import Reporter
from megatron_adapt.vocab.extension import extend
from megatron_adapt.vocab.pruning import prune
from megatron_adapt.vocab.surgery import swap

GENERATION = {"bos_token_id": 0, "eos_token_id": [1, 300], "pad_token_id": None, "suppress_tokens": [500], "temperature": 0.5}


@pytest.fixture(params=[False, True])
def model(request, tmp_path):
    return make_model(tmp_path / "model", request.param)


def make_model(path, tied=False):
    """A tiny Llama of 900 tokens in 960 rows."""
    config = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "tie_word_embeddings": tied, "dtype": "bfloat16",
    }  # fmt: skip
    family = family_named("llama")
    full = family.complete_config(config, vocab_size=960, bos=0, eos=1)
    path.mkdir()
    (path / "config.json").write_text(json.dumps({**full, "eos_token_id": [1, 300]}))
    (path / "generation_config.json").write_text(json.dumps(GENERATION))
    for file in (world().folder / "target").iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    with WeightWriter(path) as writer:
        for name, tensor in initial_tensors(family, family.read_config(full), seed=5, dtype="bfloat16"):
            writer.add(name, tensor)
    return path


@pytest.mark.parametrize("method", ["subwords", "random"])
def test_extended(tmp_path, model, method):
    source = Tokenizer.load(model)
    extend(source, world().german, 20, tmp_path / "tokenizer")
    report = swap(model, tmp_path / "tokenizer", tmp_path / "out", method)
    old, new = tensors(model), tensors(tmp_path / "out")
    assert (report["derived"], report["target_vocab_size"], report["target_rows"]) == ("extended", 920, 960)
    for name in {EMBEDDING, HEAD} & set(old):
        assert new[name][:900].equal(old[name][:900]) and new[name][920:].equal(old[name][920:])  # padded rows, too
        assert not (new[name][900:920] == old[name][900:920]).all(1).any()
    assert all(new[name].equal(old[name]) for name in set(old) - {EMBEDDING, HEAD})
    assert report["copied"] == 940 and report["composed"] + report["drawn"] == 20
    assert (report["composed"] > 0) == (method == "subwords")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["vocab_size"], config["bos_token_id"], config["eos_token_id"]) == (960, 0, [1, 300])
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == GENERATION
    loaded, tokenizer = load(tmp_path / "out")
    ids = torch.tensor([source.encode(["Haus und"])[0].tolist()])
    assert loaded(ids).logits[..., :900].equal(load(model)[0](ids).logits[..., :900]) and len(tokenizer) == 920


def test_extended_beyond_the_rows(tmp_path):
    model = make_model(tmp_path / "model")
    extend(Tokenizer.load(model), world().german, 100, tmp_path / "tokenizer")
    report = swap(model, tmp_path / "tokenizer", tmp_path / "out", "mean", pad_to_multiple=128)
    assert (report["target_vocab_size"], report["target_rows"]) == (1000, 1024)


def test_pruned(tmp_path, model):
    source = Tokenizer.load(model)
    prune(source, world().german[:60], tmp_path / "tokenizer", keep=400)
    target = Tokenizer.load(tmp_path / "tokenizer")
    report = swap(model, tmp_path / "tokenizer", tmp_path / "out", "random", pad_to_multiple=16)
    old, new = tensors(model), tensors(tmp_path / "out")
    rows = [source.tokens().index(token) for token in target.tokens()]
    assert (report["derived"], report["target_rows"], report["copied"], report["composed"]) == ("pruned", 400, 400, 0)
    for name in {EMBEDDING, HEAD} & set(old):
        assert new[name].equal(old[name][rows])
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    place = {index: new for new, index in enumerate(rows)}
    assert generation["bos_token_id"] == place[0] and generation["temperature"] == 0.5
    assert generation["eos_token_id"] == ([place[1], place[300]] if 300 in place else place[1])
    assert generation.get("suppress_tokens") == ([place[500]] if 500 in place else None)
    loaded, tokenizer = load(tmp_path / "out")
    text = world().german[0]
    ids = torch.tensor([target.encode([text])[0].tolist()])
    assert len(tokenizer) == 400 and loaded(ids).logits.equal(load(model)[0](torch.tensor(rows)[ids]).logits[..., rows])


def test_a_derived_tokenizer_of_another_model_is_like_any_other(tmp_path):
    model = make_model(tmp_path / "model")
    extend(world().source, world().german, 20, tmp_path / "tokenizer")
    report = swap(model, tmp_path / "tokenizer", tmp_path / "out", "copy")
    assert report["derived"] is None and report["target_rows"] == 720


def test_commands(tmp_path):
    """--extend on the command line; what is made for it is gone afterwards."""
    model = make_model(tmp_path / "model")
    words = ["swap", model, tmp_path / "out", "--extend", 30, "--corpus", CORPUS / "de.jsonl", "--min-count", 3]
    done = subprocess.run([sys.executable, "-m", "megatron_adapt", *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "30 new tokens, 930 in all; 30 are reachable" in done.stdout + done.stderr, done.stderr
    receipt = json.loads((tmp_path / "out" / "receipt.json").read_text())["metrics"]
    assert receipt["derived"] == "extended" and receipt["tokenizer"]["new_tokens"] == 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


FILES = [str(ROOT / "examples" / "quickstart" / "corpus" / "de.jsonl")]


@pytest.mark.parametrize(("way", "message"), [
    ((None, False, {"tokens": None}, FILES), "needs one of --tokenizer DIR, --extend N and --prune, got none"),
    (("t", False, {"tokens": 5}, FILES), "got --tokenizer and --extend"),
    ((None, True, {"tokens": 5}, FILES), "got --extend and --prune"),
    (("t", False, {"tokens": None, "min_count": 3}, FILES), "--min-count: for --extend and --prune only; --tokenizer is taken as it is"),
    ((None, False, {"tokens": 5}, []), "--extend learns from text: name files with --corpus"),
    ((None, True, {"tokens": None, "reuse": True}, FILES), "tokenizer prune has no option --reuse"),
    ((None, False, {"tokens": 5, "keep": 9}, FILES), "tokenizer extend has no option --keep"),
])  # fmt: skip
def test_one_target(tmp_path, way, message):
    path, pruning, changes, files = way
    with pytest.raises(ConfigError, match=message):
        work.target(tmp_path, path, pruning, changes, work.files(files, "text") if files else [])
    with pytest.raises(ConfigError, match="on_error must be 'stop' or 'skip', not 'pass'"):
        work.files(FILES, "text", "pass")


def test_options_of_the_command_line():
    assert work.making("extend", {"tokens": 7, "min_count": None, "reuse": False, "type": "bpe"}) == TokenizerExtension(
        corpora=["input"], tokens=7)
    with pytest.raises(ConfigError, match=r"--tokens: is missing\.\n--min-count: Input should be greater"):
        work.making("extend", {"min_count": 0})
    with pytest.raises(ConfigError, match="--digits: sentencepiece cannot count digits"):
        work.making("train", {"vocab_size": 500, "type": "unigram", "digits": "three"})
    with pytest.raises(ConfigError, match="tokenizer prune has no option --vocab-size, --digits"):
        work.making("prune", {"vocab_size": 500, "digits": "single"})


def test_what_is_told(tmp_path):
    model = make_model(tmp_path / "model")
    lines: list[str] = []

    class Listener(Reporter):
        def log(self, text):
            lines.append(text)

    corpus = [Corpus(path=str(CORPUS / "de.jsonl"))]
    work.make(TokenizerPruning(corpora=["de"], keep=500), model, corpus, tmp_path / "pruned", Listener())
    assert lines[0].startswith("500 of 900 tokens stay, ") and "bytes a token" in lines[0] and len(lines) == 1
    stats = {"round_trip": {"documents": 4, "changed": 3}}
    work._tell_losses(stats, Listener())
    assert lines[1] == "warning: 3 of 4 documents come back changed when they are decoded"


def test_bad_lines_that_are_skipped_are_told_once(tmp_path, capsys):
    """By all that read text, however often they do."""
    model = make_model(tmp_path / "model")
    lines = (CORPUS / "de.jsonl").read_text(encoding="utf-8").splitlines()[:200]
    (tmp_path / "de.jsonl").write_text("\n".join([*lines[:2], "broken", *lines[2:]]) + "\n", encoding="utf-8")
    corpora = work.files([str(tmp_path / "de.jsonl")], "text", "skip")
    told: list[str] = []

    class Listener(Reporter):
        def log(self, text):
            told.append(text)

    work.make(TokenizerPruning(corpora=["de"], keep=500), model, corpora, tmp_path / "pruned", Listener())
    swapping.run(model, tmp_path / "pruned", tmp_path / "swapped", swapping.Choice("default", {}, 1, 1, corpora, True), Listener())
    skipped = [line for line in told if line.startswith("skipped ")]
    assert len(skipped) == 2 and all(line.startswith(f"skipped {tmp_path}/de.jsonl:3: not JSON") for line in skipped)
    capsys.readouterr()
    tokenizer_report.run([str(model)], corpora, None)
    assert capsys.readouterr().err.splitlines() == skipped[:1]


def test_the_last_document_is_cut(tmp_path):
    """A file of lines without blank ones is a single document, and may be longer than what is to be read."""
    (tmp_path / "one.txt").write_text("äöü" * 100, encoding="utf-8")
    (tmp_path / "more.txt").write_text("abc", encoding="utf-8")
    corpora = [Corpus(path=str(tmp_path / "more.txt")), Corpus(path=str(tmp_path / "one.txt"))]
    assert list(work.training_texts(corpora, 8)) == ["abc", "äö"] and list(work.training_texts(corpora, 3)) == ["abc"]
    assert list(work.training_texts(corpora)) == ["abc", "äöü" * 100]
    (tmp_path / "more.txt").write_text("abc\ndef\n", encoding="utf-8")
    assert list(work.training_texts([Corpus(path=str(tmp_path / "more.txt"), text_documents="lines")])) == ["abc", "def"]
