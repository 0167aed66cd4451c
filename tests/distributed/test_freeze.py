"""What a phase says it trains changes; everything else keeps every bit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from worlds import Layout, World, changed, tensors

from megatron_adapt.errors import ConfigError

EMBEDDING, HEAD = "embedding.word_embeddings.weight", "output_layer.weight"
SELECTIONS = {
    "embedding": f"{EMBEDDING}",
    "output": "HEAD",
    "norms": r".*norm_weight|decoder\.final_layernorm\.weight",
    "layers[1:3]": r"decoder\.layers\.[12]\..*",
    "layers[-1:]": r"decoder\.layers\.3\..*",
    "layers[:]": r"decoder\.layers\..*",
    r"regex:layers\.0\..*fc2": r"decoder\.layers\.0\.mlp\.linear_fc2\.weight",
    "all": ".*",
}


def train(world: World, folder: Path, selector: str | list[str], **settings):
    return world.train(folder, train=selector, steps=2, schedule={"type": "constant"}, **settings)


@pytest.mark.parametrize("selector", SELECTIONS)
@pytest.mark.parametrize("model", ["untied", "tied"])
def test_selector_trains_exactly_what_it_says(world: World, tmp_path: Path, model, selector):
    before = world.initial(model)
    after = tensors(train(world, tmp_path, selector, start=model).folder)
    pattern = SELECTIONS[selector].replace("HEAD", EMBEDDING if model == "tied" else HEAD)
    expected = {name for name in before if re.fullmatch(pattern, name)}
    assert expected and changed(before, after) == expected


def test_selection_reaches_across_pipeline_stages_and_shards(world: World, tmp_path: Path):
    selectors = ["norms", "layers[1:3]", "output"]  # layers 0 and 1 are on the first stage
    before = world.initial("untied")
    one, four = (
        tensors(train(world, tmp_path / name, selectors, start="untied", layout=layout).folder)
        for name, layout in (("one", Layout()), ("four", Layout(tensor=2, pipeline=2)))
    )
    expected = {name for name in before if re.search(r"norm_weight|layernorm|layers\.[12]\.|output", name)}
    assert changed(before, one) == changed(before, four) == expected
    assert max((one[name] - four[name]).abs().max().item() for name in one) < 1e-5


def test_weight_decay_is_for_matrices(world: World, tmp_path: Path):
    none, strong = (
        tensors(train(world, tmp_path / str(decay), "norms", optimizer={"lr": 1e-3, "weight_decay": decay}).folder)
        for decay in (0.0, 50.0)
    )
    assert changed(none, strong) == set()
    matrix = train(world, tmp_path / "matrix", "embedding", optimizer={"lr": 1e-3, "weight_decay": 50.0})
    assert tensors(matrix.folder)[EMBEDDING].norm() < 0.95 * none[EMBEDDING].norm()


@pytest.mark.parametrize("selector", ["layers[4:9]", "regex:no_such_name", ["embedding", "layers[7:]"]], ids=str)
def test_a_selector_that_matches_nothing_is_refused(world: World, tmp_path: Path, selector):
    wrong = selector if isinstance(selector, str) else selector[-1]
    with pytest.raises(ConfigError, match=re.escape(f"train: {wrong!r} selects nothing of this model of 4 layers")):
        train(world, tmp_path, selector, start="untied")
    assert not list(tmp_path.iterdir())
