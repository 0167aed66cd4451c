"""AdamW (with 8-bit moments, too), LionW and Muon through Megatron Core's optimizers: clipping over all model-parallel ranks, sharded state.

    fp32         float32 weights, gradients and moments
    bf16-mixed   bf16 weights, float32 gradients, main weights and moments (Megatron's Float16Optimizer)
    bf16-true    weights, gradients and moments in bf16, updated by `updates` with a choice of rounding
    fp8-...      bf16-mixed, or with -true bf16-true, with matrix products in fp8 (Transformer Engine)
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import megatron.core.optimizer as megatron_optimizers
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer, get_standard_config_overrides
from megatron.core.optimizer import optimizer as megatron_optimizer
from megatron.core.optimizer.optimizer import MegatronOptimizer
from megatron_adapt.config import BF16_ALONE, Optimizer
from megatron_adapt.engine import backend, eight_bit, gradients, muon, offload, optimizer_state, rates, updates
from megatron_adapt.engine.chunks import Chunks, chunks
from megatron_adapt.engine.model import named_parameters
from megatron_adapt.families.mup import Scaling


def build(
    settings: Optimizer,
    model: DistributedDataParallel | Chunks,
    precision: str,
    seed: int = 0,
    ages: Mapping[str, int] | None = None,
    scalings: Mapping[str, Scaling] | None = None,
) -> MegatronOptimizer:
    """The optimizer of a phase over the trainable parameters of ``model``.

    Distributed over the data-parallel ranks where ``model`` is wrapped for that.
    Decoupled weight decay on matrices only: norms and biases get none (Megatron's standard groups), nor do embedding and
    output rows where ``decay_embeddings`` is false.

    Args:
        seed: of stochastic rounding.
        ages: by canonical name, updates that a parameter has had in phases before, where its state is kept.
        scalings: by canonical name, muP's factors of the learning rate; decay is divided by them.
    """
    scalings = scalings or {}
    low = precision in BF16_ALONE
    _choose_kernels()
    config = OptimizerConfig(
        optimizer="adam",
        lr=settings.lr,
        min_lr=0.0,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.beta1,
        adam_beta2=settings.beta2,
        adam_eps=settings.eps,
        clip_grad=0.0 if low else settings.clip_grad,  # Megatron clips float32 gradients only
        bf16=precision != "fp32" and not low,
        params_dtype=model.config.params_dtype,
        use_distributed_optimizer=chunks(model)[0].ddp_config.use_distributed_optimizer,
    )
    if low:
        # What Megatron derives for an optimizer that needs no float32 copies of weights and gradients: the distributed one then
        # has parts of the bf16 weights updated in place, with their bf16 gradients, and its ranks exchange those.
        config.use_precision_aware_optimizer_no_fp8_or_ds_fp8 = config.use_distributed_optimizer
    named = _named(model)
    matrices = muon.names(named, chunks(model)[0].config) if settings.type == "muon" else set()
    overrides = get_standard_config_overrides(config) | rates.overrides(settings, named, scalings, matrices)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = get_megatron_optimizer(config, chunks(model), config_overrides=overrides)
    if settings.offload:
        offload.require_gpu()
    uneven = any(not scaling.is_even for scaling in scalings.values())
    if low or settings.type != "adamw" or settings.offload or ages or uneven:
        # Neither Megatron's checkpoints nor the fused kernels know parameters with different counts of updates, nor rows
        # with different learning rates.
        _replace(base(optimizer), settings, model, low, seed, ages or {}, scalings)
    for group in optimizer.param_groups:
        # Megatron leaves this to its own scheduler, which we do not use: its groups start with the full decay everywhere.
        group["weight_decay"] = settings.weight_decay * group["wd_mult"]
        if settings.decay_by == "schedule":
            group["weight_decay"] /= group["max_lr"]  # the update multiplies by the learning rate
        else:
            group["weight_decay"] /= group["lr_mult"]
        if "fused" in group:
            # torch's AdamW by default (on a CPU) is a loop of a dozen passes over each parameter. Fused it makes a single pass,
            # with the same arithmetic.
            group["fused"] = True
    _ask_for_norm_groups(base(optimizer))
    return optimizer


def _choose_kernels() -> None:
    """AdamW by Transformer Engine's kernel where its layers are used, else by torch's.

    Left to itself, Megatron takes Transformer Engine's or Apex's wherever they can be imported: where the recipe asks for torch's
    back end, too, and where there is no GPU, on which alone they run.
    """
    megatron_optimizers.USING_PYTORCH_OPTIMIZER = not backend.uses_transformer_engine()
    gradients.choose_kernels()


def _ask_for_norm_groups(single: Any) -> None:
    """Have every rank answer once what megatron-core 0.19 asks, and remembers, in its first clipping: it asks only ranks that
    train something, with a collective that waits for the others for ever.
    """
    for group in getattr(megatron_optimizer, "SEPARATE_GRAD_NORM_GROUPS", ()):  # 0.16 has none
        single.has_grad_norm_group(group)


def base(optimizer: MegatronOptimizer) -> Any:
    """Megatron's optimizer without the chain that it may stand in alone."""
    (single,) = getattr(optimizer, "chained_optimizers", [optimizer])
    return single


def _named(model: DistributedDataParallel | Chunks) -> list[tuple[str, nn.Parameter]]:
    wrapped = [chunk.module for chunk in chunks(model)]
    bare = [module.module if hasattr(module, "module") else module for module in wrapped]
    return [found for chunk in bare for found in named_parameters(chunk)]


def _replace(
    single: Any, settings: Optimizer, model: DistributedDataParallel | Chunks, low: bool, seed: int,
    ages: Mapping[str, int], scalings: Mapping[str, Scaling],
) -> None:
    """Put ours in the place of the torch optimizer that Megatron's wraps: its parameter groups stay as they are."""
    if single.optimizer is None:  # nothing trains on this rank
        return
    more: dict[str, Any] = {} if settings.type == "lionw" else {"eps": settings.eps}
    names = {id(parameter): name for name, parameter in _named(model)}
    mine = [(slot, slot.updated) for slot in optimizer_state.slots(single) if slot.updated is not None]
    torchs = single.optimizer.defaults
    groups = [{key: value for key, value in group.items() if key not in torchs} for group in single.optimizer.param_groups]
    # torch takes only leaves, and the distributed optimizer's parts of float32 weights are views: they follow below.
    empty = [{**group, "params": [torch.empty(0)]} for group in groups]
    more |= {"lr": settings.lr, "weight_decay": settings.weight_decay, "betas": (settings.beta1, settings.beta2)}
    config = chunks(model)[0].config
    had = {updated: ages.get(names[id(slot.parameter)], 0) for slot, updated in mine}
    if settings.type == "muon":
        more |= muon.options({updated: names[id(slot.parameter)] for slot, updated in mine}, config, scalings)
        more["momentum"] = settings.momentum
    row_rates = {
        updated: rates.RowRates.of(scaling, slot.parameter, config)
        for slot, updated in mine
        if (scaling := scalings.get(names[id(slot.parameter)])) is not None and not scaling.is_even
    }
    if settings.type == "adamw8bit":
        assert not row_rates, "refused by families.mup"
        single.optimizer = eight_bit.build(empty, settings.paged, had, **more)
    else:
        adamw = offload.AdamW if settings.offload else updates.AdamW
        kind = {"adamw": adamw, "lionw": updates.LionW, "muon": muon.Muon}[settings.type]
        single.optimizer = kind(
            empty,
            rounding=settings.rounding if low else "nearest",
            seed=seed,
            names={updated: names[id(slot.parameter)] for slot, updated in mine},
            shard=parallel_state.get_tensor_model_parallel_rank(),
            ages=had,
            row_rates=row_rates,
            parts={updated: (slot.range.start, slot.parameter.numel()) for slot, updated in mine if slot.range is not None},
            **more,
        )
    for ours, given in zip(single.optimizer.param_groups, groups):
        ours["params"] = given["params"]
    single.optimizer.count_changes = low
    single.init_state_fn = lambda optimizer, config=None: optimizer.initialize()


def prepare(optimizer: MegatronOptimizer) -> None:
    """Take over the gradients of the step; ``clip`` and, unless the step is left out, ``update`` follow."""
    single = base(optimizer)
    single.prepare_grads()
    if optimizer_state.is_low(single) and single.optimizer is not None:
        single.optimizer.changed = 0
    if optimizer_state.is_low(single) and single.config.use_distributed_optimizer:
        for parameter in single.get_parameters():
            parameter.grad = parameter.decoupled_grad  # the name that Megatron uses where their types may differ


def clip(optimizer: MegatronOptimizer, clip_grad: float) -> float:
    """Clip the gradients; their norm before, over all model-parallel ranks."""
    single = base(optimizer)
    if not optimizer_state.is_low(single):
        return float(single.clip_grad_norm(clip_grad) if clip_grad else single.get_grad_norm())
    norm = gradients.norm(single)
    if single.optimizer is not None:
        single.optimizer.gradient_scale = min(1.0, clip_grad / (norm + 1e-6)) if clip_grad else 1.0
    return norm


def group_norms(optimizer: MegatronOptimizer, bare: GPTModel | Chunks) -> dict[str, float]:
    """Norm of the gradients of each of ``gradients.GROUPS`` that trains; between ``prepare`` and ``clip``. Collective."""
    return gradients.group_norms(base(optimizer), {id(parameter): name for name, parameter in named_parameters(bare)})


def update(optimizer: MegatronOptimizer) -> None:
    """One update with the gradients that ``prepare`` took over."""
    base(optimizer).step_with_ready_grads()


def reset(optimizer: MegatronOptimizer) -> None:
    """As if just built on the model's weights as they are now: no moments, no steps."""
    single = base(optimizer)
    if single.optimizer is not None:
        single.optimizer.state.clear()
        for group in single.param_groups:
            if "step" in group:
                group["step"] = 0
    single.reload_model_params()


def changed_share(optimizer: MegatronOptimizer) -> float | None:
    """Share of the trained weights whose bf16 value the last step changed; None where the weights are kept in float32.

    Near 0 it tells that updates are rounded away (DESIGN, fact 12). Collective.
    """
    single = base(optimizer)
    if not optimizer_state.is_low(single):
        return None
    counts = [0.0, 0.0]
    if single.optimizer is not None:
        counts = [float(single.optimizer.changed), float(sum(p.numel() for p in single.get_parameters()))]
    changed, total = backend.agree(counts, "sum")
    return changed / total


def set_learning_rate(optimizer: MegatronOptimizer, factor: float) -> None:
    """``factor`` times each group's peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["max_lr"] * factor
