"""What a model family is: which configurations it covers, what they mean, and by which rules weights are converted."""

from __future__ import annotations

import difflib
import importlib
import math
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping

from megatron_adapt.errors import ConfigError
from megatron_adapt.families.rope import read_rope
from megatron_adapt.families.rules import FLOATS, Rule, Shape, expand

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ModelShape:
    """All numbers of a model that its family's rules and the engine need.

    Attributes:
        ffn_hidden_size: rows of the gate (and of the up) projection.
        num_query_groups: key/value heads.
        head_dim: rows per head; ``head_dim * num_attention_heads`` may differ from ``hidden_size``.
        vocab_size: rows of the embedding matrix, padding included.
        rope: ``{"rope_type": "default" | "linear" | "llama3", "rope_theta": float, ...}`` with the type's own numbers.
        tied: the output matrix is the embedding matrix.
        init_std: standard deviation of freshly initialised matrices.
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

    @property
    def query_size(self) -> int:
        """Rows of the query projection."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_size(self) -> int:
        """Rows of the key (and of the value) projection."""
        return self.num_query_groups * self.head_dim

    def parameter_shapes(self) -> dict[str, Shape]:
        """Canonical Megatron name -> unsharded shape, in the order of the model."""
        return {rule.megatron: rule.megatron_shape(self) for rule in expand(family_named(self.family), self)}

    def num_parameters(self) -> int:
        """Number of weights; a tied matrix counts once."""
        return sum(math.prod(shape) for shape in self.parameter_shapes().values())

    def layout_problems(self, tensor: int, pipeline: int) -> list[str]:
        """What ``tensor`` ranks for each layer or ``pipeline`` stages cannot divide, in words; empty: it fits."""
        problems = []
        for what, count in (
            ("attention heads", self.num_attention_heads),
            ("key/value heads", self.num_query_groups),
            ("feed-forward units", self.ffn_hidden_size),
            ("vocabulary rows", self.vocab_size),
        ):
            if count % tensor:
                hint = " (vocabulary.pad_to_multiple grows a new vocabulary)" if what == "vocabulary rows" else ""
                problems.append(f"{count} {what} cannot be divided by parallel.tensor={tensor}{hint}")
        if self.num_layers % pipeline:
            problems.append(f"{self.num_layers} layers cannot be divided by parallel.pipeline={pipeline}")
        return problems

    def inverse_frequencies(self) -> torch.Tensor:
        """Rotary frequencies, float32 [head_dim / 2], bit for bit those of transformers."""
        from megatron_adapt.families.rope import inverse_frequencies

        return inverse_frequencies(self.rope, self.head_dim)


