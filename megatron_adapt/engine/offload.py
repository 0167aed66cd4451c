"""AdamW whose moments stay in main memory, where the CPU computes the update: 8 bytes per parameter less on the GPU.

For every block of weights the gradients and the float32 weights come over, and the new weights go back: 12 bytes per parameter and
step. Megatron Core's own (HybridDeviceOptimizer) keeps state in a form of its own, which no other optimizer could go on from; this
one's is AdamW's, in any layout. With the distributed optimizer each rank's CPU updates its part.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megatron_adapt.engine import backend, updates
from megatron_adapt.errors import ConfigError


def require_gpu() -> None:
    """Raise ``ConfigError`` where there is nothing to take moments away from."""
    if not backend.has_gpu():
        raise ConfigError("optimizer.offload: moments are kept in main memory instead of the GPU's, and there is no GPU; remove it.")


class AdamW(updates.AdamW):
    """The arithmetic of ``torch.optim.AdamW`` on float32 weights, whichever device they are on."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        self.staged: list[Tensor] = []  # weights and gradients of a block, on their way

    def initialize(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                for name in self.kept:
                    if name not in self.state[parameter]:
                        self.state[parameter][name] = torch.zeros(parameter.shape, device="cpu")

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> int:
        if not self.staged:
            # Memory that cannot be swapped out: the GPU reads and writes it by itself, several times as fast.
            self.staged = [torch.empty(updates.BLOCK, device="cpu", pin_memory=parameter.device.type != "cpu") for _ in range(2)]
        beta1, beta2 = group["betas"]
        step = torch.tensor(float(group["step"] + self.ages.get(parameter, 0)), device="cpu")
        flat, gradient = parameter.data.view(-1), parameter.grad.reshape(-1)
        moments = [self.state[parameter][name].view(-1) for name in self.moments]
        for begin in range(0, flat.numel(), updates.BLOCK):
            block = slice(begin, min(begin + updates.BLOCK, flat.numel()))
            new, slope = (buffer[: block.stop - begin] for buffer in self.staged)
            new.copy_(flat[block])
            slope.copy_(gradient[block])
            first, second = (moment[block] for moment in moments)
            torch._fused_adamw_(
                [new], [slope], [first], [second], [], [step], lr=group["lr"], beta1=beta1, beta2=beta2,
                weight_decay=group["weight_decay"], eps=group["eps"], amsgrad=False, maximize=False,
            )  # fmt: skip
            flat[block] = new
        return 0
