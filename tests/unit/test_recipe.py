"""Recipes: files and overrides merged, what cannot be read, all problems at once, derived numbers."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe_samples import BASE, SCRATCH, edited, problems, write

from megatron_adapt import recipe as recipes
from megatron_adapt.config import Parallel, Phase
from megatron_adapt.errors import ConfigError
from megatron_adapt.recipe import load

# -- what is read ----------------------------------------------------------------------------------------------------


def test_defaults_and_values(tmp_path):
    recipe = load([write(tmp_path, BASE)])
    first, full = recipe.phases
    assert (first.tokens, first.sequence_length, first.optimizer.lr) == (500_000_000, 2000, 1e-3)
    assert isinstance(first.tokens, int) and isinstance(first.optimizer.lr, float)
    assert recipe.vocabulary.tokenizer.path == "tok/german" and recipe.vocabulary.method == "default"
    assert (recipe.seed, recipe.precision, full.train, first.train) == (1234, "bf16-mixed", "all", ["embedding", "output"])
    assert load([tmp_path / "recipe.yaml"], ["precision=bf16"]) == recipe  # short for bf16-mixed
    assert recipe.export.max_shard_size == 5_000_000_000 and recipe.evaluation.max_bytes == 200_000
    assert recipe.data["english"].path == ["en-1.txt", "en-2.txt"] and full.data == {"german": 3.0, "english": 1.0}
    assert full.schedule.type == "cosine" and full.optimizer.beta2 == 0.95 and recipe.parallel.world_size == 1
    with pytest.raises(Exception, match="frozen"):
        recipe.seed = 1


def test_one_path_need_not_be_a_list(tmp_path):
    path = write(tmp_path, BASE)
    assert load(path) == load(str(path)) == load([path])


def test_from_scratch_keeps_the_config_as_written(tmp_path):
    recipe = load([write(tmp_path, edited(("  source: base\n", SCRATCH)))])
    scratch = recipe.model.from_scratch
    assert scratch.config == {"model_type": "llama", "rms_norm_eps": 1e-5, "rope_scaling": None}
    assert scratch.tokenizer.train.vocab_size == 2000 and scratch.tokenizer.train.type == "bpe"


def test_yaml_words_that_are_no_booleans(tmp_path):
    text = edited(
        ("  english: {path", "  no: {path"), ("      english: 1", "      no: 1"), ("name: german", "name: 2024-01-01"),
    )
    recipe = load([write(tmp_path, text)])
    assert list(recipe.data) == ["german", "no"] and recipe.name == "2024-01-01"


def test_anchors_and_merge_keys(tmp_path):
    first = "    optimizer:\n      lr: 1e-3"
    text = edited((first, "    optimizer: &adam {lr: 1e-3, eps: 1e-6}"), ("{lr: 1e-4}", "{<<: *adam, lr: 2e-4}"))
    optimizer = load([write(tmp_path, text)]).phases[1].optimizer
    assert (optimizer.lr, optimizer.eps) == (2e-4, 1e-6)
    text = edited((first, "    optimizer: &adam {lr: 1e-3}"), ("{lr: 1e-4}", "{<<: [*adam]}"))
    assert load([write(tmp_path, text)]).phases[1].optimizer.lr == 1e-3


# -- layers and overrides --------------------------------------------------------------------------------------------


def test_later_files_win(tmp_path):
    later = "seed: 7\ndata:\n  english: {path: other.txt}\nparallel: {tensor: 2}\n"
    recipe = load([write(tmp_path, BASE), write(tmp_path, later, "later.yaml")], ["parallel.tensor=4", "seed=8"])
    assert (recipe.seed, recipe.parallel.tensor, recipe.data["english"].path) == (8, 4, "other.txt")
    assert recipe.data["german"].held_out == 0.01


@pytest.mark.parametrize("path", ["phases[1]", "phases.1", "phases.full", "phases[-1]"])
def test_ways_to_address_a_phase(tmp_path, path):
    recipe = load([write(tmp_path, BASE)], [f"{path}.optimizer.lr=5e-5"])
    assert [phase.optimizer.lr for phase in recipe.phases] == [1e-3, 5e-5]


def test_override_values(tmp_path):
    recipe = load([write(tmp_path, BASE)], [
        "phases.full.train=[norms, 'layers[0:2]']", "data.german.path=*.txt", "name='1'", "output= a: b #c ",
        "phases.full.data={german: 2}", "data.english.path[1]=x", "phases.embeddings.train=layers[-2:]",
    ])
    assert recipe.phases[1].train == ["norms", "layers[0:2]"] and recipe.phases[0].train == "layers[-2:]"
    assert (recipe.data["german"].path, recipe.name, recipe.output) == ("*.txt", "1", "a: b #c")
    assert recipe.phases[1].data == {"german": 2.0, "english": 1.0} and recipe.data["english"].path == ["en-1.txt", "x"]


@pytest.mark.parametrize("override", ["phases.full.data.english=null", "phases.full.data={english: null}"])
def test_null_takes_a_corpus_out_of_a_mix(tmp_path, override):
    assert load([write(tmp_path, BASE)], [override]).phases[1].data == {"german": 3.0}


@pytest.mark.parametrize("overrides, check", [
    (["phases.full.tokens=1M"], lambda r: (r.phases[1].tokens, r.phases[1].steps) == (10**6, None)),
    (["phases.0.epochs=2"], lambda r: (r.phases[0].epochs, r.phases[0].tokens) == (2.0, None)),
    (["phases.0.epochs=2", "phases.0.steps=5"], lambda r: (r.phases[0].epochs, r.phases[0].steps) == (None, 5)),
    (["data.german.held_out_path=h.txt"], lambda r: r.data["german"].held_out == 0.0),
    (["vocabulary.tokenizer.train={corpora: [german], vocab_size: 1K}"], lambda r: r.vocabulary.tokenizer.path is None),
    (["model.source=null", "model.source=x"], lambda r: r.model.source == "x"),
    (["vocabulary.tokenizer.train={corpora: [german], vocab_size: 1K}", "vocabulary.tokenizer.path=t"],
     lambda r: (r.vocabulary.tokenizer.path, r.vocabulary.tokenizer.train) == ("t", None)),
])
def test_alternatives_displace_each_other(tmp_path, overrides, check):
    assert check(load([write(tmp_path, BASE)], overrides))


def test_a_source_displaces_from_scratch_and_back(tmp_path):
    base, scratch = write(tmp_path, BASE), write(tmp_path, "model:\n" + SCRATCH, "scratch.yaml")
    both = load([base, scratch])
    assert both.model.source is None and both.model.from_scratch is not None
    again = load([base, scratch], ["model.source=dir"])
    assert again.model.source == "dir" and again.model.from_scratch is None
    again = load([base, scratch], ["model={source: dir}"])
    assert again.model.source == "dir" and again.model.from_scratch is None


# -- messages: reading -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, expected", [
    ("", "recipe.yaml: the file is empty"),
    ("# only a comment\n", "recipe.yaml: the file is empty"),
    ("---\n", "recipe.yaml: the file is empty"),
    ("- a\n- b\n", "recipe.yaml:1: the top level must be a mapping (key: value lines), got a list"),
    ("just text\n", "recipe.yaml:1: the top level must be a mapping (key: value lines), got 'just text'"),
    ("name: a\n\tseed: 1\n", "recipe.yaml:2: tabs cannot indent YAML; use spaces"),
    ("name: [a\nseed: 1\n", "recipe.yaml:2: not valid YAML: expected ',' or ']', but got ':'"),
    ("name: a\n---\nname: b\n", "recipe.yaml:2: a recipe is a single YAML document; remove the second '---'"),
    ("name: *a\n", "recipe.yaml:1: not valid YAML: found undefined alias 'a'"),
    ("name: \x01\n", "recipe.yaml: not valid YAML: special characters are not allowed"),
])
def test_unreadable_yaml(tmp_path, text, expected):
    assert problems(tmp_path, text) == [expected]


def test_unreadable_files(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("name: é".encode("latin-1"))
    with pytest.raises(ConfigError) as error:
        load([tmp_path / "absent.yaml", tmp_path, tmp_path / "latin.yaml", write(tmp_path, "", "empty.yaml")])
    assert str(error.value).splitlines() == [
        f"{tmp_path}/absent.yaml: no such file", f"{tmp_path}: cannot be read: Is a directory",
        f"{tmp_path}/latin.yaml: is not UTF-8 text (byte 6)", f"{tmp_path}/empty.yaml: the file is empty",
    ]
    with pytest.raises(ConfigError, match="^No recipe is given; name at least one YAML file.$"):
        load([])


@pytest.mark.parametrize("old, new, expected", [
    ("name: german\n", "name: german\nname: b\n", "2: the key 'name' is given twice (first in recipe.yaml:1)"),
    ("name: german\n", "name: !!int abc\n", "1: 'abc' is not a number of the type that its tag names"),
    ("name: german\n", "name: !new abc\n", "1: the YAML tag '!new' is not supported"),
    ("name: german\n", "name: german\n? [a]\n: b\n", "2: a key must be plain text, not a list or mapping"),
    ("{lr: 1e-4}", "{<<: 3, lr: 1e-4}", "26: '<<' needs a mapping to take keys from, got the number 3"),
    ("{lr: 1e-4}", "&a {lr: 1e-4, eps: *a}", "26: an anchor (&) must not contain itself"),
])
def test_odd_yaml(tmp_path, old, new, expected):
    assert f"recipe.yaml:{expected}" in problems(tmp_path, edited((old, new)))


@pytest.mark.parametrize("override, expected", [
    ("seed", "override 'seed': expected path=value"),
    ("a..b=1", "override 'a..b=1': 'a..b' is not a path such as 'seed' or 'phases[1].optimizer.lr'"),
    ("=1", "override '=1': '' is not a path such as 'seed' or 'phases[1].optimizer.lr'"),
    ("phases[x].steps=1",
     "override 'phases[x].steps=1': 'phases[x].steps' is not a path such as 'seed' or 'phases[1].optimizer.lr'"),
    ("seed=[1", "override 'seed=[1': not valid YAML: expected ',' or ']', but got '<stream end>'"),
    ("phases[2].steps=1", "override 'phases[2].steps=1': there is no item 2: the list has 2 (counted from 0)"),
    ("phases.ful.steps=1", "override 'phases.ful.steps=1': the list has no item named 'ful'. Did you mean 'full'?"),
    ("phases.zzz.steps=1", "override 'phases.zzz.steps=1': the list has no item named 'zzz'. Names: embeddings, full."),
    ("model[0]=1", "override 'model[0]=1': [0] does not apply: there is no list here"),
    ("seed={a: 1, a: 2}",
     "override 'seed={a: 1, a: 2}': the key 'a' is given twice (first in override 'seed={a: 1, a: 2}')"),
    ("phases[1].optimizer.lrr=1",
     "override 'phases[1].optimizer.lrr=1': phases[1].optimizer.lrr: unknown key. Did you mean 'lr'?"),
    ("name=", "override 'name=': name: expected text, got nothing"),
    ("name.first=1", "override 'name.first=1': name: expected text, got a mapping"),
])
def test_override_messages(tmp_path, override, expected):
    assert expected in problems(tmp_path, overrides=[override])


def test_all_problems_at_once(tmp_path):
    text = edited(
        ("{lr: 1e-4}", "{lrr: 1e-4}"), ("data: {german: 1}", "data: {germn: 1}"), ("    steps: 100\n", ""),
        ("batch_size: 64", "batch_size: many"), ("batch_size: 8", "batch_size: 7\n    micro_batch_size: 2"),
        ("name: german\n", "name: german\nname: again\n"),
    )
    overrides = ["seeed=1", "parallel.sequence=true", "vocabulary.compare=[default, 5]", "phases[7].steps=2"]
    assert problems(tmp_path, text, overrides) == [
        "recipe.yaml:2: the key 'name' is given twice (first in recipe.yaml:1)",
        "recipe.yaml:14: phases[0].data.germn: unknown corpus 'germn'. Did you mean 'german'?",
        "recipe.yaml:17: phases[0].batch_size: expected a whole number (such as 8, 2K or 500M), got 'many'",
        "recipe.yaml:20: phases[1]: one of 'tokens', 'steps', 'epochs' or 'share' is needed",
        "recipe.yaml:25: phases[1].batch_size: 7 is not divisible by "
        "micro_batch_size x parallel.data = 2 x 1 = 2; use 6 or 8",
        "recipe.yaml:27: phases[1].optimizer.lrr: unknown key. Did you mean 'lr'?",
        "override 'seeed=1': seeed: unknown key. Did you mean 'seed'?",
        "override 'parallel.sequence=true': parallel.sequence: sequence parallelism needs parallel.tensor above 1",
        "override 'vocabulary.compare=[default, 5]': vocabulary.compare[1]: expected text, got the number 5; "
        "put it in quotes if it is meant as text",
        "override 'vocabulary.compare=[default, 5]': vocabulary.compare[0]: 'default' is already run; "
        "list each method once, without vocabulary.method",
        "override 'phases[7].steps=2': there is no item 7: the list has 2 (counted from 0)",
    ]


def test_problems_name_the_file_they_are_in(tmp_path):
    later = write(tmp_path, "phases:\n- name: b\n  lr: 3\n", "later.yaml")
    with pytest.raises(ConfigError) as error:
        load([write(tmp_path, BASE), later])
    assert f"{later}:3: phases[0].lr: unknown key. Did you mean 'optimizer.lr'?" in str(error.value).splitlines()
    assert f"{later}:2: phases[0].batch_size: missing; sequences per optimizer step, over all ranks" in str(error.value)


# -- derived numbers -------------------------------------------------------------------------------------------------


def phase(**values) -> Phase:
    base = {"name": "p", "data": {"a": 1, "b": 2}, "sequence_length": 100, "batch_size": 8, "optimizer": {"lr": 1}}
    return Phase.model_validate({**base, **values})


def test_derived_numbers():
    assert recipes.tokens_per_step(phase(steps=1)) == 800
    assert recipes.accumulation(phase(steps=1, micro_batch_size=2), Parallel(data=2)) == 2
    assert recipes.steps(phase(steps=7)) == 7
    assert [recipes.steps(phase(tokens=tokens)) for tokens in (1, 800, 801, 10**18)] == [1, 1, 2, 10**18 // 800]
    assert recipes.steps(phase(epochs=2)) is None
    assert recipes.steps(phase(epochs=2), {"a": 4000, "b": 4000, "other": 10**9}) == 20
    assert recipes.steps(phase(epochs=0.1), {"a": 4000, "b": 4001}) == 2
    assert recipes.steps(phase(epochs=0.1), {"a": 4000, "b": 4000}) == 1
    assert Parallel(tensor=2, pipeline=3, data=4).world_size == 24


@given(st.integers(1, 10**15), st.integers(1, 10**5), st.integers(1, 10**4))
def test_steps_cover_the_tokens_and_no_more(tokens, length, batch):
    subject = phase(tokens=tokens, sequence_length=length, batch_size=batch)
    steps, per_step = recipes.steps(subject), recipes.tokens_per_step(subject)
    assert (steps - 1) * per_step < tokens <= steps * per_step


def test_evaluated_corpora(tmp_path):
    path = write(tmp_path, BASE)
    assert recipes.evaluated_corpora(load([path])) == ["german"]
    assert recipes.evaluated_corpora(load([path], ["data.english.held_out_path=h.txt"])) == ["german", "english"]
    assert recipes.evaluated_corpora(load([path], ["evaluation.corpora=[]"])) == []


def test_importing_is_light():
    code = "import sys, megatron_adapt.recipe; print({'torch', 'numpy', 'transformers', 'megatron'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
