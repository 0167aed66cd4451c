"""What an export reads: a checkpoint of ours, or one that Megatron-LM or Megatron-Bridge saved as ``torch_dist``.

Ours carry config.json. Others are described by a ``config.json`` given by hand, else by Megatron-Bridge's
``run_config.yaml``, else by the arguments that Megatron-LM stores; from these a config.json is made where they say
everything that a family needs to know, and refused where they do not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping

import yaml

from megatron_adapt.errors import CheckpointError, ConfigError
from megatron_adapt.families import Family, ModelShape, families, family_named, find_family
from megatron_adapt.families.conversion import Canonical
from megatron_adapt.hf.directory import read_json, tokenizer_files
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.torch_dist import directory
from megatron_adapt.torch_dist.pickles import read_object
from megatron_adapt.torch_dist.reader import TABLE, TensorReader

TRACKER = "latest_checkpointed_iteration.txt"
RUN_CONFIG = "run_config.yaml"
BY_HAND = "Say --hf-config with the config.json (or the directory) of a model of the same shape."


@dataclass(frozen=True)
class Source:
    """A checkpoint to be exported.

    Attributes:
        path: the directory that holds ``.metadata``.
        config: its config.json, found or made.
        metadata: a directory with config.json, tokenizer and generation config to copy; None: there is none.
        tokenizer: a directory with a tokenizer; None: there is none.
        notes: what the user should know.
        learnt: what the checkpoint says that training has taught the model beside its weights.
    """

    path: Path
    config: dict[str, Any]
    family: Family
    shape: ModelShape
    metadata: Path | None
    tokenizer: Path | None
    is_foreign: bool
    notes: list[str] = field(default_factory=list)
    learnt: directory.Learnt = directory.Learnt()


def find_source(path: Path, family: str | None = None, hf_config: Path | None = None) -> Source:
    """Open the checkpoint at ``path``, or the newest one in it.

    Args:
        family, hf_config: of a checkpoint that is not ours; a config.json or a directory that has one.
    Raises:
        CheckpointError: no checkpoint, an older format, or one whose model is not told by what is there.
        ConfigError: a configuration that is not supported.
    """
    path = Path(path)
    place = foreign_place(path)
    if place is None:
        opened = directory.resolve(path)
        if family is not None or hf_config is not None:
            raise ConfigError(f"{opened.path} says itself which model it is; leave --family and --hf-config out.")
        where = str(opened.hf / "config.json")
        found = find_family(opened.config, where)
        shape, learnt = found.read_config(opened.config, where), opened.position.learnt
        return Source(opened.path, opened.config, found, shape, opened.hf, opened.hf, False, learnt=learnt)
    _check_format(place)
    tokenizer = next((folder for folder in (place / "tokenizer", place.parent / "tokenizer") if tokenizer_files(folder)), None)
    if hf_config is None:
        return _described(place, family, tokenizer)
    hf_config = Path(hf_config)
    file = hf_config / "config.json" if hf_config.is_dir() else hf_config
    config = read_json(file)
    if config is None:
        raise ConfigError(f"--hf-config {hf_config}: there is no such file, and no directory with a config.json.")
    found = find_family(config, str(file)) if family is None else family_named(family)
    metadata = hf_config if hf_config.is_dir() else None
    if metadata is not None and tokenizer_files(metadata):
        tokenizer = metadata
    return Source(place, config, found, found.read_config(config, str(file)), metadata, tokenizer, True)


def foreign_place(path: Path) -> Path | None:
    """The directory with ``.metadata`` that others' naming leads to; None if ``path`` follows ours."""
    if directory.is_checkpoint(path):
        return None
    if (path / TABLE).is_file():
        return path
    tracker = path / TRACKER
    if tracker.is_file():
        word = tracker.read_text().strip()
        if word != "release" and not word.isdigit():
            raise CheckpointError(f"{tracker} says {word!r}, which is neither a number nor 'release'.")
        return path / (word if word == "release" else f"iter_{int(word):07d}")
    numbered = [folder for folder in path.glob("iter_*") if re.fullmatch(r"iter_\d+", folder.name)]
    return max(numbered, key=lambda folder: int(folder.name[5:])) if numbered else None


