"""Gloo, which ranks on CPUs talk through: all groups of a process on one device.

torch gives each group a device of its own, whose thread wakes a hundred times a second, whether there is something to do or not,
and is waited for when the group ends. Megatron makes some twenty groups a rank: that is a fortieth of a core for each idle rank.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from torch.distributed import ProcessGroupGloo, distributed_c10d

_THREADS = 2  # that carry out a group's collectives, as torch has it
_devices: list[Any] = []


class _OnOneDevice(type):
    """Of what stands for torch's class where torch makes groups: a call gives a group of that class."""

    def __call__(cls, store: Any, rank: int, size: int, timeout: timedelta) -> ProcessGroupGloo:
        options = ProcessGroupGloo._Options()
        options._devices, options._threads, options._timeout = _devices, _THREADS, timeout
        return ProcessGroupGloo(store, rank, size, options)

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, ProcessGroupGloo)


class _Group(metaclass=_OnOneDevice):
    pass


def begin() -> None:
    """Before groups are made in this process: their devices, those that GLOO_SOCKET_IFNAME names as for torch."""
    names = [name for name in os.environ.get("GLOO_SOCKET_IFNAME", "").split(",") if name]
    make = ProcessGroupGloo.create_device
    _devices[:] = [make(interface=name) for name in names] or [ProcessGroupGloo.create_default_device()]
    distributed_c10d.ProcessGroupGloo = _Group


def end() -> None:
    """After groups have ended."""
    _devices.clear()
    distributed_c10d.ProcessGroupGloo = ProcessGroupGloo
