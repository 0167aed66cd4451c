"""Give a Hugging Face model another vocabulary: new embedding rows, everything else bit for bit as it was."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator, Mapping

import numpy as np

from megatron_adapt.errors import CheckpointError, ConfigError
from megatron_adapt.families import find_family
from megatron_adapt.families.rules import EMBEDDING, OUTPUT, check_weights, redundant_head, with_prefix
from megatron_adapt.hf.directory import HFDirectory
from megatron_adapt.hf.splice import Replacement, exchange, splice
from megatron_adapt.hf.tokenizer_files import copy_flushed, write_tokenizer
from megatron_adapt.vocab import methods, provenance
from megatron_adapt.vocab.derived import EXTENDED, derivation
from megatron_adapt.vocab.matching import ROLE, SPECIAL
from megatron_adapt.vocab.material import Maps, Material
from megatron_adapt.vocab.token_ids import write_configs

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_adapt.families import ModelShape
    from megatron_adapt.hf.tokenizer import Tokenizer

LEGAL = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")


def swap(
    source_dir: str | Path, tokenizer_dir: str | Path, output_dir: str | Path, method: str, seed: int = 0,
    pad_to_multiple: int = 1, options: Mapping[str, Any] | None = None,
    texts: Callable[[], Iterable[str]] | None = None,
) -> dict[str, Any]:
    """Write a copy of a model whose vocabulary is that of another tokenizer.

    Only the embedding and, if untied, the output matrix change, a block of rows at a time; dtype stays, and all other
    tensors go from file to file as bytes (those of pickle files one at a time). The new
    directory has the target's tokenizer files and token ids, and appears under its name when it is complete.

    If the tokenizer is the model's own one, extended or pruned (``vocab.derived``), tokens of the same spelling keep their
    rows whatever the method, and an extended model also keeps the rows beyond its tokenizer.

    Args:
        source_dir: a Hugging Face model directory with its tokenizer.
        tokenizer_dir: a directory (or tokenizer file) with the new tokenizer.
        output_dir: must not exist, or be empty.
        method: a name of ``vocab.methods``.
        pad_to_multiple: the new matrices have a multiple of this many rows; the rows beyond are drawn.
        options: of the method; absent ones have their defaults.
        texts: opens the documents of a text in the target language, for methods that read one.
    Returns:
        Sizes, how many rows were copied, composed and drawn, their lengths beside the source's, and what the method
        reports. Where each row came from is in ``provenance.jsonl.gz`` of the new directory.
    Raises:
        ConfigError: unsupported model, unknown method, tokenizer that does not fit the model, occupied output.
        CheckpointError: broken weights, or failure to write.
    """
    from megatron_adapt.hf.tokenizer import Tokenizer

    methods.read_options(method, options)
    if pad_to_multiple < 1:
        raise ConfigError(f"pad_to_multiple = {pad_to_multiple} is not a positive whole number.")
    output = Path(output_dir)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output} already exists; choose another directory or remove it.")
    directory = HFDirectory.open(source_dir)
    shape = shape_of(directory)
    source = check_tokenizer(directory.path, shape.vocab_size)
    target = Tokenizer.load(tokenizer_dir)
    if target.backend_json is None:
        raise ConfigError(
            f"{tokenizer_dir} has no tokenizer.json, and transformers would cut text otherwise than the sentencepiece "
            f"model does. Convert it to tokenizer.json first."
        )
    derived = derivation(tokenizer_dir, source)
    least = max(target.vocab_size, shape.vocab_size) if derived == EXTENDED else target.vocab_size
    rows = -(-least // pad_to_multiple) * pad_to_multiple
    material = Material(target, source, shape.num_layers, shape.tied, seed, texts)
    maps = methods.build(method, material, options).padded(rows)
    if derived is not None:
        maps = maps.keeping(_same_rows(source, target, shape.vocab_size if derived == EXTENDED else 0, rows))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", suffix=".partial", dir=output.parent) as folder:
            partial = Path(folder) / output.name
            partial.mkdir()
            lengths = _write_weights(directory, shape, maps, seed, partial)
            provenance.write(partial / provenance.FILE, material, maps, shape.tied)
            write_configs(directory, target, rows, _new_ids(material, derived), derived is not None, partial)
            write_tokenizer(target, partial)
            _copy_licence(directory, partial)
            os.replace(partial, output)
    except OSError as error:
        raise CheckpointError(f"could not write {output}: {error}.") from None
    return _report(method, seed, shape, material, maps, derived) | {"row_norms": lengths}


def _same_rows(source: Tokenizer, target: Tokenizer, source_rows: int, rows: int) -> np.ndarray:
    """The source's row for every row, int64 [rows]: of the token of the same spelling, and the same row beyond both
    tokenizers as far as the source has one (``source_rows``); -1 for new ones."""
    ids = {token: index for index, token in enumerate(source.tokens()) if token is not None}
    same = np.full(rows, -1, dtype=np.int64)
    same[: target.vocab_size] = [-1 if token is None else ids.get(token, -1) for token in target.tokens()]
    beyond = np.arange(max(source.vocab_size, target.vocab_size), min(rows, source_rows))
    same[beyond] = beyond
    return same


def _new_ids(material: Material, derived: str | None) -> dict[int, int]:
    """Old id -> new id of the same token; in another vocabulary of special tokens only."""
    if derived is not None:
        ids = {token: index for index, token in enumerate(material.target.tokens()) if token is not None}
        return {index: ids[token] for index, token in enumerate(material.source.tokens()) if token in ids}
    special = np.flatnonzero(np.isin(material.matching.tiers, (ROLE, SPECIAL)))
    return {int(material.matching.source_ids[index]): int(index) for index in special}


def shape_of(directory: HFDirectory) -> ModelShape:
    """What a model's config.json says. Raises ``ConfigError`` for an unsupported model."""
    where = str(directory.config_path)
    return find_family(directory.config, where).read_config(directory.config, where)