def _check_format(place: Path) -> None:
    if not place.is_dir():
        raise CheckpointError(f"{place} does not exist, although the folder's {TRACKER} names it.")
    if any(place.glob("mp_rank_*")):
        raise CheckpointError(
            f"{place} is of Megatron's older format, a file for each rank (mp_rank_*). Save it once more with "
            f"--ckpt-format torch_dist."
        )
    form = (read_json(place / "metadata.json") or {}).get("sharded_backend", "torch_dist")
    if form != "torch_dist" or not (place / TABLE).is_file():
        raise CheckpointError(f"{place} is a checkpoint of format {form}, not of torch_dist; save it once more as that.")


def _described(place: Path, name: str | None, tokenizer: Path | None) -> Source:
    """A source whose config.json is made from Megatron's own settings."""
    reader = TensorReader(place)
    settings, where = _settings(place, reader)
    dtype = reader.info("embedding.word_embeddings.weight")[1]
    candidates = [family_named(name)] if name is not None else list(families().values())
    fitting, reasons = [], []
    for family in candidates:
        try:
            config = make_config(family, settings, dtype, tokenizer, where)
            shape = family.read_config(config, where)
            Canonical(family, shape, reader, str(place), cut_padding=True)
        except (ConfigError, CheckpointError) as error:
            reasons.append(f"{family.name}: {error}")
        else:
            fitting.append(Source(place, config, family, shape, None, tokenizer, True, _notes(settings, tokenizer, where)))
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(source.family.name for source in fitting)
        raise CheckpointError(f"{place} may be a model of several families ({names}): choose one with --family.")
    raise CheckpointError(f"{where} does not tell which model {place} is. {BY_HAND} Tried: {' '.join(reasons)}")


def _notes(settings: Mapping[str, Any], tokenizer: Path | None, where: str) -> list[str]:
    notes = [f"config.json is made from {where}"]
    if settings.get("vocab_size") is None:
        notes.append(
            f"the size of the vocabulary is not stated: all {settings['padded_vocab_size']} rows are kept, padding included"
        )
    if tokenizer is None:
        notes.append("there is no tokenizer in this checkpoint: put its files beside the exported weights")
    return notes


def _settings(place: Path, reader: TensorReader) -> tuple[dict[str, Any], str]:
    """Megatron's settings of the model under Megatron-LM's names, and where they were found."""
    file = place / RUN_CONFIG
    if file.is_file():
        try:
            model = yaml.safe_load(file.read_text())["model"]
            # Since 2026 what Megatron Core calls TransformerConfig is a table of its own in there.
            model = {"activation_func": "not told", **model.get("transformer", {}), **model}
            return {_BRIDGE.get(key, key): value for key, value in model.items()}, str(file)
        except (yaml.YAMLError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{file} has no readable section 'model' ({type(error).__name__}: {error}).") from None
    file = place / "common.pt"
    if file.is_file():
        where, state = str(file), read_object(file, str(file))
    else:
        stored = next((name for name in reader.objects() if name.startswith("common_state/")), None)
        if stored is None:
            raise CheckpointError(f"{place} says nothing about its model: it has neither {RUN_CONFIG} nor common.pt. {BY_HAND}")
        where = f"{place}: {stored}"
        (state,) = read_object(reader.get_object(stored), where)
    if not isinstance(state, dict) or not hasattr(state.get("args"), "__dict__"):
        raise CheckpointError(f"{where} holds no arguments of Megatron-LM. {BY_HAND}")
    settings = dict(vars(state["args"]))
    if not settings.get("group_query_attention"):
        settings["num_query_groups"] = None  # Megatron-LM's default is 1 and means nothing then
    return settings, f"{where} (args)"


# Megatron-Bridge's spelling -> Megatron-LM's.
_BRIDGE = {
    "layernorm_epsilon": "norm_epsilon",
    "gated_linear_unit": "swiglu",
    "seq_len_interpolation_factor": "rotary_seq_len_interpolation_factor",
    "num_moe_experts": "num_experts",
    "layernorm_zero_centered_gamma": "apply_layernorm_1p",
    "rope_scaling": "use_rope_scaling",
}
# Field of ModelShape -> Megatron's settings, the first that is there.
_FIELDS = {
    "num_layers": ("num_layers",),
    "hidden_size": ("hidden_size",),
    "ffn_hidden_size": ("ffn_hidden_size",),
    "num_attention_heads": ("num_attention_heads",),
    "num_query_groups": ("num_query_groups", "num_attention_heads"),
    "head_dim": ("kv_channels",),
    "max_position_embeddings": ("max_position_embeddings", "seq_length"),
    "norm_epsilon": ("norm_epsilon",),
    "init_std": ("init_method_std",),
}
# Settings that config.json has no word for here: any other value is a model that these families are not.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("rope",),
    "normalization": ("RMSNorm",),
    "rotary_percent": (1, 1.0, None),
    "rotary_interleaved": (False, None),
    "apply_layernorm_1p": (False, None),
    "num_experts": (None,),
    "multi_latent_attention": (False, None),
    "window_size": (None,),
    "yarn_rotary_scaling_factor": (None,),
    "softmax_scale": (None,),
    "softmax_type": ("vanilla", None),
    "qk_l2_norm": (False, None),
    "no_rope_freq": (None,),
    "attention_chunk_size": (None,),
    "activation_func_clamp_value": (None,),
    "glu_linear_offset": (0, None),
    "apply_residual_connection_post_layernorm": (False, None),
}


