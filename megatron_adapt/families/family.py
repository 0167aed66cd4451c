"""What a model family is: which configurations it covers, what they mean, and by which rules weights are converted."""

from __future__ import annotations

import difflib
import importlib
import math
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Mapping

from megatron_adapt.config_phases import bf16_of, fp8_multiple
from megatron_adapt.errors import ConfigError
from megatron_adapt.families.rope import DEFAULT_THETA, attention_factor, inverse_frequencies, read_rope
from megatron_adapt.families.rules import FLOATS, Rule, Shape, expand
from megatron_adapt.families.values import checked, flatten, nest

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ModelShape:
    """All numbers and choices of a model that its family's rules and the engine need; the defaults are Llama's choices.

    Attributes:
        ffn_hidden_size: rows of the gate (and of the up) projection.
        num_query_groups: key/value heads.
        head_dim: rows per head; ``head_dim * num_attention_heads`` may differ from ``hidden_size``.
        vocab_size: rows of the embedding matrix, padding included.
        rope: ``{"rope_type", "rope_theta", ...}`` with the type's own numbers (``rope.py``); empty without rotation.
        tied: the output matrix is the embedding matrix.
        init_std: standard deviation of freshly initialised matrices.
        norm: ``rms``, ``rms_plus_one`` (multiplies by 1 + weight), ``layernorm``, ``layernorm_no_bias``.
        norm_place: where a sub-layer has norms: ``before`` it, ``after`` it (and before the addition), ``around`` it.
        activation: ``silu``, ``gelu``, ``gelu_tanh``; ``gated``: of a gate that multiplies the up projection.
        qkv_bias, proj_bias, mlp_bias: biases of queries, keys and values; of attention's output; of both MLP projections.
        qk_norm: RMS norm of queries and keys: ``none``, per ``head``, over the whole ``projection``.
        position: ``rope``, ``learned``, ``alibi``.
        parallel_residual: attention and MLP both read the layer's input, each through its own norm.
        attention_scale: factor of the scores; None: 1 / sqrt(head_dim).
        attention_softcap, logit_softcap: c in c * tanh(x / c), of scores and of logits.
        embedding_scale: factor of the embedding's output.
        clip_qkv: bound of queries, keys and values.
        windows: for each layer how many positions it sees, itself included, or None; empty: all layers see all.
        local_rope: another ``rope`` for the layers with a window.
    """

    family: str
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    norm_epsilon: float
    rope: dict[str, Any] = field(hash=False)
    tied: bool
    init_std: float
    norm: str = "rms"
    norm_place: str = "before"
    activation: str = "silu"
    gated: bool = True
    qkv_bias: bool = False
    proj_bias: bool = False
    mlp_bias: bool = False
    qk_norm: str = "none"
    position: str = "rope"
    parallel_residual: bool = False
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    embedding_scale: float = 1.0
    clip_qkv: float | None = None
    windows: tuple[int | None, ...] = ()
    local_rope: dict[str, Any] | None = field(default=None, hash=False)

    @property
    def query_size(self) -> int:
        """Rows of the query projection."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_size(self) -> int:
        """Rows of the key (and of the value) projection."""
        return self.num_query_groups * self.head_dim

    @property
    def qkv_size(self) -> int:
        """Rows of the fused query, key and value projection."""
        return self.query_size + 2 * self.key_size

    @property
    def qkv_turn(self) -> tuple[int, int, int]:
        """Rows of queries, key and value of one query group, which take turns in Megatron's fused projection."""
        return (self.query_size // self.num_query_groups, self.head_dim, self.head_dim)

    @property
    def rotary_dim(self) -> int:
        """Rows of each head that are rotated."""
        return int(self.head_dim * self.rope.get("partial_rotary_factor", 1.0))

    @property
    def softmax_scale(self) -> float:
        """Factor of the scores, YaRN's share included (it multiplies queries and keys alike)."""
        scale = self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale
        return scale * attention_factor(self.rope) ** 2

    def window(self, layer: int) -> int | None:
        """Positions that the layer (global index from 0) sees, itself included; None: all before it."""
        return self.windows[layer] if self.windows else None

    def parameter_shapes(self) -> dict[str, Shape]:
        """Canonical Megatron name -> unsharded shape, in the order of the model."""
        return {rule.megatron: rule.megatron_shape(self) for rule in expand(family_named(self.family), self)}

    def num_parameters(self) -> int:
        """Number of weights; a tied matrix counts once."""
        return sum(math.prod(shape) for shape in self.parameter_shapes().values())

    def layout_problems(self, tensor: int, pipeline: int, virtual_pipeline: int = 1) -> list[str]:
        """What ``tensor`` ranks for each layer, or ``pipeline`` ranks of ``virtual_pipeline`` stages, cannot divide, in words."""
        problems = []
        for what, count in (
            ("attention heads", self.num_attention_heads),
            ("key/value heads", self.num_query_groups),
            ("feed-forward units", self.ffn_hidden_size),
        ):
            if count % tensor:
                problems.append(f"{count} {what} cannot be divided by parallel.tensor={tensor}")
        if self.vocab_size < tensor:
            problems.append(f"{self.vocab_size} vocabulary rows are fewer than parallel.tensor={tensor}")
        if self.num_layers % (pipeline * virtual_pipeline):
            stages = f" x parallel.virtual_pipeline={virtual_pipeline}" if virtual_pipeline > 1 else ""
            problems.append(f"{self.num_layers} layers cannot be divided by parallel.pipeline={pipeline}{stages}")
        return problems

    def fp8_problems(self, precision: str, tensor: int) -> list[str]:
        """Why ``precision``, where it is one of fp8, cannot multiply the layers' matrices, cut over ``tensor`` ranks, in words.

        Each of a matrix's sides is the inner one of a product, forward or backward, and fp8 reads 16 numbers of that at a time
        (Transformer Engine refuses others), MXFP8 the 32 that share a scale.
        """
        multiple = fp8_multiple(precision)
        sides = (
            ("hidden units", self.hidden_size, 1),
            ("rows of queries", self.query_size, tensor),
            ("rows of queries, keys and values", self.qkv_size, tensor),
            ("feed-forward units", self.ffn_hidden_size, tensor),
        )
        # What ranks cannot divide at all is one of `layout_problems`.
        found = [(what, size // ranks, ranks) for what, size, ranks in sides if size % ranks == 0 and size // ranks % multiple]
        if not found:
            return []
        odd, is_cut = [f"{size} {what}" for what, size, _ in found], any(ranks > 1 for *_, ranks in found)
        works = (n for n in range(tensor - 1, 0, -1) if not self.layout_problems(n, 1) + self.fp8_problems(precision, n))
        choices = [f"parallel.tensor={n}" for n in works][:1] + [f"precision {bf16_of(precision)}"]
        of_rank = f", which are a rank's under parallel.tensor={tensor}" if is_cut else ""
        takes = f"precision {precision} takes widths that are multiples of {multiple}"
        return [f"{takes}, not {' or '.join(odd)}{of_rank}; choose {' or '.join(choices)}"]

    def inverse_frequencies(self) -> torch.Tensor:
        """Rotary frequencies, float32 [rotary_dim / 2], bit for bit those of transformers."""
        return inverse_frequencies(self.rope, self.rotary_dim)

    def local_frequencies(self) -> torch.Tensor:
        """The same for the layers with a window."""
        return inverse_frequencies(self.local_rope or self.rope, self.rotary_dim)


@dataclass(frozen=True)
class Family:
    """A declarative description of one model family; a file of this folder assigns one to ``FAMILY``.

    Attributes:
        architectures, model_types: what config.json says in ``architectures`` and ``model_type``.
        names: field of ``ModelShape`` -> key of config.json, for the fields that are plain numbers, flags or activations.
        defaults: values that transformers assumes for absent keys.
        fixed: settings that have one supported value; any other is refused.
        rope_types: supported rotary variants.
        rules: the weight rules.
        other_keys: further keys that a config may carry and that change nothing here.
        constants: fields of ``ModelShape`` that are the same for the whole family.
        settings: further keys of config.json -> transformers' defaults (here a null is a value), for ``derive``.
        derive: ``(settings, fields so far, where) -> further fields``, for what no table can say.
        theta_key, fraction_key: what config.json calls the rotary base and the part of a head that is rotated.
        nested: tables inside config.json; their keys are written ``table.key`` here.
        buffers: regular expressions for tensors that files may hold and that are no weights.
        optional_prefix: the beginning of all names but the head's, which some files leave out.
    """

    name: str
    architectures: tuple[str, ...]
    model_types: tuple[str, ...]
    names: Mapping[str, str]
    defaults: Mapping[str, Any]
    fixed: Mapping[str, Any]
    rope_types: tuple[str, ...]
    rules: tuple[Rule, ...]
    other_keys: tuple[str, ...] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    derive: Callable[[Mapping[str, Any], Mapping[str, Any], str], dict[str, Any]] | None = None
    theta_key: str = "rope_theta"
    fraction_key: str | None = None
    nested: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    optional_prefix: str = ""

    def read_config(self, hf_config: Mapping[str, Any], where: str = "config.json") -> ModelShape:
        """The shape that a Hugging Face configuration describes.

        Args:
            where: what messages call the configuration (its path, say).
        Raises:
            ConfigError: a missing or impossible value, or a setting that this family does not support, by name.
        """
        hf_config = flatten(hf_config, self.nested, where)
        for key, supported in self.fixed.items():
            value = hf_config.get(key)
            if value is not None and value != supported:
                raise ConfigError(f"{where}: {key} = {value!r} is not supported ({self.name}: {supported!r} only).")
        for key in ("quantization_config", "auto_map"):
            if hf_config.get(key) and key not in self.other_keys:
                reason = "quantised weights" if key == "quantization_config" else "a model with code of its own"
                raise ConfigError(f"{where}: {key} announces {reason}, which is not supported.")
        values = {"head_dim": None, "num_query_groups": None, "ffn_hidden_size": None, **self.constants}
        for name, key in self.names.items():
            values[name] = checked(name, key, hf_config, self.defaults, where)
        hidden, heads = values["hidden_size"], values["num_attention_heads"]
        if values["head_dim"] is None:
            if hidden % heads:
                raise ConfigError(f"{where}: hidden_size {hidden} is not a multiple of {heads} heads.")
            values["head_dim"] = hidden // heads
        groups = values["num_query_groups"] = values["num_query_groups"] or heads
        if heads % groups:
            raise ConfigError(f"{where}: {heads} attention heads cannot be shared by {groups} key/value heads.")
        values["ffn_hidden_size"] = values["ffn_hidden_size"] or 4 * hidden
        if self.derive is not None:
            values |= self.derive({**self.settings, **hf_config}, values, where)
        values["rope"] = self._rope(hf_config, where) if self.rope_types else {}
        shape = ModelShape(family=self.name, **values)
        if self.rope_types and shape.rotary_dim % 2:
            what = "head_dim" if shape.rotary_dim == shape.head_dim else "the rotated part of head_dim"
            raise ConfigError(f"{where}: {what} {shape.rotary_dim} is odd; rotary embeddings need an even one.")
        return shape

    def _rope(self, hf_config: Mapping[str, Any], where: str) -> dict[str, Any]:
        theta = self.defaults.get(self.theta_key, DEFAULT_THETA)
        fraction = self.defaults.get(self.fraction_key, 1.0)
        return read_rope(hf_config, self.rope_types, where, self.theta_key, theta, self.fraction_key, fraction)

    def complete_config(
        self, config: Mapping[str, Any], vocab_size: int, bos: int | None, eos: int | None, pad: int | None = None
    ) -> dict[str, Any]:
        """A full Hugging Face configuration from the few keys that someone gives for a model made from scratch.

        Args:
            config: keys of config.json; what the tokenizer decides (vocab_size, token ids) may be left out.
        Raises:
            ConfigError: unknown keys (with the nearest known one), missing sizes, or a contradiction.
        """
        config = flatten(config, self.nested, "the model's configuration")
        given = {key: value for key, value in config.items() if value is not None or key in self.settings}
        from_tokenizer = {"vocab_size": vocab_size, "bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}
        constant = {"architectures": [self.architectures[0]], "model_type": self.model_types[0]}
        rope_keys = {self.theta_key, self.fraction_key, "rope_scaling", "rope_parameters"} if self.rope_types else set()
        known = {*self.names.values(), *self.fixed, *self.settings, *from_tokenizer, *constant, *rope_keys}
        self._refuse_unknown(config, (known | {*self.other_keys, *self.nested}) - {None})
        required = [key for name, key in self.names.items() if key not in self.defaults and name != "vocab_size"]
        if missing := [key for key in required if key not in given]:
            raise ConfigError(f"the model's configuration lacks {', '.join(missing)}.")
        for key, value in from_tokenizer.items():
            if given.get(key, value) != value:
                raise ConfigError(f"{key} = {given[key]!r} contradicts the tokenizer ({value!r}); leave it out.")
        fixed = {key: value for key, value in self.fixed.items() if value is not None}
        full = {**self.defaults, **fixed, **self.settings, **given, **from_tokenizer, **constant}
        full.setdefault("dtype", full.pop("torch_dtype", "float32"))
        if full["dtype"] not in FLOATS:
            raise ConfigError(f"dtype = {full['dtype']!r} is not one of {', '.join(FLOATS)}.")
        shape = self.read_config(full, "the model's configuration")
        if shape.hidden_size % shape.num_attention_heads:
            raise ConfigError(
                f"hidden_size {shape.hidden_size} is not a multiple of num_attention_heads "
                f"{shape.num_attention_heads}; transformers refuses such a configuration."
            )
        full.update({key: getattr(shape, name) for name, key in self.names.items() if name != "activation"})
        if self.rope_types:  # transformers 4 and 5 both read the older spelling; only 5 knows rope_parameters.
            full.pop("rope_parameters", None)
            own = ("rope_theta", "partial_rotary_factor")
            scaling = {key: value for key, value in shape.rope.items() if key not in own}
            full[self.theta_key] = shape.rope["rope_theta"]
            full["rope_scaling"] = None if shape.rope["rope_type"] == "default" else scaling
            if self.fraction_key:
                full[self.fraction_key] = shape.rope.get("partial_rotary_factor", 1.0)
        return nest(full, self.nested)

    def _refuse_unknown(self, config: Mapping[str, Any], known: set[str]) -> None:
        problems = []
        for key in config:
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                problems.append(f"unknown key {key!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
        if problems:
            raise ConfigError(f"the configuration of a {self.name} model: {'; '.join(problems)}.")


@lru_cache(maxsize=None)
def families() -> dict[str, Family]:
    """Every family by name: the files of this folder that define ``FAMILY``."""
    found = {}
    for file in sorted(Path(__file__).parent.glob("*.py")):
        if file.stem != "__init__":
            family = getattr(importlib.import_module(f"megatron_adapt.families.{file.stem}"), "FAMILY", None)
            if family is not None:
                found[family.name] = family
    return found


def family_named(name: str) -> Family:
    """The family of this name.

    Raises:
        ConfigError: there is none; lists those that exist.
    """
    if name not in families():
        raise ConfigError(f"no model family {name!r}; there are: {', '.join(families())}.")
    return families()[name]


def find_family(hf_config: Mapping[str, Any], where: str = "config.json") -> Family:
    """The family that a Hugging Face configuration belongs to, by ``architectures`` or else by ``model_type``.

    Raises:
        ConfigError: unsupported; lists the supported architectures.
    """
    architectures = hf_config.get("architectures") or []
    for family in families().values():
        if architectures and architectures[0] in family.architectures:
            return family
        if not architectures and hf_config.get("model_type") in family.model_types:
            return family
    given = ", ".join(map(str, architectures)) or hf_config.get("model_type") or "nothing named"
    supported = ", ".join(sorted(name for family in families().values() for name in family.architectures))
    raise ConfigError(f"{where}: the architecture ({given}) is not supported. Supported: {supported}.")
