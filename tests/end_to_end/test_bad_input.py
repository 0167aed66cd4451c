"""Bad input ends with exit code 2 and one clear message, and leaves nothing half-written: the whole list of them.

What is wrong with a recipe alone is in tests/unit/test_cli.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Callable

import pytest
import tiny
from commands import Result, Shop, entries

PHASE = "adapted/full"


@pytest.fixture(scope="module")
def bad(shop: Shop, model: Path) -> Shop:
    """The shop with ``bad.yaml``: a phase on a model and a tokenized corpus, both ready."""
    phases = [tiny.phase("full", 8, save_every=3)]
    tree = tiny.recipe(model={"source": "out/model"}, vocabulary=None, phases=phases, output="bad", parallel={"tensor": 1})
    tiny.write(shop.folder, {**tree, "evaluation": {"corpora": ["german"]}}, "bad.yaml")
    for verb in ("preprocess", "import"):
        shop.run(verb, "bad.yaml").succeeded()
    return shop


@pytest.fixture
def copy(bad: Shop, tmp_path: Path) -> Path:
    """A copy of the model to damage."""
    return shutil.copytree(bad / "out/model", tmp_path / "model")


def leaves_nothing(shop: Shop, *words: object, **options: int) -> Result:
    before = entries(shop.folder)
    result = shop.run(*words, **options)
    new = {name for name in entries(shop.folder) - before if not name.endswith((".out", ".err"))}
    new = {name for name in new if "/tensorboard/" not in name and "/text.order/" not in name}  # the order of a corpus is kept
    assert not new and before <= entries(shop.folder), new
    return result


def truncate(file: Path, drop: int = 10) -> None:
    file.write_bytes(file.read_bytes()[:-drop])


# --------------------------------------------------------------------------------------------------------- a model


def unsupported(model: Path) -> str:
    edit_config(model, architectures=["MambaForCausalLM"])
    return "config.json: the architecture (MambaForCausalLM) is not supported. Supported: GPT2LMHeadModel, GPTNeoXForCausalLM,"


def unsupported_setting(model: Path) -> str:
    edit_config(model, rope_scaling={"rope_type": "longrope", "factor": 2.0})
    return "longrope"


def truncated_weights(model: Path) -> str:
    truncate(model / "model.safetensors")
    return "model.safetensors"


def missing_weights(model: Path) -> str:
    (model / "model.safetensors").unlink()
    return "holds no weights"


def fewer_rows_than_ids(model: Path) -> str:
    edit_config(model, vocab_size=390)
    return "the tokenizer has ids up to 399, but the model only 390 rows"


def no_tokenizer(model: Path) -> str:
    (model / "tokenizer.json").unlink()
    return "tokenizer"


def edit_config(model: Path, **changes: object) -> None:
    config = {**json.loads((model / "config.json").read_text()), **changes}
    (model / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "damage", [unsupported, unsupported_setting, truncated_weights, missing_weights, fewer_rows_than_ids, no_tokenizer]
)
def test_a_model_that_cannot_be_used(bad: Shop, copy: Path, damage: Callable[[Path], str]) -> None:
    words = damage(copy)
    commands = [
        ("import", copy, "refused"),
        ("swap", copy, "refused", "--tokenizer", "out/tokenizers/base"),
        ("evaluate", copy, "--data", "de.jsonl"),
    ]
    for command in commands[: 2 if damage is fewer_rows_than_ids else 3]:
        result = leaves_nothing(bad, *command)
        result.refused(words)
        assert str(copy) in result.err and len(result.err.splitlines()) == 1, result.err


def test_truncated_weights_in_a_run(bad: Shop, copy: Path) -> None:
    """The check that every command begins with refuses them, whatever it is to do."""
    recipe = ("bad.yaml", f"model.source={copy}", "output=truncated")
    bad.run("preprocess", *recipe).succeeded()
    truncate(copy / "model.safetensors")
    for verb in ("check", "import", "preprocess"):
        leaves_nothing(bad, verb, *recipe).refused("model.safetensors", "bytes")


# --------------------------------------------------------------------------------------------------------- a corpus


@pytest.fixture
def broken_corpus(bad: Shop) -> Path:
    lines = (bad / "de.jsonl").read_text().splitlines()
    lines[6] = lines[6][:-5]
    (bad / "broken.jsonl").write_text("\n".join(lines) + "\n")
    return bad / "broken.jsonl"


def test_a_line_that_is_not_json(bad: Shop, broken_corpus: Path) -> None:
    recipe = ("bad.yaml", "data.german.path=broken.jsonl", "output=broken")
    leaves_nothing(bad, "run", *recipe).refused("broken.jsonl:7: not JSON")
    plain = ("--input", "broken.jsonl", "--output-prefix", "refused", "--tokenizer-model", "out/model", "--append-eod")
    result = leaves_nothing(bad, "preprocess", *plain)
    assert result.code == 2 and result.err.startswith("broken.jsonl:7: not JSON") and len(result.err.splitlines()) == 1
    leaves_nothing(bad, "evaluate", "out/model", "--data", "broken.jsonl").refused("broken.jsonl:7: not JSON")
    measured = bad.run("evaluate", "out/model", "--data", "broken.jsonl", "--max-bytes", "5000", "--on-error", "skip").succeeded()
    assert "skipped broken.jsonl:7: not JSON" in measured.out and "bits per byte over" in measured.out
    bad.run("evaluate", "out/model", "--data", "broken.jsonl", "--on-error", "pass").refused("on_error must be 'stop' or 'skip'")
    train = ("tokenizer", "train", "--input", "broken.jsonl", "--vocab-size", "400", "refused")
    leaves_nothing(bad, *train).refused("broken.jsonl:7: not JSON")
    bad.run(*train[:-1], "without", "--on-error", "skip").succeeded()


def test_bad_lines_are_skipped_counted_and_told(bad: Shop, broken_corpus: Path) -> None:
    recipe = ("bad.yaml", "data.german.path=broken.jsonl", "output=skipped", "data.german.on_error=skip")
    out = bad.run("preprocess", *recipe).succeeded().out
    assert "skipped broken.jsonl:7: not JSON" in out and ", 1 skipped" in out
    signed = json.loads((bad / "skipped/data/base/german/receipt.json").read_text())
    assert signed["metrics"]["skipped"] == 1
    plain = ("--input", "broken.jsonl", "--output-prefix", "lenient", "--tokenizer-model", "out/model", "--on-error", "skip")
    result = bad.run("preprocess", *plain).succeeded()
    assert "skipped broken.jsonl:7: not JSON" in result.err and "1 bad lines skipped" in result.out


def test_a_corpus_with_a_single_document_has_nothing_to_hold_out(bad: Shop) -> None:
    (bad / "single.txt").write_text("Ein einziger Satz.")
    recipe = ("bad.yaml", "data.german.path=single.txt", "output=single")
    leaves_nothing(bad, "run", *recipe).refused(
        "single.txt: nothing to hold out (held_out 0.05): a single document", "blank lines separate the documents of a .txt file; with text_documents 'lines'"
    )


def test_a_corpus_too_small_for_its_tokenizer(bad: Shop) -> None:
    (bad / "small.txt").write_text("Ein Satz.\n\nUnd noch einer.")
    train = ("tokenizer", "train", "--input", "small.txt", "--vocab-size", "5000", "refused")
    leaves_nothing(bad, *train).refused("corpus")
    leaves_nothing(bad, "tokenizer", "train", "--input", "de.jsonl", "--vocab-size", "400", "--text-key", "", "refused").refused(
        "de.jsonl:1: no key ''; the keys are 'id', 'text'"
    )
    leaves_nothing(bad, *train[:-1], "--type", "wordpiece", "refused").refused(
        "--type: Input should be 'bpe', 'sentencepiece-bpe' or 'unigram'."
    )


# ------------------------------------------------------------------------------------------- what a phase starts from


def damaged(bad: Shop, name: str) -> Path:
    """A copy of the recipe's output to damage; the recipe's own stays whole."""
    shutil.rmtree(bad / name, ignore_errors=True)
    return shutil.copytree(bad / "bad", bad / name)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("data/base/german/text.bin", "text.bin"),
        ("data/base/german/text.idx", "text.idx"),
        ("adapted/imported/step_00000000/.metadata", "damaged checkpoint: .metadata has"),
        ("adapted/imported/step_00000000/checkpoint.json", "checkpoint.json: not JSON"),
    ],
)
def test_truncated_files(bad: Shop, file: str, words: str) -> None:
    truncate(damaged(bad, "cut") / file)
    leaves_nothing(bad, "train", "bad.yaml", "output=cut").refused(words)


def test_truncated_checkpoints(bad: Shop) -> None:
    (data,) = list((damaged(bad, "cut") / "adapted/imported/step_00000000").glob("*_0.distcp"))
    truncate(data)
    for command in (("export", "cut/adapted/imported", "refused"), ("evaluate", "cut/adapted/imported", "--data", "de.jsonl")):
        leaves_nothing(bad, *command).refused(f"damaged checkpoint: {data.name} has")
    leaves_nothing(bad, "export", "out/model", "refused").refused("out/model: neither a checkpoint nor a folder with finished")


def test_a_corpus_tokenized_with_another_tokenizer(bad: Shop) -> None:
    description = damaged(bad, "mixed") / "data/base/german/text.json"
    stats = json.loads(description.read_text())
    description.write_text(json.dumps({**stats, "tokenizer_digest": "0" * 64}))
    result = leaves_nothing(bad, "train", "bad.yaml", "output=mixed")
    result.refused("was tokenized with another tokenizer", "preprocess it again with the tokenizer of this model")


def test_what_no_step_has_signed_is_not_overwritten(bad: Shop) -> None:
    output = damaged(bad, "foreign") / PHASE
    output.mkdir(parents=True)
    (output / "thesis.tex").write_text("years of work")
    leaves_nothing(bad, "train", "bad.yaml", "output=foreign").refused(
        "foreign/adapted/full exists, but no step has signed it (receipt.json is missing): move it away."
    )


# --------------------------------------------------------------------------------------------------------- full disks


def test_a_full_disk_leaves_the_old_checkpoint(bad: Shop) -> None:
    """A limit on the size of files stands in for the disk: a phase that has a checkpoint cannot save the next one."""
    output = damaged(bad, "full")
    words = ("train", "bad.yaml", "output=full", "phases.full.log_every=1")
    largest = max(file.stat().st_size for file in (output / "adapted/imported").rglob("*"))
    leaves_nothing(bad, *words, limit=largest).refused("could not save full/adapted/full/step_00000003", "free some space")
    # The first save has room; then the metrics fill the disk, say.
    running = bad.start(*words, "phases.full.save_every=1", "phases.full.keep_last=2")
    assert running.wait().code == 0
    saved = entries(output / PHASE / "step_00000007")
    for name in ("receipt.json", "step_00000008"):
        path = output / PHASE / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    result = bad.run(*words, "phases.full.save_every=1", limit=largest)
    result.refused("could not save full/adapted/full/step_00000008", "Earlier checkpoints are intact; free some space and run again")
    assert entries(output / PHASE / "step_00000007") == saved
    assert {path.name for path in (output / PHASE).iterdir()} == {"begun.json", "metrics.jsonl", "step_00000007"}
    assert "step      8 | loss" in bad.run(*words).succeeded().out


@pytest.mark.parametrize(
    "command",
    [
        ("swap", "out/model", "refused", "--tokenizer", "out/tokenizers/base"),
        ("import", "out/model", "refused"),
        ("export", "bad/adapted/imported", "refused"),
        ("tokenizer", "train", "--input", "de.jsonl", "--vocab-size", "400", "refused"),
        ("preprocess", "bad.yaml", "output=refused"),
        ("preprocess", "bad.yaml", "output=recipe.yaml/refused"),
    ],
)
def test_a_full_disk_elsewhere(bad: Shop, command: tuple[str, ...]) -> None:
    leaves_nothing(bad, *command, limit=3000).refused()
