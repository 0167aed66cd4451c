"""AdamW whose moments take 8 bits each (Dettmers et al. 2022), by bitsandbytes.

Every 256 moments share a scale; parameters of fewer than 4,096 elements keep float32 moments. These blocks are counted from where a
rank's part of a parameter begins, so that results depend on the layout, a little. Checkpoints hold the moments in float32 like every
optimizer's, and each rank's scales beside them: the same layout finds the same 8 bits again, another one chooses them anew.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from megatron_adapt.engine import backend
from megatron_adapt.errors import ConfigError

BLOCK = 256  # moments of one scale
_PLACES = {"exp_avg": "1", "exp_avg_sq": "2"}


def build(groups: list[dict[str, Any]], paged: bool, ages: Mapping[Tensor, int], **options: Any) -> Any:
    """The optimizer over parameter groups; ``ConfigError`` where it cannot be had.

    Args:
        paged: moments may move to main memory while the GPU has too little.
        ages: parameter -> updates it had before; its count of steps goes on from there.
        options: lr, betas, eps and weight_decay, for groups that have none of their own.
    """
    if paged and not backend.has_gpu():
        raise ConfigError("optimizer.paged: bitsandbytes moves memory between a GPU and main memory, and there is no GPU; remove it.")
    optimizer = _kind()(groups, is_paged=paged, **options)
    optimizer.ages = dict(ages)
    return optimizer


@functools.lru_cache(maxsize=None)
def _kind() -> type:
    try:
        from bitsandbytes import functional
        from bitsandbytes.optim import AdamW8bit
    except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: a library that it links to is missing
        raise ConfigError(
            f"optimizer.type: adamw8bit needs bitsandbytes, which cannot be imported ({' '.join(str(error).split())[:200]}); "
            "pip install 'megatron_adapt[adamw8bit]'."
        ) from error

    class Optimizer(AdamW8bit):
        """With what checkpoints and ``init_state: keep`` need of an optimizer of ours."""

        ages: dict[Tensor, int]
        kept = tuple(_PLACES)

        def kept_for(self, parameter: Tensor | None) -> tuple[str, ...]:
            return self.kept

        def initialize(self) -> None:
            for number, group in enumerate(self.param_groups):
                for place, parameter in enumerate(group["params"]):
                    if not self.state[parameter]:
                        self.init_state(group, parameter, number, place)
                        self.state[parameter]["step"] = self.ages.get(parameter, 0)

        def step(self, closure: Any = None) -> None:
            self.initialize()
            super().step()

        def set_step(self, step: int) -> None:
            for parameter, state in self.state.items():
                state["step"] = step + self.ages.get(parameter, 0)

        def moment(self, parameter: Tensor, name: str) -> Tensor:
            """In float32 and in main memory: a GPU that needs this optimizer may not have room for all of them."""
            state, place = self.state[parameter], _PLACES[name]
            stored = state[f"state{place}"]
            if stored.dtype == torch.float32:
                return stored.detach().cpu()
            scales = state[f"absmax{place}"].repeat_interleave(BLOCK)[: stored.numel()]
            return (state[f"qmap{place}"][stored.view(-1).long()] * scales).view(parameter.shape).cpu()

        def scales(self, parameter: Tensor, name: str) -> Tensor | None:
            return self.state[parameter].get(f"absmax{_PLACES[name]}")

        def set_moment(self, parameter: Tensor, name: str, value: Tensor, scales: Tensor | None) -> None:
            """``scales``: those that ``value`` had as 8 bits, which it then has again."""
            state, place = self.state[parameter], _PLACES[name]
            stored, value = state[f"state{place}"].view(-1), value.to(parameter.device, torch.float32).reshape(-1)
            if stored.dtype == torch.float32:
                stored.copy_(value)
            elif scales is None:
                codes, found = functional.quantize_blockwise(value, state[f"qmap{place}"], blocksize=BLOCK)
                stored.copy_(codes.view(-1))
                state[f"absmax{place}"].copy_(found.absmax)
            else:
                state[f"absmax{place}"].copy_(scales)
                values = state[f"qmap{place}"]
                shares = value / state[f"absmax{place}"].repeat_interleave(BLOCK)[: len(value)].clamp(min=1e-38)
                stored.copy_(torch.bucketize(shares, (values[1:] + values[:-1]) / 2).to(torch.uint8))

    return Optimizer