@dataclass(frozen=True)
class Family:
    """A declarative description of one model family; a file of this folder assigns one to ``FAMILY``.

    Attributes:
        architectures, model_types: what config.json says in ``architectures`` and ``model_type``.
        names: field of ``ModelShape`` -> key of config.json, for the fields that are plain numbers or flags.
        defaults: values that transformers assumes for absent keys.
        fixed: settings that have one supported value; any other is refused.
        rope_types: supported rotary variants.
        rules: the weight rules.
        other_keys: further keys that a config may carry and that change nothing here.
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

    def read_config(self, hf_config: Mapping[str, Any], where: str = "config.json") -> ModelShape:
        """The shape that a Hugging Face configuration describes.

        Args:
            where: what messages call the configuration (its path, say).
        Raises:
            ConfigError: a missing or impossible value, or a setting that this family does not support, by name.
        """
        for key, supported in self.fixed.items():
            value = hf_config.get(key)
            if value is not None and value != supported:
                raise ConfigError(f"{where}: {key} = {value!r} is not supported ({self.name}: {supported!r} only).")
        for key in ("quantization_config", "auto_map"):
            if hf_config.get(key):
                reason = "quantised weights" if key == "quantization_config" else "a model with code of its own"
                raise ConfigError(f"{where}: {key} announces {reason}, which is not supported.")
        values = {name: self._value(name, key, hf_config, where) for name, key in self.names.items()}
        heads, groups = values["num_attention_heads"], values["num_query_groups"]
        if values["head_dim"] is None:
            if values["hidden_size"] % heads:
                raise ConfigError(f"{where}: hidden_size {values['hidden_size']} is not a multiple of {heads} heads.")
            values["head_dim"] = values["hidden_size"] // heads
        groups = values["num_query_groups"] = heads if groups is None else groups
        if heads % groups:
            raise ConfigError(f"{where}: {heads} attention heads cannot be shared by {groups} key/value heads.")
        if values["head_dim"] % 2:
            raise ConfigError(f"{where}: head_dim {values['head_dim']} is odd; rotary embeddings need an even one.")
        return ModelShape(family=self.name, rope=read_rope(hf_config, self.rope_types, where), **values)

    def complete_config(
        self, config: Mapping[str, Any], vocab_size: int, bos: int | None, eos: int | None, pad: int | None = None
    ) -> dict[str, Any]:
        """A full Hugging Face configuration from the few keys that someone gives for a model made from scratch.

        Args:
            config: keys of config.json; what the tokenizer decides (vocab_size, token ids) may be left out.
        Raises:
            ConfigError: unknown keys (with the nearest known one), missing sizes, or a contradiction.
        """
        given = {key: value for key, value in config.items() if value is not None}
        from_tokenizer = {"vocab_size": vocab_size, "bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}
        constant = {"architectures": [self.architectures[0]], "model_type": self.model_types[0]}
        rope_keys = {"rope_theta", "rope_scaling", "rope_parameters"}
        known = {*self.names.values(), *self.fixed, *from_tokenizer, *constant, *rope_keys, *self.other_keys}
        self._refuse_unknown(config, known)
        required = [key for name, key in self.names.items() if key not in self.defaults and name != "vocab_size"]
        if missing := [key for key in required if key not in given]:
            raise ConfigError(f"the model's configuration lacks {', '.join(missing)}.")
        for key, value in from_tokenizer.items():
            if given.get(key, value) != value:
                raise ConfigError(f"{key} = {given[key]!r} contradicts the tokenizer ({value!r}); leave it out.")
        full = {**self.defaults, **self.fixed, **given, **from_tokenizer, **constant}
        full.setdefault("dtype", full.pop("torch_dtype", "float32"))
        if full["dtype"] not in FLOATS:
            raise ConfigError(f"dtype = {full['dtype']!r} is not one of {', '.join(FLOATS)}.")
        shape = self.read_config(full, "the model's configuration")
        if shape.hidden_size % shape.num_attention_heads:
            raise ConfigError(
                f"hidden_size {shape.hidden_size} is not a multiple of num_attention_heads "
                f"{shape.num_attention_heads}; transformers refuses such a configuration."
            )
        full.update({self.names[name]: getattr(shape, name) for name in self.names})
        # transformers 4 and 5 both read the older spelling; only 5 knows rope_parameters.
        full.pop("rope_parameters", None)
        scaling = {key: value for key, value in shape.rope.items() if key != "rope_theta"}
        full["rope_theta"] = shape.rope["rope_theta"]
        full["rope_scaling"] = None if shape.rope["rope_type"] == "default" else scaling
        return full

    def _value(self, name: str, key: str, hf_config: Mapping[str, Any], where: str) -> Any:
        """One checked value of the ``names`` table; None where transformers derives it from others."""
        value = hf_config.get(key)
        if value is None:
            if key not in self.defaults:
                raise ConfigError(f"{where} lacks {key}.")
            return self.defaults[key]
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name == "tied":
            if not isinstance(value, bool):
                raise ConfigError(f"{where}: {key} = {value!r} is not true or false.")
        elif name in ("norm_epsilon", "init_std"):
            if not number or not 0 <= value < 1:
                raise ConfigError(f"{where}: {key} = {value!r} is not a number between 0 and 1.")
            value = float(value)
        elif not isinstance(value, int) or not number or value < 1:
            raise ConfigError(f"{where}: {key} = {value!r} is not a positive whole number.")
        return value

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
