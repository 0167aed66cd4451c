"""Weight gradients that Transformer Engine's layers add to the sums over micro-batches themselves, against returned ones."""

from __future__ import annotations

from pathlib import Path

import torch
import workload
from kernel_checks import timed
from sections import Setup, specs, use
from torch import Tensor, nn

from megatron_adapt.engine import backend, model as models
from megatron_adapt.engine.backend import Layout
from megatron_adapt.engine.convert import load_hf
from megatron_adapt.engine.losses import positions
from megatron_adapt.engine.model import named_parameters
from megatron_adapt.hf.directory import HFDirectory


def gradient_fusion(tiny: bool, scratch: Path) -> dict:
    """Sums over two micro-batches both ways, in float32, in bf16 and of fp8 products: the same but for rounding; time of both."""
    setup = Setup(tiny, scratch, 1)
    use(specs()[0])
    found: dict[str, object] = {}
    for precision, allowed in (("bf16-mixed", 0.9999), ("bf16-true", 0.999), ("fp8-current", 0.99)):
        sums = {}
        for fused in (True, False):
            model, layers = wrapped(setup, precision, fused)
            sums[fused] = gradients(setup, model)
            name = f"{precision}_{'fused' if fused else 'returned'}_ms"
            found[name] = 1e3 * timed(lambda: gradients(setup, model), 2 if tiny else 10)
        cosines = {
            name: torch.nn.functional.cosine_similarity(sums[True][name].flatten(), sums[False][name].flatten(), dim=0).item()
            for name in sums[True]
        }
        ratio = max(abs(float(sums[True][name].norm() / sums[False][name].norm()) - 1) for name in cosines)
        worst = min(cosines, key=cosines.get)
        found |= {"layers": layers, f"{precision}_cosine": cosines[worst], f"{precision}_norm": ratio}
        assert cosines[worst] > allowed and ratio < 0.01, (worst, found)
        assert tiny or layers, "no layer can add its gradients itself"
    return found


def wrapped(setup: Setup, precision: str, fused: bool) -> tuple[nn.Module, int]:
    """(the model in its wrapper, how many layers can add gradients themselves)"""
    backend.start(Layout(), workload.SEED)
    bare = models.build(setup.shape, Layout(), precision)
    load_hf(bare, HFDirectory.open(setup.hf), setup.shape)
    model = models.wrap(bare, precision).train()
    layers = [part for part in bare.modules() if hasattr(part, "fuse_wgrad_accumulation")]
    assert all(layer.fuse_wgrad_accumulation for layer in layers)
    for layer in layers:
        layer.fuse_wgrad_accumulation = fused
    return model, len(layers)


def gradients(setup: Setup, model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad_buffer()
    model.set_is_first_microbatch()  # as Megatron's schedules do
    for rows in setup.tokens().chunk(2):
        inputs, labels = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
        if inputs.numel() % 32:  # fp8 takes no other numbers of positions
            inputs, labels = (x[:, : x.size(1) // 32 * 32].contiguous() for x in (inputs, labels))
        model(inputs, positions(inputs), None, labels=labels).float().mean().backward()
    bare = model.module.module if hasattr(model.module, "module") else model.module
    return {name: parameter.main_grad.float().clone() for name, parameter in named_parameters(bare)}
