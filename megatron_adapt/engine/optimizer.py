"""AdamW through Megatron Core's optimizer: fp32 main weights under bf16, clipping over all model-parallel ranks."""

from __future__ import annotations

import warnings

from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer, get_standard_config_overrides
from megatron.core.optimizer.optimizer import MegatronOptimizer
from megatron_adapt.config import Optimizer


def build(settings: Optimizer, model: DistributedDataParallel) -> MegatronOptimizer:
    """Decoupled weight decay on matrices only: norms and biases get none (Megatron's standard groups)."""
    config = OptimizerConfig(
        optimizer="adam",
        lr=settings.lr,
        min_lr=0.0,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.beta1,
        adam_beta2=settings.beta2,
        adam_eps=settings.eps,
        clip_grad=settings.clip_grad,
        bf16=model.config.bf16,
        params_dtype=model.config.params_dtype,
        use_distributed_optimizer=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = get_megatron_optimizer(config, [model], config_overrides=get_standard_config_overrides(config))
    for group in optimizer.param_groups:
        # Megatron leaves this to its own scheduler, which we do not use: its groups start with the full decay everywhere.
        group["weight_decay"] = settings.weight_decay * group["wd_mult"]
        if "fused" in group:
            # Without Transformer Engine and Apex Megatron takes torch's AdamW, by default (on a CPU) a loop of a dozen passes
            # over each parameter. Fused it makes a single pass, with the same arithmetic.
            group["fused"] = True
    return optimizer


def step(optimizer: MegatronOptimizer) -> tuple[bool, float]:
    """One update; (whether it happened, gradient norm before clipping over all model-parallel ranks)."""
    done, norm, _ = optimizer.step()
    return done, float(optimizer.get_grad_norm() if norm is None else norm)


def set_learning_rate(optimizer: MegatronOptimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
