"""A model seen in the other format: each tensor is converted when it is asked for, and nothing is kept.

Both views are :class:`rules.Reader`: what can be read from a weight file can be read from a view. Memory: the tensors of
one rule, once as they are stored and once as they are wanted.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Iterator, Protocol

from megatron_adapt.errors import CheckpointError
from megatron_adapt.families.rules import EMBEDDING, FLOATS, OUTPUT, Rule, Shape, expand

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from megatron_adapt.families.family import Family, ModelShape
    from megatron_adapt.families.rules import Reader


class MegatronReader(Protocol):
    """What conversion needs of a distributed checkpoint (``torch_dist.reader.TensorReader`` is one)."""

    def names(self) -> list[str]: ...

    def info(self, name: str) -> tuple[Shape, str]: ...

    def parts(self, name: str, begin: Shape, size: Shape) -> Iterator[tuple[Shape, Tensor]]: ...


class AsMegatron:
    """A Hugging Face directory as Megatron tensors by canonical name, unsharded; dtypes are kept."""

    def __init__(self, family: Family, shape: ModelShape, reader: Reader) -> None:
        self.shape, self.reader = shape, reader
        self.rules = {rule.megatron: rule for rule in expand(family, shape)}

    def names(self) -> list[str]:
        return list(self.rules)

    def info(self, name: str) -> tuple[Shape, str]:
        rule = self.rules[name]
        return rule.megatron_shape(self.shape), self.reader.info(rule.hf[0])[1]

    def get(self, name: str) -> Tensor:
        rule = self.rules[name]
        return rule.to_megatron([self.reader.get(each) for each in rule.hf], self.shape)


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
        problems = [f"tensors are missing: {_some(missing)}"] if missing else []
        problems += [f"tensors have no place in a {family.name} model: {_some(unused)}"] if unused else []
        problems += [_some(wrong)] if wrong else []
        if problems:
            raise CheckpointError(f"{where}: {'; '.join(problems)}. Do the configuration and the weights belong together?")

    def names(self) -> list[str]:
        return list(self.rules)

    def info(self, name: str) -> tuple[Shape, str]:
        return self.rules[name].megatron_shape(self.shape), self.reader.info(self.homes[name][0][0])[1]

    def parts(self, name: str) -> Iterator[tuple[Shape, Tensor]]:
        """A tensor piece by piece, as it was saved: (offset, piece)."""
        wanted = self.rules[name].megatron_shape(self.shape)
        row = 0
        for source, layer in self.homes[name]:
            size = tuple(self.reader.info(source)[0])[0 if layer is None else 1 :]
            size = (min(size[0], wanted[0]), *size[1:])  # padded rows are the last
            begin = (0,) * len(size)
            if layer is None:
                for offset, part in self.reader.parts(source, begin, size):
                    yield (row + offset[0], *offset[1:]), part
                    del part  # before the next one is read
            else:
                for offset, part in self.reader.parts(source, (layer, *begin), (1, *size)):
                    yield (row + offset[1], *offset[2:]), part[0]
                    del part
            row += size[0]

    def get(self, name: str) -> Tensor:
        """Memory: the tensor, and one piece where it was saved in several."""
        shape, dtype = self.info(name)
        whole: Tensor | None = None
        for offset, part in self.parts(name):
            if part.shape == shape:
                return part
            if whole is None:
                import torch

                whole = torch.empty(shape, dtype=getattr(torch, dtype), device="cpu")
            whole[region(offset, part)] = part
            del part  # before the next one is read
        assert whole is not None, name
        return whole

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


def region(offset: Shape, part: Tensor) -> tuple[slice, ...]:
    """Where a piece lies in the whole tensor."""
    return tuple(slice(first, first + size) for first, size in zip(offset, part.shape))


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
    """Canonical Megatron tensors as Hugging Face tensors, in the order of the model.

    Args:
        shape: the model as it is to become. If it is untied and the source tied, the head is a copy of the embedding.
        dtype: of the tensors; None keeps each as it is stored.
    """

    def __init__(
        self, family: Family, shape: ModelShape, source: Canonical | AsMegatron, dtype: torch.dtype | None = None
    ) -> None:
        self.shape, self.source, self.dtype = shape, source, dtype
        self.rules: dict[str, tuple[Rule, int]] = {}
        for rule in expand(family, shape):
            self.rules.update({name: (rule, number) for number, name in enumerate(rule.hf)})
        self._rest: dict[str, Tensor] = {}

    def names(self) -> list[str]:
        return list(self.rules)

    def info(self, name: str) -> tuple[Shape, str]:
        rule, number = self.rules[name]
        dtype = str(self.dtype).removeprefix("torch.") if self.dtype else self.source.info(origin(rule.megatron, self.source))[1]
        return rule.hf_shapes(self.shape)[number], dtype

    def get(self, name: str) -> Tensor:
        """The other tensors of the same rule are kept until the next is asked for."""
        if name not in self._rest:
            self._rest.clear()  # before anything new is read
            rule, _ = self.rules[name]
            self._rest = dict(zip(rule.hf, rule.to_hf(self.source.get(origin(rule.megatron, self.source)), self.shape)))
        tensor = self._rest.pop(name)
        return (tensor if self.dtype is None else tensor.to(self.dtype)).contiguous()


def origin(name: str, source: Canonical | AsMegatron) -> str:
    """The tensor of ``source`` that becomes the Megatron tensor ``name``: the embedding, for a head that it lacks."""
    return EMBEDDING if name == OUTPUT and OUTPUT not in source.rules else name


def untied(family: Family, shape: ModelShape, where: str) -> ModelShape:
    """The same model with a head of its own.

    Raises:
        CheckpointError: models of this family cannot have one.
    """
    if "tied" not in family.names or not any(rule.megatron == OUTPUT for rule in family.rules):
        raise CheckpointError(f"{where}: {family.name} models always share the head with the embedding; it cannot be untied.")
    return replace(shape, tied=False)


def tied(family: Family, shape: ModelShape, source: Canonical, where: str) -> ModelShape:
    """The same model without a head of its own.

    Raises:
        CheckpointError: models of this family always have one, or it differs from the embedding.
    """
    if "tied" not in family.names:
        raise CheckpointError(f"{where}: {family.name} models always have a head of their own; it cannot be tied.")
    if not shape.tied and not source.get(OUTPUT).equal(source.get(EMBEDDING)):
        raise CheckpointError(
            f"{where}: the head differs from the embedding; tying them would change the model. Say tie: keep."
        )
    return replace(shape, tied=True)


def _some(names: list[str], most: int = 6) -> str:
    shown = "; ".join(names[:most]) if any(" " in name for name in names) else ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
