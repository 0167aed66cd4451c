"""Optimizers that torch and Megatron lack: LionW, and AdamW and LionW on weights that exist in bf16 only.

With 8 bits of significand an update below a 512th of a weight is lost when it is rounded to the nearest value: at the
learning rates of adaptation most weights never move. Two remedies, both computed in float32:

    stochastic   up or down with the probability of the distance, so that the expected update is exact
                 (Gupta et al. 2015); weights and moments; no memory
    kahan        the rounding error of the weights is kept in bf16 and added next time (Kahan 1965; Zamirai et al.
                 2020); 2 bytes per parameter

The random numbers of a step follow from the seed, the step, the parameter's name and the place in it: a resumed run draws the
same ones, data-parallel replicas and the two copies of a tied matrix stay equal, and a rank that updates a part of a parameter
(distributed optimizer) draws for it what a rank with all of it does.
"""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Iterator, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from megatron_adapt.engine.rates import RowRates

BLOCK = 1 << 22  # elements updated at a time: bounds the memory for float32 copies


def is_fused(parameter: Tensor) -> bool:
    """Whether weights are updated by the Triton kernel of ``fused_update``: on GPUs, where Triton can be imported."""
    return parameter.device.type != "cpu" and _has_triton()


@lru_cache(maxsize=None)
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


class Noise(NamedTuple):
    """Random numbers for a part of a block: those that the whole block would get there."""

    generator: torch.Generator
    part: slice
    whole: int  # elements of the block

    def draw(self, device: torch.device) -> Tensor:
        """Uniform whole numbers below 2^16, other ones each time."""
        return torch.randint(1 << 16, (self.whole,), generator=self.generator, device=device, dtype=torch.int32)[self.part]


def round_stochastically(x: Tensor, noise: Tensor) -> Tensor:
    """float32 -> bf16, to one of the two neighbours with a probability that makes the expected value ``x``.

    bf16 is the upper half of float32: ``noise``, uniform below 2^16, is added to the lower half, which is then dropped.
    """
    bits = x.contiguous().view(torch.int32) + noise
    return torch.bitwise_and(bits, -(1 << 16)).view(torch.float32).to(torch.bfloat16)


