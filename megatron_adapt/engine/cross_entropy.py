"""The output layer and the loss in one, slice by slice of the vocabulary: the whole matrix of logits is never there.

Of n positions and V rows of the vocabulary it takes up 4 n V bytes in float32, and the gradient as much again: 8 GB for 8,192
positions of Llama 3. Here each slice of logits is computed, used and dropped, once for the loss and once more for the
gradient: a quarter of a pass through the output matrix more, in exchange for all of that memory. Slices of rows rather than
of positions, because then each row of the weight's gradient is one sum over all positions, as without slices.
"""

from __future__ import annotations

from typing import Any, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron_adapt.config_phases import LOGITS_OF_A_SLICE, slices_logits
from megatron_adapt.engine import vocabulary


class LanguageModel(GPTModel):
    """Megatron's model, whose last stage can leave out the matrix of logits on its way to the loss.

    Attributes:
        logits: "whole", "sliced", or "auto": sliced where they are many (``config_phases.slices_logits``).
        softcap: logits are ``softcap * tanh(logits / softcap)`` (Gemma 2); the whole matrix gets it from a hook.
        z_loss: times log^2 Z is added to the loss where gradients are concerned (``losses.regularize``).
    """

    logits: str = "whole"
    softcap: float | None = None
    z_loss: float = 0.0

    def _postprocess(self, *, hidden_states: Tensor, labels: Tensor | None, **rest: Any) -> Tensor:
        """Megatron's, save for losses ``[b, s]`` from hidden states ``[s, b, h]`` where logits are sliced."""
        if labels is None or not self.post_process:
            return super()._postprocess(hidden_states=hidden_states, labels=labels, **rest)
        tied = self.share_embeddings_and_output_weights
        head = self.shared_embedding_or_output_weight() if tied else self.output_layer.weight
        if not slices_logits(self.logits, labels.numel() * vocabulary.most(self.vocab_size)):  # all ranks choose alike
            return super()._postprocess(hidden_states=hidden_states, labels=labels, **rest)
        if self.config.sequence_parallel:
            hidden_states = gather_from_sequence_parallel_region(hidden_states, tensor_parallel_output_grad=True)
        else:
            hidden_states = copy_to_tensor_model_parallel_region(hidden_states)
        first, targets = vocabulary.mine(self.vocab_size).start, labels.t().reshape(-1)
        losses = LinearCrossEntropy.apply(hidden_states.flatten(0, 1), head, targets, first, self.softcap, self.z_loss)
        return losses.view(labels.size(1), labels.size(0)).t().contiguous()

    def compute_language_model_loss(self, labels: Tensor, logits: Tensor) -> Tensor:
        """``[b, s]`` and this rank's part of ``[s, b, V]`` -> ``[b, s]``; Megatron's knows equal shares and no z-loss."""
        if not self.z_loss and self.vocab_size % self.config.tensor_model_parallel_size == 0:
            return super().compute_language_model_loss(labels, logits)
        first = vocabulary.mine(self.vocab_size).start
        return CrossEntropy.apply(logits, labels.t(), first, self.z_loss).t().contiguous()


