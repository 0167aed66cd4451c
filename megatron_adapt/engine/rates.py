"""Parameters whose learning rate is not simply the recipe's: embedding and output rows, and everything under muP."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from megatron.core.optimizer import ParamKey
from megatron.core.optimizer.optimizer_config import ParamPredicate
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron_adapt.config import Optimizer
from megatron_adapt.families.mup import Scaling


def overrides(
    settings: Optimizer, named: Iterable[tuple[str, nn.Parameter]], scalings: Mapping[str, Scaling], matrices: set[str]
) -> dict[ParamKey, Any]:
    """Megatron's parameter groups: a group's ``max_lr`` is its peak, and ``lr_mult`` the part of muP in it.

    Args:
        matrices: names of parameters that Muon updates, whose factors it has itself.
    """
    own = settings.embedding_lr is not None or not settings.decay_embeddings
    groups: dict[tuple[bool, float], set[int]] = {}
    for name, parameter in named:
        rate = scalings[name].rate if scalings and name not in matrices else 1.0
        is_row = own and getattr(parameter, "is_embedding_or_output_parameter", False)
        if is_row or rate != 1:
            groups.setdefault((is_row, rate), set()).add(id(parameter))
    found = {}
    for (is_row, rate), members in groups.items():
        peak = settings.embedding_lr or settings.lr if is_row else settings.lr
        override: dict[str, Any] = {"max_lr": peak * rate, "lr_mult": rate}
        if is_row:
            # is_decoupled_lr tells the group from others when a checkpoint is loaded.
            override |= {"wd_mult": float(settings.decay_embeddings), "is_decoupled_lr": True}
        predicate = ParamPredicate(f"{is_row} {rate}", lambda parameter, members=members: id(parameter) in members)
        found[ParamKey(predicate=predicate)] = override
    return found


def qkv_turn(config: TransformerConfig) -> tuple[int, int, int]:
    """Rows of queries, key and value that take turns in the fused projection, whichever heads of it a rank has."""
    size = config.kv_channels
    return config.num_attention_heads // config.num_query_groups * size, size, size


@dataclass(frozen=True)
class RowRates:
    """Factors of the learning rate in one parameter: so many rows with the first, with the second ..., and again."""

    rows: tuple[int, ...]
    factors: tuple[float, ...]
    columns: int

    @classmethod
    def of(cls, scaling: Scaling, parameter: Tensor, config: TransformerConfig) -> RowRates:
        factors = tuple(rate / scaling.rate for rate in scaling.rates)
        return cls(qkv_turn(config), factors, parameter.numel() // len(parameter))

    @lru_cache(maxsize=None)
    def turn(self, device: torch.device) -> Tensor:
        """The factor of each row up to where they come again, float32; the same tensor every time."""
        return torch.tensor(self.factors).repeat_interleave(torch.tensor(self.rows)).to(device)

    def elements(self, begin: int, like: Tensor) -> Tensor:
        """The factors of the elements from ``begin`` of the parameter on, in the shape of ``like``."""
        turn, end = self.turn(like.device), begin + like.numel()
        rows = torch.arange(begin // self.columns, -(-end // self.columns), device=like.device)
        spread = turn[rows % len(turn)].repeat_interleave(self.columns)
        skipped = begin // self.columns * self.columns
        return spread[begin - skipped : end - skipped].view_as(like)
