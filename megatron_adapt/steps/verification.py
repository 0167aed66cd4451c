"""Proof that a conversion kept the model: every bit of the weights, the logits of every position, the configuration.

Weights are compared tensor by tensor, in no more memory than converting takes. Logits need the model itself, once in
float32, in memory; on the CPU on every machine, so that the answer does not depend on it.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Mapping, Sequence

from megatron_adapt import launch
from megatron_adapt.errors import CheckpointError, ConfigError
from megatron_adapt.hf.directory import HFDirectory
from megatron_adapt.steps.reporter import Reporter

if TYPE_CHECKING:
    import torch
    from megatron_adapt.families import ModelShape

DTYPE_KEYS = {"dtype", "torch_dtype"}  # transformers 5 says the one, 4 the other


def apart(work: Callable[[], dict[str, Any]], ranks: int = 1) -> dict[str, Any]:
    """What ``work`` returns on rank 0 of forked processes, with which its memory goes. It has to be JSON."""
    found: list[dict[str, Any]] = []

    def report() -> None:
        result = work()
        if os.environ["RANK"] == "0":
            os.write(int(os.environ["MEGATRON_ADAPT_MESSAGES"]), json.dumps(result).encode() + b"\n")

    if launch.fork(ranks, report, receive=found.append).stopped:
        raise KeyboardInterrupt
    return found[0]


def peak_memory() -> int:
    """Most bytes that this process has held so far (resident set)."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def choose(kind: str | None, shape: ModelShape, reporter: Reporter) -> str:
    """What to verify: as asked for, or else logits where the model fits into memory.

    Raises:
        ConfigError: logits were asked for and the model does not fit.
    """
    assert kind in (None, "off", "weights", "logits"), kind
    needed, available = memory_for_logits(shape), available_memory()
    if kind in ("off", "weights") or needed <= available:
        return kind or "logits"
    numbers = f"needs about {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are available"
    if kind == "logits":
        raise ConfigError(f"--verify logits holds the whole model in float32: it {numbers}. Say --verify weights.")
    reporter.log(f"logits are not compared: that {numbers}; all weights are, bit for bit")
    return "weights"


def memory_for_logits(shape: ModelShape) -> float:
    """Bytes: the weights in float32, half of that once more while transformers reads them, and some for the programs."""
    return 6 * shape.num_parameters() + 1.5e9


def available_memory() -> float:
    """Bytes that this process may still take, of the machine and of its control group."""
    import psutil

    found = float(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = next(line.split()[1] for line in (group / "memory.stat").read_text().splitlines() if line.startswith("anon "))
    except (OSError, StopIteration):
        return found  # no control group, or one of the older kind
    return found if limit == "max" else min(found, float(limit) - float(used))


def judge(different: list[str], count: int, where: str) -> None:
    """Raise ``CheckpointError`` naming tensors that came back with other bits, if there are any."""
    if different:
        shown = ", ".join(different[:6]) + (f" and {len(different) - 6} more" if len(different) > 6 else "")
        raise CheckpointError(f"{where}: {len(different)} of {count} tensors differ after conversion: {shown}.")


def logits(
    directory: Path,
    shape: ModelShape,
    fill: Callable[[torch.nn.Module], None],
    reporter: Reporter,
    texts: Sequence[str] | None = None,
) -> dict[str, Any]:
    """transformers' logits of ``directory`` against those of a Megatron model that ``fill`` loads, at tensor parallel
    size 1 and 2.

    Returns ``{max_abs_difference, top1_agreement, positions, max_abs_difference_tp2}``, the last only where the shape can
    be divided by two. Raises ``CheckpointError`` beyond the tolerance.
    """
    from megatron_adapt.engine import backend, model as models, verify
    from megatron_adapt.engine.backend import Layout

    def compare(expected: verify.Reference, layout: Layout) -> dict[str, Any]:
        backend.use_cpu()
        with backend.session(layout, seed=0):
            model = models.build(shape, layout, "fp32").eval()
            fill(model)
            return verify.compare(model, expected)

    with tempfile.TemporaryDirectory(prefix="megatron-adapt-") as folder:
        file = Path(folder) / "logits.pt"

        def one() -> dict[str, Any]:
            expected = verify.reference(HFDirectory.open(directory), texts)
            expected.save(file)
            return compare(expected, Layout())

        result = apart(one)
        if problems := shape.layout_problems(2, 1):
            reporter.log(f"logits are compared at tensor parallel size 1 only: {'; '.join(problems)}")
            return result
        two = apart(lambda: compare(verify.Reference.load(file, directory), Layout(tensor=2)), ranks=2)
        return result | {"max_abs_difference_tp2": two["max_abs_difference"]}


def configuration(before: Mapping[str, Any], after: Mapping[str, Any], expected: set[str], where: str) -> list[str]:
    """The keys in which two config.json differ, as ``key: old -> new``.

    Raises:
        CheckpointError: a key differs that is not ``expected`` to.
    """
    absent = object()
    keys = [key for key in {**before, **after} if before.get(key, absent) != after.get(key, absent)]
    shown = {key: f"{key}: {json.dumps(before.get(key))} -> {json.dumps(after.get(key))}" for key in keys}
    if wrong := [shown[key] for key in keys if key not in expected]:
        raise CheckpointError(f"{where} differs from the source's configuration: {'; '.join(wrong)}.")
    return list(shown.values())


def summary(result: Mapping[str, Any]) -> str:
    """What was verified, in words."""
    if "tensors" not in result:
        return "not verified"
    words = f"{result['tensors']} tensors equal bit for bit"
    if "positions" in result:
        worst = max(result["max_abs_difference"], result.get("max_abs_difference_tp2", 0.0))
        layouts = "at TP 1 and 2" if "max_abs_difference_tp2" in result else "at TP 1"
        words += (
            f", logits of {result['positions']} positions within {worst:.1e} {layouts}, "
            f"top-1 agreement {result['top1_agreement']:.2%}"
        )
    return words


def kept(result: Mapping[str, Any]) -> str:
    """What was there already of an interrupted conversion, in words."""
    return f"; {result['kept']} of {result['files']} files were finished before" if result["kept"] else ""