class CrossEntropy(torch.autograd.Function):
    """Cross-entropy over a vocabulary that tensor-parallel ranks share, with the gradient of a z-loss.

    logits ``[s, b, this rank's rows]``, labels ``[s, b]``, the first of these rows, z -> losses ``[s, b]`` float32: log Z -
    logit of the label. Backward is that of losses + z log^2 Z (Chowdhery et al. 2022, section 5; Z is the softmax's
    denominator), which keeps logits from drifting.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, first: int, z: float) -> Tensor:
        group = parallel_state.get_tensor_model_parallel_group()
        wide = logits.float()
        top = wide.amax(dim=-1)
        dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
        total = torch.exp(wide - top[..., None]).sum(dim=-1)
        dist.all_reduce(total, group=group)
        log_total = total.log() + top
        local = labels - first
        mine = (local >= 0) & (local < logits.size(-1))
        local = local.where(mine, 0)
        chosen = wide.gather(-1, local[..., None])[..., 0] * mine
        dist.all_reduce(chosen, group=group)
        ctx.save_for_backward(logits, log_total, local, mine)
        ctx.z = z
        return log_total - chosen

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        logits, log_total, local, mine = ctx.saved_tensors
        result = torch.exp(logits.float() - log_total[..., None])
        result *= (gradient * (1 + 2 * ctx.z * log_total))[..., None]
        result.scatter_add_(-1, local[..., None], -(gradient * mine)[..., None])
        return result.to(logits.dtype), None, None, None


class LinearCrossEntropy(torch.autograd.Function):
    """Cross-entropy of ``hidden @ weight.T`` over a vocabulary whose rows tensor-parallel ranks share.

    hidden ``[n, h]``, weight ``[rows of this rank, h]``, labels ``[n]``, number of the first of these rows, softcap or None, z
    -> losses ``[n]`` float32: log Z - logit of the label, Z the softmax's denominator, its maximum and sum carried along from
    slice to slice (Milakov & Gimelshein 2018, algorithm 3). Backward is that of losses + z log^2 Z (Chowdhery et al. 2022,
    section 5); the gradient of ``hidden`` is this rank's part of the sum over ranks.

    A weight that is to be summed over micro-batches (Megatron's ``main_grad``) gets its gradient added there at once: no
    second matrix of its size, and no rounding to its dtype on the way.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, first: int, softcap: float | None, z: float
    ) -> Tensor:
        group = parallel_state.get_tensor_model_parallel_group()
        places = labels - first
        top = torch.full(places.shape, -torch.inf, device=hidden.device, dtype=_wide(hidden))
        total, chosen = torch.zeros_like(top), torch.zeros_like(top)
        for begin, rows in _slices(weight, len(hidden)):
            logits = _capped(torch.mm(hidden, rows.t()).to(top.dtype), softcap)
            place, mine = _within(places, begin, len(rows))
            chosen += logits.gather(1, place[:, None])[:, 0].where(mine, 0)
            before, top = top, torch.maximum(top, logits.amax(dim=1))
            total *= torch.exp(before - top)
            total += logits.sub_(top[:, None]).exp_().sum(dim=1)
        own = top.clone()
        dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
        total *= torch.exp(own - top)
        dist.all_reduce(total, group=group)
        dist.all_reduce(chosen, group=group)
        log_total = total.log() + top
        ctx.save_for_backward(hidden, weight, places, log_total)
        ctx.softcap, ctx.z, ctx.sum = softcap, z, getattr(weight, "main_grad", None)
        return log_total - chosen

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        hidden, weight, places, log_total = ctx.saved_tensors
        for_hidden, for_weight = ctx.needs_input_grad[:2]
        hidden_sum = torch.zeros_like(hidden, dtype=_wide(hidden)) if for_hidden else None
        weight_gradient = torch.empty_like(weight) if for_weight and ctx.sum is None else None
        factor = (gradient * (1 + 2 * ctx.z * log_total))[:, None]
        for begin, rows in _slices(weight, len(hidden)):
            logits = _capped(torch.mm(hidden, rows.t()).to(log_total.dtype), ctx.softcap)
            slope = None if ctx.softcap is None else 1 - (logits / ctx.softcap).square_()
            part = logits.sub_(log_total[:, None]).exp_().mul_(factor)
            place, mine = _within(places, begin, len(rows))
            part.scatter_add_(1, place[:, None], -gradient.where(mine, 0)[:, None])
            part = (part if slope is None else part.mul_(slope)).to(hidden.dtype)
            if hidden_sum is not None:
                hidden_sum += _product(part, rows)
            if not for_weight:
                continue
            if weight_gradient is not None:
                torch.mm(part.t(), hidden, out=weight_gradient[begin : begin + len(rows)])
            else:
                ctx.sum[begin : begin + len(rows)] += _product(part.t(), hidden)
        hidden_gradient = None if hidden_sum is None else hidden_sum.to(hidden.dtype)
        return hidden_gradient, weight_gradient, None, None, None, None


def _slices(weight: Tensor, positions: int) -> Iterator[tuple[int, Tensor]]:
    """(number of the first row, rows) of slices with about ``LOGITS_OF_A_SLICE`` logits, in multiples of 128 rows."""
    size = max(1, LOGITS_OF_A_SLICE // positions // 128) * 128
    for begin in range(0, len(weight), size):
        yield begin, weight[begin : begin + size].detach()


def _within(places: Tensor, begin: int, size: int) -> tuple[Tensor, Tensor]:
    """(column of each label in the slice, whether it is there; 0 where it is not)."""
    inside = places - begin
    mine = (inside >= 0) & (inside < size)
    return inside.where(mine, 0), mine


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _capped(logits: Tensor, softcap: float | None) -> Tensor:
    return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in float32: parts of a sum are not rounded one by one."""
    if a.dtype == _wide(a):
        return a @ b
    if a.device.type == "cpu":  # whose products know no other type of result
        return a.float() @ b.float()
    return torch.mm(a, b, out_dtype=torch.float32)
