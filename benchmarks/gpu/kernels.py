"""Checks and timings of single parts for first_call.py: the update's Triton kernel, the loss from slices, gradients."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable

import torch
from sections import Setup, specs, use

from megatron_adapt.engine import backend, updates
from megatron_adapt.engine.losses import positions
from megatron_adapt.engine.model import named_parameters
from megatron_adapt.engine.updates import AdamW

ROOT = Path(__file__).resolve().parents[2]


def fused_update(tiny: bool, scratch: Path) -> dict:
    """The kernel against the torch path, then the time of both for one large parameter."""
    if tiny and importlib.util.find_spec("triton") is None:
        return {"kernel": "not run: no triton"}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment |= {"TRITON_INTERPRET": "1"} if tiny else {}
    checks = [sys.executable, str(ROOT / "tests" / "unit" / "fused_update_checks.py"), "cpu" if tiny else "cuda"]
    done = subprocess.run(checks, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, object] = {"checks": done.stdout.split()}
    if tiny:
        return found
    count = 1 << 28
    weights = torch.nn.Parameter(torch.randn(count, device=backend.device(), dtype=torch.bfloat16))
    weights.grad = torch.randn_like(weights)
    optimizer = AdamW([weights], rounding="stochastic", names={weights: "w"}, lr=1e-4, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
    for name, chosen in (("kernel", True), ("torch", False)):
        updates.is_fused = lambda parameter, chosen=chosen: chosen
        seconds = timed(optimizer.step, 10)
        found |= {f"{name}_ms": seconds * 1e3, f"{name}_gb_per_second": 14 * count / seconds / 1e9}
    found["times_faster"] = found["torch_ms"] / found["kernel_ms"]
    return found


def timed(step: Callable[[], object], count: int) -> float:
    step()
    backend.synchronize()
    began = time.perf_counter()
    for _ in range(count):
        step()
    backend.synchronize()
    return (time.perf_counter() - began) / count


def cross_entropy(tiny: bool, scratch: Path) -> dict:
    """Loss from slices against whole logits: numbers in fp32 and bf16, time and memory at a large vocabulary."""
    import linear_cross_entropy

    found = {}
    for dtype, allowed in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        found |= linear_cross_entropy.differences(dtype, allowed)
    sizes = (512, 64, 4096) if tiny else (8192, 4096, 128_256)
    return found | linear_cross_entropy.measure(*sizes, dtype=torch.bfloat16, repeats=2 if tiny else 10)


def gradients(tiny: bool, scratch: Path) -> dict:
    """Of matrices that both sides store alike, with both kinds of layers, against transformers in float32."""
    from transformers import AutoModelForCausalLM

    setup = Setup(tiny, scratch, 1)
    tokens = setup.tokens()
    reference = AutoModelForCausalLM.from_pretrained(setup.hf, dtype=torch.float32).to(backend.device())
    logits = reference(tokens).logits.float()
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    last = setup.shape.num_layers - 1
    pairs = {
        "embedding.word_embeddings.weight": "model.embed_tokens.weight",
        "decoder.layers.0.self_attention.linear_proj.weight": "model.layers.0.self_attn.o_proj.weight",
        f"decoder.layers.{last}.mlp.linear_fc2.weight": f"model.layers.{last}.mlp.down_proj.weight",
        "decoder.final_layernorm.weight": "model.norm.weight",
    }
    theirs = dict(reference.named_parameters())
    found = {}
    for spec in specs():
        use(spec)
        model = setup.model("bf16-mixed")
        inputs = tokens[:, :-1].contiguous()
        model(inputs, positions(inputs), None, labels=tokens[:, 1:].contiguous()).float().mean().backward()
        ours = dict(named_parameters(model))
        for name, other in pairs.items():
            a, b = ours[name].grad.float().flatten(), theirs[other].grad.flatten()
            found[f"{spec} {name}"] = torch.nn.functional.cosine_similarity(a, b, dim=0).item()
    assert min(found.values()) > 0.99, found
    return found
