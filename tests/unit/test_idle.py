"""No key and no flag does nothing: what would, beside the others or in this model, is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Iterator

import pytest
import tiny
from commands import Result, entries, in_process, signals_kept
from recipe_samples import edited, problems

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    tiny.corpora(tmp_path)
    (tmp_path / "de.txt").write_text("ein Satz\n")
    tiny.write(tmp_path, tiny.recipe())
    with signals_kept():
        yield tmp_path


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    return in_process(capfd, monkeypatch)


def untouched(run: Run, *words: object) -> Result:
    before = entries(Path("."))
    result = run(*words)
    assert entries(Path(".")) == before
    return result


@pytest.mark.parametrize("changes, expected", [
    ([("    steps: 100\n", "    steps: 100\n    schedule: {type: wsd, decay: 0, decay_shape: cosine}\n")],
     "24: phases[1].schedule.decay_shape: is that of the final decay, and there is none; remove it"),
    ([("    steps: 100\n", "    steps: 100\n    schedule: {type: wsd, decay: 0, min_lr_ratio: 0.1}\n")],
     "24: phases[1].schedule.min_lr_ratio: is where the final decay ends, and there is none; remove it"),
    ([("    steps: 100\n", "    steps: 100\n    schedule: {type: constant, counting: from-0}\n")],
     "24: phases[1].schedule.counting: is about a warm-up or a decay, and there is none; remove it"),
    ([("    steps: 100\n", "    steps: 100\n    schedule: {type: constant, over: run}\n")],
     "24: phases[1].schedule.over: is about a warm-up or a decay, and there is none; remove it"),
    ([("    steps: 100\n", "    steps: 100\n    schedule: {floor: clamp}\n")],
     "24: phases[1].schedule.floor: 'clamp' holds the learning rate at min_lr_ratio, which is 0; remove it, or give a share above 0"),
    ([("    steps: 100\n", "    steps: 100\n    schedule: {type: inverse-sqrt, floor: clamp, min_lr_ratio: 0.1}\n")],
     "24: phases[1].schedule.floor: 'clamp' is about a decay to 0 (linear, cosine, wsd) or a warm-up, and there is none; remove it"),
    ([("{lr: 1e-4}", "{lr: 1e-4, weight_decay: 0, decay_embeddings: false}")],
     "26: phases[1].optimizer.decay_embeddings: is about weight decay, and weight_decay is 0; remove it"),
    ([("{lr: 1e-4}", "{lr: 1e-4, weight_decay: 0, decay_by: schedule}")],
     "26: phases[1].optimizer.decay_by: is about weight decay, and weight_decay is 0; remove it"),
    ([("tokenizer: tok/german", "tokenizer: tok/german\n  compare: [random]\n  probe: {steps: 9}")],
     "8: vocabulary.probe.steps: belongs to method 'auto', and there is only 'default', 'random'; remove it"),
    ([("tokenizer: tok/german", "tokenizer: {prune: {corpora: [german]}}\n  method: focus")],
     "7: vocabulary.method: says how new rows start, and a pruned vocabulary has none: all its rows are the model's own; remove it"),
    ([("tokenizer: tok/german", "tokenizer: {prune: {corpora: [german]}}\n  compare: [focus]")],
     "7: vocabulary.compare: says how new rows start, and a pruned vocabulary has none: all its rows are the model's own; remove it"),
    ([("phases:\n", "  more: {path: x.txt, unique_tokens: 5}\nphases:\n")],
     "10: data.more.unique_tokens: says how phases read this corpus, and none does; remove it"),
    ([("phases:\n", "  more: {path: x.txt, shuffled_epochs: 5}\nphases:\n")],
     "10: data.more.shuffled_epochs: says how phases read this corpus, and none does; remove it"),
    ([("name: german\n", "name: german\nevaluation: {max_bytes: 5M}\n"), (", held_out: 0.01", "")],
     "2: evaluation.max_bytes: is about held-out text, of which none is evaluated; remove it"),
    ([("    steps: 100\n", "    steps: 100\n    packing: documents\n    denoising: {mixture: [{kind: S, ratio: 0.2}], sentinel: '<{}>'}\n")],
     "25: phases[1].denoising.sentinel: stands for hidden spans, and S hides the text's end, without one; remove it"),
])
def test_beside_other_keys(tmp_path, changes, expected):
    assert problems(tmp_path, edited(*changes)) == [f"recipe.yaml:{expected}"]


@pytest.mark.parametrize("override, words", [
    ("phases.full={train: norms, optimizer: {lr: 1, embedding_lr: 2}}", "phase 'full': optimizer.embedding_lr: is about embedding and output rows, of which"),
    ("phases.full={train: 'layers[:]', optimizer: {lr: 1, decay_embeddings: false}}", "optimizer.decay_embeddings: is about embedding and output"),
    ("phases.full={train: output, optimizer: {lr: 1, embedding_gradient: 0.5}}", "optimizer.embedding_gradient: is about the input embedding, which"),
    ("phases.full={train: [embedding, norms], optimizer: {lr: 1, type: muon}}", "optimizer.type: 'muon' is for the matrices inside layers, of which"),
    ("phases.full={train: 'regex:linear_proj', optimizer: {lr: 1, type: muon, eps: 1e-6}}", "optimizer.eps: is about what 'muon' leaves to AdamW, and"),
    ("phases.full={train: norms, optimizer: {lr: 1, weight_decay: 0.2}}", "optimizer.weight_decay: is about matrices, of which this phase trains none"),
    ("phases.full={train: 'regex:_norm$', optimizer: {lr: 1}}", "train: 'regex:_norm$' selects nothing of the model, whose parameters have names such"),
    ("phases.full={train: norms, init_state: keep}", "init_state: phase 'embeddings' has trained nothing that this one trains, so there is no state"),
    ("vocabulary.corpora=[german]", "vocabulary.corpora: method copy reads no text, unless vocabulary.calibrate is true; remove it"),
    ("data.german.text_documents=lines", "data.german.text_documents: is about .txt files, and there is none (de.jsonl); remove it"),
    ("data.german={path: de.txt, text_key: body}", "data.german.text_key: is a key of JSON or a column, and there are .txt files alone (de.txt); remove it"),
])  # fmt: skip
def test_in_this_model(run: Run, override: str, words: str) -> None:
    untouched(run, "check", "recipe.yaml", override).refused(words)


@pytest.mark.parametrize("override", [
    "phases.full={train: embedding, optimizer: {lr: 1, embedding_lr: 2, decay_embeddings: false, embedding_gradient: 0.5}}",
    "phases.full={train: [norms, 'regex:linear_fc1'], optimizer: {lr: 1, type: muon, beta1: 0.8, weight_decay: 0.2}}",
    "phases.full={train: [output, norms], init_state: keep}",
    "vocabulary={method: focus, corpora: [german]}",
    "vocabulary={calibrate: true, corpora: [german]}",
    "data.german.text_key=text",
])  # fmt: skip
def test_keys_that_do_something_are_not_refused(run: Run, override: str) -> None:
    untouched(run, "check", "recipe.yaml", override).succeeded()


@pytest.mark.parametrize("command, words", [
    ("swap a b --tokenizer t --corpus de.jsonl --probe-steps 9", "--probe-steps: goes with --method auto, or with compare."),
    ("swap a b --tokenizer t --corpus de.jsonl --methods copy", "--methods: goes with --method auto, or with compare."),
    ("swap a b --tokenizer t --method copy --corpus de.jsonl", "--corpus: method copy reads no text, unless with --calibrate; leave it out."),
    ("swap a b --tokenizer t --text-key x", "--text-key: about text that is read, and there is none; name files with --corpus."),
    ("swap a b --prune --method focus --corpus de.jsonl", "--method: says how new rows start, and a pruned vocabulary has none."),
    ("compare a b --tokenizer t --corpus de.txt --text-key x", "--text-key is a key of JSON or a column, and there are .txt files alone (de.txt)"),
    ("evaluate a --data de.jsonl --limit 5 --batch-size 3", "--limit, --batch-size: about the questions of tasks, and there are none; name tasks"),
    ("evaluate a --task t --max-bytes 5", "--max-bytes: about text to measure on; name files with --data."),
    ("evaluate a --data de.txt --text-key x", "--text-key is a key of JSON or a column, and there are .txt files alone (de.txt); leave it out"),
    ("tokenizer report a --corpus de.jsonl --vocab-size 9", "--vocab-size: for a tokenizer that is made; a report only measures."),
    ("tokenizer train --input de.jsonl --corpus de.jsonl OUT", "--corpus: for a report; what a tokenizer is made of is named with --input."),
    ("inspect a --tokenizer t", "--tokenizer shows the text of a document: say which with --document N, or leave it out."),
    ("plan recipe.yaml --cluster nodes=1,gpus=8,gpu=h100 --nnodes 2", "--nnodes: --cluster says what there is, and advises on the layout"),
    ("law fit de.jsonl --corpus german", "--corpus says whose held-out text the loss of a recipe's output is on, and there are only tables"),
])  # fmt: skip
def test_flags(run: Run, command: str, words: str) -> None:
    untouched(run, *command.split()).refused(words)


@pytest.mark.parametrize("command, words", [
    ("filter --input de.jsonl --output o.jsonl --fliter exact", "--fliter: no such option. Did you mean '--filter'?"),
    ("filter --input de.jsonl --output o.jsonl --filter exact --dry-run --dropped d.jsonl", "--dropped writes a file, and with --dry-run nothing is"),
    ("filter --input de.jsonl --output o.jsonl --filter exact --text-documents lines", "--text-documents is about .txt files, and there is none (de.jsonl)"),
    ("preprocess --input de.jsonl --tokenizer-model t --output-prefix o --lang german", "--lang is the language of the model that splits sentences"),
    ("preprocess --input de.txt --tokenizer-model t --output-prefix o --json-keys x", "--json-keys is a key of JSON or a column, and there are .txt files"),
    ("merge --input a --ouput-prefix b", "--ouput-prefix: no such option. Did you mean '--output-prefix'?"),
    ("preprocess recipe.yaml --stpe x", "--stpe: no such option. Did you mean '--step'?"),
])  # fmt: skip
def test_flags_of_corpora(run: Run, command: str, words: str) -> None:
    result = untouched(run, *command.split())
    assert result.code == 2 and words in result.err and "Traceback" not in result.err
