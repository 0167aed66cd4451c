"""Muon for the matrices inside layers, AdamW for everything else (embeddings, output rows, norms, biases).

    m  <- momentum m + (1 - momentum) g
    u   = momentum m + (1 - momentum) g                            (Nesterov)
    W  <- (1 - lr decay) W - 0.2 sqrt(max(rows, columns)) lr O(u)

O is five steps of a quintic Newton-Schulz iteration, which brings the singular values near 1 (Jordan et al. 2024). Scaled so an
update is as large as AdamW's usually is: learning rate and decay of AdamW serve both (Liu et al. 2025, eq. 4).

The matrices are those of the Hugging Face model: query, key and value (each of all heads) and gate and up projection count
apart, although Megatron keeps them in one. Under tensor parallelism a matrix is put together on every rank that has a part of
it: what comes out does not depend on the layout.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron.core import parallel_state
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron_adapt.engine.rates import qkv_turn
from megatron_adapt.engine.updates import AdamW
from megatron_adapt.families.mup import Scaling

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
SCALE = 0.2  # the root mean square of AdamW's updates


@dataclass(frozen=True)
class Matrices:
    """Matrices that lie in one parameter in turns: so many rows of the first, of the second ..., and the same again."""

    rows: tuple[int, ...]
    cut: int  # dimension that tensor parallelism cuts
    factors: tuple[float, ...] = ()  # of each matrix's updates, if not 1

    @classmethod
    def of(cls, name: str, parameter: Tensor, config: TransformerConfig) -> Matrices | None:
        """For the parameter of a canonical name; None: it is no matrix inside a layer."""
        if not name.startswith("decoder.layers.") or parameter.dim() != 2:
            return None
        count = len(parameter)
        if ".linear_qkv." in name:
            return cls(qkv_turn(config), 0)
        if ".linear_fc1." in name:
            return cls((count // 2, count // 2) if config.gated_linear_unit else (count,), 0)
        return cls((count,), 1)

    def apart(self, fused: Tensor) -> list[Tensor]:
        turns = fused.view(-1, sum(self.rows), fused.shape[1])
        return [part.reshape(-1, fused.shape[1]) for part in turns.split(self.rows, dim=1)]

    def together(self, matrices: list[Tensor]) -> Tensor:
        columns = matrices[0].shape[1]
        turns = [matrix.view(-1, rows, columns) for matrix, rows in zip(matrices, self.rows)]
        return torch.cat(turns, dim=1).view(-1, columns)


def orthogonalized(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """About U V' for a matrix U S V', computed in ``dtype``."""
    a, b, c = COEFFICIENTS
    x = matrix.to(dtype)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)


def names(named: Iterable[tuple[str, Tensor]], config: TransformerConfig) -> set[str]:
    """Canonical names of the parameters that are matrices inside layers."""
    return {name for name, parameter in named if Matrices.of(name, parameter, config) is not None}


def options(names: Mapping[Tensor, str], config: TransformerConfig, scalings: Mapping[str, Scaling]) -> dict[str, Any]:
    """What ``Muon`` is told of a model, by its parameters' canonical names; its products need no more digits than the model's."""
    found = {parameter: Matrices.of(name, parameter, config) for parameter, name in names.items()}
    if scalings:
        found = {each: within and replace(within, factors=scalings[names[each]].muon) for each, within in found.items()}
    products = torch.bfloat16 if config.params_dtype == torch.bfloat16 else torch.float32
    return {"matrices": {parameter: within for parameter, within in found.items() if within is not None}, "products": products}


class Muon(AdamW):
    """See above.

    Args:
        matrices: parameter -> what matrices it holds; AdamW updates the others.
        momentum: of the matrices.
        products: type that orthogonalisation is computed in.
    """

    def __init__(
        self, params: Any, *, matrices: Mapping[Tensor, Matrices], momentum: float, products: torch.dtype, **options: Any
    ) -> None:
        super().__init__(params, **options)
        self.matrices, self.momentum, self.products = matrices, momentum, products

    def kept_for(self, parameter: Tensor | None) -> tuple[str, ...]:
        kept = super().kept_for(parameter)
        return tuple(name for name in kept if name != "exp_avg_sq") if parameter in self.matrices else kept

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> Tensor | int:
        if parameter not in self.matrices:
            return super()._update(parameter, group)
        state = self.state[parameter]
        gradient = parameter.grad.float() * self.gradient_scale
        momentum = torch.lerp(state["exp_avg"].float(), gradient, 1 - self.momentum)
        update = self._orthogonalized(torch.lerp(gradient, momentum, self.momentum), self.matrices[parameter])
        weights = parameter.float()
        if "compensation" in state:
            weights = weights + state["compensation"]
        new = torch.add(weights * (1 - group["lr"] * group["weight_decay"]), update, alpha=-group["lr"])
        if parameter.dtype == torch.float32:
            parameter.copy_(new)
            state["exp_avg"].copy_(momentum)
            return 0
        changed: Tensor | int = 0
        for block, noise in self._blocks(parameter, group["step"]):
            exact, flat = new.view(-1)[block], parameter.data.view(-1)[block]
            rounded = self._rounded(exact, noise)
            if "compensation" in state:
                state["compensation"].view(-1)[block] = exact - rounded
            changed = changed + (rounded != flat).sum()
            flat.copy_(rounded)
            state["exp_avg"].view(-1)[block] = self._rounded(momentum.view(-1)[block], noise)
        return changed

    def _orthogonalized(self, update: Tensor, within: Matrices) -> Tensor:
        """Collective: all tensor-parallel ranks have a part of the same parameter."""
        size, rank = parallel_state.get_tensor_model_parallel_world_size(), parallel_state.get_tensor_model_parallel_rank()
        shards = [torch.empty_like(update) for _ in range(size)] if size > 1 else [update]
        if size > 1:
            dist.all_gather(shards, update, group=parallel_state.get_tensor_model_parallel_group())
        done = []
        for number, pieces in enumerate(zip(*(within.apart(shard) for shard in shards))):
            whole = torch.cat(pieces, dim=within.cut)
            factor = within.factors[number] if within.factors else 1.0
            whole = orthogonalized(whole, self.products) * (SCALE * max(whole.shape) ** 0.5 * factor)
            done.append(whole.tensor_split(size, dim=within.cut)[rank])
        return within.together([piece.contiguous() for piece in done])
