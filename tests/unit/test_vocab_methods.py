"""Every method found in vocab/methods: what must hold for all of them."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from method_cases import matrix, world

from megatron_adapt.errors import ConfigError
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.vocab import methods
from megatron_adapt.vocab.material import Maps, Material

# With their defaults these do not keep the rows of tokens that both vocabularies have.
REBUILDS = {"random"}


def build(method: str, **changes) -> Maps:
    return methods.build(method, world().material(**changes), world().options(method))


@pytest.fixture(scope="module", params=methods.names())
def built(request) -> tuple[str, Maps]:
    return request.param, build(request.param)


def test_maps_fit_both_vocabularies(built):
    _, maps = built
    for token_map in (maps.input, maps.output):
        assert token_map.rows == world().target.vocab_size and token_map.source_size == world().source.vocab_size
        assert np.isfinite(token_map.weights).all()
        assert sum(token_map.counts().values()) == token_map.rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows(built, dtype):
    method, maps = built
    old = matrix(world().source).to(dtype)
    for token_map, name in ((maps.input, "embedding"), (maps.output, "output")):
        new = token_map.apply(old, seed=3, name=name)
        assert new.dtype == dtype and tuple(new.shape) == (world().target.vocab_size, old.shape[1])
        assert new.isfinite().all() and new.float().abs().max() < 200
        assert (new.float().norm(dim=1) > 0).all(), "a dead row"
        assert new.equal(token_map.apply(matrix(world().source, padding=5).to(dtype), seed=3, name=name))
        padded = token_map.padded(token_map.rows + 60)
        assert padded.drawn[token_map.rows :].all() and padded.norm == token_map.norm
        if not (method == "random" and token_map.draw == "xavier"):
            assert new.equal(padded.apply(old, seed=3, name=name)[: token_map.rows])


def test_the_same_seed_gives_the_same_bits(built):
    method, maps = built
    again = build(method)
    old = matrix(world().source)
    for one, other in ((maps.input, again.input), (maps.output, again.output)):
        assert one.apply(old, seed=3).equal(other.apply(old, seed=3))


def test_tokens_of_both_vocabularies_keep_their_bits(built):
    method, maps = built
    old = matrix(world().source).bfloat16()
    ids = torch.from_numpy(world().material().matching.source_ids)
    kept = ids >= 0
    assert kept.sum() > 300
    for token_map in (maps.input, maps.output):
        same = token_map.apply(old, seed=0)[kept].equal(old[ids[kept]])
        assert same == (method not in REBUILDS)


@pytest.mark.parametrize("method", methods.names())
def test_the_same_vocabulary_changes_no_bit(method, tmp_path):
    if method in REBUILDS:
        return
    here = world()
    given = here.options(method)
    if "helper" in given:  # a helper of the source's own vocabulary
        from method_cases import write_helper

        write_helper(tmp_path / "helper", here.folder / "source", tied=False, rows=here.source.vocab_size)
        given = {"helper": tmp_path / "helper"}
    if method in ("dictionary", "wechsel"):
        (tmp_path / "words.tsv").write_text("the\tthe\nand\tand\n")
        given = given | {"file": tmp_path / "words.tsv"}
        if method == "wechsel":
            given["target_vectors"] = here.folder / "en.vec"
    maps = methods.build(method, here.material(target=here.source), given)
    if method == "dictionary":  # nothing is left to translate, and that is said
        assert "no pair of" in maps.warnings[0] and maps.report["pairs_used"] == 0
    old = matrix(here.source).bfloat16()
    assert maps.input.apply(old, seed=0).equal(old) and maps.output.apply(old, seed=0).equal(old)


@pytest.mark.parametrize("method", methods.names())
def test_other_ids_for_the_same_tokens_permute_the_rows(method, tmp_path):
    """The ids of the target's tokens reversed (special ones kept): every row that is not drawn moves with its token."""
    here = world()
    material = here.material()
    parsed = json.loads((here.folder / "target" / "tokenizer.json").read_text())
    size = here.target.vocab_size
    special = {entry["id"] for entry in parsed["added_tokens"]}
    free = [index for index in range(size) if index not in special]
    moved = dict(zip(free, reversed(free))) | {index: index for index in special}
    parsed["model"]["vocab"] = {token: moved[index] for token, index in parsed["model"]["vocab"].items()}
    folder = tmp_path / "target"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(parsed))
    (folder / "tokenizer_config.json").write_text((here.folder / "target" / "tokenizer_config.json").read_text())
    permuted = Tokenizer.load(folder)
    given = dict(here.options(method))
    if "helper" in given:
        given["helper"] = _permuted_helper(given["helper"], folder, moved, tmp_path / "helper")
    if method == "focus":
        given["vectors"] = here.folder / "tokens.vec"
    one = methods.build(method, material, given | ({"helper": here.options(method)["helper"]} if "helper" in given else {}))
    other = methods.build(method, replace(material, target=permuted), given)
    old = matrix(here.source)
    order = torch.tensor([moved[index] for index in range(size)])
    for first, second in ((one.input, other.input), (one.output, other.output)):
        fixed = torch.from_numpy(~first.drawn)
        assert (first.drawn == second.drawn[order.numpy()]).all()
        before, after = first.apply(old, seed=0)[fixed], second.apply(old, seed=0)[order][fixed]
        assert torch.allclose(before, after, atol=1e-4)


def _permuted_helper(helper, tokenizer, moved, path):
    from megatron_adapt.hf.weights import WeightReader, WeightWriter

    inverse = torch.tensor([old for old, _ in sorted(moved.items(), key=lambda pair: pair[1])])
    with WeightReader(helper) as reader, WeightWriter(path) as writer:
        for name in reader.names():
            tensor = reader.get(name)
            writer.add(name, tensor[inverse] if tensor.shape[0] == len(inverse) else tensor)
    (path / "config.json").write_text((helper / "config.json").read_text())
    for file in tokenizer.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


@pytest.mark.parametrize("method", methods.names())
def test_every_option_says_what_it_is(method):
    kind = type(methods.read_options(method, world().options(method)))
    assert kind.__dataclass_params__.frozen
    for field in fields(kind):
        assert len(field.metadata["description"]) > 3, field.name
    for variant in getattr(kind, "VARIANTS", {}):
        chosen = methods.read_options(method, world().options(method) | {"variant": variant})
        assert chosen.variant == variant


@pytest.mark.parametrize("method", [name for name in methods.names() if "original" in getattr(methods._module(name).Options, "VARIANTS", {})])
def test_published_variants(method):
    given = world().options(method) | {"variant": "original"}
    if method == "focus":
        given["vectors"] = world().folder / "tokens.vec"
    maps = methods.build(method, world().material(), given)
    assert maps.input.norm == "none" and maps.input.apply(matrix(world().source), seed=0).isfinite().all()


@pytest.mark.parametrize("method", methods.names())
def test_methods_that_read_text_say_when_there_is_none(method):
    chosen = methods.read_options(method, world().options(method))
    if not methods.reads_text(method, chosen):
        return
    with pytest.raises(ConfigError, match=f"method {method} reads text in the target language: name files with --corpus"):
        build(method, texts=None)


def test_no_tokens_in_common(tmp_path):
    from vocabularies import write_tokenizer

    here = world()
    other = Tokenizer.load(write_tokenizer(tmp_path / "other", ["☃", "☁"], "byte-level", {}))
    for method in ("clp", "omp", "focus"):
        with pytest.raises(ConfigError, match=f"method {method} measures similarity .* only 0 in common"):
            methods.build(method, Material(here.target, other, texts=lambda: here.german), here.options(method))
