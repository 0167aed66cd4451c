"""The verbs on plain paths, without a recipe, as people script them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from commands import Shop, entries
from harness import ROOT


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def bits(out: str) -> float:
    return float(re.search(r": (\d+\.\d+) bits per byte", out)[1])  # type: ignore[index]


@pytest.fixture(scope="module")
def checkpoint(shop: Shop, model: Path) -> Path:
    """The model as a Megatron checkpoint."""
    out = shop.run("import", "out/model", "plain/checkpoint").succeeded().out
    assert re.search(r"41,120 parameters; 21 tensors equal bit for bit, logits of \d+ positions within \d\.\de-0[789] at TP 1 and 2", out)
    assert out.endswith("wrote plain/checkpoint\n")
    return shop / "plain/checkpoint"


def test_there_and_back(shop: Shop, model: Path, checkpoint: Path) -> None:
    out = shop.run("export", checkpoint, "plain/exported", "--dtype", "keep").succeeded().out
    assert "15 tensors equal bit for bit" in out and out.endswith("wrote plain/exported\n")
    exported = shop / "plain/exported"
    assert weights(exported) == weights(model)
    made = {"receipt.json"}
    assert entries(exported) - made == entries(model) - made
    assert json.loads((exported / "config.json").read_text()) == json.loads((model / "config.json").read_text())
    assert {path.name for path in (shop / "plain").iterdir()} >= {"checkpoint", "exported"}


def test_export_of_one_checkpoint_in_another_dtype(shop: Shop, checkpoint: Path) -> None:
    out = shop.run("export", checkpoint / "step_00000000", "plain/half").succeeded().out
    assert "41,120 parameters as bfloat16 (stored as float32)" in out
    assert (shop / "plain/half/model.safetensors").stat().st_size < 100_000
    assert json.loads((shop / "plain/half/config.json").read_text())["dtype"] == "bfloat16"


def test_a_model_and_its_checkpoint_measure_the_same(shop: Shop, checkpoint: Path) -> None:
    options = ("--data", "de.jsonl", "--data", "en.jsonl", "--max-bytes", "2000")
    model, converted = (shop.run("evaluate", path, *options).succeeded().out for path in ("out/model", checkpoint))
    assert model == converted
    assert [line.split(":")[0].strip() for line in model.splitlines()] == ["de.jsonl", "en.jsonl"]
    assert 3 < bits(model) < 8
    shorter = shop.run("evaluate", "out/model", *options, "--sequence-length", "4").succeeded().out
    assert bits(shorter) != bits(model)


def test_evaluate_reads_other_keys_and_plain_text(shop: Shop, model: Path) -> None:
    texts = [" ".join(json.loads(line)["text"].split()) for line in (shop / "de.jsonl").read_text().splitlines()[:3]]
    (shop / "keyed.jsonl").write_text("".join(json.dumps({"content": text}) + "\n" for text in texts))
    (shop / "plain.txt").write_text("\n\n".join(texts))
    keyed = shop.run("evaluate", "out/model", "--data", "keyed.jsonl", "--text-key", "content").succeeded().out
    assert bits(keyed) == bits(shop.run("evaluate", "out/model", "--data", "plain.txt").succeeded().out)


def test_tokenizer_preprocess_swap(shop: Shop, model: Path) -> None:
    out = shop.run("tokenizer", "train", "--input", "de.jsonl", "en.jsonl", "--vocab-size", "420", "plain/tokenizer").succeeded().out
    assert re.fullmatch(r" +420 pieces \(bpe\), \d\.\d\d bytes a token\nwrote plain/tokenizer\n", out)
    words = ("--input", "de.jsonl", "--output-prefix", "plain/data/german", "--tokenizer-model", "plain/tokenizer", "--append-eod")
    assert "plain/data/german_text_document: 68 documents" in shop.run("preprocess", *words).succeeded().out
    assert entries(shop / "plain/data") == {f"german_text_document.{kind}" for kind in ("bin", "idx", "json")}
    out = shop.run("swap", "out/model", "plain/swapped", "--tokenizer", "plain/tokenizer", "--method", "mean").succeeded().out
    assert "420 tokens in 420 rows" in out and out.endswith("wrote plain/swapped\n")
    assert json.loads((shop / "plain/swapped/config.json").read_text())["vocab_size"] == 420
    padded = ("--tokenizer", "plain/tokenizer", "--pad-to-multiple", "64", "--seed", "1")
    assert "420 tokens in 448 rows" in shop.run("swap", "out/model", "plain/padded", *padded).succeeded().out
    signed = json.loads((shop / "plain/swapped/receipt.json").read_text())
    assert signed["verb"] == "swap" and signed["metrics"]["method"] == "mean"


def test_tokenizers_of_every_kind(shop: Shop) -> None:
    for kind in ("sentencepiece-bpe", "unigram"):
        words = ("--input", "de.jsonl", "--vocab-size", "400", "--type", kind, f"plain/{kind}")
        assert f"400 pieces ({kind})" in shop.run("tokenizer", "train", *words).succeeded().out
        assert (shop / f"plain/{kind}/tokenizer.model").exists()


def test_the_tool_that_megatron_users_know(shop: Shop, model: Path) -> None:
    """tools/preprocess_data.py and the verb write the same bytes."""
    words = ("--input", "de.jsonl", "--tokenizer-model", "out/tokenizers/target", "--append-eod", "--output-prefix")
    shop.fresh("python", ROOT / "tools" / "preprocess_data.py", *words, "plain/tool").succeeded()
    shop.run("preprocess", *words, "plain/verb").succeeded()
    for kind in ("bin", "idx"):
        tool, verb = ((shop / f"plain/{name}_text_document.{kind}").read_bytes() for name in ("tool", "verb"))
        assert tool == verb
