"""Profiles for first_call.py: the kernels of a step by torch's profiler, and counters of our own kernels by Nsight Compute.

Their tables become files beside results.json.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from megatron_adapt.engine import backend

HOST = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpyAsync", "cudaLaunchKernel", "cuLaunchKernelEx", "cuLaunchKernel")
COUNTERS = (
    "gpu__time_duration.sum", "dram__throughput.avg.pct_of_peak_sustained_elapsed", "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active", "launch__registers_per_thread",
)  # fmt: skip


def profile(tiny: bool, scratch: Path, spec: str, precision: str) -> dict:
    """Where the time of a step of an 8B shape goes: the kernels of two steps of four layers."""
    import shapes

    phase = shapes.phase_of(tiny, 8192, 2, 1)
    engine = shapes.Engine({**shapes.SHAPES["tiny" if tiny else "llama-8b"], "num_hidden_layers": 4}, phase, precision, spec)
    batch = shapes.chunked(phase, shapes.text(tiny, scratch, "llama-8b"))
    return profiled(lambda: engine.step(batch), scratch / "kept" / f"profile_{spec}_{precision}.txt")


def profile_1b(tiny: bool, scratch: Path, spec: str) -> dict:
    """The same of all layers of a 1B shape with packed documents, where launches may bound it."""
    import shapes

    phase, _, batch = shapes.documents(tiny, scratch)
    engine = shapes.Engine(shapes.SHAPES["tiny" if tiny else "llama-1b"], phase, "bf16-mixed", spec)
    return profiled(lambda: engine.step(batch), scratch / "kept" / f"profile_1b_{spec}.txt")


def profiled(step: Any, file: Path) -> dict:
    for _ in range(3):
        step()
    backend.synchronize()
    began = time.perf_counter()
    for _ in range(2):
        step()
    backend.synchronize()
    seconds = time.perf_counter() - began
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * backend.has_gpu()
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(2):
            step()
        backend.synchronize()
    events = profiler.key_averages()
    # Operations of the host count the time of the kernels that they launch once more.
    kernels = [event for event in events if not backend.has_gpu() or event.device_type == torch.autograd.DeviceType.CUDA]
    key = "self_device_time_total" if backend.has_gpu() else "self_cpu_time_total"
    kernels.sort(key=lambda event: -getattr(event, key))
    total = max(sum(getattr(event, key) for event in kernels), 1e-9)
    rows = [f"{getattr(one, key) / 2e3:10.3f} {getattr(one, key) / total:7.2%} {one.count / 2:8.1f}  {one.key[:160]}" for one in kernels[:80]]
    host = {f"{event.key} a step": event.count / 2 for event in events if event.key in HOST}
    found = {"step_ms": seconds * 500, "kernels_ms": total / 2e3, "busy": total / 1e6 / seconds, **host}
    head = "\n".join(f"{name}: {value:.4g}" for name, value in found.items())
    file.write_text("\n".join([head, "", "   ms/step   share  calls/step  kernel", *rows]) + "\n")
    return found | {"shares": {event.key[:80]: getattr(event, key) / total for event in kernels[:30]}}


def counters(tiny: bool, scratch: Path) -> dict:
    """Nsight Compute on our Triton kernels, where it is installed: how near they come to the memory's rate."""
    program = shutil.which("ncu")
    if program is None or not backend.has_gpu():
        return {"skipped": "no GPU" if program else "ncu is not on the PATH"}
    command = [program, "--clock-control", "none", "--metrics", ",".join(COUNTERS), "--kernel-name", "regex:^_(update|gradient|add_statistics)"]
    done = subprocess.run([*command, sys.executable, __file__], capture_output=True, text=True, timeout=150)
    (scratch / "kept" / "ncu.txt").write_text(done.stdout + done.stderr)
    assert done.returncode == 0 and "_update" in done.stdout, (done.stdout + done.stderr)[-1000:]
    return {"kernels": done.stdout.count("gpu__time_duration.sum")}


def run_kernels() -> None:
    """Each of our kernels twice, at sizes of an 8B model."""
    from megatron_adapt.engine import cross_entropy, fused_softmax, fused_update

    draw: dict[str, Any] = {"device": backend.device(), "dtype": torch.bfloat16}
    weights, gradient, first, second = (torch.rand(1 << 26, **draw) for _ in range(4))
    group = {"lr": 1e-4, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8, "step": 3}
    logits = torch.randn(8192, 8192, **draw)
    sums, places = cross_entropy._nothing_yet(logits), torch.arange(8192, device=logits.device)
    for _ in range(2):
        for rounding in ("stochastic", "nearest"):
            part = fused_update.Part(weights, gradient, [first, second], None, group, seed=1)
            fused_update.update([part], rounding=rounding, gradient_scale=1.0)
        fused_softmax.add_statistics(logits, places, *sums, None)
        fused_softmax.gradient(logits, places, sums[0], sums[2], sums[2], None)
    backend.synchronize()


if __name__ == "__main__":
    run_kernels()
