"""Weight rules: how Hugging Face tensors become one Megatron tensor and back, as pure tensor arithmetic.

A rule names its tensors by templates (``{layer}`` is the global layer index from 0) and its sizes by fields of
``ModelShape``, so one table serves shapes, conversion in both directions and initialisation. Nothing here knows about
tensor or pipeline parallelism: conversion is written unsharded, and Megatron's distributed checkpoint does the rest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Iterable, Iterator, Literal, Protocol, TypeVar, Union

from megatron_adapt.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from torch import Tensor

    from megatron_adapt.families.family import Family, ModelShape

EMBEDDING = "embedding.word_embeddings.weight"
OUTPUT = "output_layer.weight"
FLOATS = ("float32", "bfloat16", "float16")

# ones: norms; zeros: biases, and norms that multiply by 1 + weight; normal: N(0, init_std); residual:
# N(0, init_std / sqrt(2 * num_layers)), for what writes to the residual.
Init = Literal["normal", "residual", "ones", "zeros"]
Shape = tuple[int, ...]
Block = tuple[int, int, int]  # number of a Hugging Face tensor of the rule, its first row, how many rows


class Reader(Protocol):
    """What conversion needs of a weight file (``hf.weights.WeightReader`` is one)."""

    def names(self) -> list[str]: ...

    def info(self, name: str) -> tuple[Shape, str]: ...

    def get(self, name: str) -> Tensor: ...

    def read(self, name: str, first: int, out: np.ndarray) -> None: ...


@dataclass(frozen=True)
class _Rule:
    """What the kinds of rules share. Of each kind ``blocks`` says all: it is read in both directions.

    ``sizes`` are fields of ``ModelShape``, one per dimension of Megatron's tensor (of :class:`QKV` and :class:`GateUp`:
    per dimension after the first, none for biases).
    ``transposed``: Hugging Face stores the one matrix as [in, out] (GPT-2's Conv1D).
    ``when``: a flag of ``ModelShape``; a model in which it is not set has no such tensor.
    """

    megatron: str
    hf: tuple[str, ...]
    sizes: tuple[str, ...]
    init: Init = "normal"
    transposed: bool = False
    when: str = ""

    def megatron_shape(self, shape: ModelShape) -> Shape:
        raise NotImplementedError

    def hf_rows(self, shape: ModelShape) -> list[int]:
        """Of each Hugging Face tensor the size of its first dimension (of the second, if ``transposed``)."""
        raise NotImplementedError

    def blocks(self, shape: ModelShape) -> list[Block]:
        """Megatron's rows from the first to the last, as blocks of rows of the Hugging Face tensors."""
        raise NotImplementedError

    def hf_shapes(self, shape: ModelShape) -> list[Shape]:
        rest = self.megatron_shape(shape)[1:]
        return [(rows, *rest)[:: -1 if self.transposed else 1] for rows in self.hf_rows(shape)]

    def hf_blocks(self, shape: ModelShape, number: int) -> list[Block]:
        """The reverse: rows of one Hugging Face tensor from the first to the last, as blocks (0, first, rows) of Megatron's."""
        found, row = [], 0
        for which, first, rows in self.blocks(shape):
            if which == number:
                found.append((first, (0, row, rows)))
            row += rows
        return [block for _, block in sorted(found)]

    def to_megatron(self, tensors: list[Tensor], shape: ModelShape) -> Tensor:
        rows = [tensors[0].t()] if self.transposed else tensors
        return _joined([rows[number][first : first + count] for number, first, count in self.blocks(shape)])

    def to_hf(self, tensor: Tensor, shape: ModelShape) -> list[Tensor]:
        parts = []
        for number in range(len(self.hf)):
            blocks = self.hf_blocks(shape, number)
            part = _joined([tensor[first : first + count] for _, first, count in blocks])
            parts.append(part.t().contiguous() if self.transposed else part)
        return parts


class Copy(_Rule):
    """One tensor, the same in both."""

    def megatron_shape(self, shape: ModelShape) -> Shape:
        return _sizes(self.sizes, shape)

    def hf_rows(self, shape: ModelShape) -> list[int]:
        return [self.megatron_shape(shape)[0]]

    def blocks(self, shape: ModelShape) -> list[Block]:
        return [(0, 0, self.megatron_shape(shape)[0])]


@dataclass(frozen=True)
class QKV(_Rule):
    """Query, key and value projections as Megatron's one matrix: for each query group its query heads, then its key
    head, then its value head, ``head_dim`` rows each.

    With one name in ``hf`` the three are stored as one tensor, one below the other (MPT; ``transposed``: GPT-2).
    """

    sizes: tuple[str, ...] = ("hidden_size",)

    def megatron_shape(self, shape: ModelShape) -> Shape:
        return (shape.qkv_size, *_sizes(self.sizes, shape))

    def hf_rows(self, shape: ModelShape) -> list[int]:
        return [shape.qkv_size] if len(self.hf) == 1 else [shape.query_size, shape.key_size, shape.key_size]

    def blocks(self, shape: ModelShape) -> list[Block]:
        rows = [shape.query_size, shape.key_size, shape.key_size]
        starts = [0, rows[0], rows[0] + rows[1]] if len(self.hf) == 1 else [0, 0, 0]
        numbers = [0, 0, 0] if len(self.hf) == 1 else [0, 1, 2]
        return [
            (number, start + group * (count // shape.num_query_groups), count // shape.num_query_groups)
            for group in range(shape.num_query_groups)
            for number, start, count in zip(numbers, starts, rows)
        ]


@dataclass(frozen=True)
class GateUp(_Rule):
    """The gate and up projections of a gated MLP, stacked in this order."""

    sizes: tuple[str, ...] = ("hidden_size",)

    def megatron_shape(self, shape: ModelShape) -> Shape:
        return (2 * shape.ffn_hidden_size, *_sizes(self.sizes, shape))

    def hf_rows(self, shape: ModelShape) -> list[int]:
        return [shape.ffn_hidden_size] * 2

    def blocks(self, shape: ModelShape) -> list[Block]:
        return [(0, 0, shape.ffn_hidden_size), (1, 0, shape.ffn_hidden_size)]


Rule = Union[Copy, QKV, GateUp]
RuleType = TypeVar("RuleType", Copy, QKV, GateUp)


def expand(family: Family, shape: ModelShape) -> list[Rule]:
    """The family's rules with ``{layer}`` filled in, in the order of the model; a tied model has no output rule."""
    concrete: list[Rule] = []
    rules = [rule for rule in family.rules if not rule.when or getattr(shape, rule.when)]
    layers: list[Rule] = [rule for rule in rules if "{layer}" in rule.megatron]
    for rule in rules:
        if "{layer}" not in rule.megatron:
            if not (shape.tied and rule.megatron == OUTPUT):
                concrete.append(rule)
        elif rule is layers[0]:  # all rules of a layer stand where the first of them does, layer by layer
            concrete += [_at_layer(each, layer) for layer in range(shape.num_layers) for each in layers]
    return concrete


def hf_to_megatron(family: Family, shape: ModelShape, reader: Reader) -> Iterator[tuple[str, Tensor]]:
    """Yield every Megatron tensor (canonical name, unsharded), reading one rule's tensors at a time.

    Names, shapes and dtypes are checked before the first tensor is read; the dtype is kept.

    Raises:
        CheckpointError: missing or unused tensors, or shapes that config.json does not announce.
    """
    reader = with_prefix(family, reader)
    check_weights(family, shape, reader)
    for rule in expand(family, shape):
        yield rule.megatron, rule.to_megatron([reader.get(name) for name in rule.hf], shape)


def megatron_to_hf(
    family: Family, shape: ModelShape, items: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Yield every Hugging Face tensor of the given Megatron tensors, in whatever order those come.

    Raises:
        CheckpointError: an unknown, repeated or missing Megatron tensor, or a wrong shape.
    """
    rules = {rule.megatron: rule for rule in expand(family, shape)}
    written: set[str] = set()
    for name, tensor in items:
        if name not in rules:
            raise CheckpointError(f"Megatron tensor {name!r} has no place in a {family.name} model.")
        if name in written:
            raise CheckpointError(f"Megatron tensor {name!r} was given twice.")
        written.add(name)
        rule = rules[name]
        if tuple(tensor.shape) != rule.megatron_shape(shape):
            raise CheckpointError(
                f"Megatron tensor {name!r} has shape {list(tensor.shape)}, the model's configuration says "
                f"{list(rule.megatron_shape(shape))}."
            )
        yield from zip(rule.hf, rule.to_hf(tensor, shape))
    if missing := [name for name in rules if name not in written]:
        raise CheckpointError(f"Megatron tensors are missing: {some(missing)}.")


def check_weights(family: Family, shape: ModelShape, reader: Reader) -> None:
    """Compare the tensors of a weight file with what the family's rules read; only headers are looked at, except that
    a head stored beside tied embeddings must equal them.

    Raises:
        CheckpointError: all that :func:`header_problems` finds; an untied head.
    """
    if problems := header_problems(family, shape, reader):
        raise CheckpointError(problems)
    redundant_head(family, shape, reader)


def header_problems(family: Family, shape: ModelShape, reader: Reader) -> str | None:
    """What does not fit of the tensors' names, shapes and dtypes, all of it; None where nothing is wrong.

    Tensors are missing or have no place, have another shape than config.json announces, or a dtype that is not supported
    or differs among those of one rule.
    """
    reader = with_prefix(family, reader)
    buffers = re.compile("|".join((r".*rotary_emb\.inv_freq", *family.buffers)))
    stored = {name: reader.info(name) for name in reader.names() if not buffers.fullmatch(name)}
    rules = expand(family, shape)
    wanted = {name: size for rule in rules for name, size in zip(rule.hf, rule.hf_shapes(shape))}
    redundant = _heads(family)[0] if shape.tied else None
    missing = [name for name in wanted if name not in stored]
    unused = [name for name in stored if name not in wanted and name != redundant]
    there = {name: (size, *stored[name]) for name, size in wanted.items() if name in stored}
    wrong = [
        f"{name} has shape {list(found)}, config.json announces {list(size)}"
        for name, (size, found, _) in there.items()
        if tuple(found) != size
    ]
    dtypes = [
        f"{name} is stored as {dtype}; convert it to one of {', '.join(FLOATS)}"
        for name, (_, _, dtype) in there.items()
        if dtype not in FLOATS
    ]
    for names in (rule.hf for rule in rules):
        if len(found := {stored[name][1] for name in names if name in stored}) > 1:
            dtypes.append(f"{', '.join(names)} differ in dtype ({', '.join(sorted(found))})")
    problems = [f"tensors are missing: {some(missing)}"] if missing else []
    problems += [f"tensors have no place in a {family.name} model: {some(unused)}"] if unused else []
    problems += [some(each) for each in (wrong, dtypes) if each]
    if not problems:
        return None
    question = ". Do config.json and the weights belong together?" if missing or unused or wrong else "."
    return f"{_where(reader)}: {'; '.join(problems)}{question}"


def redundant_head(family: Family, shape: ModelShape, reader: Reader) -> str | None:
    """The name of a head that is stored although config.json ties it to the embedding (some writers do), else None.

    Raises:
        CheckpointError: the two differ, so the model is not tied.
    """
    reader = with_prefix(family, reader)
    head, embedding = _heads(family)
    if not shape.tied or not {head, embedding} <= set(reader.names()):
        return None
    if not reader.get(head).equal(reader.get(embedding)):
        raise CheckpointError(
            f"{_where(reader)}: config.json says tie_word_embeddings, but {head} differs from "
            f"{embedding}. Set tie_word_embeddings to false, or remove {head}."
        )
    return head


def _heads(family: Family) -> tuple[str, str]:
    """(head, embedding) as Hugging Face names them."""
    names = {rule.megatron: rule.hf[0] for rule in family.rules}
    return names[OUTPUT], names[EMBEDDING]


def _where(reader: Reader) -> str:
    return str(getattr(reader, "path", "the weights"))


class _WithPrefix:
    """A reader whose files name every tensor without the family's prefix; callers see the full names."""

    def __init__(self, prefix: str, reader: Reader) -> None:
        self.prefix, self.reader = prefix, reader
        self.path = getattr(reader, "path", "the weights")
        # The head stands beside the part that has the prefix.
        self.stored = {self._full(name): name for name in reader.names()}

    def _full(self, name: str) -> str:
        return name if name.startswith("lm_head.") else self.prefix + name

    def names(self) -> list[str]:
        return list(self.stored)

    def info(self, name: str) -> tuple[Shape, str]:
        return self.reader.info(self.stored[name])

    def get(self, name: str) -> Tensor:
        return self.reader.get(self.stored[name])

    def read(self, name: str, first: int, out: np.ndarray) -> None:
        self.reader.read(self.stored[name], first, out)

    def locate(self, name: str) -> tuple[Path, int] | None:
        return self.reader.locate(self.stored[name])  # type: ignore[attr-defined]


def with_prefix(family: Family, reader: Reader) -> Reader:
    """The reader, seen with the family's full names where its files lack the optional prefix (GPT-2 of the hub)."""
    prefix = family.optional_prefix
    if not prefix or any(name.startswith(prefix) for name in reader.names()):
        return reader
    return _WithPrefix(prefix, reader)


def _joined(parts: list[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0].contiguous()
    import torch

    return torch.cat(parts)


def _sizes(names: tuple[str, ...], shape: ModelShape) -> Shape:
    return tuple(getattr(shape, name) for name in names)


def _at_layer(rule: RuleType, layer: int) -> RuleType:
    hf = tuple(name.format(layer=layer) for name in rule.hf)
    return replace(rule, megatron=rule.megatron.format(layer=layer), hf=hf)


def some(names: list[str], most: int = 6) -> str:
    """The first few of them."""
    shown = "; ".join(names[:most]) if any(" " in name for name in names) else ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
