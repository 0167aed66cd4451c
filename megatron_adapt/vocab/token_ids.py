"""Ids that the configuration files of a model name, in another vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping

from megatron_adapt.hf.directory import HFDirectory
from megatron_adapt.hf.tokenizer_files import write_json

if TYPE_CHECKING:
    from megatron_adapt.hf.tokenizer import Tokenizer

ROLES = ("bos", "eos", "pad")
# Further settings of generation_config.json (old ones of config.json, too) that name ids.
ID_SETTINGS = (
    "bad_words_ids", "begin_suppress_tokens", "decoder_start_token_id", "force_words_ids", "forced_bos_token_id",
    "forced_decoder_ids", "forced_eos_token_id", "sequence_bias", "suppress_tokens",
)  # fmt: skip


def write_configs(
    directory: HFDirectory, target: Tokenizer, rows: int, new_ids: Mapping[int, int], is_derived: bool, output: Path
) -> None:
    """Write config.json and, where there is one, generation_config.json for the vocabulary of ``target``.

    Args:
        rows: of the new matrices. new_ids: old id -> id of the same token; of special tokens only, unless ``is_derived``.
        is_derived: the target is the model's own tokenizer, extended or pruned. All ids stay then as far as their
            tokens do. Otherwise the roles are the target's, further ends of text stay where the target has them, and
            lists of ordinary tokens, which mean something in the old vocabulary only, go.
    """
    settings = [(directory.config, "config.json", {"vocab_size": rows})]
    if (generation := directory.generation_config()) is not None:
        settings.append((generation, "generation_config.json", {}))
    for old, name, fixed in settings:
        ids = {f"{role}_token_id": _role(old, role, target, new_ids, is_derived) for role in ROLES}
        lists = {key: _renumbered(old[key], new_ids) if is_derived else None for key in ID_SETTINGS if key in old}
        kept = {key: value for key, value in old.items() if key not in lists}
        found = {key: value for key, value in lists.items() if value is not None}
        write_json(output / name, {**kept, **found, **fixed, **ids})


def _role(old: Mapping[str, Any], role: str, target: Tokenizer, new_ids: Mapping[int, int], is_derived: bool) -> Any:
    own, given = getattr(target, f"{role}_id"), old.get(f"{role}_token_id")
    if is_derived and given is not None and (renumbered := _renumbered(given, new_ids)) is not None:
        return renumbered
    if own is None or not isinstance(given, list):
        return own
    further = [new_ids[index] for index in given if new_ids.get(index, own) != own]
    return [own, *dict.fromkeys(further)] if further else own


def _renumbered(value: Any, new_ids: Mapping[int, int]) -> Any:
    """Ids and lists of them; None where one of them has no token any more, or for what is neither."""
    if isinstance(value, list):
        found = [_renumbered(entry, new_ids) for entry in value]
        return None if any(entry is None for entry in found) else found
    return new_ids.get(value) if isinstance(value, int) else None
