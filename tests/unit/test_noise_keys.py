"""Keys of a phase that add noise to training or weigh its loss: how they are written, what is refused, what `check` says."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from recipe_samples import edited, write

from megatron_adapt import checks, plan, recipe
from megatron_adapt.config import Dropout
from megatron_adapt.errors import ConfigError
from megatron_adapt.vocab import methods

LENGTH = "    sequence_length: 2K\n"


def loaded(folder: Path, *lines: str) -> recipe.Recipe:
    return recipe.load(write(folder, edited((LENGTH, LENGTH + "".join(f"    {line}\n" for line in lines)))))


@pytest.mark.parametrize("text, rates", [
    ("0.1", (0.1, 0.1, 0.1)), ("1e-1", (0.1, 0.1, 0.1)), ("{attention: 0.2}", (0, 0.2, 0)), ("{}", (0, 0, 0)), ("0", (0, 0, 0)),
])  # fmt: skip
def test_dropout_as_one_number_or_three(tmp_path: Path, text, rates):
    first, second = loaded(tmp_path, f"dropout: {text}").phases
    assert first.dropout == Dropout(hidden=rates[0], attention=rates[1], embedding=rates[2]) and second.dropout == Dropout()
    assert recipe.load(write(tmp_path, recipe.dump(loaded(tmp_path, f"dropout: {text}")), "again.yaml")).phases[0] == first


@pytest.mark.parametrize("text, problem", [
    ("1", r"phases\[0\].dropout.hidden: must be less than 1, got 1"), ("{hidden: -0.1}", "dropout.hidden: must be at least 0, got -0.1"),
    ("{attn: 0.1}", "dropout.attn: unknown key"), ("some", "dropout.attention: expected a number.*got 'some'"),
    ("[0.1]", r"phases\[0\].dropout: expected a mapping"),
])  # fmt: skip
def test_dropout_that_is_none(tmp_path: Path, text, problem):
    with pytest.raises(ConfigError, match=problem):
        loaded(tmp_path, f"dropout: {text}")


def test_neftune(tmp_path: Path):
    first, second = loaded(tmp_path, "packing: documents", "neftune_alpha: 5").phases
    assert (first.neftune_alpha, first.neftune_per) == (5, "document") and second.neftune_alpha == 0
    assert loaded(tmp_path, "neftune_alpha: 1.5e1", "neftune_per: sequence").phases[0].neftune_alpha == 15


@pytest.mark.parametrize("lines, problem", [
    (["neftune_alpha: 5"], r"phases\[0\].neftune_per: documents that see one another have no length of their own; use .seq"),
    (["neftune_per: sequence"], "neftune_per: is about the noise of neftune_alpha, and there is none; remove it"),
    (["neftune_alpha: -1"], "neftune_alpha: must be at least 0, got -1"), (["neftune_per: pack"], "neftune_per: .*'document'"),
])  # fmt: skip
def test_neftune_that_is_none(tmp_path: Path, lines, problem):
    with pytest.raises(ConfigError, match=problem):
        loaded(tmp_path, *lines)


def test_the_loss_of_chunks_is_per_token(tmp_path: Path):
    assert loaded(tmp_path, "loss_per: document", "packing: documents").phases[0].loss_per == "document"
    for per in ("sequence", "document"):
        with pytest.raises(ConfigError, match="loss_per: belongs to packing 'documents': under 'chunks' every sequence has as many tokens"):
            loaded(tmp_path, f"loss_per: {per}")


def test_dropout_of_the_model_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    tiny.corpora(tmp_path)
    config = {"model_type": "gpt2", "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 64, "attn_pdrop": 0.1, "resid_pdrop": 0.0}

    def said(config: dict, *changes: str) -> list[str]:
        tree = tiny.recipe()
        tree["model"]["from_scratch"]["config"] = config
        built = recipe.load([tiny.write(tmp_path, tree)], changes, methods=methods.checks())
        return [line for line in checks.summary(plan.build(built)) if "dropout" in line]

    told = "the model's config.json asks for dropout (attn_pdrop 0.1), phases without 'dropout' have none: "
    assert said(tiny.CONFIG) == []
    assert said(config) == [told + "pretrain, embeddings, full"]
    assert said(config, "phases.embeddings.dropout=0.1", "phases.full.dropout={hidden: 0.1}") == [told + "pretrain"]