class _Update(torch.optim.Optimizer):
    """Walks over parameters in blocks, in float32; ``moments`` and ``_new_weights`` are the algorithm's.

    Args:
        names: parameter -> name, for the random numbers (``rounding="stochastic"`` only).
        shard: number of this rank's shard of split parameters, which get numbers of their own.
        ages: parameter -> updates it had before; its count of steps goes on from there.
        parts: parameter -> (first element, elements of the whole) where it is a part of what bears its name.
        row_rates: parameter -> factors of its rows' learning rates, where these differ; all rows decay alike.
    """

    moments: tuple[str, ...] = ()

    def __init__(
        self,
        params: Iterable[Any],
        *,
        rounding: str = "nearest",
        seed: int = 0,
        names: Mapping[Tensor, str] | None = None,
        shard: int = 0,
        ages: Mapping[Tensor, int] | None = None,
        parts: Mapping[Tensor, tuple[int, int]] | None = None,
        row_rates: Mapping[Tensor, RowRates] | None = None,
        **defaults: Any,
    ) -> None:
        assert rounding in ("nearest", "stochastic", "kahan"), rounding
        super().__init__(params, defaults | {"step": 0})
        self.rounding, self.seed, self.shard = rounding, seed, shard
        self.names, self.ages, self.parts, self.row_rates = names or {}, ages or {}, parts or {}, row_rates or {}
        self.gradient_scale = 1.0
        self.count_changes = False
        self.changed = 0
        self.together: list[tuple[Tensor, dict[str, Any]]] = []  # what a kernel changes at the end of a step

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of what is kept for each parameter."""
        return (*self.moments, "compensation") if self.rounding == "kahan" else self.moments

    def kept_for(self, parameter: Tensor | None) -> tuple[str, ...]:
        """Of ``kept`` what one parameter has; None: another rank's."""
        return self.kept

    def initialize(self) -> None:
        """Zero moments for all parameters: what a checkpoint is loaded into."""
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                for name in self.kept_for(parameter):
                    if name not in state:
                        state[name] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One update of every parameter that has a gradient; ``gradient_scale`` multiplies the gradients."""
        assert closure is None, "Megatron computes the loss before"
        self.initialize()
        changed: list[Tensor | int] = []
        for group in self.param_groups:
            group["step"] += 1
            for parameter in group["params"]:
                if parameter.grad is not None:
                    changed.append(self._update(parameter, group))
        if self.together:
            changed.append(self._update_together())
        self.changed = int(sum(changed)) if self.count_changes else 0

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> Tensor | int:
        state = self.state[parameter]
        counted = {**group, "step": group["step"] + self.ages.get(parameter, 0)}
        if is_fused(parameter):
            self.together.append((parameter, counted))
            return 0
        if parameter.dtype == torch.float32:
            moments = [state[name] for name in self.moments]
            gradient = parameter.grad * self.gradient_scale
            block = slice(0, parameter.numel())
            parameter.copy_(self._stepped(parameter, block, parameter, gradient, moments, counted))
            return 0
        flat, gradient = parameter.data.view(-1), parameter.grad.reshape(-1)
        changed: Tensor | int = 0
        for block, noise in self._blocks(parameter, group["step"]):
            stored = [state[name].view(-1)[block] for name in self.moments]
            moments = [moment.float() for moment in stored]
            weights = flat[block].float()
            if self.rounding == "kahan":
                compensation = state["compensation"].view(-1)[block]
                weights += compensation
            scaled = gradient[block].float() * self.gradient_scale
            new = self._stepped(parameter, block, weights, scaled, moments, counted)
            rounded = self._rounded(new, noise)
            if self.rounding == "kahan":
                compensation.copy_(new - rounded)
            if self.count_changes:
                changed = changed + (rounded != flat[block]).sum()
            flat[block] = rounded
            for target, value in zip(stored, moments):
                target.copy_(self._rounded(value, noise))
        return changed

    def _stepped(
        self, parameter: Tensor, block: slice, weights: Tensor, gradient: Tensor, moments: list[Tensor],
        group: dict[str, Any],
    ) -> Tensor:
        """``_new_weights`` of a block, with each row's own learning rate."""
        rates = self.row_rates.get(parameter)
        if rates is None:
            return self._new_weights(weights, gradient, moments, group)
        decayed = weights * (1 - group["lr"] * group["weight_decay"])
        new = self._new_weights(decayed.clone(), gradient, moments, {**group, "weight_decay": 0.0})
        return torch.lerp(decayed, new, rates.elements(self._place(parameter) + block.start, decayed))

    def _place(self, parameter: Tensor) -> int:
        """Of its first element in what bears its name."""
        return self.parts.get(parameter, (0, 0))[0]

    def _update_together(self) -> Tensor | int:
        """Those of ``together``, which is empty then."""
        from megatron_adapt.engine.fused_update import Part, update

        def part(parameter: Tensor, group: dict[str, Any]) -> Part:
            state, step = self.state[parameter], group["step"] - self.ages.get(parameter, 0)
            drawn = self.rounding == "stochastic" and parameter.dtype == torch.bfloat16
            return Part(
                parameter.data, parameter.grad.contiguous(), [state[name] for name in self.moments],
                state.get("compensation"), group, self._stream(parameter, step, "all") if drawn else 0,
                self._place(parameter), self.row_rates.get(parameter),
            )  # fmt: skip

        together, self.together = self.together, []
        return update((part(*each) for each in together), rounding=self.rounding, gradient_scale=self.gradient_scale)

    def _blocks(self, parameter: Tensor, step: int) -> Iterator[tuple[slice, Noise | None]]:
        """Parts of a parameter that lie in one block of the whole each, with their random numbers."""
        first, whole = self.parts.get(parameter, (0, parameter.numel()))
        end = first + parameter.numel()
        for begin in range(first - first % BLOCK, end, BLOCK):
            low, high = max(begin, first), min(begin + BLOCK, end)
            noise = None
            if self.rounding == "stochastic":
                generator = self._generator(parameter, step, begin // BLOCK)
                noise = Noise(generator, slice(low - begin, high - begin), min(BLOCK, whole - begin))
            yield slice(low - first, high - first), noise

    def _rounded(self, x: Tensor, noise: Noise | None) -> Tensor:
        return x.to(torch.bfloat16) if noise is None else round_stochastically(x, noise.draw(x.device))

    def _generator(self, parameter: Tensor, step: int, block: int) -> torch.Generator:
        return torch.Generator(device=parameter.device).manual_seed(self._stream(parameter, step, block))

    def _stream(self, parameter: Tensor, step: int, block: int | str) -> int:
        """Which of 2^63 series of random numbers."""
        split = getattr(parameter, "tensor_model_parallel", False)
        key = f"{self.seed}/{step}/{self.names[parameter]}/{self.shard if split else 0}/{block}"
        # Two checksums, 63 bits together: one alone would give some of many parameters the same stream.
        value = zlib.crc32(key.encode()) << 32 | zlib.adler32(key[::-1].encode())
        return value & (1 << 63) - 1

    def _new_weights(self, weights: Tensor, gradient: Tensor, moments: list[Tensor], group: dict[str, Any]) -> Tensor:
        """New float32 weights; ``weights`` and ``moments``, float32 as well, are changed in place."""
        raise NotImplementedError


class AdamW(_Update):
    """Loshchilov & Hutter 2019, algorithm 2: the arithmetic of ``torch.optim.AdamW``."""

    moments = ("exp_avg", "exp_avg_sq")

    def _new_weights(self, weights: Tensor, gradient: Tensor, moments: list[Tensor], group: dict[str, Any]) -> Tensor:
        first, second = moments
        beta1, beta2 = group["betas"]
        weights.mul_(1 - group["lr"] * group["weight_decay"])
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        scale = (1 - beta2 ** group["step"]) ** 0.5
        denominator = second.sqrt().div_(scale).add_(group["eps"])
        return weights.addcdiv_(first, denominator, value=-group["lr"] / (1 - beta1 ** group["step"]))


class LionW(_Update):
    """Chen et al. 2023, algorithm 2: the sign of an interpolated momentum, and decoupled weight decay."""

    moments = ("exp_avg",)

    def _new_weights(self, weights: Tensor, gradient: Tensor, moments: list[Tensor], group: dict[str, Any]) -> Tensor:
        (momentum,) = moments
        beta1, beta2 = group["betas"]
        weights.mul_(1 - group["lr"] * group["weight_decay"])
        weights.add_(torch.lerp(gradient, momentum, beta1).sign_(), alpha=-group["lr"])
        momentum.lerp_(gradient, 1 - beta2)
        return weights