def replace_output(model_dir: str | Path, matrix: Tensor) -> None:
    """Write another output matrix, of the same shape, into a model's directory; its dtype stays. Of a tied model it is the input, too.

    Raises:
        CheckpointError: failure to write.
    """
    import torch

    directory = HFDirectory.open(model_dir)
    family = find_family(directory.config, str(directory.config_path))
    wanted = EMBEDDING if shape_of(directory).tied else OUTPUT
    head = next(rule.hf[0] for rule in family.rules if rule.megatron == wanted)
    with directory.weights() as reader:
        shape, dtype = reader.info(head)
    assert tuple(shape) == tuple(matrix.shape)
    kind = getattr(torch, dtype)
    exchange(directory.path, {head: Replacement(len(matrix), lambda: (rows.to(kind) for rows in matrix.split(4096)))})


def check_tokenizer(model_dir: str | Path, vocab_size: int) -> Tokenizer:
    """The tokenizer in a model's directory, after making sure that the model has a row for each of its ids.

    Args:
        vocab_size: rows of the model's embedding matrix.
    Raises:
        ConfigError: ids beyond the rows.
    """
    from megatron_adapt.hf.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(model_dir)
    if tokenizer.vocab_size > vocab_size:
        beyond = [repr(token) for token in tokenizer.tokens()[vocab_size:] if token is not None]
        raise ConfigError(
            f"{model_dir}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, but the model only {vocab_size} "
            f"rows (vocab_size). Without a row: {', '.join(beyond[:4])}{', ...' if len(beyond) > 4 else ''}. "
            f"Remove these tokens or use the tokenizer the model was trained with."
        )
    return tokenizer


def _write_weights(
    directory: HFDirectory, shape: ModelShape, maps: Maps, seed: int, output: Path
) -> dict[str, dict[str, list[float]]]:
    """Returns the lengths of rows for each matrix of the vocabulary. One old matrix is in memory at a time."""
    family = find_family(directory.config, str(directory.config_path))
    vocabulary = {rule.hf[0]: rule.megatron for rule in family.rules if rule.megatron in (EMBEDDING, OUTPUT)}
    lengths: dict[str, dict[str, list[float]]] = {}
    with directory.weights() as weights:
        reader = with_prefix(family, weights)
        check_weights(family, shape, reader)
        redundant = redundant_head(family, shape, reader)

        def replacement(name: str) -> Replacement:
            is_output = vocabulary[name] == OUTPUT
            token_map = maps.output if is_output else maps.input

            def blocks() -> Iterator[Tensor]:
                old = reader.get(name)
                watched = provenance.Lengths(old, token_map)
                yield from watched.watch(token_map.blocks(old, seed, vocabulary[name]))
                lengths["output" if is_output else "input"] = watched.quantiles()

            return Replacement(token_map.rows, blocks)

        replaced = {name: replacement(name) for name in reader.names() if name in vocabulary and name != redundant}
        splice(reader, output, replaced, dropped={redundant} if redundant else ())
    return lengths


def _copy_licence(directory: HFDirectory, output: Path) -> None:
    """Other files may speak of the old vocabulary."""
    for file in directory.path.iterdir():
        if file.is_file() and file.name.upper().startswith(LEGAL):
            copy_flushed(file, output / file.name)


def _report(method: str, seed: int, shape: ModelShape, material: Material, maps: Maps, derived: str | None) -> dict[str, Any]:
    source, target, counts = material.source, material.target, material.matching.counts()
    keys = [key for key in material.target_keys.keys if isinstance(key, bytes)]
    return {
        "method": method,
        "seed": seed,
        "derived": derived,
        "tied": shape.tied,
        "source_vocab_size": source.vocab_size,
        "source_rows": shape.vocab_size,
        "target_vocab_size": target.vocab_size,
        "target_rows": maps.input.rows,
        "target_ids_without_a_token": sum(key is None for key in material.target_keys.keys),
        "target_duplicate_bytes": len(keys) - len(set(keys)),
        "overlap": counts,
        **maps.input.counts(),
        **({} if maps.output is maps.input or shape.tied else {"output": maps.output.counts()}),
        "details": maps.report,
        "warnings": [*maps.warnings, *_warnings(material, counts)],
    }


def _warnings(material: Material, counts: dict[str, int]) -> Iterator[str]:
    if material.target.bos_id is not None and material.matching.source_ids[material.target.bos_id] < 0:
        yield (
            "the target has a BOS token and the source has none: its row is new, although attention often rests on the "
            "first position"
        )
    if material.target.eos_id is None:
        yield "the target has no EOS token: nothing will mark the end of a document"
    if counts["exact"] + counts["byte"] == 0:
        yield "the vocabularies have no ordinary token in common: no row of the old one is kept as it is"
