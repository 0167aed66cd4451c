"""families/: rules that move every bit exactly once, in both directions, and fresh weights."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch
from harness import assets
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_adapt.errors import CheckpointError
from megatron_adapt.families import ModelShape, families, family_named, find_family, initial_tensors
from megatron_adapt.families.rules import GateUp, QKV, check_weights, expand, hf_to_megatron, megatron_to_hf
from megatron_adapt.hf.directory import HFDirectory

def config(**changes):
    base = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 48, "intermediate_size": 20,
        "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3, "vocab_size": 11,
    }  # fmt: skip
    return {**base, **changes}


def read(**changes) -> ModelShape:
    return find_family(config(**changes)).read_config(config(**changes))


class Weights:
    """The reader protocol over a dictionary; counts what is read."""

    path = "somewhere"

    def __init__(self, tensors):
        self.tensors = dict(tensors)
        self.reads = Counter()

    def names(self):
        return list(self.tensors)

    def info(self, name):
        return tuple(self.tensors[name].shape), str(self.tensors[name].dtype).split(".")[1]

    def get(self, name):
        self.reads[name] += 1
        return self.tensors[name]


shapes = st.builds(
    lambda groups, per_group, half, hidden, **rest: ModelShape(
        num_query_groups=groups, num_attention_heads=groups * per_group, head_dim=2 * half, hidden_size=hidden,
        max_position_embeddings=64, norm_epsilon=1e-5, rope={"rope_type": "default", "rope_theta": 1e4}, init_std=0.02,
        **rest,
    ),
    family=st.sampled_from(sorted(families())), groups=st.integers(1, 4), per_group=st.integers(1, 4),
    half=st.integers(1, 4), hidden=st.integers(1, 9), num_layers=st.integers(1, 3), ffn_hidden_size=st.integers(1, 9),
    vocab_size=st.integers(1, 9), tied=st.booleans(),
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(shapes, st.sampled_from(["float32", "bfloat16", "float16"]))
def test_every_tensor_once_and_bit_exact(shape, dtype):
    family = family_named(shape.family)
    original = dict(initial_tensors(family, shape, seed=3, dtype=dtype))
    reader = Weights(original)
    megatron = list(hf_to_megatron(family, shape, reader))
    assert all(count == 1 for count in reader.reads.values()) and set(reader.reads) == set(original)
    assert {name: tuple(tensor.shape) for name, tensor in megatron} == shape.parameter_shapes()
    assert len(megatron) == len(shape.parameter_shapes())
    assert shape.num_parameters() == sum(tensor.numel() for tensor in original.values())
    back = list(megatron_to_hf(family, shape, reversed(megatron)))
    assert len(back) == len(original)
    for name, tensor in back:
        assert tensor.dtype == original[name].dtype and tensor.equal(original[name])


def test_qkv_order():
    """Two groups of two query heads, head_dim 1: q0 q1 k0 v0 q2 q3 k1 v1; biases alike."""
    shape = replace(read(), num_attention_heads=4, num_query_groups=2, head_dim=1, hidden_size=1)
    parts = [torch.tensor([0, 1, 2, 3]), torch.tensor([10, 11]), torch.tensor([20, 21])]
    bias = QKV("b", ("q", "k", "v"), sizes=())
    assert bias.to_megatron(parts, shape).tolist() == [0, 1, 10, 20, 2, 3, 11, 21]
    assert bias.megatron_shape(shape) == (8,) and bias.hf_shapes(shape) == [(4,), (2,), (2,)]
    matrix = QKV("w", ("q", "k", "v"))
    assert matrix.to_megatron([part[:, None] for part in parts], shape).shape == matrix.megatron_shape(shape) == (8, 1)
    assert [part.tolist() for part in bias.to_hf(bias.to_megatron(parts, shape), shape)] == [p.tolist() for p in parts]


def test_gate_comes_first():
    shape = replace(read(), ffn_hidden_size=2)
    rule = GateUp("w", ("gate", "up"), sizes=())
    assert rule.to_megatron([torch.tensor([1, 2]), torch.tensor([3, 4])], shape).tolist() == [1, 2, 3, 4]


def test_canonical_names_in_model_order():
    names = [rule.megatron for rule in expand(family_named("llama"), replace(read(), num_layers=1))]
    assert names == [
        "embedding.word_embeddings.weight",
        "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight",
        "decoder.layers.0.self_attention.linear_qkv.weight",
        "decoder.layers.0.self_attention.linear_proj.weight",
        "decoder.layers.0.mlp.linear_fc1.layer_norm_weight",
        "decoder.layers.0.mlp.linear_fc1.weight",
        "decoder.layers.0.mlp.linear_fc2.weight",
        "decoder.final_layernorm.weight",
        "output_layer.weight",
    ]
    assert "output_layer.weight" not in read(tie_word_embeddings=True).parameter_shapes()
    assert read(head_dim=16).parameter_shapes()["decoder.layers.1.self_attention.linear_proj.weight"] == (48, 96)


def weights(shape, **changes):
    tensors = dict(initial_tensors(family_named("llama"), shape, seed=0))
    tensors.update(changes)
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.norm.weight": None}, r"somewhere: tensors are missing: model\.norm\.weight"),
        ({"score.weight": torch.zeros(2)}, r"no place in a llama model: score\.weight"),
        ({"model.norm.weight": torch.ones(5)}, r"model\.norm\.weight has shape \[5\], config\.json announces \[48\]"),
        ({"model.norm.weight": torch.ones(48, dtype=torch.int8)}, "stored as int8; convert it to one of float32"),
        ({"model.layers.0.mlp.up_proj.weight": torch.ones(20, 48).half()}, r"differ in dtype \(float16, float32\)"),
        ({f"extra.{i}": torch.zeros(1) for i in range(9)}, "and 3 more"),
    ],
)
def test_weights_that_do_not_fit(changes, message):
    shape = read()
    with pytest.raises(CheckpointError, match=message):
        list(hf_to_megatron(family_named("llama"), shape, Weights(weights(shape, **changes))))


def test_persisted_rotary_buffers_are_ignored():
    shape, family = read(), family_named("llama")
    stored = weights(shape, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    assert len(list(hf_to_megatron(family, shape, Weights(stored)))) == len(shape.parameter_shapes())


def test_head_stored_beside_tied_embeddings():
    shape, family = read(tie_word_embeddings=True), family_named("llama")
    embedding = weights(shape)["model.embed_tokens.weight"]
    equal = Weights(weights(shape, **{"lm_head.weight": embedding.clone()}))
    assert "output_layer.weight" not in dict(hf_to_megatron(family, shape, equal))
    with pytest.raises(CheckpointError, match=r"tie_word_embeddings, but lm_head\.weight differs"):
        check_weights(family, shape, Weights(weights(shape, **{"lm_head.weight": embedding + 1})))


def test_megatron_tensors_that_do_not_fit():
    shape, family = read(), family_named("llama")
    items = list(hf_to_megatron(family, shape, Weights(weights(shape))))
    with pytest.raises(CheckpointError, match=r"tensors are missing: output_layer\.weight"):
        list(megatron_to_hf(family, shape, items[:-1]))
    with pytest.raises(CheckpointError, match="was given twice"):
        list(megatron_to_hf(family, shape, items + items[-1:]))
    with pytest.raises(CheckpointError, match="'ghost' has no place in a llama model"):
        list(megatron_to_hf(family, shape, [*items, ("ghost", torch.zeros(1))]))
    with pytest.raises(CheckpointError, match=r"has shape \[1\], the model's configuration says \[11, 48\]"):
        list(megatron_to_hf(family, shape, [*items[:-1], ("output_layer.weight", torch.zeros(1))]))


def test_initial_tensors():
    shape = replace(read(), hidden_size=200, ffn_hidden_size=300, vocab_size=500, init_std=0.05)
    family = family_named("llama")
    tensors = dict(initial_tensors(family, shape, seed=1))
    assert all(tensor.eq(1).all() for name, tensor in tensors.items() if "norm" in name)
    residual = 0.05 / math.sqrt(2 * shape.num_layers)
    for name, tensor in tensors.items():
        if "norm" not in name:
            std = residual if "o_proj" in name or "down_proj" in name else 0.05
            assert abs(tensor.std().item() / std - 1) < 0.05 and abs(tensor.mean().item()) < std / 20, name
    assert len({tensor.flatten()[0].item() for name, tensor in tensors.items() if "norm" not in name}) == 16
    again = dict(initial_tensors(family, replace(shape, num_layers=4), seed=1))
    assert again["model.layers.1.mlp.up_proj.weight"].equal(tensors["model.layers.1.mlp.up_proj.weight"])
    other = dict(initial_tensors(family, shape, seed=2, dtype="bfloat16"))
    assert other["lm_head.weight"].dtype == torch.bfloat16
    assert not other["lm_head.weight"].float().equal(tensors["lm_head.weight"].bfloat16().float())


@pytest.mark.parametrize("name", ["stories260K", "en-novels-5m"])
def test_real_models(name):
    directory = HFDirectory.open(assets("models", name))
    family = find_family(directory.config)
    shape = family.read_config(directory.config, str(directory.config_path))
    with directory.weights() as reader:
        back = dict(megatron_to_hf(family, shape, hf_to_megatron(family, shape, reader)))
        assert set(back) == set(reader.names())
        for key, tensor in back.items():
            assert tensor.dtype == reader.get(key).dtype and tensor.equal(reader.get(key))
        assert shape.num_parameters() == sum(math.prod(reader.info(key)[0]) for key in reader.names())


@pytest.mark.parametrize("precision, tensor, changes, said", [
    ("bf16-mixed", 1, {}, []),
    ("fp8-current", 1, {"intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 64}, []),
    ("fp8-current", 1, {}, ["takes widths that are multiples of 16, not 20 feed-forward units; choose precision bf16-mixed"]),
    ("fp8-mx-true", 1, {"intermediate_size": 32}, [
        "takes widths that are multiples of 32, not 48 hidden units or 48 rows of queries; choose precision bf16-true"]),
    ("fp8-delayed", 3, {"intermediate_size": 96, "hidden_size": 96}, []),
    ("fp8-delayed", 6, {"intermediate_size": 96, "hidden_size": 96, "num_key_value_heads": 6}, []),
    ("fp8-blockwise", 3, {"intermediate_size": 96}, []),
    ("fp8-blockwise", 3, {"intermediate_size": 144, "hidden_size": 54, "head_dim": 8}, [
        "takes widths that are multiples of 16, not 54 hidden units; choose precision bf16-mixed"]),
    ("fp8-current", 2, {"intermediate_size": 80, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}, [
        "takes widths that are multiples of 16, not 40 feed-forward units, which are a rank's under parallel.tensor=2; "
        "choose parallel.tensor=1 or precision bf16-mixed"]),
    ("fp8-current", 4, {"intermediate_size": 96, "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 4}, [
        "takes widths that are multiples of 16, not 8 rows of queries or 24 rows of queries, keys and values or 24 feed-forward units, "
        "which are a rank's under parallel.tensor=4; choose parallel.tensor=2 or precision bf16-mixed"]),
])  # fmt: skip
def test_widths_that_fp8_takes(precision, tensor, changes, said):
    assert read(**changes).fp8_problems(precision, tensor) == [f"precision {precision} {text}" for text in said]


def test_shapes_need_no_torch():
    scratch = {"hidden_size": 48, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 6}
    code = (
        "import sys; from megatron_adapt.families import find_family; c = " + repr(config()) + "; "
        "s = find_family(c).read_config(c); s.num_parameters(); find_family(c).complete_config("
        + repr(scratch) + ", 300, 1, 2); import megatron_adapt.hf.weights, megatron_adapt.vocab; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'megatron.core')))"
    )  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
