"""A vocabulary that tensor-parallel ranks cannot share evenly. That of most tests is one of them; here are more ranks than two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from worlds import STEPS, Layout, World, interrupted_after, on_ranks, same_bits, stored, tensors

from megatron_adapt.engine import backend, checkpoint, model as models, vocabulary
from megatron_adapt.errors import CheckpointError, ConfigError
from megatron_adapt.families import find_family

MODEL = "twelve heads"  # and 323 rows: one, two and three too many for 2, 3 and 4 ranks


@pytest.mark.parametrize("rows, ranks", [(1, 1), (3, 3), (4, 3), (5, 3), (6, 3), (323, 4), (50257, 8)])
def test_shares_are_those_of_tensor_split(rows, ranks):
    shares = [vocabulary.share(rows, rank, ranks) for rank in range(ranks)]
    assert [list(share) for share in shares] == [part.tolist() for part in torch.arange(rows).tensor_split(ranks)]


def test_checkpoints_are_the_same_whoever_writes_them(world: World, tmp_path: Path):
    source = checkpoint.resolve(world.imported(MODEL))
    shape = find_family(source.config).read_config(source.config)

    def copy(ranks: int, folder: Path, rows: int = shape.vocab_size) -> list[int]:
        layout = Layout(tensor=ranks)
        backend.start(layout, 0)
        model = models.build(replace(shape, vocab_size=rows), layout, "fp32")
        checkpoint.load(source, model)
        checkpoint.save(folder, model, None, checkpoint.Position(), source.hf)
        return [len(parameter) for name, parameter in models.named_parameters(model) if name == models.HEAD]

    expected = stored(world.imported(MODEL))
    for ranks, rows in ((2, [162, 161]), (3, [108, 108, 107]), (4, [81, 81, 81, 80])):
        folder = tmp_path / str(ranks)
        assert on_ranks(ranks, lambda: copy(ranks, folder)) == [[count] for count in rows]
        found = stored(folder)
        assert {name: same_bits(found[name], tensor) for name, tensor in expected.items()} == dict.fromkeys(found, True)
    with pytest.raises(CheckpointError, match=r"cannot be read .*Global shape mismatch.*323.*324"):
        on_ranks(2, lambda: copy(2, tmp_path / "other", rows=324))
    with pytest.raises(ConfigError, match="3 vocabulary rows are fewer than parallel.tensor=4"):
        models.build(replace(shape, vocab_size=3), Layout(tensor=4), "fp32")


def test_resumed_by_other_numbers_of_ranks(world: World, tmp_path: Path):
    """Begun by two, continued by one, ended by three; and by four alone."""
    reference = world.train(tmp_path / "one", start=MODEL, **STEPS)
    run = world.train(tmp_path / "begun", Layout(tensor=2, sequence=True), start=MODEL, **STEPS)
    for step, layout in ((2, Layout()), (4, Layout(tensor=3))):
        folder = interrupted_after(step, run, tmp_path / str(step))
        run = world.train(folder, layout, start=MODEL, **STEPS)
    assert run.losses == pytest.approx(reference.losses, rel=1e-5)
    assert run.norms == pytest.approx(reference.norms, rel=3e-5)
    ours, theirs = tensors(run.folder), tensors(reference.folder)
    assert max((ours[name] - theirs[name]).abs().max().item() for name in theirs) < 1e-3
    four = world.train(tmp_path / "four", Layout(tensor=4), start=MODEL, **STEPS)
    assert four.losses == pytest.approx(reference.losses, rel=1e-5)
