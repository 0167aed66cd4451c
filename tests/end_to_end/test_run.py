"""One recipe from raw text to a model that transformers loads: what ``run`` leaves, and what later commands make of it."""

from __future__ import annotations

import gzip
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
from commands import Result, Shop

STEPS = 19
METRICS = {"step", "loss", "bits_per_byte", "lr", "grad_norm", "tokens", "tokens_per_second", "tflops_per_rank", "memory_gb"}


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def stamps(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def table(folder: Path) -> list[list[str]]:
    lines = (folder / "report.md").read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]


# ------------------------------------------------------------------------------------------------ what a run leaves


def test_the_terminal_shows_progress_and_places(first_run: Result) -> None:
    headings = [line for line in first_run.out.splitlines() if line.startswith("[")]
    assert [line.split("]")[0] for line in headings] == [f"[{number}/{STEPS}" for number in range(1, STEPS + 1)]
    assert "[16/19] copy/full (train, 2 ranks)" in headings
    assert first_run.out.count("step      1 | loss ") == 3
    assert first_run.out.count(" steps; layers: plain torch: there is no GPU\n") == 3
    assert "phase full " in first_run.out  # the table
    assert first_run.out.rstrip().splitlines()[-5:] == [
        "everything of 'tiny' is done.",
        "  model (Hugging Face)  out/model",
        "  report                out/report/report.md",
        "  curves                out/report/report.png",
        "  TensorBoard           out/tensorboard",
    ]
    assert "Warning" not in first_run.err and "Traceback" not in first_run.err


def test_transformers_loads_the_model(shop: Shop, model: Path) -> None:
    def generate() -> tuple[str, int, bool, str]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(model)
        loaded = AutoModelForCausalLM.from_pretrained(model)
        prompt = tokenizer("Die Frau öffnet", return_tensors="pt")
        output = loaded.generate(**prompt, max_new_tokens=8, do_sample=False)
        return tokenizer.decode(output[0]), output.shape[1], bool(loaded(**prompt).logits.isfinite().all()), str(loaded.dtype)

    text, length, finite, dtype = shop.compute(generate)
    assert text.startswith("Die Frau öffnet") and length > 8 and finite and dtype == "torch.float32"


def test_the_report_compares_the_stages(shop: Shop, first_run: Result) -> None:
    header, _, *rows = table(shop / "out/report")[:6]
    assert header == ["stage", "english", "german"]
    assert [row[0] for row in rows] == ["before", "vocabulary swapped", "phase embeddings", "phase full"]
    german = [float(row[2]) for row in rows]
    assert german[0] > german[1] > german[2] > german[3] > 1  # every stage helps
    assert (shop / "out/report/report.png").read_bytes().startswith(b"\x89PNG")
    stored = json.loads((shop / "out/evaluation/copy-full/receipt.json").read_text())["metrics"]["german"]
    assert f"{stored['bits_per_byte']:.3f}" == rows[3][2] and stored["bytes"] >= 2000


def test_metrics_of_every_step(shop: Shop, first_run: Result) -> None:
    full = metrics(shop / "out/copy/full")
    assert [line["step"] for line in full] == list(range(1, 9))
    assert all(METRICS <= line.keys() for line in full)
    assert {"loss/german", "loss/english"} <= full[0].keys()
    embeddings = metrics(shop / "out/copy/embeddings")
    assert [line["step"] for line in embeddings if "held_out/german" in line] == [3, 6]
    assert embeddings[-1]["tokens"] == 6 * 4 * 32


def test_the_last_evaluation_in_training_is_that_of_the_evaluation_step(shop: Shop, first_run: Result) -> None:
    last = metrics(shop / "out/copy/embeddings")[-1]
    after = json.loads((shop / "out/evaluation/copy-embeddings/receipt.json").read_text())["metrics"]
    for name in ("german", "english"):
        kinds = {"held_out": "bits_per_byte", "held_out_loss": "token_loss", "held_out_document_loss": "document_loss"}
        for kind, key in kinds.items():
            assert last[f"{kind}/{name}"] == pytest.approx(after[name][key], rel=1e-6)


def test_tensorboard_has_the_same_numbers(shop: Shop, first_run: Result) -> None:
    def read() -> list[tuple[int, float]]:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(shop / "out/tensorboard/copy/full"))
        events.Reload()
        return [(event.step, event.value) for event in events.Scalars("loss")]

    expected = [(line["step"], pytest.approx(line["loss"], rel=1e-5)) for line in metrics(shop / "out/copy/full")]
    assert shop.compute(read) == expected


def test_nothing_temporary_is_left(shop: Shop, first_run: Result) -> None:
    names = [path.name for path in (shop / "out").rglob("*")]
    assert len(names) > 100
    assert not [name for name in names if name.startswith(".") and name != ".metadata" or name.endswith((".tmp", ".partial"))]


