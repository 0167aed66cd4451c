"""Several ranks on one GPU, for first_call.py: the code of tensor, pipeline and data parallelism on CUDA's tensors.

NCCL refuses two ranks of one GPU. Here gloo connects them, by way of main memory: it proves what is computed, not how fast.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, Callable, NoReturn

if __name__ == "__main__":  # before what is imported below takes the functions that ``stage_all`` replaces
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch.distributed as dist
from torch import Tensor

COLLECTIVES = (
    "all_reduce", "broadcast", "reduce", "all_gather", "all_gather_into_tensor", "_all_gather_base", "reduce_scatter",
    "reduce_scatter_tensor", "_reduce_scatter_base", "all_to_all_single", "gather", "scatter",
)  # fmt: skip
LAYOUTS = {"tensor": {"tensor": 2, "sequence": True}, "pipeline": {"pipeline": 2}, "data": {"distributed_optimizer": True}}
RUNS = {"plain fp32": ("plain", "fp32", 1e-4), "te bf16-mixed": ("te", "bf16-mixed", 1e-2)}  # layers, precision, allowed
STEPS = 5


def one_card(tiny: bool, scratch: Path) -> dict:
    """Losses of two ranks in each layout against those of one rank."""
    import sections

    setup = sections.Setup(tiny, scratch, STEPS)
    jobs, alone = {key: [] for key in LAYOUTS}, {}
    for name, (spec, precision, _) in RUNS.items():
        if spec not in sections.specs():
            continue
        sections.use(spec)
        alone[name] = setup.train(precision, name)
        for key, layout in LAYOUTS.items():
            jobs[key].append((spec, setup.job(precision, name, f"{name} {key}", sections.Layout(**layout))))
    listed = setup.folder / "jobs"
    listed.write_bytes(pickle.dumps(list(jobs.values())))
    # This process has used the GPU: ranks are forked from another one.
    stand_in = ["--stand-in"] if any("stand_ins" in path for path in sys.path) else []
    code = subprocess.run([sys.executable, __file__, str(listed), *stand_in]).returncode
    assert code == 0, f"exit code of the ranks: {code}; what they said stands above this"
    found, allowed = {}, {}
    for name, losses in alone.items():
        for key in LAYOUTS:
            found[f"{name}, {key}"] = sections.largest(sections.losses_of(setup.folder / f"{name} {key}"), losses)
            allowed[f"{name}, {key}"] = RUNS[name][2]
    assert all(found[key] < allowed[key] for key in found), f"losses differ from one rank's: {found}"
    return found


class Done:
    """Of a collective or a message: ``after`` it, the numbers go back to the GPU."""

    def __init__(self, work: Any = None, after: Callable[[], None] = lambda: None) -> None:
        self.work, self.after = work, after

    def wait(self, *_: Any) -> bool:
        if self.work is not None:
            self.work.wait()
        self.after()
        self.work, self.after = None, lambda: None
        return True

    def is_completed(self) -> bool:
        return self.work is None


def staged(collective: Callable, everywhere: bool) -> Callable:
    """``collective`` of copies in main memory of tensors on a GPU, or ``everywhere``, and back."""

    @functools.wraps(collective)
    def call(*arguments: Any, async_op: bool = False, **named: Any) -> Any:
        copies: list[tuple[Tensor, Tensor]] = []

        def copied(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return [copied(one) for one in value]
            if not isinstance(value, Tensor) or not (value.is_cuda or everywhere):
                return value
            copies.append((value.detach(), value.detach().to("cpu", copy=True).contiguous()))
            return copies[-1][1]

        collective(*copied(arguments), **{key: copied(value) for key, value in named.items()})
        for tensor, copy in reversed(copies):  # results come first among the arguments, and may lie within what they are made of
            tensor.copy_(copy)
        return Done() if async_op else None

    return call


def staged_messages(together: Callable, everywhere: bool) -> Callable:
    """``batch_isend_irecv`` likewise."""

    @functools.wraps(together)
    def call(messages: list[dist.P2POp]) -> list[Any]:
        afters: list[Callable[[], None]] = []
        for message in messages:
            tensor = message.tensor.detach()
            if not (tensor.is_cuda or everywhere):
                afters.append(lambda: None)
                continue
            message.tensor = tensor.to("cpu", copy=True)
            received = message.op is dist.irecv
            afters.append(functools.partial(tensor.copy_, message.tensor) if received else (lambda: None))
        return [Done(work, after) for work, after in zip(together(messages), afters)]

    return call


def stage_all(everywhere: bool) -> None:
    for name in COLLECTIVES:
        setattr(dist, name, staged(getattr(dist, name), everywhere))
    # Collected, collectives would begin only after their results have been copied back.
    dist._coalescing_manager = dist.distributed_c10d._coalescing_manager = lambda *_, **__: contextlib.nullcontext(Done())
    dist.batch_isend_irecv = staged_messages(dist.batch_isend_irecv, everywhere)


def all_ranks(listed: Path, stand_in: bool) -> int:
    """For each layout two ranks of their own, forked from here; 0: they all ended well."""
    import processes

    processes.preload(stand_in, before=lambda gpus: stage_all(everywhere=not gpus))
    for number, jobs in enumerate(pickle.loads(listed.read_bytes())):
        pids = [os.fork() or rank(place, jobs, Path(f"{listed}-{number}")) for place in range(2)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        if any(codes):
            return max(map(abs, codes))
    return 0


def rank(place: int, jobs: list[tuple[str, Any]], meeting: Path) -> NoReturn:
    """A forked rank's whole life."""
    import sections
    import workload

    from megatron_adapt.engine import backend, loop

    code = 1
    try:
        os.environ |= {"RANK": str(place), "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=place, world_size=2)
        for spec, job in jobs:
            sections.use(spec)
            backend.start(job.layout, workload.SEED)
            loop.train(job, log=lambda line: print(job.output.name, line, flush=True))
        backend.stop()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(all_ranks(Path(sys.argv[1]), "--stand-in" in sys.argv))