def make_config(
    family: Family, settings: Mapping[str, Any], dtype: str, tokenizer: Path | None, where: str
) -> dict[str, Any]:
    """A config.json for a model that Megatron's settings describe.

    Raises:
        ConfigError: the settings do not say, or contradict, what a model of this family is.
    """
    problems = [
        f"{key} = {settings[key]!r} has no place in config.json"
        for key, plain in _PLAIN.items()
        if key in settings and settings[key] not in plain
    ]
    activation = str(settings.get("activation_func", "silu"))
    gated = settings.get("swiglu") and ("silu" in activation or "swish" in activation)
    meaning = {
        "hidden_act": "silu" if gated else "another activation",
        "attention_bias": bool(settings.get("add_qkv_bias") or settings.get("add_bias_linear")),
        "mlp_bias": bool(settings.get("add_bias_linear")),
        "attention_dropout": 0.0,  # of training only
    }
    if untold := sorted(set(family.fixed) - set(meaning)):
        problems.append(f"nothing tells {', '.join(untold)}")
    known = {*family.fixed, *family.names.values()}
    values: dict[str, Any] = {key: value for key, value in meaning.items() if key in known}
    for name, key in family.names.items():
        choices = [settings[each] for each in _FIELDS.get(name, ()) if settings.get(each) is not None]
        if choices:
            values[key] = choices[0]
        elif name in _FIELDS:
            problems.append(f"{' or '.join(_FIELDS[name])} is missing")
        elif name == "tied":
            shared = settings.get("share_embeddings_and_output_weights")
            values[key] = bool(shared if shared is not None else not settings.get("untie_embeddings_and_output_weights"))
        elif name != "vocab_size" and key not in values:
            problems.append(f"nothing tells {key}")
    vocab_size = settings.get("vocab_size") or settings.get("padded_vocab_size")
    if vocab_size is None:
        problems.append("vocab_size is missing")
    if problems:
        raise ConfigError(f"{where}: {'; '.join(problems)}.")
    values |= _rope(settings) | {"dtype": dtype}
    if tokenizer is None:
        return family.complete_config(values, int(vocab_size), None, None)
    roles = Tokenizer.load(tokenizer)
    return family.complete_config(values, int(vocab_size), roles.bos_id, roles.eos_id, roles.pad_id)


def _rope(settings: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"rope_theta": float(settings.get("rotary_base") or 10000)}
    if settings.get("old_context_len"):  # Megatron-Bridge of 2025, which computed Llama 3.1's kind itself
        found["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": float(settings["scale_factor"]),
            "low_freq_factor": float(settings["low_freq_factor"]),
            "high_freq_factor": float(settings["high_freq_factor"]),
            "original_max_position_embeddings": int(settings["old_context_len"]),
        }
    elif settings.get("use_rope_scaling"):  # Megatron knows Llama 3.1's kind only, with these constants
        found["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": float(settings.get("rope_scaling_factor") or 8.0),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    elif factor := settings.get("rotary_seq_len_interpolation_factor"):
        found["rope_scaling"] = {"rope_type": "linear", "factor": float(factor)}
    return found
