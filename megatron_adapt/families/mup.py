"""Maximal update parametrisation (muP): settings tuned on a narrow model, the base, serve models of any width.

Yang et al. 2022 (Tensor Programs V), table 3, against the base's standard parametrisation. r is by how much a dimension
is wider than the base's, and a dimension that is as in the base counts as fixed, as the vocabulary always does:

    matrix                         initial std     learning rate of Adam and Lion
    input wider (hidden)           1 / sqrt(r)     1 / r
    input wider, output fixed      1 / r           1 / r            (the head)
    input fixed (the embedding)    1               1
    vectors                        1               1

Scores of attention go with 1 / head_dim, not its root. A multiplier c of a tensor is c times its initial values and c
times its learning rate, for an optimizer that does not feel the size of gradients: so the model stays a plain Hugging
Face one, without multipliers. What is folded: the scores' into query rows, or the gain of the queries' norm; the logits'
of a tied head, whose matrix is the embedding, into the gain of the last norm; the embedding's, where the family has one,
into its matrix. Weight decay is divided by a learning rate's factor: learning rate times decay is the base's.

Muon's updates are as large as Adam's and have the singular values of an orthogonal matrix: these are to go like
sqrt(output / input) (Yang, Simon & Bernstein 2023).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from megatron_adapt.config_types import did_you_mean
from megatron_adapt.errors import ConfigError
from megatron_adapt.families.rules import EMBEDDING, GateUp, Rule, expand
from megatron_adapt.families.values import flatten, nest

if TYPE_CHECKING:
    from megatron_adapt.config_phases import Optimizer
    from megatron_adapt.families.family import Family, ModelShape

WIDTHS = ("hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "head_dim")
_SCALES = ("attention_scale", "embedding_scale")  # what families derive from widths, or take from keys of these names
_SCALE_KEYS = ("query_pre_attn_scalar", "attn_config.softmax_scale")


@dataclass(frozen=True)
class Scaling:
    """Factors of one Megatron parameter, for each Hugging Face matrix in it: query, key and value; gate and up.

    Attributes:
        std: of initial values (of a norm's gain, its initial value).
        rates: of the learning rate of AdamW and LionW; weight decay is divided by it.
        muon: of the learning rate of Muon's matrices, which decay as in the base.
    """

    std: tuple[float, ...]
    rates: tuple[float, ...]
    muon: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Of the parameter as a whole, in which only query rows may differ."""
        return self.rates[-1]

    @property
    def is_even(self) -> bool:
        """Whether one learning rate is that of all rows."""
        return len(set(self.rates)) == 1


def base_fields(family: Family, config: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of ``ModelShape`` that the base has, by which ``dataclasses.replace`` makes it of the model's shape.

    Args:
        config: the model's keys of config.json, as someone gave them.
        base: those that the base had otherwise.
    Raises:
        ConfigError: a key that is no width, or an impossible value.
    """
    where = "model.mup.base"
    merged = {**flatten(config, family.nested, "the model's configuration"), **flatten(base, family.nested, where)}
    known = [family.names[name] for name in WIDTHS if name in family.names]
    known += [key for key in _SCALE_KEYS if key in family.settings]
    for key in flatten(base, family.nested, where):
        if key not in (*known, *family.nested):
            hint = did_you_mean(key, known, "Keys of the base")
            why = "depth and the rest are the model's own"
            raise ConfigError(f"{where}: {key!r} is no width of a {family.name} model; {why}.{hint}")
    shape = family.read_config({"vocab_size": 1, **nest(merged, family.nested)}, where)
    return {name: getattr(shape, name) for name in (*WIDTHS, *_SCALES)}


def scalings(shape: ModelShape, base: Mapping[str, Any]) -> dict[str, Scaling]:
    """By canonical Megatron name, for every parameter of a model; ``base``: what ``base_fields`` found."""
    from megatron_adapt.families.family import family_named

    family, narrow = family_named(shape.family), replace(shape, **base)
    return {rule.megatron: _scaling(rule, shape, narrow) for rule in expand(family, shape)}


def query_factor(shape: ModelShape, base: ModelShape) -> float:
    """What multiplies queries so that scores go with 1 / head_dim (definition 4.1 of the paper); 1 in the base."""
    return base.softmax_scale * base.head_dim / (shape.softmax_scale * shape.head_dim)


def problems(shape: ModelShape, fields: Mapping[str, Any], optimizer: Optimizer | None = None) -> Iterator[str]:
    """What the model, or a phase's ``optimizer``, cannot do, in words."""
    base = replace(shape, **fields)
    queries = query_factor(shape, base)
    if optimizer is not None:
        cannot = "offload" if optimizer.offload else optimizer.type if optimizer.type == "adamw8bit" else None
        if cannot and queries != 1 and shape.qk_norm == "none":
            yield (
                f"muP with heads of {shape.head_dim} and of {base.head_dim} in the base gives query rows a learning rate of "
                f"their own, which optimizer {cannot} cannot; use adamw, or heads as in the base"
            )
        return
    if shape.tied and shape.norm == "rms_plus_one" and shape.hidden_size != base.hidden_size:
        yield (
            f"muP with tied embeddings has its factor of the logits in the last norm, and that of {shape.family} multiplies "
            "by 1 + weight, too coarse in bf16; set tie_word_embeddings: false"
        )
    if queries == 1:
        return
    scale = base.softmax_scale * base.head_dim / shape.head_dim
    key = "query_pre_attn_scalar" if shape.norm == "rms_plus_one" else "attn_config.softmax_scale"
    value = scale**-2 if shape.norm == "rms_plus_one" else scale
    if (shape.qk_norm != "none" and shape.norm == "rms_plus_one") or shape.clip_qkv is not None:
        what = "queries are clipped" if shape.clip_qkv is not None else "the queries' norm multiplies by 1 + weight"
        yield f"muP has its factor of attention's scores in the queries, but {what}; set {key}: {value:.6g} instead"


def _scaling(rule: Rule, shape: ModelShape, base: ModelShape) -> Scaling:
    name, queries = rule.megatron, query_factor(shape, base)
    if name == EMBEDDING:
        return _of_all(base.embedding_scale / shape.embedding_scale)
    if len(rule.megatron_shape(shape)) == 1:
        if name.startswith("decoder.final_layernorm."):
            return _of_all(base.hidden_size / shape.hidden_size if shape.tied else 1.0)
        if name.endswith(".linear_qkv.bias"):
            own = (queries if shape.qk_norm == "none" else 1.0, 1.0, 1.0)
            return Scaling(own, own, own)
        return _of_all(queries if ".q_layernorm." in name else 1.0)
    if name.startswith("embedding."):  # rows are looked up: what is wider is the output
        return _of_all(1.0)
    found = []
    sizes = zip(_matrices(rule, shape), _matrices(rule, base))
    for number, ((rows, columns), (base_rows, base_columns)) in enumerate(sizes):
        wider = columns / base_columns
        own = queries if ".linear_qkv." in name and number == 0 and shape.qk_norm == "none" else 1.0
        std = 1 / wider if rows == base_rows else wider**-0.5
        largest = (rows / columns / max(rows, columns)) / (base_rows / base_columns / max(base_rows, base_columns))
        found.append((std * own, own / wider, largest**0.5 * own))
    return Scaling(*zip(*found))


def _of_all(factor: float) -> Scaling:
    return Scaling((factor,), (factor,), (factor,))


def _matrices(rule: Rule, shape: ModelShape) -> list[tuple[int, int]]:
    """(rows, columns) of each Hugging Face matrix in a Megatron parameter."""
    rows, columns = rule.megatron_shape(shape)
    if ".linear_qkv." in rule.megatron:
        return [(count, columns) for count in (shape.query_size, shape.key_size, shape.key_size)]
    return [(rows // 2, columns)] * 2 if isinstance(rule, GateUp) else [(rows, columns)]
