"""The output layer and the loss in one, slice by slice of the vocabulary: the whole matrix of logits is never there.

Of n positions and V rows of the vocabulary it takes up 4 n V bytes in float32, and the gradient as much again: 8 GB for 8,192
positions of Llama 3. Here each slice of logits is computed, used and dropped, once for the loss and once more for the
gradient: a quarter of a pass through the output matrix more, in exchange for all of that memory. Slices of rows rather than
of positions, because then each row of the weight's gradient is one sum over all positions, as without slices. On GPUs the kernels
of ``fused_softmax`` take the place of a dozen passes over a slice, and of Megatron's loss from whole logits.
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
from megatron_adapt.engine.updates import is_fused


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
        """``[b, s]`` and this rank's part of ``[s, b, V]`` -> ``[b, s]``; Megatron's knows equal shares, no z-loss and no kernel."""
        if not self.z_loss and self.vocab_size % self.config.tensor_model_parallel_size == 0 and not is_fused(logits):
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
        rows, places = logits.flatten(0, 1).contiguous(), (labels - first).flatten()
        sums = _nothing_yet(rows)
        _add_statistics(rows if is_fused(rows) else rows.to(sums[0].dtype, copy=True), places, *sums, None)
        log_total, chosen = _over_ranks(*sums)
        ctx.save_for_backward(rows, places, log_total)
        ctx.z = z
        return (log_total - chosen).view(labels.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        rows, places, log_total = ctx.saved_tensors
        shape, gradient = gradient.shape, gradient.flatten()
        found = _gradient(rows.clone(), places, log_total, gradient * (1 + 2 * ctx.z * log_total), gradient, None)
        return found.view(*shape, -1), None, None, None


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
        places = labels - first
        sums = _nothing_yet(hidden)
        for begin, rows in _slices(weight, len(hidden)):
            _add_statistics(torch.mm(hidden, rows.t()), places - begin, *sums, softcap)
        log_total, chosen = _over_ranks(*sums)
        ctx.save_for_backward(hidden, weight, places, log_total)
        ctx.softcap, ctx.z, ctx.sum = softcap, z, getattr(weight, "main_grad", None)
        return log_total - chosen

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        hidden, weight, places, log_total = ctx.saved_tensors
        for_hidden, for_weight = ctx.needs_input_grad[:2]
        hidden_sum = torch.zeros_like(hidden, dtype=_wide(hidden)) if for_hidden else None
        weight_gradient = torch.empty_like(weight) if for_weight and ctx.sum is None else None
        factor = gradient * (1 + 2 * ctx.z * log_total)
        for begin, rows in _slices(weight, len(hidden)):
            part = _gradient(torch.mm(hidden, rows.t()), places - begin, log_total, factor, gradient, ctx.softcap)
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


Sums = tuple[Tensor, Tensor, Tensor]  # of each position's logits: the largest, sum of exp(logit - largest), the label's


def _nothing_yet(rows: Tensor) -> Sums:
    top = torch.full(rows.shape[:1], -torch.inf, device=rows.device, dtype=_wide(rows))
    return top, torch.zeros_like(top), torch.zeros_like(top)


def _add_statistics(logits: Tensor, places: Tensor, top: Tensor, total: Tensor, chosen: Tensor, softcap: float | None) -> None:
    """Take a slice's logits ``[n, c]``, which are used up, into the sums; ``places``: columns of the labels, perhaps not here."""
    if is_fused(logits):
        from megatron_adapt.engine import fused_softmax

        return fused_softmax.add_statistics(logits, places, top, total, chosen, softcap)
    logits = _capped(logits.to(top.dtype), softcap)
    place, mine = _within(places, logits.size(1))
    chosen += logits.gather(1, place[:, None])[:, 0].where(mine, 0)
    before = top.clone()
    torch.maximum(before, logits.amax(dim=1), out=top)
    total *= torch.exp(before - top)
    total += logits.sub_(top[:, None]).exp_().sum(dim=1)


def _over_ranks(top: Tensor, total: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """(log Z, the label's logit) from the sums of each tensor-parallel rank's rows."""
    group = parallel_state.get_tensor_model_parallel_group()
    own = top.clone()
    dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
    total *= torch.exp(own - top)
    dist.all_reduce(total, group=group)
    dist.all_reduce(chosen, group=group)
    return total.log() + top, chosen


def _gradient(logits: Tensor, places: Tensor, log_total: Tensor, factor: Tensor, slope: Tensor, softcap: float | None) -> Tensor:
    """Of the logits ``[n, c]``, which are used up, in their dtype: ``factor`` times the softmax less ``slope`` at the label."""
    if is_fused(logits):
        from megatron_adapt.engine import fused_softmax

        return fused_softmax.gradient(logits, places, log_total, factor, slope, softcap)
    wide = _capped(logits.to(log_total.dtype), softcap)
    inner = None if softcap is None else 1 - (wide / softcap).square_()
    found = wide.sub_(log_total[:, None]).exp_().mul_(factor[:, None])
    place, mine = _within(places, logits.size(1))
    found.scatter_add_(1, place[:, None], -slope.where(mine, 0)[:, None])
    return (found if inner is None else found.mul_(inner)).to(logits.dtype)


def _within(places: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """(column of each label in the slice, whether it is there; 0 where it is not)."""
    mine = (places >= 0) & (places < size)
    return places.where(mine, 0), mine


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
