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
from sections import Setup, largest, same_weights, specs, use

from megatron_adapt.engine import attention, backend, context, cross_entropy as engine_cross_entropy, updates
from megatron_adapt.engine.backend import Layout
from megatron_adapt.engine.losses import positions
from megatron_adapt.engine.model import named_parameters
from megatron_adapt.engine.packing import Documents
from megatron_adapt.engine.updates import AdamW, LionW
from megatron_adapt.families.rules import expand

ROOT = Path(__file__).resolve().parents[2]


def fused_update(tiny: bool, scratch: Path) -> dict:
    """The kernel against the torch path; then the speed of one large parameter's update, by the bytes that it cannot do without, and
    times of a 1B model's and of many small ones: 16 parameters a launch, one a launch, and torch's fused AdamW."""
    if tiny and importlib.util.find_spec("triton") is None:
        return {"kernel": "not run: no triton"}
    from megatron_adapt.engine import fused_update as kernel

    found: dict[str, object] = {"checks": checked("fused_update_checks.py", tiny)}
    large, factor, together = [1 << (10 if tiny else 28)], 1024 if tiny else 1, kernel.TOGETHER
    bf16 = {"kernel": 14, "torch": 14, "kahan": 18, "lionw": 10, "torch_fused": 14}
    for dtype, ways in ((torch.bfloat16, bf16), (torch.float32, {"kernel": 28, "lionw": 20, "torch_fused": 28})):
        for name, moved in ways.items():
            seconds, _ = update_seconds(name, large, dtype, tiny)
            found[f"{name}{'_float32' * (dtype == torch.float32)}_gb_per_second"] = moved * large[0] / seconds / 1e9
    found["times_faster"] = found["kernel_gb_per_second"] / found["torch_gb_per_second"]
    layer = [2048 * 3072, 2048 * 2048, 2048 * 16384, 8192 * 2048, 2048, 2048]  # of Llama-3.2-1B
    for model, counts in (("1b", [128_256 * 2048, 2048, *16 * layer]), ("small", 300 * [1 << 20])):
        counts = [count // factor for count in counts]
        for way, kernel.TOGETHER in (("single", 1), ("together", together)):
            seconds, host = update_seconds("kernel", counts, torch.bfloat16, tiny)
            found |= {f"{model}_{way}_ms": seconds * 1e3} | ({"host_ms": host * 1e3} if (model, way) == ("small", "together") else {})
        found[f"{model}_torch_fused_ms"] = update_seconds("torch_fused", counts, torch.bfloat16, tiny)[0] * 1e3
    return found


def update_seconds(way: str, counts: list[int], dtype: torch.dtype, tiny: bool) -> tuple[float, float]:
    """(of one update of parameters of so many elements, until the host has launched it)"""
    parameters = [torch.nn.Parameter(torch.randn(count, device=backend.device(), dtype=dtype)) for count in counts]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    if way == "torch_fused":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(parameters, fused=True, **ADAMW)
    else:
        updates.is_fused = lambda parameter: way != "torch" and not tiny
        options = {key: value for key, value in ADAMW.items() if way != "lionw" or key != "eps"}
        names = {parameter: str(number) for number, parameter in enumerate(parameters)}
        rounding = "kahan" if way == "kahan" else "stochastic"
        optimizer = (LionW if way == "lionw" else AdamW)(parameters, rounding=rounding, names=names, **options)
    seconds = timed(optimizer.step, 2 if tiny else 10)
    began = time.perf_counter()
    optimizer.step()
    host = time.perf_counter() - began
    backend.synchronize()
    return seconds, host


ADAMW = {"lr": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}


def adamw(tiny: bool, scratch: Path) -> dict:
    """AdamW of float32 main weights and the copy to bf16, for one large parameter: torch's fused one, Transformer Engine's, and
    its one that has bf16 weights and, of the main weights, no more than what these leave out (28 bytes moved instead of 34)."""
    count = 1 << (12 if tiny else 28)
    weights = torch.randn(count, device=backend.device(), dtype=torch.bfloat16)
    gradient = torch.randn(count, device=backend.device())
    ways = {"torch": 34} | ({"te": 34} if "te" in specs() else {}) | ({} if tiny else {"te_remainders": 28})
    found: dict[str, float] = {}
    after: dict[str, torch.Tensor] = {}
    for name, moved in ways.items():
        step, main = adamw_of(name, weights.clone(), gradient)
        for _ in range(3):
            step()
        after[name] = main()
        seconds = timed(step, 3 if tiny else 10)
        found |= {f"{name}_ms": seconds * 1e3, f"{name}_gb_per_second": moved * count / seconds / 1e9}
        difference = found[f"{name}_difference_to_torch"] = (after[name] - after["torch"]).abs().max().item()
        assert difference < 4e-6, f"{name}: main weights differ by {difference:.1e} after 3 steps, which moved them by 4e-3 (allowed 4e-6)"
    return found


def adamw_of(name: str, weights: torch.Tensor, gradient: torch.Tensor) -> tuple[Callable[[], object], Callable[[], torch.Tensor]]:
    """(one update of bf16 ``weights`` and what they are rounded from, the latter in float32)"""
    if name == "te_remainders":
        from transformer_engine.pytorch.optimizers import FusedAdam

        parameter = torch.nn.Parameter(weights)
        parameter.decoupled_grad = gradient
        own = FusedAdam([parameter], master_weights=True, use_decoupled_grad=True, store_param_remainders=True, **ADAMW)

        def together() -> torch.Tensor:
            low = own.state[parameter]["master_param"].int()  # added to the bits above, which were rounded to the nearest
            return ((parameter.detach().view(torch.int16).int() << 16) + low).view(torch.float32)

        return own.step, together
    main = torch.nn.Parameter(weights.float())
    main.grad = gradient
    if name == "torch":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW([main], fused=True, **ADAMW)
    else:
        from transformer_engine.pytorch.optimizers import FusedAdam

        optimizer = FusedAdam([main], **ADAMW)
        for moment in ("exp_avg", "exp_avg_sq"):  # as Megatron does
            optimizer.state[main][moment] = torch.zeros_like(main.data)

    def step() -> None:
        optimizer.step()
        weights.copy_(main.detach())

    return step, lambda: main.detach().clone()


def checked(file: str, tiny: bool) -> list[str]:
    """Names of the checks of a kernel, in a process of its own: tests/unit has the same for Triton's interpreter."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment |= {"TRITON_INTERPRET": "1"} if tiny else {}
    command = [sys.executable, str(ROOT / "tests" / "unit" / file), "cpu" if tiny else "cuda"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


def timed(step: Callable[[], object], count: int) -> float:
    step()
    backend.synchronize()
    began = time.perf_counter()
    for _ in range(count):
        step()
    backend.synchronize()
    return (time.perf_counter() - began) / count


def cross_entropy(tiny: bool, scratch: Path) -> dict:
    """The softmax's kernels; loss from slices against whole logits in fp32 and bf16; time and memory at a large vocabulary of Megatron's
    loss and of slices, by kernels and by torch's operations."""
    import linear_cross_entropy

    found: dict[str, object] = {} if importlib.util.find_spec("triton") is None else {"checks": checked("fused_softmax_checks.py", tiny)}
    for dtype, allowed in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        found |= linear_cross_entropy.differences(dtype, allowed)
    sizes = (512, 64, 4096) if tiny else (8192, 4096, 128_256)
    found |= linear_cross_entropy.measure(*sizes, dtype=torch.bfloat16, repeats=2 if tiny else 10)
    engine_cross_entropy.is_fused = lambda logits: False
    other = linear_cross_entropy.measure(*sizes, dtype=torch.bfloat16, repeats=2 if tiny else 10, ways=("sliced",))
    found |= {f"{name}_by_torch": value for name, value in other.items()}
    return found | {"kernels_times_faster": other["sliced_ms"] / found["sliced_ms"]} | ({} if tiny else bandwidths())


def bandwidths() -> dict[str, float]:
    """GB/s of a copy and of the softmax's kernels, each byte counted that has to be read or written."""
    from megatron_adapt.engine import fused_softmax

    rows = columns = 8192
    logits = torch.randn(rows, columns, device=backend.device(), dtype=torch.bfloat16)
    sums = engine_cross_entropy._nothing_yet(logits)
    places, other, size = torch.arange(rows, device=logits.device), torch.empty_like(logits), 2 * rows * columns
    steps = {
        "copy": (2 * size, lambda: other.copy_(logits)),
        "statistics": (size, lambda: fused_softmax.add_statistics(logits, places, *sums, None)),
        "gradient": (2 * size, lambda: fused_softmax.gradient(other, places, sums[0], sums[2], sums[2], None)),
    }
    return {f"{name}_gb_per_second": moved / timed(step, 50) / 1e9 for name, (moved, step) in steps.items()}


def gradients(tiny: bool, scratch: Path, family: str = "llama") -> dict:
    """Of some parameters, with both kinds of layers, against transformers in float32; the rules are linear and convert gradients, too."""
    from transformers import AutoModelForCausalLM

    setup = Setup(tiny, scratch, 1, family)
    tokens = setup.tokens()
    reference = AutoModelForCausalLM.from_pretrained(setup.hf, dtype=torch.float32).to(backend.device())
    logits = reference(tokens).logits.float()
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    last = setup.shape.num_layers - 1
    compared = (
        "embedding.word_embeddings.weight", "decoder.layers.0.self_attention.linear_proj.weight",
        "decoder.layers.0.mlp.linear_fc1.layer_norm_weight", f"decoder.layers.{last}.mlp.linear_fc2.weight",
        "decoder.final_layernorm.weight",
    )  # fmt: skip
    rules = {rule.megatron: rule for rule in expand(setup.family, setup.shape) if rule.megatron in compared}
    theirs = dict(reference.named_parameters())
    found = {}
    for spec in specs():
        use(spec)
        model = setup.model("bf16-mixed")
        inputs = tokens[:, :-1].contiguous()
        model(inputs, positions(inputs), None, labels=tokens[:, 1:].contiguous()).float().mean().backward()
        ours = dict(named_parameters(model))
        for name, rule in rules.items():
            other = rule.to_megatron([theirs[each].grad for each in rule.hf], setup.shape)
            a, b = ours[name].grad.float().flatten(), other.flatten()
            found[f"{spec} {name}"] = torch.nn.functional.cosine_similarity(a, b, dim=0).item()
    assert min(found.values()) > 0.99, found
    return found


def contexts(tiny: bool, scratch: Path) -> dict:
    """Attention of two context-parallel ranks, one after the other: parts of what one rank computes of all, forward and backward."""
    setup = Setup(tiny, scratch, 1)
    use("plain")
    module = setup.model("bf16-mixed").decoder.layers[0].self_attention
    sample, shape = setup.phase.sequence_length, setup.shape
    lengths = (sample // 3, sample - sample // 3 - 1, 1, sample)
    draw = {"device": backend.device(), "dtype": torch.bfloat16, "requires_grad": True}
    heads = (shape.num_attention_heads, shape.num_query_groups, shape.num_query_groups)
    q, k, v = (torch.randn(1, count, 2 * sample, shape.head_dim, **draw) for count in heads)
    slope = torch.randn_like(q)

    def attended(own: torch.Tensor, more: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        documents = Documents.of(lengths, sample, backend.device())
        out = module._attend_apart(q[:, :, own], k, v, documents)
        return out.detach(), torch.autograd.grad(out, (q, k, v), more)

    places = torch.arange(2 * sample, device=backend.device()).view(2, sample)
    whole, expected = attended(places.flatten(), slope)
    place, gathered, out, parts = context.place, context.gathered, torch.zeros_like(whole), []
    try:
        owned = []
        for rank in range(2):
            context.place = lambda rank=rank: (rank, 2)
            owned.append(context.mine(places).flatten())
        for rank, own in enumerate(owned):
            context.place = lambda rank=rank: (rank, 2)
            context.gathered = lambda k, v, chosen: tuple(tensor[:, :, torch.cat(owned)[chosen]] for tensor in (k, v))
            out[:, :, own], found = attended(own, slope[:, :, own])
            parts.append(found)
    finally:
        context.place, context.gathered = place, gathered
    pairs = {"out": (out, whole), **{name: (a + b, c) for name, a, b, c in zip("qkv", *parts, expected)}}
    off = {name: ((ours - theirs).float().norm() / theirs.float().norm()).item() for name, (ours, theirs) in pairs.items()}
    assert max(off.values()) < 1e-2, off
    return off | {"kernel": bool(module._suits_varlen(q)) and attention.varlen_attention() is not None}


def shared_update(tiny: bool, scratch: Path) -> dict:
    """bf16-true through the distributed optimizer, which updates parts of the bf16 weights: the bits of the plain one."""
    setup = Setup(tiny, scratch, 6 if tiny else 20)
    use("plain")
    whole = setup.train("bf16-true", "whole")
    parts = setup.train("bf16-true", "parts", layout=Layout(distributed_optimizer=True))
    assert parts == whole and same_weights(setup, "whole", "parts"), f"losses differ by {largest(parts, whole):.1e}"
    return {"kernel": updates.is_fused(torch.empty(0, device=backend.device())), "last_loss": whole[-1]}
