"""muP's factors against table 3 of the paper, initial values, rows with rates of their own, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from family_models import GEMMA, GPT2, LLAMA, MPT, NEOX

from megatron_adapt import checks, plan, recipe
from megatron_adapt.engine.rates import RowRates
from megatron_adapt.engine.updates import AdamW, LionW
from megatron_adapt.errors import ConfigError
from megatron_adapt.families import family_named, initial_tensors
from megatron_adapt.families.mup import Scaling, base_fields, scalings

LAYER = "decoder.layers.1."
HALF, ROOT = 0.5, 0.5**0.5  # a model twice as wide as its base
NARROW = {"hidden_size": 16, "intermediate_size": 22}
HF_LLAMA = {**LLAMA, "model_type": "llama"}
FEWER = {**NARROW, "num_attention_heads": 2, "num_key_value_heads": 1}  # heads of 8 in both


def found(name: str, config: dict[str, Any], base: dict[str, Any]) -> dict[str, Scaling]:
    """Without the first layer's, which are the second's."""
    family = family_named(name)
    factors = scalings(family.read_config(config), base_fields(family, config, base))
    assert {key: factors.pop(key.replace(".1.", ".0.")) for key in list(factors) if LAYER in key} == {
        key: value for key, value in factors.items() if LAYER in key
    }
    return {key.removeprefix(LAYER): value for key, value in factors.items()}


def even(factor: float) -> Scaling:
    return Scaling((factor,), (factor,), (factor,))


def assert_are(factors: dict[str, Scaling], expected: dict[str, Scaling]) -> None:
    for key, scaling in expected.items():
        mine = factors[key]
        assert (*mine.std, *mine.rates, *mine.muon) == pytest.approx((*scaling.std, *scaling.rates, *scaling.muon)), key


def test_table_3() -> None:
    """More heads of the same size: hidden matrices, the head, and all else."""
    hidden = {size: Scaling((ROOT,) * size, (HALF,) * size, (ROOT,) * size) for size in (1, 2, 3)}
    factors = found("llama", LLAMA, FEWER)
    assert_are(factors, {
        "embedding.word_embeddings.weight": even(1), "self_attention.linear_qkv.weight": hidden[3],
        "self_attention.linear_qkv.layer_norm_weight": even(1), "self_attention.linear_proj.weight": hidden[1],
        "mlp.linear_fc1.weight": hidden[2], "mlp.linear_fc2.weight": hidden[1], "decoder.final_layernorm.weight": even(1),
        "output_layer.weight": Scaling((HALF,), (HALF,), (ROOT,)),
    })  # fmt: skip
    assert all(scaling.is_even for scaling in factors.values())
    same = found("llama", LLAMA, {}).values()
    assert {number for each in same for number in (*each.std, *each.rates, *each.muon)} == {1.0}


def test_dimensions_that_stay_are_no_wider() -> None:
    """A key/value head that all models have one of is an output as the vocabulary is; so are feed-forward units."""
    factors = found("llama", LLAMA, {"hidden_size": 16, "num_attention_heads": 2})
    assert_are(factors, {
        "self_attention.linear_qkv.weight": Scaling((ROOT, HALF, HALF), (HALF,) * 3, (ROOT, HALF, HALF)),
        "mlp.linear_fc1.weight": Scaling((HALF,) * 2, (HALF,) * 2, (ROOT,) * 2),
        "mlp.linear_fc2.weight": Scaling((1.0,), (1.0,), (1 / ROOT,)),
    })  # fmt: skip


def test_wider_heads_multiply_queries() -> None:
    factors = found("llama", LLAMA, NARROW)
    wider = Scaling((HALF, ROOT, ROOT), (HALF * ROOT, HALF, HALF), (HALF, ROOT, ROOT))
    assert_are(factors, {"self_attention.linear_qkv.weight": wider})
    assert not factors["self_attention.linear_qkv.weight"].is_even
    biased = found("gpt2", GPT2, {"n_embd": 16})["self_attention.linear_qkv.bias"]
    assert biased.rates == pytest.approx((ROOT, 1, 1))
    normed = found("qwen3", {**LLAMA, "head_dim": 16}, {**NARROW, "head_dim": 4})
    assert normed["self_attention.linear_qkv.weight"].is_even
    assert_are(normed, {"self_attention.q_layernorm.weight": even(HALF), "self_attention.k_layernorm.weight": even(1)})
    # The scores' factor as the family's own key: 1 / head_dim as well.
    assert all(each.is_even for each in found("mpt", {**MPT, "attn_config": {"softmax_scale": 0.25}}, {
        "d_model": 16, "attn_config": {"softmax_scale": 0.5},
    }).values())  # fmt: skip


def test_what_else_is_folded() -> None:
    tied = found("gpt2", GPT2, {"n_embd": 16, "n_head": 2})
    both = {f"decoder.final_layernorm.{kind}": even(HALF) for kind in ("weight", "bias")}
    rows = {f"embedding.{kind}_embeddings.weight": even(1) for kind in ("word", "position")}
    assert_are(tied, both | rows)
    scaled = found("gemma2", {**GEMMA, "tie_word_embeddings": False}, FEWER)
    assert_are(scaled, {"embedding.word_embeddings.weight": even(ROOT), "decoder.final_layernorm.weight": even(1)})


@pytest.mark.parametrize(
    ("name", "config", "base"),
    [("llama", LLAMA, NARROW), ("gpt2", GPT2, {"n_embd": 16}), ("gpt_neox", {**NEOX, "rotary_pct": 0.5}, NARROW)],
)
def test_initial_values_are_multiplied(name: str, config: dict[str, Any], base: dict[str, Any]) -> None:
    family = family_named(name)
    shape = family.read_config(config)
    factors = scalings(shape, base_fields(family, config, base))
    plain, ours = dict(initial_tensors(family, shape, 3)), dict(initial_tensors(family, shape, 3, scalings=factors))
    ratios = {key: ours[key] / plain[key] for key in plain if plain[key].abs().min() > 0}
    size, heads = shape.head_dim, shape.num_attention_heads
    if name == "llama":
        of_queries, of_keys = (ratios[f"model.layers.1.self_attn.{kind}_proj.weight"] for kind in "qk")
        assert ratios["model.norm.weight"].allclose(torch.ones(32))
    elif name == "gpt2":  # [in, out]: queries, then keys, then values
        fused = ratios["transformer.h.1.attn.c_attn.weight"]
        of_queries, of_keys = fused[:, :32], fused[:, 32:]
        assert ratios["transformer.ln_f.weight"].allclose(torch.full((32,), HALF))  # tied
    else:  # head by head
        fused = ratios["gpt_neox.layers.1.attention.query_key_value.weight"].view(heads, 3, size, 32)
        of_queries, of_keys = fused[:, 0], fused[:, 1:]
    assert of_queries.allclose(torch.tensor(HALF)) and of_keys.allclose(torch.tensor(ROOT))


@pytest.mark.parametrize("kind", [AdamW, LionW])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_with_learning_rates_of_their_own(kind: type, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if they were parameters of their own, whose decay makes up for the learning rate; of a part, too."""
    monkeypatch.setattr("megatron_adapt.engine.updates.BLOCK", 32)
    factors, rows, columns, first = (0.25, 1.0, 1.0), (2, 1, 1), 5, 7
    options = {"lr": 0.02, "weight_decay": 0.3, "betas": (0.9, 0.95)} | ({"eps": 1e-8} if kind is AdamW else {})
    whole = torch.randn(8, columns, generator=torch.Generator().manual_seed(0)).to(dtype).view(-1)[first:]
    slow = torch.arange(first, 40) // columns % 4 < 2
    ours = torch.nn.Parameter(whole.clone())
    theirs = [torch.nn.Parameter(whole[chosen].clone()) for chosen in (slow, ~slow)]
    mine = kind([ours], row_rates={ours: RowRates(rows, factors, columns)}, parts={ours: (first, 40)}, **options)
    split = [{"params": [theirs[0]], "lr": 0.02 * 0.25, "weight_decay": 0.3 / 0.25}, {"params": [theirs[1]]}]
    other = kind(split, **options)
    for step in range(4):
        ours.grad = torch.randn(len(whole), generator=torch.Generator().manual_seed(step + 1)).to(dtype)
        for parameter, chosen in zip(theirs, (slow, ~slow)):
            parameter.grad = ours.grad[chosen]
        mine.step()
        other.step()
    for parameter, chosen in zip(theirs, (slow, ~slow)):
        assert torch.allclose(ours[chosen], parameter, rtol=1e-5 if dtype == torch.float32 else 2**-7)
    assert (ours - whole).abs().min() > 1e-4