# --------------------------------------------------------------------------------------------------- and afterwards


def test_a_second_run_does_nothing(shop: Shop, first_run: Result) -> None:
    before = stamps(shop / "out")
    script = "import sys; from megatron_adapt.cli import app; app(standalone_mode=False); print('torch' in sys.modules)"
    result = shop.fresh("python", "-c", script, "run", "recipe.yaml").succeeded()
    assert result.out.startswith("everything of 'tiny' is done.") and result.out.endswith("False\n")
    assert stamps(shop / "out") == before


def test_nothing_remains_to_be_planned(shop: Shop, first_run: Result) -> None:
    assert shop.run("plan", "recipe.yaml").succeeded().out == ""


def test_another_layout_is_no_reason_to_run_again(shop: Shop, first_run: Result) -> None:
    for override in ("parallel.tensor=1", "parallel.pipeline=2", "phases.full.micro_batch_size=1"):
        assert shop.run("plan", "recipe.yaml", override).succeeded().out == ""


@pytest.mark.parametrize("verb", ["run", "plan", "train", "report"])
def test_a_changed_setting_of_a_signed_phase(shop: Shop, first_run: Result, verb: str) -> None:
    before = stamps(shop / "out")
    result = shop.run(verb, "recipe.yaml", "phases.embeddings.optimizer.lr=1e-4")
    result.refused("step 'copy/embeddings' was finished with other settings or inputs: optimizer.lr was 0.003, is now 0.0001.")
    listed = result.err.split("choose another output: ")[1].split()
    assert listed == [f"out/{kind}copy{sep}{phase}" for phase in ("embeddings", "full") for kind, sep in (("", "/"), ("evaluation/", "-"))]
    assert stamps(shop / "out") == before
    if verb == "plan":  # these, and what follows from them, are then what is to be done
        shutil.copytree(shop / "out", shop / "redone")
        for path in listed:
            shutil.rmtree(shop / path.replace("out", "redone", 1))
        again = shop.run("plan", "recipe.yaml", "output=redone", "phases.embeddings.optimizer.lr=1e-4").succeeded()
        assert len(again.out.splitlines()) == 6 and "export" in again.out and "report" in again.out


def test_a_changed_corpus(shop: Shop, first_run: Result) -> None:
    text = (shop / "de.jsonl").read_text()
    (shop / "more.jsonl").write_text(text + '{"text": "Noch ein Satz."}\n')
    result = shop.run("run", "recipe.yaml", "data.german.path=more.jsonl")
    result.refused("step 'tokenizers/target' was finished", "the content of its input 'german' changed")


def test_a_deleted_step_is_repeated_and_gives_the_same(shop: Shop, first_run: Result) -> None:
    shutil.copytree(shop / "out", shop / "again")
    for name in ("model", "copy/full", "report"):
        shutil.rmtree(shop / "again" / name)
    result = shop.run("run", "recipe.yaml", "output=again").succeeded()
    assert [line.split()[1] for line in result.out.splitlines() if line.startswith("[")] == ["copy/full", "export", "report"]
    assert weights(shop / "again/model") == weights(shop / "out/model")
    assert table(shop / "again/report")[:6] == table(shop / "out/report")[:6]


# -------------------------------------------------------------------------------------------------- other ways to run


def test_the_lines_of_the_plan_do_the_same(shop: Shop, first_run: Result) -> None:
    """Two files and an override with a space; each line literally, torchrun's (with seconds of imports) for one phase."""
    other = tiny.recipe()
    tiny.write(shop.folder, {key: other.pop(key) for key in ("phases", "evaluation")}, "phases.yaml")
    tiny.write(shop.folder, other, "base.yaml")
    words = ["base.yaml", "phases.yaml", "output=by hand"]
    lines = shop.run("plan", *words).succeeded().out.splitlines()
    assert len(lines) == STEPS
    for line in lines:
        if line.startswith("torchrun") and not line.endswith("copy/full"):
            result = shop.run(*shlex.split(line.partition(" -m megatron_adapt ")[2]))
        elif line.startswith("torchrun"):
            result = shop.fresh("bash", "-c", line)
            assert result.out.count("[1/1] copy/full (train, 2 ranks)") == 1  # one rank speaks for all
        else:
            program, *rest = shlex.split(line)
            assert program == "megatron-adapt"
            result = shop.run(*rest)
        result.succeeded()
    assert shop.run("plan", *words).succeeded().out == ""
    assert weights(shop / "by hand/model") == weights(shop / "out/model")
    assert table(shop / "by hand/report")[:6] == table(shop / "out/report")[:6]


