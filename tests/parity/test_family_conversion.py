"""Every family through checkpoints on disk: what is imported without a model loads into one, what a model saves is exported."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest
from family_models import CONFIGS, make
from worlds import Layout, hf_model, on_ranks

from megatron_adapt.engine import checkpoint, model as models
from megatron_adapt.families import families
from megatron_adapt.hf.directory import HFDirectory
from megatron_adapt.steps import export_hf, import_hf
from megatron_adapt.steps.foreign import find_source
from megatron_adapt.steps.reporter import Reporter
from megatron_adapt.streams.bits import differing
from megatron_adapt.torch_dist.reader import TensorReader

FAMILIES = pytest.mark.parametrize("name", families())
TWO = Layout(tensor=2)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory):
    """A function: the models of a family, made on first use."""

    @lru_cache
    def made(name: str) -> list[Path]:
        folder = tmp_path_factory.mktemp(name)
        paths = {key: folder / str(number) for number, key in enumerate(CONFIGS[name])}
        on_ranks(1, lambda: [make(families()[name], CONFIGS[name][key], path) for key, path in paths.items()])
        return list(paths.values())

    return made


def assert_same_files(one: Path, other: Path) -> None:
    with HFDirectory.open(one).weights() as ours, HFDirectory.open(other).weights() as theirs:
        assert set(ours.names()) == set(theirs.names())
        assert differing(ours, theirs, ours.names()) == []


@FAMILIES
def test_an_import_loads_into_two_ranks_and_goes_back(directory, tmp_path: Path, name):
    def convert() -> None:
        for number, path in enumerate(directory(name)):
            opened = HFDirectory.open(path)
            shape = families()[name].read_config(opened.config)
            import_hf._convert(opened, shape, tmp_path / f"megatron-{number}", True, Reporter())
            source = find_source(tmp_path / f"megatron-{number}")
            export_hf._convert(source, tmp_path / f"hf-{number}", "keep", 5000, "keep", True, Reporter())
            assert_same_files(tmp_path / f"hf-{number}", path)

    def load() -> list[str]:
        different = []
        for number, path in enumerate(directory(name)):
            expected, shape = hf_model(path, TWO)
            model = models.build(shape, TWO, "fp32")
            checkpoint.load(checkpoint.resolve(tmp_path / f"megatron-{number}"), model)
            theirs = dict(models.named_parameters(expected))
            different += [key for key, tensor in models.named_parameters(model) if not tensor.equal(theirs[key])]
        return different

    directory(name)
    on_ranks(1, convert)
    assert on_ranks(2, load) == [[], []]


@FAMILIES
def test_what_two_ranks_save_is_exported(directory, tmp_path: Path, name):
    def save() -> None:
        for number, path in enumerate(directory(name)):
            checkpoint.save(tmp_path / str(number), hf_model(path, TWO)[0], None, checkpoint.Position(), path)

    def export() -> None:
        for number, path in enumerate(directory(name)):
            source = find_source(tmp_path / str(number))
            assert len(TensorReader(source.path).names()) == len(source.shape.parameter_shapes())
            export_hf._convert(source, tmp_path / f"hf-{number}", "float32", 5e9, "keep", True, Reporter())
            assert_same_files(tmp_path / f"hf-{number}", path)

    directory(name)
    on_ranks(2, save)
    on_ranks(1, export)