# ----------------------------------------------------------------------------------------------------------- recipes


def summary(folder: Path, config: dict[str, Any], base: dict[str, Any], *overrides: str) -> list[str]:
    tiny.corpora(folder)
    tree = tiny.recipe(parallel={}, output=str(folder / "out"))
    tree["model"]["mup"] = {"base": base}
    own = {key: value for key, value in config.items() if key not in ("vocab_size", "bos_token_id", "eos_token_id")}
    tree["model"]["from_scratch"]["config"] = own
    for name in ("english", "german"):
        tree["data"][name]["path"] = str(folder / tree["data"][name]["path"])
    return list(checks.summary(plan.build(recipe.load([tiny.write(folder, tree)], list(overrides)))))


def test_check_tells_what_follows(tmp_path: Path) -> None:
    config, full = {**HF_LLAMA, "tie_word_embeddings": True}, "phases.full.optimizer."
    more = ["phases.embeddings.optimizer.embedding_lr=1e-2", f"{full}type=muon", f"{full}decay_embeddings=false"]
    lines = summary(tmp_path, config, NARROW, *more)
    start = next(number for number, line in enumerate(lines) if line.startswith("muP"))
    assert lines[start] == (
        "muP: hidden_size 16 -> 32, intermediate_size 22 -> 44, num_attention_heads 4 -> 4, num_key_value_heads 2 -> 2, "
        "head_dim 4 -> 8"
    )
    cells = [[cell for cell in line.split("  ") if cell.strip()] for line in lines[start + 1 : start + 8]]
    assert [[cell.strip() for cell in row] for row in cells] == [
        ["tensors", "initial std", "pretrain: rate, decay", "embeddings: rate, decay", "full: rate, decay"],
        ["embedding.word_embeddings", "0.02", "0.003, 0.1", "0.01, 0.1", "0.003, 0"],
        ["linear_qkv.layer_norm_weight, linear_fc1.layer_norm_weight", "1", *["0.003, 0"] * 3],
        ["linear_qkv", "0.01/0.01414/0.01414", *["0.001061/0.0015/0.0015, 0.2"] * 2, "0.0015/0.002121/0.002121, 0.1"],
        ["linear_proj, linear_fc2", "0.007071", "0.0015, 0.2", "0.0015, 0.2", "0.002121, 0.1"],
        ["linear_fc1", "0.01414", "0.0015, 0.2", "0.0015, 0.2", "0.002121, 0.1"],
        ["final_layernorm", "0.5", *["0.0015, 0"] * 3],
    ]
    alone = summary(tmp_path, config, NARROW, "phases.full.optimizer.decay_by=schedule")
    assert next(line for line in alone if line.startswith("linear_fc1 ")).endswith("0.0015, 0.1")