def test_a_verb_does_what_is_ready(shop: Shop) -> None:
    words = ("recipe.yaml", "output=verbs")
    assert "[2/2] tokenizers/target" in shop.run("tokenizer", *words).succeeded().out
    assert "[3/3] data/target/german" in shop.run("preprocess", *words).succeeded().out
    assert len(list((shop / "verbs/data/target/german/text.order").glob("*.0"))) == 1  # the order of its first epoch
    assert "every 'preprocess' step of 'tiny' is done." in shop.run("preprocess", *words).succeeded().out
    assert "[1/1] base/initial" in shop.run("initialize", *words).succeeded().out
    # copy/import has to wait for the base and its swap
    assert "[1/1] base/import" in shop.run("import", *words).succeeded().out
    shop.run("import", *words).refused("step 'copy/import' needs 'copy/swap', not done yet")
    assert "step 'base/import' of 'tiny' is done." in shop.run("import", *words, "--step", "base/import").succeeded().out


def test_a_model_and_a_corpus_of_ones_own(shop: Shop, model: Path) -> None:
    """The quickstart's recipe on real input, on more ranks than it says: data parallelism."""
    text = "\n\n".join(json.loads(line)["text"] for line in (shop / "de.jsonl").read_text().splitlines())
    (shop / "novels.txt.gz").write_bytes(gzip.compress(text.encode()))
    words = [
        "run", "recipe.yaml", f"model.source={model}", "data.german.path=novels.txt.gz", "output=real", "parallel.tensor=1",
        "--nproc", "2", "vocabulary.tokenizer.train.vocab_size=401", "phases.full.steps=2", "phases.embeddings.steps=2",
    ]  # fmt: skip
    out = shop.run(*words).succeeded().out
    assert "[1/13] tokenizers/target" in out and "copy/full (train, 2 ranks)" in out
    assert json.loads((shop / "real/model/config.json").read_text())["vocab_size"] == 401
    signed = json.loads((shop / "real/copy/full/receipt.json").read_text())
    assert signed["ranks"] == 2 and signed["metrics"]["loss"] > 0
    assert not (shop / "real/base").exists()


def test_from_scratch_without_a_swap_or_an_evaluation(shop: Shop) -> None:
    scratch = {key: value for key, value in tiny.recipe()["model"]["from_scratch"].items() if key != "phases"}
    phases = [tiny.phase("only", None, data={"english": 1}, epochs=0.01)]
    tree = tiny.recipe(
        model={"from_scratch": scratch}, vocabulary=None, phases=phases, output="scratch", evaluation={"corpora": []},
        parallel={"tensor": 2, "sequence": True}, precision="bf16-mixed", export={"dtype": "bfloat16", "max_shard_size": "50K"},
    )  # fmt: skip
    tiny.write(shop.folder, tree, "scratch.yaml")
    out = shop.run("run", "scratch.yaml").succeeded().out
    assert "[7/7] report" in out and "report.png" not in out
    assert "No held-out text to evaluate on." in (shop / "scratch/report/report.md").read_text()
    trained = json.loads((shop / "scratch/data/base/english/receipt.json").read_text())["metrics"]["tokens"]
    assert len(metrics(shop / "scratch/adapted/only")) == -(-trained // 100 // 128)

    def load() -> Any:
        from transformers import AutoModelForCausalLM

        loaded = AutoModelForCausalLM.from_pretrained(shop / "scratch/model")
        return str(loaded.dtype), loaded.config.vocab_size

    assert shop.compute(load) == ("torch.bfloat16", 400)
    assert len(list((shop / "scratch/model").glob("model-*.safetensors"))) == 2


def test_a_base_that_does_not_fit_the_layout_is_evaluated_whole(shop: Shop, model: Path) -> None:
    """Its old vocabulary cannot be split in two, the new one can: what trains is the new one."""
    shop.run("tokenizer", "train", "--input", "de.jsonl", "--vocab-size", "401", "odd-tokenizer").succeeded()
    shop.run("swap", model, "odd", "--tokenizer", "odd-tokenizer").succeeded()
    words = ("recipe.yaml", "model.source=odd", "output=from-odd", "evaluation.corpora=[german]")
    for verb in ("tokenizer", "preprocess"):
        shop.run(verb, *words).succeeded()
    shop.run("evaluate", *words, "--step", "evaluation/base").succeeded()
    alone = shop.run("evaluate", "odd", "--data", "from-odd/data/target/german/held_out.jsonl", "--max-bytes", "2000",
                     "--sequence-length", "32").succeeded().out  # fmt: skip
    bits = json.loads((shop / "from-odd/evaluation/base/receipt.json").read_text())["metrics"]["german"]["bits_per_byte"]
    assert f": {bits:.3f} bits per byte" in alone
