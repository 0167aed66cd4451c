"""A recipe with muP: what comes out is a plain Hugging Face model, and the base belongs to what it was made by."""

from __future__ import annotations

import json
from typing import Any

import tiny
from commands import Shop


def test_muP_leaves_a_plain_model(shop: Shop) -> None:
    config = {**tiny.CONFIG, "tie_word_embeddings": True}
    tree = tiny.recipe(
        name="mup", output="mup", vocabulary=None, phases=[tiny.phase("full", 2)], parallel={},
        model={
            "from_scratch": {"config": config, "tokenizer": {"train": {"corpora": ["german"], "vocab_size": 320}}},
            "mup": {"base": {"hidden_size": 8, "intermediate_size": 12}},
        },
        data={"german": {"path": "de.jsonl", "max_documents": 40}}, evaluation={"corpora": []},
    )  # fmt: skip
    tiny.write(shop.folder, tree, "mup.yaml")
    shop.run("run", "mup.yaml").succeeded()

    def read() -> tuple[float, float, dict[str, Any], bool]:
        from transformers import AutoModelForCausalLM

        fresh, trained = (AutoModelForCausalLM.from_pretrained(shop / folder) for folder in ("mup/base/initial", "mup/model"))
        gain, moved = fresh.model.norm.weight, trained.model.norm.weight - fresh.model.norm.weight
        logits = trained(**{"input_ids": trained.lm_head.weight.new_ones(1, 4).long()}).logits
        return gain.unique().tolist(), moved.abs().max().item(), trained.config.to_dict(), bool(logits.isfinite().all())

    gain, moved, written, finite = shop.compute(read)
    # The factor of a tied head's logits; two updates of at most (a warmed-up) learning rate, a quarter of the recipe's.
    assert gain == [0.25] and 1e-4 < moved < 2 * 3e-3 / 4 and finite
    assert written["hidden_size"] == 32 and not [key for key in written if "mup" in key or "mult" in key]
    exported = json.loads((shop / "mup/model/receipt.json").read_text())["metrics"]
    assert exported["max_abs_difference"] < 1e-4  # of logits, against transformers
    shop.run("run", "mup.yaml", "model.mup.base.hidden_size=16").refused("base/initial", "mup")