@pytest.mark.parametrize(
    ("config", "base", "override", "message"),
    [
        (HF_LLAMA, {"num_hidden_layers": 2}, "", "model.mup.base: 'num_hidden_layers' is no width of a llama model; depth"),
        (HF_LLAMA, {"hiden_size": 16}, "", "no width of a llama model.* Did you mean 'hidden_size'"),
        (HF_LLAMA, {"hidden_size": 18}, "", "model.mup.base: hidden_size 18 is not a multiple of 4 heads"),
        (HF_LLAMA, NARROW, "phases.full.optimizer.type=adamw8bit",
         "phase 'full': muP with heads of 8 and of 4 in the base gives query .* which optimizer adamw8bit cannot; use adamw"),
        (HF_LLAMA, NARROW, "phases.full.optimizer.offload=true", "which optimizer offload cannot"),
        ({**GEMMA, "model_type": "gemma2"}, FEWER, "",
         "muP with tied embeddings .* of gemma2 multiplies by 1 .* set tie_word_embeddings: false"),
        ({**GEMMA, "model_type": "gemma3_text", "tie_word_embeddings": False}, {**FEWER, "head_dim": 6}, "",
         "but the queries' norm multiplies by 1 \\+ weight; set query_pre_attn_scalar: 80 instead"),
        ({**MPT, "model_type": "mpt", "attn_config": {"clip_qkv": 6}}, {"d_model": 16}, "",
         "but queries are clipped; set attn_config.softmax_scale: 0.25 instead"),
    ],
)  # fmt: skip
def test_what_is_refused(
    tmp_path: Path, config: dict[str, Any], base: dict[str, Any], override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        summary(tmp_path, config, base, *([override] if override else []))
