"""Groups of ranks on CPUs share one device, whose thread is the only one that wakes by the clock."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroupGloo, distributed_c10d

from megatron_adapt import launch
from megatron_adapt.engine import backend
from megatron_adapt.engine.layout import Layout


def loops() -> int:
    return [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")].count("gloo_tcp_loop")


def test_all_groups_of_a_rank_have_one_device() -> None:
    def work() -> None:
        backend.start(Layout(tensor=2), 1)
        groups = list(distributed_c10d._world.pg_map)
        assert len(groups) > 10 and loops() == 1
        assert isinstance(groups[0]._get_backend(torch.device("cpu")), distributed_c10d.ProcessGroupGloo)
        found = torch.ones(1)
        for group in groups:  # those of this rank alone, too
            dist.all_reduce(found, group=group)
        assert found.item() == 2 ** sum(group.size() == 2 for group in groups)

    launch.fork(2, work, threads=1)


def test_a_process_begins_anew() -> None:
    def work() -> None:
        for _ in range(2):
            backend.start(Layout(), 1)
            dist.barrier()
            backend.stop()
            assert distributed_c10d.ProcessGroupGloo is ProcessGroupGloo

    launch.fork(1, work, threads=1)
