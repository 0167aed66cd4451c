"""The schema of a recipe: how numbers are read, and every message about a wrong key or value."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe_samples import BASE, BASE_PHASE, SCRATCH, edited, problems, write

from megatron_adapt.config import Phase, Recipe, Strict
from megatron_adapt.config_types import integer, number, selected_layers
from megatron_adapt.recipe import dump, load

# -- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written, value", [
    ("8", 8), ("2K", 2000), ("500M", 500_000_000), ("10B", 10**10), ("5G", 5 * 10**9), ("1.5T", 1_500_000_000_000),
    ("1e6", 10**6), ("'1e6'", 10**6), ("1_000", 1000), ("2.5e3", 2500), ("100.0", 100), ("3 k", 3000),
    ("9007199254740993", 9007199254740993), ("9.007199254740993T", 9007199254740.993), ("0x10", 16),
])
def test_whole_numbers(tmp_path, written, value):
    text = edited(("tokens: 500M", f"tokens: {written}"))
    if isinstance(value, int):
        tokens = load([write(tmp_path, text)]).phases[0].tokens
        assert tokens == value and isinstance(tokens, int)
    else:
        assert "expected a whole number" in problems(tmp_path, text)[0]


@pytest.mark.parametrize("written", [
    "1.5", "abc", "1e-4", "5X", "", "true", "[1]", "{a: 1}", ".inf", ".nan", "1e999", "'1e9999'", "'1e999999999'", "K",
])
def test_what_is_no_whole_number(tmp_path, written):
    (line,) = problems(tmp_path, edited(("batch_size: 64", f"batch_size: {written}")))
    assert line.startswith("recipe.yaml:16: phases[0].batch_size: expected a whole number (such as 8, 2K or 500M), got")


@pytest.mark.parametrize("written, value", [
    ("1e-4", 1e-4), ("'1e-4'", 1e-4), ("1", 1.0), (".5", 0.5), ("2K", 2000.0), ("1E-4", 1e-4),
])
def test_numbers(tmp_path, written, value):
    assert load([write(tmp_path, edited(("lr: 1e-3", f"lr: {written}")))]).phases[0].optimizer.lr == value


def test_bytes_take_the_two_spellings(tmp_path):
    path = write(tmp_path, BASE)
    assert load([path], ["export.max_shard_size=2GB"]) == load([path], ["export.max_shard_size=2G"])
    assert load([path], ["evaluation.max_bytes=null"]).evaluation.max_bytes is None


@given(st.integers(-(10**30), 10**30))
def test_integers_stay_exact(value):
    assert integer(value) == integer(str(value)) == value


@given(st.integers(0, 10**6), st.integers(0, 3), st.sampled_from(["", "K", "M", "B", "G", "T", "k", "m"]))
def test_suffixes_are_decimal(units, digits, suffix):
    scale = {"": 0, "K": 3, "M": 6, "B": 9, "G": 9, "T": 12}[suffix.upper()]
    text = f"{units / 10**digits:.{digits}f}{suffix}"
    assert number(text) == pytest.approx(units * 10.0 ** (scale - digits), rel=1e-15)
    if scale >= digits:
        assert integer(text) == units * 10 ** (scale - digits)


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e30, max_value=1e30))
def test_floats_stay_exact(value):
    assert number(value) == number(repr(value)) == value


@given(st.one_of(st.text(), st.none(), st.booleans(), st.lists(st.integers()), st.just(math.inf), st.just(math.nan)))
def test_anything_else_is_a_value_error(value):
    for read in (integer, number):
        try:
            assert math.isfinite(read(value)) and isinstance(value, str)
        except ValueError as error:
            assert str(error).startswith("expected a ")


def test_every_key_is_described():
    models = Strict.__subclasses__()
    assert len(models) > 10 and Recipe in models
    for model in models:
        assert all(field.description for field in model.model_fields.values()), model
        assert set(model.alternatives) <= set(model.model_fields)


def test_selected_layers():
    assert list(selected_layers("layers[1:3]", 4)) == [1, 2] and list(selected_layers("layers[-1:]", 4)) == [3]
    assert list(selected_layers("layers[:]", 2)) == [0, 1] and list(selected_layers("layers[4:9]", 4)) == []
    assert selected_layers("norms", 4) is None and selected_layers("regex:layers[0:1]", 4) is None


# -- messages: the schema --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old, new, expected", [
    ("{lr: 1e-4}", "{lrr: 1e-4}", "26: phases[1].optimizer.lrr: unknown key. Did you mean 'lr'?"),
    ("{lr: 1e-4}", "{}", "26: phases[1].optimizer.lr: missing; peak learning rate"),
    ("    steps: 100\n", "    steps: 100\n    lr: 1\n", "24: phases[1].lr: unknown key. Did you mean 'optimizer.lr'?"),
    ("  source: base", "  zzz: 1\n  source: base", "4: model.zzz: unknown key. Known keys: source, from_scratch, mup."),
    ("name: german\n", "", "1: name: missing; name of the run"),
    ("  - name: full\n    data:", "  - data:", "19: phases[1].name: missing; name of the phase, also of its directory"),
    ("name: german\n", "name: 5\n",
     "1: name: expected text, got the number 5; put it in quotes if it is meant as text"),
    ("name: german\n", "name:\n", "1: name: expected text, got nothing"),
    ("name: german\n", "name: ' '\n", "1: name: expected text, got ' '"),
    ("name: full", "name: 1st try",
     "19: phases[1].name: expected a name (letters, digits, '-' and '_', starting with a letter), "
     "got '1st try'"),
    ("phases:\n", "  en.v1: {path: x}\nphases:\n",
     "10: data.en.v1: expected a name (letters, digits, '-' and '_', starting with a "
     "letter), got 'en.v1'"),
    ("{lr: 1e-4}", "1e-4", "26: phases[1].optimizer: expected a mapping (key: value lines), got the number 0.0001"),
    ("data: {german: 1}", "data: [german]", "13: phases[0].data: expected a mapping (key: value lines), got a list"),
    ("data: {german: 1}", "data: {}", "13: phases[0].data: must not be empty"),
    ("data: {german: 1}", "data: {german: 0}", "13: phases[0].data.german: must be greater than 0, got 0"),
    ("batch_size: 64", "batch_size: 0", "16: phases[0].batch_size: must be at least 1, got 0"),
    ("name: german\n", "name: german\nexport: {max_shard_size: -5GB}\n",
     "2: export.max_shard_size: must be at least 1, got -5000000000"),
    ("name: german\n", "name: german\nexport: {max_shard_size: 5XB}\n",
     "2: export.max_shard_size: expected a whole number (such as 8, 2K or 500M), got '5XB'"),
    ("held_out: 0.01", "held_out: 0.6", "8: data.german.held_out: must be at most 0.5, got 0.6"),
    ("{lr: 1e-4}", "{lr: 1e-4, beta1: 1}", "26: phases[1].optimizer.beta1: must be less than 1, got 1"),
    ("{lr: 1e-4}", "{lr: fast}",
     "26: phases[1].optimizer.lr: expected a number (such as 0.1, 1e-4 or 500M), got 'fast'"),
    ("{lr: 1e-4}", "{lr: 1e99}", "26: phases[1].optimizer.lr: expected a number (such as 0.1, 1e-4 or 500M), "
     "got the number 1e+99, which is too large"),
    ("name: german\n", "name: german\nprecision: bf16mixed\n",
     "2: precision: expected 'fp32', 'bf16-mixed', 'bf16-true', 'fp8-current', 'fp8-delayed', 'fp8-blockwise', "
     "'fp8-mx', 'fp8-current-true', 'fp8-delayed-true', 'fp8-blockwise-true' or 'fp8-mx-true', got 'bf16mixed'. "
     "Did you mean 'bf16-mixed'?"),
    ("name: german\n", "name: german\nprecision: 16\n",
     "2: precision: expected 'fp32', 'bf16-mixed', 'bf16-true', 'fp8-current', 'fp8-delayed', 'fp8-blockwise', "
     "'fp8-mx', 'fp8-current-true', 'fp8-delayed-true', 'fp8-blockwise-true' or 'fp8-mx-true', got the number 16"),
    ("name: german\n", "name: german\nparallel: {sequence: yes}\n",
     "2: parallel.sequence: expected true or false, got 'yes'"),
    ("[en-1.txt, en-2.txt]", "{a: b}", "9: data.english.path: expected text or a list of texts, got a mapping"),
    ("[en-1.txt, en-2.txt]", "[]", "9: data.english.path: must not be an empty list"),
    ("[en-1.txt, en-2.txt]", "[true]",
     "9: data.english.path: expected text, got true; put it in quotes if it is meant as text"),
    ("tokenizer: tok/german", "tokenizer: tok/german\n  compare: mean",
     "7: vocabulary.compare: expected a list, got 'mean'"),
    ("tokenizer: tok/german", "tokenizer: 5",
     "6: vocabulary.tokenizer: expected the path of a tokenizer or a mapping with "
     "'path', 'train', 'extend' or 'prune', got the number 5"),
    ("tokenizer: tok/german", "tokenizer: {train: {corpora: [german], vocab_size: 299}}",
     "6: vocabulary.tokenizer.train.vocab_size: must be at least 300, got 299"),
    ("[embedding, output]", "embeddings",
     "12: phases[0].train: unknown part of a model 'embeddings'. Did you mean 'embedding'?"),
    ("[embedding, output]", "xyz",
     "12: phases[0].train: unknown part of a model 'xyz'. Known parts, besides 'layers[a:b]' and "
     "'regex:...': all, embedding, output, norms."),
    ("[embedding, output]", "[all, 'layers[2]']", "12: phases[0].train: expected layers[a:b] such as 'layers[0:4]' or "
     "'layers[-2:]', got 'layers[2]'"),
    ("[embedding, output]", "layers[4:4]",
     "12: phases[0].train: 'layers[4:4]' selects no layer; the first number must be below "
     "the second"),
    ("[embedding, output]", "layers[:0]",
     "12: phases[0].train: 'layers[:0]' selects no layer; the first number must be below "
     "the second"),
    ("[embedding, output]", "'regex:('",
     "12: phases[0].train: '(' is not a valid regular expression: missing ), unterminated "
     "subpattern at position 0"),
])
def test_schema_messages(tmp_path, old, new, expected):
    assert problems(tmp_path, edited((old, new))) == [f"recipe.yaml:{expected}"]


def test_missing_mappings_are_told_once_each(tmp_path):
    assert problems(tmp_path, "seed: 1\n") == [
        "recipe.yaml:1: name: missing; name of the run",
        "recipe.yaml:1: output: missing; directory for everything the run writes",
        "recipe.yaml:1: model: missing; where the weights come from",
        "recipe.yaml:1: data: missing; the corpora by name",
        "recipe.yaml:1: phases: missing; the phases of training, in order",
    ]
    text = BASE[: BASE.index("  - name: embeddings")]
    assert problems(tmp_path, text.replace("phases:", "phases: []")) == ["recipe.yaml:10: phases: must not be empty"]
    assert problems(tmp_path, text.replace("phases:", "phases: {full: {}}")) == [
        "recipe.yaml:10: phases: expected a list, got a mapping"]


# -- messages: between keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes, expected", [
    ([("  source: base", "  source: null")], "3: model: one of 'source' or 'from_scratch' is needed"),
    ([("  source: base\n", "  source: base\n" + SCRATCH)],
     "5: model.from_scratch: only one of 'source' or 'from_scratch' can be given, not 'source' and 'from_scratch'"),
    ([("tokenizer: tok/german", "tokenizer: {}")], "6: vocabulary.tokenizer: one of 'path', 'train', 'extend' or 'prune' is needed"),
    ([("tokenizer: tok/german", "tokenizer: {extend: {corpora: [germn], tokens: 5}}")],
     "6: vocabulary.tokenizer.extend.corpora[0]: unknown corpus 'germn'. Did you mean 'german'?"),
    ([("tokenizer: tok/german", "tokenizer: {prune: {corpora: [german]}, path: x}")],
     "6: vocabulary.tokenizer.prune: only one of 'path', 'train', 'extend' or 'prune' can be given, not 'path' and 'prune'"),
    ([("tokenizer: tok/german", "tokenizer: {train: {corpora: [german], vocab_size: 900, type: unigram, digits: three}}")],
     "6: vocabulary.tokenizer.train.digits: sentencepiece cannot count digits: 'three' belongs to 'bpe', not to 'unigram'"),
    ([("    steps: 100\n", "")], "19: phases[1]: one of 'tokens', 'steps', 'epochs' or 'share' is needed"),
    ([("    steps: 100\n", "    steps: 100\n    epochs: 1\n")],
     "24: phases[1].epochs: only one of 'tokens', 'steps', 'epochs' or 'share' can be given, not 'steps' and 'epochs'"),
    ([("held_out: 0.01", "held_out: 0.01, held_out_path: x")],
     "8: data.german.held_out_path: only one of 'held_out' or 'held_out_path' can be given, "
     "not 'held_out' and 'held_out_path'"),
    ([("data: {german: 1}", "data: {germn: 1}")],
     "13: phases[0].data.germn: unknown corpus 'germn'. Did you mean 'german'?"),
    ([("data: {german: 1}", "data: {fr: 1}")],
     "13: phases[0].data.fr: unknown corpus 'fr'. Corpora under data: german, english."),
    ([("tokenizer: tok/german", "tokenizer: {train: {corpora: [germn], vocab_size: 2K}}")],
     "6: vocabulary.tokenizer.train.corpora[0]: unknown corpus 'germn'. Did you mean 'german'?"),
    ([("name: german\n", "name: german\nevaluation: {corpora: [german, englsh]}\n")],
     "2: evaluation.corpora[1]: unknown corpus 'englsh'. Did you mean 'english'?"),
    ([("name: german\n", "name: german\nevaluation: {corpora: [english]}\n")],
     "2: evaluation.corpora[0]: 'english' has no held-out text; "
     "set data.english.held_out or data.english.held_out_path"),
    ([("batch_size: 8", "batch_size: 9\n    micro_batch_size: 2"), ("output: ", "parallel: {data: 2}\noutput: ")],
     "26: phases[1].batch_size: 9 is not divisible by micro_batch_size x parallel.data = 2 x 2 = 4; use 8 or 12"),
    ([("batch_size: 8", "batch_size: 8\n    micro_batch_size: 16")],
     "25: phases[1].batch_size: 8 is not divisible by micro_batch_size x parallel.data = 16 x 1 = 16; use 16"),
    ([("batch_size: 8", "batch_size: 8\n    micro_batch_size: 4"), ("output: ", "parallel: {pipeline: 4, virtual_pipeline: 2}\noutput: ")],
     "26: phases[1].batch_size: 8 is not divisible by micro_batch_size x parallel.data x parallel.pipeline (of an interleaved "
     "pipeline) = 4 x 1 x 4 = 16; use 16"),
    ([("output: ", "parallel: {virtual_pipeline: 2}\noutput: ")],
     "2: parallel.virtual_pipeline: needs parallel.pipeline above 1: it interleaves the stages of several ranks"),
    ([("name: full", "name: embeddings")],
     "19: phases[1].name: another phase is already named 'embeddings'; names must differ"),
    ([("name: german\n", "name: german\nparallel: {sequence: true}\n")],
     "2: parallel.sequence: sequence parallelism needs parallel.tensor above 1"),
    ([("name: german\n", "name: german\nparallel: {distributed_optimizer: true}\n")],
     "2: parallel.distributed_optimizer: needs parallel.data or parallel.context above 1: its state is shared by the ranks that "
     "have the same weights"),
    ([("batch_size: 8", "batch_size: 8\n    micro_batch_size: 1\n    precision: fp8-mx"),
      ("sequence_length: 128", "sequence_length: 48")],
     "26: phases[1].micro_batch_size: 1 x sequence_length 48 positions are no multiple of 32, which precision 'fp8-mx' needs"),
    ([("    steps: 100\n", "    steps: 100\n    async_save: true\n")],
     "24: phases[1].async_save: needs save_every: the checkpoint at a phase's end is waited for"),
    ([("    steps: 100\n", "    steps: 100\n    keep_every: 30\n    save_every: 20\n")],
     "24: phases[1].keep_every: 30 is no multiple of save_every = 20"),
    ([("    steps: 100\n", "    steps: 100\n    keep_every: 30\n")],
     "24: phases[1].keep_every: 30 is no multiple of save_every = null"),
    ([("output: ", "parallel: {sequence: true, tensor: 3}\noutput: "), ("length: 2K", "length: 3K")],
     "25: phases[1].sequence_length: 128 is not divisible by parallel.tensor = 3, which sequence parallelism needs; use 126 or 129"),
    ([("output: ", "parallel: {context: 12}\noutput: "), ("length: 2K", "length: 3K")],
     "25: phases[1].sequence_length: 128 is not divisible by 2 x parallel.context = 24, which context parallelism needs; use 120 or 144"),
    ([("output: ", "parallel: {context: 3, sequence: true, tensor: 2}\noutput: "), ("length: 2K", "length: 3K")],
     "25: phases[1].sequence_length: 128 is not divisible by 2 x parallel.context x parallel.tensor = 12, which context and "
     "sequence parallelism need; use 120 or 132"),
    ([("output: ", "evaluation: {sequence_length: 6}\nparallel: {context: 2, sequence: true, tensor: 2}\noutput: ")],
     "2: evaluation.sequence_length: 6 is not divisible by 2 x parallel.context x parallel.tensor = 8, which context and "
     "sequence parallelism need; use 8"),
    ([("batch_size: 8", "batch_size: 8\n    micro_batch_size: 1\n    precision: fp8-mx"),
      ("sequence_length: 128", "sequence_length: 96"), ("output: ", "parallel: {context: 2}\noutput: ")],
     "27: phases[1].micro_batch_size: 1 x sequence_length 96 positions are no multiple of 64, which precision 'fp8-mx' needs"),
    ([("    steps: 100\n", "    steps: 100\n    schedule: {warmup: 1.5}\n")],
     "24: phases[1].schedule.warmup: 1.5 is neither a share of the steps (below 1) nor a whole number of steps"),
    ([("    steps: 100\n", "    steps: 100\n    schedule: {decay: 0.2}\n")],
     "24: phases[1].schedule.decay: belongs to 'wsd' or 'infinite', not to 'cosine'; remove it or change the type"),
    ([("    steps: 100\n", "    steps: 100\n    schedule: {type: wsd, warmup: 0.5, decay: 0.6}\n")],
     "24: phases[1].schedule.decay: warmup 50 + decay 60 are more than all 100 steps"),
    ([("{lr: 1e-4}", "{lr: 1e-4, type: lionw, eps: 1e-6}")],
     "26: phases[1].optimizer.eps: belongs to 'adamw', 'adamw8bit' and 'muon', not to 'lionw'; remove it"),
    ([("{lr: 1e-4}", "{lr: 1e-4, type: muon, paged: true}")],
     "26: phases[1].optimizer.paged: belongs to 'adamw8bit', not to 'muon'; remove it"),
    ([("{lr: 1e-4}", "{lr: 1e-4, type: adamw8bit}\n    precision: bf16-true")],
     "26: phases[1].optimizer.type: adamw8bit rounds bf16 weights to the nearest, which loses most updates; use 'adamw', or precision "
     "'bf16-mixed'"),
    ([("{lr: 1e-4}", "{lr: 1e-4, type: lionw, offload: true}")],
     "26: phases[1].optimizer.offload: belongs to 'adamw', not to 'lionw'; remove it"),
    ([("{lr: 1e-4}", "{lr: 1e-4, offload: true}\n    precision: bf16-true")],
     "26: phases[1].optimizer.offload: updates float32 weights, which 'bf16-true' does without; use 'bf16-mixed'"),
    ([("{lr: 1e-4}", "{lr: 1e-4, offload: true}\n    precision: fp8-mx-true")],
     "26: phases[1].optimizer.offload: updates float32 weights, which 'fp8-mx-true' does without; use 'fp8-mx'"),
    ([("{lr: 1e-4}", "{lr: 1e-4, type: adamw8bit}\n    precision: fp8-current-true")],
     "26: phases[1].optimizer.type: adamw8bit rounds bf16 weights to the nearest, which loses most updates; use 'adamw', or precision "
     "'fp8-current'"),
    ([("{lr: 1e-4}", "{lr: 1e-4, rounding: kahan}\n    precision: fp8-delayed")],
     "26: phases[1].optimizer.rounding: weights are rounded under precisions 'bf16-true' and 'fp8-...-true' only, not under "
     "'fp8-delayed'; remove it"),
    ([("{lr: 1e-4}", "{lr: 1e-4, type: lionw, momentum: 0.9}")],
     "26: phases[1].optimizer.momentum: belongs to 'muon', not to 'lionw'; remove it"),
    ([("name: german\n", "name: german\nparallel: {distributed_optimizer: true, data: 2}\n"), ("{lr: 1e-4}", "{lr: 1e-4, type: muon}")],
     "27: phases[1].optimizer.type: muon needs whole matrices, which parallel.distributed_optimizer cuts into parts; "
     "use 'adamw' or 'lionw'"),
    ([("    steps: 100\n", "    steps: 100\n    amax_choice: most-recent\n")],
     "24: phases[1].amax_choice: belongs to precision 'fp8-delayed', not to 'bf16-mixed'; remove it"),
    ([("{lr: 1e-4}", "{lr: 1e-4, rounding: kahan}")],
     "26: phases[1].optimizer.rounding: weights are rounded under precisions 'bf16-true' and 'fp8-...-true' only, not under 'bf16-mixed'; remove it"),
    ([("{lr: 1e-4}", "{lr: 1e-4, rounding: kahan}\n    precision: fp32"), ("name: german\n", "name: german\nprecision: bf16-true\n")],
     "27: phases[1].optimizer.rounding: weights are rounded under precisions 'bf16-true' and 'fp8-...-true' only, not under 'fp32'; remove it"),
    ([("    steps: 100\n", "    steps: 100\n    restart_positions: false\n")],
     "24: phases[1].restart_positions: belongs to packing 'documents', not to 'chunks'; remove it"),
    ([("batch_size: 8", "batch_size: 8\n    ramp_up: {start: 2, by: 4, over: 10}")],
     "26: phases[1].ramp_up.by: batch_size 8 is not reached from 2 in whole intervals of 4"),
    ([("batch_size: 8", "batch_size: 8\n    ramp_up: {start: 2, by: 2, over: 2}")],
     "26: phases[1].ramp_up.over: 2 steps are fewer than the intervals from 2 to 8 by 2"),
    ([("batch_size: 8", "batch_size: 8\n    micro_batch_size: 4\n    ramp_up: {start: 4, by: 2, over: 10}")],
     "27: phases[1].ramp_up.by: 2 is not divisible by micro_batch_size x parallel.data = 4 x 1 = 4"),
    ([("    tokens: 500M\n", "    share: 0.25\n"), ("    steps: 100\n", "    epochs: 2\n")],
     "14: phases[0].share: needs the other phases' lengths in tokens or steps, not in epochs"),
    ([("    tokens: 500M\n", "    share: 0.25\n"), ("    steps: 100\n", "    share: 0.75\n")],
     "23: phases[1].share: the shares leave nothing for a phase with a length in tokens or steps"),
    ([("{lr: 1e-4}", "{lr: 1e-4, type: lionw}\n    init_state: keep")],
     "27: phases[1].init_state: phase 'embeddings' has the state of adamw, not of lionw"),
    ([("    steps: 100\n", "    epochs: 3\n    schedule: {type: wsd, warmup: 0.5, decay: 0.6}\n")],
     "24: phases[1].schedule.decay: warmup and decay together are more than all steps"),
    ([("    steps: 100\n", "    steps: 100\n    schedule: {decay_shape: cosine}\n")],
     "24: phases[1].schedule.decay_shape: belongs to 'wsd', not to 'cosine'; remove it or change the type"),
    ([("    steps: 100\n", "    steps: 100\n    schedule: {type: infinite, decay: 10, warmup: 0.1, min_lr_ratio: 0.1}\n")],
     "24: phases[1].schedule.warmup: 'infinite' needs a number of steps here (or 0), not 0.1: a share would change what "
     "was trained when the phase is extended"),
    ([("    steps: 100\n", "    steps: 100\n    schedule: {type: infinite, decay: 10}\n")],
     "24: phases[1].schedule.min_lr_ratio: 'infinite' decays exponentially, which never reaches 0; give a share above 0"),
    ([("    steps: 100\n", "    steps: 100\n    schedule: {type: infinite, decay: 10, min_lr_ratio: 0.6}\n")],
     "24: phases[1].schedule.min_lr_ratio: 0.6 is above constant_ratio 0.5, from where the learning rate is to fall"),
    ([("    steps: 100\n", "    steps: 100\n    schedule: {type: wsd, decay_shape: exponential}\n")],
     "24: phases[1].schedule.min_lr_ratio: an exponential decay never reaches 0; give a share above 0"),
    ([("    steps: 100\n", "    steps: 100\n    schedule: {type: wsd, decay_shape: exponential, floor: clamp, min_lr_ratio: 0.1}\n")],
     "24: phases[1].schedule.floor: an exponential decay ends at min_lr_ratio and has no other floor; use 'interpolate'"),
    ([("    steps: 100\n", "    steps: 100\n    schedule: {type: constant, min_lr_ratio: 0.1}\n")],
     "24: phases[1].schedule.min_lr_ratio: 'constant' does not fall; remove it or change the type"),
    ([("    steps: 100\n", "    steps: 100\n    evaluate_every: 5\n"), (", held_out: 0.01", "")],
     "24: phases[1].evaluate_every: there is no held-out text to evaluate on; set held_out or held_out_path of a corpus, or remove it"),
    ([("    steps: 100\n", "    steps: 100\n    schedule: {warmup_from: 0.1}\n")],
     "24: phases[1].schedule.warmup_from: is where a warm-up starts, and there is none; give a warmup or remove it"),
    ([("tokens: 500M\n", "tokens: 500M\n    schedule: {type: infinite, cooldown: 5000, decay: 0, min_lr_ratio: 0.1}\n")],
     "15: phases[0].schedule.decay: warmup 0 + cooldown 5,000 + decay 0 are more than all 3,907 steps"),
    ([("tokenizer: tok/german", "tokenizer: tok/german\n  compare: [random, default]")],
     "7: vocabulary.compare[1]: 'default' is already run; list each method once, without vocabulary.method"),
    ([("  source: base\n", SCRATCH.replace("llama,", "llama, vocab_size: 10,"))],
     "5: model.from_scratch.config.vocab_size: remove it: the size of the vocabulary comes from the tokenizer"),
])
def test_cross_checks(tmp_path, changes, expected):
    assert problems(tmp_path, edited(*changes)) == [f"recipe.yaml:{expected}"]


def test_pretraining_phases_need_a_swap(tmp_path):
    text = edited(("  source: base\n", SCRATCH + BASE_PHASE))
    assert load([write(tmp_path, text)]).model.from_scratch.phases[0].name == "base"
    assert problems(tmp_path, text.replace("vocabulary:\n  tokenizer: tok/german\n", "")) == [
        "recipe.yaml:7: model.from_scratch.phases: these phases precede a swap of the vocabulary, but there is none; "
        "move them to 'phases'"]
    broken = text.replace("{english: 1}", "{englsh: 1}").replace("name: base", "name: full")
    assert problems(tmp_path, broken) == [
        "recipe.yaml:8: model.from_scratch.phases[0].data.englsh: unknown corpus 'englsh'. Did you mean 'english'?",
        "recipe.yaml:23: phases[1].name: another phase is already named 'full'; names must differ"]


def no_options(given):
    return [(key, "unknown option.") for key in given]


def test_options_belong_to_methods_that_are_run(tmp_path):
    from megatron_adapt.vocab import methods

    overrides = ["vocabulary.method=focus", "vocabulary.compare=[clp]", "vocabulary.options.focus.dimm=3",
                 "vocabulary.options.focus.rare=never", "vocabulary.options.copy={}", "vocabulary.corpora=[germn]"]
    assert problems(tmp_path, overrides=overrides, methods=methods.checks()) == [
        "override 'vocabulary.compare=[clp]': vocabulary.compare[0]: option helper of clp is missing; Hugging Face directory of a "
        "model that has the target's tokenizer",
        "override 'vocabulary.options.focus.dimm=3': vocabulary.options.focus.dimm: unknown option. Did you mean 'dim'?",
        "override 'vocabulary.options.focus.rare=never': vocabulary.options.focus.rare: expected subwords or draw, got 'never'",
        "override 'vocabulary.options.copy={}': vocabulary.options.copy: options of a method that is not run. "
        "Methods run: focus, clp.",
        "override 'vocabulary.corpora=[germn]': vocabulary.corpora[0]: unknown corpus 'germn'. Did you mean 'german'?"]


def test_methods_are_checked_where_they_are_known(tmp_path):
    overrides = ["vocabulary.method=copi", "vocabulary.compare=[zzz]"]
    assert problems(tmp_path, overrides=overrides) == []
    assert problems(tmp_path, overrides=overrides, methods=dict.fromkeys(["copy", "mean"], no_options)) == [
        "override 'vocabulary.method=copi': vocabulary.method: unknown method 'copi'. Did you mean 'copy'?",
        "override 'vocabulary.compare=[zzz]': vocabulary.compare[0]: unknown method 'zzz'. Known methods: copy, mean."]
    assert problems(tmp_path, methods={"subwords": no_options}) == []


def test_a_share_of_the_run_is_told_in_tokens(tmp_path: Path) -> None:
    """A fifth of all tokens is a quarter of the others'."""
    text = edited(("    tokens: 500M\n", "    share: 0.2\n"))
    recipe = load([write(tmp_path, text)])
    assert recipe.phases[0].share is None and recipe.phases[0].tokens == 100 * 8 * 128 // 4
    assert load([write(tmp_path, dump(recipe))]) == recipe


@pytest.mark.parametrize("start, by, over", [(2, 2, 7), (2, 6, 1), (4, 1, 9), (1, 7, 30)])
def test_ramp_up(start: int, by: int, over: int) -> None:
    phase = Phase(
        name="a", data={"x": 1}, sequence_length=10, batch_size=8, optimizer={"lr": 1}, steps=10,
        ramp_up={"start": start, "by": by, "over": over},
    )  # fmt: skip
    sizes = [phase.batch_at(step) for step in range(over + 5)]
    assert sizes[0] == start and sizes[over:] == [8] * 5 and sizes[over - 1] == 8 - by
    assert {after - before for before, after in zip(sizes, sizes[1:])} <= {0, by} and sizes == sorted(sizes)
    assert [phase.samples(steps) for steps in range(len(sizes))] == [sum(sizes[:steps]) for steps in range(len(sizes))]
    for tokens in range(1, 10 * sum(sizes), 7):
        steps = phase.steps_for(tokens)
        assert phase.samples(steps) * 10 >= tokens > phase.samples(steps - 1) * 10
