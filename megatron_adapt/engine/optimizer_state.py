"""The optimizer's part of a checkpoint: one format for every optimizer, precision and layout, so that any reads any.

    optimizer.state.<moment>.<parameter>     exp_avg, exp_avg_sq, compensation; shaped and cut like the parameter
    optimizer.state.fp32_param.<parameter>   the float32 main weights of bf16-mixed

The step is not among them: the position of training knows it. Megatron's own state of its distributed optimizer can only
be resumed with Transformer Engine's or Apex's Adam, and knows no moments but Adam's.
"""

from __future__ import annotations

from itertools import chain
from typing import Any, Iterator, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.optimizer import make_sharded_optimizer_tensor
from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer


class Slot(NamedTuple):
    """A parameter, and what the optimizer of this rank updates for it: all of it, or the elements ``range``."""

    parameter: nn.Parameter
    updated: Tensor | None  # None: other data-parallel ranks have all of it
    range: slice | None  # None: no data-parallel rank shares it


def is_low(single: Any) -> bool:
    """Whether weights exist in bf16 only."""
    return single.config.params_dtype == torch.bfloat16 and not single.config.bf16


def slots(single: Any) -> Iterator[Slot]:
    """Every trainable parameter of this rank, in the same order on all its data-parallel ranks."""
    if single.optimizer is None:
        return
    if isinstance(single, DistributedOptimizer):
        low = is_low(single)
        mine = {
            id(parameter): updated
            for models, shards in (
                (single.model_float16_groups, single.shard_float16_groups if low else single.shard_fp32_from_float16_groups),
                (single.model_fp32_groups, single.shard_fp32_groups),
            )
            for parameter, updated in zip(chain(*models), chain(*shards))
        }
        for buffer in single.buffers:
            for parameter in buffer.param_index_map:
                updated = mine.get(id(parameter))
                if updated is None:
                    yield Slot(parameter, None, slice(0, 0))
                else:
                    part = single._get_model_param_range_map(parameter)["param"]
                    yield Slot(parameter, updated, slice(part.start, part.end))
    elif hasattr(single, "float16_groups"):
        for parameter, updated in zip(chain(*single.float16_groups), chain(*single.fp32_from_float16_groups)):
            yield Slot(parameter, updated, None)
        for parameter in chain(*single.fp32_from_fp32_groups):
            yield Slot(parameter, parameter, None)
    else:
        for group in single.optimizer.param_groups:
            for parameter in group["params"]:
                yield Slot(parameter, parameter, None)


def initialize(single: Any) -> None:
    """Zero moments wherever there are none yet."""
    if single.optimizer is None:
        return
    single.init_state_fn(single.optimizer, single.config)
    if isinstance(single.optimizer, torch.optim.Adam) and any("step" not in each for each in single.optimizer.state.values()):
        set_step(single, 0)


def set_step(single: Any, step: int) -> None:
    """Number of updates so far, which Adam corrects its moments by."""
    if single.optimizer is None:
        return
    for group in single.optimizer.param_groups:
        if isinstance(single.optimizer, torch.optim.Adam):  # AdamW is one; it counts for each parameter
            for updated in group["params"]:
                place = updated.device if group.get("fused") or group.get("capturable") else "cpu"
                single.optimizer.state[updated]["step"] = torch.tensor(float(step), device=place)
        elif hasattr(single.optimizer, "set_step"):
            single.optimizer.set_step(step)
        else:  # Transformer Engine's and Apex's FusedAdam and our own count for each group
            group["step"] = step


def sharded_state(single: Any, model_state: dict[str, Any], loading: bool) -> dict[str, Any]:
    """What goes into a checkpoint, or what to fill from one, for ``dist_checkpointing``; collective when saving."""
    initialize(single)
    entries, _ = extract_sharded_tensors_and_factories(model_state)
    by_parameter = {id(entry.data): entry for entry in nested_values(entries)}
    state: dict[str, Any] = {}
    for number, slot in enumerate(slots(single)):
        for name in _moment_names(single, slot):
            tensor = _whole(single, slot, name, loading)
            key = f"{number}.{name}"
            state[key] = make_sharded_optimizer_tensor(by_parameter[id(slot.parameter)], tensor, f"optimizer.state.{name}")
    return state


def load(single: Any, state: dict[str, Any], step: int, scales: dict[str, Tensor]) -> None:
    """Take over what ``sharded_state(loading=True)`` was filled with, ``step`` updates into training; with ``scales`` saved by
    this rank in this layout, if there are any, to every bit."""
    fill(single, state, scales)
    set_step(single, step)


def scales(single: Any) -> dict[str, Tensor]:
    """What 8-bit moments of this rank are multiples of."""
    if not hasattr(single.optimizer, "scales"):
        return {}
    found = {
        f"{number}.{name}": single.optimizer.scales(slot.updated, name)
        for number, slot in enumerate(slots(single))
        for name in (single.optimizer.kept if slot.updated is not None else ())
    }
    return {key: value.cpu() for key, value in found.items() if value is not None}


def fill(single: Any, state: dict[str, Any], scales: dict[str, Tensor] | None = None) -> None:
    """Take over what there is of a state, and leave the rest as it is."""
    for number, slot in enumerate(slots(single)):
        if slot.updated is None:
            continue
        for name in _moment_names(single, slot):
            whole = state.get(f"{number}.{name}")
            if whole is None:
                continue
            part = whole if slot.range is None else whole.reshape(-1)[slot.range]
            if name != "fp32_param" and hasattr(single.optimizer, "set_moment"):
                single.optimizer.set_moment(slot.updated, name, part, (scales or {}).get(f"{number}.{name}"))
            else:
                _moment(single, slot, name).copy_(part)


def _moment_names(single: Any, slot: Slot) -> list[str]:
    """The same on every data-parallel rank, those without a part of the parameter included."""
    kept_for = getattr(single.optimizer, "kept_for", None)
    names = list(kept_for(slot.updated) if kept_for else ("exp_avg", "exp_avg_sq"))
    return names + ["fp32_param"] * (single.config.bf16 and slot.parameter.dtype != torch.float32)


def _moment(single: Any, slot: Slot, name: str) -> Tensor:
    assert slot.updated is not None
    if name == "fp32_param":
        return slot.updated.detach()
    moment = getattr(single.optimizer, "moment", None)
    return moment(slot.updated, name) if moment else single.optimizer.state[slot.updated][name]


def _whole(single: Any, slot: Slot, name: str, loading: bool) -> Tensor:
    """A moment in its parameter's shape: put together on the first data-parallel rank, which alone writes it."""
    if slot.range is None:
        return _moment(single, slot, name)
    shape, size, dtype = slot.parameter.shape, slot.parameter.numel(), torch.bfloat16 if is_low(single) else torch.float32
    if loading:
        return torch.empty(shape, dtype=dtype)
    whole = torch.zeros(size + size % 2, dtype=dtype, device=slot.parameter.device)  # two bf16 to an integer below
    if slot.updated is not None:
        whole[slot.range] = _moment(single, slot, name)
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    first = dist.get_process_group_ranks(group)[0]
    # As integers: every bit has one owner and zeros elsewhere; in floating point a sum would turn -0 into 0.
    dist.reduce(whole.view(torch.int32), first, group=group)
    return whole[:size].view(shape).cpu() if dist.get_rank() == first else torch.empty(shape, dtype=dtype, device="meta")
