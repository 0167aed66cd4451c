"""A model seen in the other format: any rows of its tensors are converted when they are asked for.

All views are ``streams.bits.Source``: what can be read from a file can be read from a view. Rules move rows, so a band of
rows is gathered from bands of rows; only matrices that are stored transposed are read whole.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Callable, Iterable, Protocol

import numpy as np

from megatron_adapt.errors import CheckpointError
from megatron_adapt.families.rules import EMBEDDING, FLOATS, OUTPUT, Block, Rule, Shape, expand, some
from megatron_adapt.streams.bits import Info, Source, bands, empty, whole

if TYPE_CHECKING:
    from megatron_adapt.families.family import Family, ModelShape


class MegatronReader(Protocol):
    """What conversion needs of a distributed checkpoint (``torch_dist.reader.TensorReader`` is one)."""

    def names(self) -> list[str]: ...

    def info(self, name: str) -> Info: ...

    def read(self, name: str, begin: Shape, out: np.ndarray) -> None: ...


class AsMegatron:
    """A Hugging Face directory as Megatron tensors by canonical name, unsharded; dtypes are kept."""

    def __init__(self, family: Family, shape: ModelShape, reader: Source) -> None:
        self.shape, self.reader = shape, reader
        self.rules = {rule.megatron: rule for rule in expand(family, shape)}
        self._matrix: tuple[str, np.ndarray] | None = None

    def names(self) -> list[str]:
        return list(self.rules)

    def info(self, name: str) -> Info:
        rule = self.rules[name]
        return rule.megatron_shape(self.shape), self.reader.info(rule.hf[0])[1]

    def read(self, name: str, first: int, out: np.ndarray) -> None:
        rule = self.rules[name]
        if not rule.transposed:
            _gather(rule.blocks(self.shape), first, out, lambda number, row, part: self.reader.read(rule.hf[number], row, part))
            return
        if self._matrix is None or self._matrix[0] != name:
            self._matrix = name, whole(self.reader, rule.hf[0]).T
        matrix = self._matrix[1]
        _gather(rule.blocks(self.shape), first, out, lambda _, row, part: np.copyto(part, matrix[row : row + len(part)]))


def _gather(blocks: Iterable[Block], first: int, out: np.ndarray, read: Callable[[int, int, np.ndarray], None]) -> None:
    """Fill ``out`` with the rows from ``first`` on of what ``blocks`` make up; ``read(number, row, part)`` fills a part."""
    row = 0
    for number, start, rows in blocks:
        low, high = max(first, row), min(first + len(out), row + rows)
        if low < high:
            read(number, start + low - row, out[low - first : high - first])
        row += rows


# Optimizer states, which conversion does not look at, and states of FP8, which are no weights.
_OTHER = re.compile(r"^(chained_\d+\.)?optimizer\.|(^|\.)_extra_state(/|$)|^rng_state|^rerun_state_machine_state|^common_state")


class Canonical:
    """The weights of a distributed checkpoint by canonical name, however its writer laid them out.

    Megatron stacks a parameter of all layers into one tensor ``[layers, ...]`` unless told not to, may store the two
    halves of a gated MLP apart (``_w``, ``_v``), and pads the vocabulary with rows that no token uses. All three are
    undone: a layer is cut out, halves are joined, and rows beyond ``shape.vocab_size`` are left out if ``cut_padding``.

    Raises (at construction):
        CheckpointError: tensors are missing, have no place in the model, or have another shape; all are listed.
    """

    def __init__(
        self, family: Family, shape: ModelShape, reader: MegatronReader, where: str, cut_padding: bool = False
    ) -> None:
        self.shape, self.reader = shape, reader
        self.rules = {rule.megatron: rule for rule in expand(family, shape)}
        stored = {name for name in reader.names() if not _OTHER.search(name)}
        self.homes: dict[str, list[tuple[str, int | None]]] = {}
        used, missing, wrong = set(), [], []
        for name, rule in self.rules.items():
            home = _home(name, stored)
            if home is None:
                missing.append(name)
                continue
            self.homes[name] = home
            used.update(source for source, _ in home)
            wanted = rule.megatron_shape(shape)
            found = self._stored_shape(home, shape.num_layers)
            padded = cut_padding and name in (EMBEDDING, OUTPUT) and found is not None and found[1:] == wanted[1:]
            if found != wanted and not (padded and found is not None and found[0] > wanted[0]):
                shapes = " and ".join(str(list(reader.info(source)[0])) for source, _ in home)
                wrong.append(f"{name} has shape {shapes}, the model's configuration says {list(wanted)}")
            wrong += [
                f"{source} is stored as {dtype}, not as one of {', '.join(FLOATS)}"
                for source, _ in home
                if (dtype := reader.info(source)[1]) not in FLOATS
            ]
        unused = sorted(stored - used)
        problems = [f"tensors are missing: {some(missing)}"] if missing else []
        problems += [f"tensors have no place in a {family.name} model: {some(unused)}"] if unused else []
        problems += [some(wrong)] if wrong else []
        if problems:
            raise CheckpointError(f"{where}: {'; '.join(problems)}. Do the configuration and the weights belong together?")

    def names(self) -> list[str]:
        return list(self.rules)

    def info(self, name: str) -> Info:
        return self.rules[name].megatron_shape(self.shape), self.reader.info(self.homes[name][0][0])[1]

    def read(self, name: str, first: int, out: np.ndarray) -> None:
        homes = self.homes[name]
        rows = [self.reader.info(source)[0][0 if layer is None else 1] for source, layer in homes]

        def read(number: int, row: int, part: np.ndarray) -> None:
            source, layer = homes[number]
            rest = (0,) * (part.ndim - 1)
            if layer is None:
                self.reader.read(source, (row, *rest), part)
            else:
                self.reader.read(source, (layer, row, *rest), part[None])

        _gather([(number, 0, count) for number, count in enumerate(rows)], first, out, read)  # padded rows are the last

    def _stored_shape(self, home: list[tuple[str, int | None]], layers: int) -> Shape | None:
        """The shape in which the tensor comes; None where the parts do not fit together."""
        shapes = []
        for source, layer in home:
            shape = tuple(self.reader.info(source)[0])
            if layer is not None and shape[0] != layers:
                return None
            shapes.append(shape if layer is None else shape[1:])
        if len({shape[1:] for shape in shapes}) > 1:
            return None
        return (sum(shape[0] for shape in shapes), *shapes[0][1:]) if len(shapes) > 1 else shapes[0]


def _home(name: str, stored: set[str]) -> list[tuple[str, int | None]] | None:
    """Where a canonical tensor lies: (stored name, layer in a stack or None), twice if its halves lie apart."""
    match = re.fullmatch(r"(.*\blayers\.)(\d+)\.(.+)", name)
    stacked = (match[1] + match[3], int(match[2])) if match else (name, None)
    for source, layer in ((name, None), stacked):
        if source in stored:
            return [(source, layer)]
        if {source + "_w", source + "_v"} <= stored:
            return [(source + "_w", layer), (source + "_v", layer)]
    return None


class AsHF:
    """Canonical Megatron tensors as Hugging Face tensors, in the order of the model; dtypes are kept."""

    def __init__(self, family: Family, shape: ModelShape, source: Source) -> None:
        self.shape, self.source = shape, source
        self.rules: dict[str, tuple[Rule, int]] = {}
        for rule in expand(family, shape):
            self.rules.update({name: (rule, number) for number, name in enumerate(rule.hf)})
        self._matrix: tuple[str, np.ndarray] | None = None

    def names(self) -> list[str]:
        return list(self.rules)

    def info(self, name: str) -> Info:
        rule, number = self.rules[name]
        return rule.hf_shapes(self.shape)[number], self.source.info(rule.megatron)[1]

    def read(self, name: str, first: int, out: np.ndarray) -> None:
        rule, number = self.rules[name]
        if not rule.transposed:
            self._rows(rule, number, first, out)
            return
        if self._matrix is None or self._matrix[0] != name:
            shape, dtype = self.info(name)
            matrix = empty(shape[::-1], dtype)
            self._rows(rule, number, 0, matrix)
            self._matrix = name, matrix.T
        np.copyto(out, self._matrix[1][first : first + len(out)])

    def _rows(self, rule: Rule, number: int, first: int, out: np.ndarray) -> None:
        blocks = rule.hf_blocks(self.shape, number)
        _gather(blocks, first, out, lambda _, row, part: self.source.read(rule.megatron, row, part))


class Untied:
    """A tied model's Megatron tensors with a head that is a copy of the embedding."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def names(self) -> list[str]:
        return [*self.source.names(), OUTPUT]

    def info(self, name: str) -> Info:
        return self.source.info(EMBEDDING if name == OUTPUT else name)

    def read(self, name: str, first: int, out: np.ndarray) -> None:
        self.source.read(EMBEDDING if name == OUTPUT else name, first, out)


def untied(family: Family, shape: ModelShape, where: str) -> ModelShape:
    """The same model with a head of its own.

    Raises:
        CheckpointError: models of this family cannot have one.
    """
    if "tied" not in family.names or not any(rule.megatron == OUTPUT for rule in family.rules):
        raise CheckpointError(f"{where}: {family.name} models always share the head with the embedding; it cannot be untied.")
    return replace(shape, tied=False)


def tied(family: Family, shape: ModelShape, source: Source, where: str) -> ModelShape:
    """The same model without a head of its own.

    Raises:
        CheckpointError: models of this family always have one, or it differs from the embedding.
    """
    if "tied" not in family.names:
        raise CheckpointError(f"{where}: {family.name} models always have a head of their own; it cannot be tied.")
    pairs = [] if shape.tied else zip(bands(source, [OUTPUT]), bands(source, [EMBEDDING]))
    if not all(np.array_equal(head, rows) for (_, head), (_, rows) in pairs):
        raise CheckpointError(
            f"{where}: the head differs from the embedding; tying them would change the model. Say tie: keep."
        )
    return replace(shape, tied=True)
