"""Recipes under random values: nothing but a recipe or a ConfigError comes out, and dump and load are inverse."""

from __future__ import annotations

import copy

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recipe_samples import BASE, BASE_PHASE, SCRATCH, write

from megatron_adapt import recipe as recipes
from megatron_adapt.config import Recipe
from megatron_adapt.errors import ConfigError
from megatron_adapt.recipe import load


def _paths(value, path=()):
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _paths(item, (*path, key))


JUNK = [None, True, 0, -1, 2.5, "", "x", [], [1], {}, {"a": 1}, "all", 10**40, [[]], [None]]
FULL = yaml.safe_load(BASE.replace("  source: base\n", SCRATCH + BASE_PHASE) + """\
parallel: {tensor: 2, sequence: true}
evaluation: {corpora: [german]}
export: {dtype: keep}
""")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_value_anywhere_is_a_recipe_or_a_config_error(tmp_path_factory, data):
    """Whatever stands where: no other exception, one line for each problem, each with a file and line."""
    broken = copy.deepcopy(FULL)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from([path for path in _paths(broken) if path]))
        junk = data.draw(st.sampled_from(JUNK))
        target = broken
        for step in path[:-1]:
            target = target[step]
        target[path[-1]] = copy.deepcopy(junk)
    path = write(tmp_path_factory.getbasetemp(), yaml.safe_dump(broken), "fuzz.yaml")
    try:
        load([path], methods={"copy": lambda given: []})
    except ConfigError as error:
        for line in str(error).splitlines():
            assert line.startswith(f"{path}:") and "pydantic" not in line and "INVALID" not in line, line


# -- round trip ------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)
TRAPS = ["no", "1e-4", "010", "0x1", "2024-01-01", "~", "null", "<<", "500M", "1:30", "*a", "{", "=", "1_000", ".inf",
         "a\x85b", "a\u2028b", "a\n\tb\n"]
WORDS = st.one_of(TEXT, st.sampled_from(TRAPS))
COUNTS = st.integers(1, 10**15)
SHARES = st.floats(0, 0.5)
POSITIVE = st.floats(1e-30, 1e20)
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**63), st.floats(allow_nan=False), WORDS)
JSON = st.recursive(PLAIN,
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=6)
CHOICES = st.one_of(st.fixed_dictionaries({"path": WORDS}), WORDS, st.fixed_dictionaries(
    {"train": st.fixed_dictionaries({"corpora": st.just(["a"]), "vocab_size": st.integers(300, 10**6)}, optional={
        "type": st.sampled_from(["bpe", "unigram"]), "max_bytes": st.none() | COUNTS})}))
SCHEDULES = st.one_of(
    st.fixed_dictionaries({}, optional={"type": st.sampled_from(["constant", "linear", "cosine"]), "warmup": SHARES}),
    st.fixed_dictionaries({"type": st.just("wsd"), "warmup": SHARES, "decay": SHARES}))


@st.composite
def phase_dicts(draw, name):
    micro = draw(st.integers(1, 8))
    parts = st.sampled_from(["all", "embedding", "output", "norms", "layers[1:2]", "layers[-1:]", "regex:a=b.*"])
    return {
        "name": name, "train": draw(st.one_of(parts, st.lists(parts, min_size=1))), "data": {"a": draw(POSITIVE)},
        draw(st.sampled_from(["tokens", "steps"])): draw(COUNTS), "sequence_length": 2 * draw(COUNTS),
        "micro_batch_size": micro, "batch_size": 4 * micro * draw(st.integers(1, 9)),
        "optimizer": {"lr": draw(POSITIVE), "clip_grad": draw(SHARES)},
        "schedule": draw(SCHEDULES), "evaluate_every": draw(st.none() | COUNTS),
    }


@st.composite
def recipe_dicts(draw):
    scratch = {"config": draw(st.dictionaries(WORDS, JSON, max_size=4)), "tokenizer": draw(CHOICES)}
    return {
        "name": draw(WORDS), "output": draw(WORDS), "seed": draw(st.integers(0, 2**63)),
        "model": draw(st.sampled_from([{"source": draw(WORDS)}, {"from_scratch": scratch}])),
        "vocabulary": draw(st.one_of(st.none(), st.fixed_dictionaries(
            {"tokenizer": CHOICES, "method": WORDS}, optional={"pad_to_multiple": COUNTS}))),
        "data": {"a": {"path": draw(st.one_of(WORDS, st.lists(WORDS, min_size=1))), "held_out": draw(SHARES)},
                 "b": {"path": "b", "held_out_path": draw(WORDS)}},
        "parallel": draw(st.sampled_from([{}, {"tensor": 2, "sequence": True}, {"data": 4, "pipeline": 3}])),
        "phases": [draw(phase_dicts(f"p{index}")) for index in range(draw(st.integers(1, 3)))],
        "evaluation": draw(st.sampled_from([{}, {"corpora": ["b"], "max_bytes": None}])),
    }


@settings(max_examples=75, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(recipe_dicts())
def test_dump_and_load_round_trip(tmp_path_factory, raw):
    recipe = Recipe.model_validate(raw)
    path = write(tmp_path_factory.getbasetemp(), recipes.dump(recipe), "dumped.yaml")
    again = load([path])
    assert again == recipe and recipes.dump(again) == recipes.dump(recipe)


def test_dump_fills_in_every_default(tmp_path):
    recipe = load([write(tmp_path, BASE)])
    text = recipes.dump(recipe)
    assert "beta2: 0.95" in text and "max_shard_size: 5000000000" in text and "weight_decay: 0.1" in text
    dumped = write(tmp_path, text, "dumped.yaml")
    again = load([dumped], ["phases.full.tokens=1M", "model.source=x", "data.german.held_out_path=h"])
    assert again.phases[1].steps is None and again.data["german"].held_out_path == "h"
