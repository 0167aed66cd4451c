"""Where the model runs: the only file that knows GPU from CPU, NCCL from gloo, Transformer Engine from plain torch.

Megatron Core calls ``torch.cuda`` unconditionally in some forty places. On a machine without a GPU ``start()`` replaces
the handful of functions behind those calls by their CPU meanings, once per process. Nothing is patched at import, and
nothing ever where a GPU is present. Plain patches rather than a ``TorchFunctionMode``: a mode is local to a thread and
switched off inside ``Tensor.backward``, exactly where Megatron allocates gradient buffers.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import random
import socket
import warnings
from datetime import timedelta
from typing import Any, Iterator

import numpy as np
import torch
import torch.distributed as dist

from megatron_adapt.engine import gloo
from megatron_adapt.engine.layout import Layout
from megatron_adapt.errors import ConfigError
from megatron_adapt.families.family import ModelShape

TIMEOUT = timedelta(minutes=30)
RENDEZVOUS = "MEGATRON_ADAPT_RENDEZVOUS"  # file by which the ranks that a process has forked find one another


_cpu_only = False
_layers = "auto"
_context = 1


def use_cpu() -> None:
    """Leave the GPUs alone in this process, from now on; for work that has to be the same on every machine."""
    global _cpu_only
    _cpu_only = True


def has_gpu() -> bool:
    return not _cpu_only and torch.cuda.is_available()


def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if has_gpu() else torch.device("cpu")


def name() -> str:
    """The device in words, for logs and receipts."""
    return torch.cuda.get_device_name() if has_gpu() else f"CPU, {torch.get_num_threads()} thread(s) a rank"


def gpus() -> list[dict[str, Any]]:
    """Name, bytes of memory and compute capability of each that this process sees."""
    if not has_gpu():
        return []
    found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [{"name": one.name, "memory": one.total_memory, "capability": f"{one.major}.{one.minor}"} for one in found]


def versions() -> dict[str, str]:
    """Of what torch was built with, for GPUs."""
    if not has_gpu():
        return {}
    return {"CUDA": str(torch.version.cuda), "NCCL": ".".join(map(str, torch.cuda.nccl.version()))}


# ---------------------------------------------------------------------------------------------------- the CPU patches


def _on_cpu(function):
    @functools.wraps(function)
    def call(*args, **kwargs):
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        return function(*args, **kwargs)

    call.megatron_adapt_patch = True
    return call


def _named_like_cuda(function):
    @functools.wraps(function)
    def call(tensor, *args, **kwargs):
        if args or kwargs:
            return function(tensor, *args, **kwargs)
        # The optimizers sort parameters into half and float by comparing this string.
        return function(tensor).replace("torch.", "torch.cuda.", 1)

    return call


def install_cpu_patches() -> None:
    """Give Megatron Core's unconditional CUDA calls their CPU meaning; does nothing the second time."""
    if getattr(torch.zeros, "megatron_adapt_patch", False):
        return
    # `with torch.device("meta")` looks functions up in a table that torch builds at first use: it has to hold the
    # originals. Built from the patched ones it misses torch.tensor, and transformers then loads garbage frequencies.
    torch.utils._device._device_constructors()
    cpu = torch.device("cpu")
    torch.cuda.current_device = lambda: cpu
    torch.cuda.set_device = lambda device: None
    torch.cuda.synchronize = lambda device=None: None
    torch.cuda.current_stream = lambda device=None: None  # 0.19 asks for it and uses it for CUDA graphs only
    for module in (torch.cuda, torch.cuda.random):
        module.manual_seed = lambda seed: torch.manual_seed(seed) and None
        module.get_rng_state = lambda device="cuda": torch.get_rng_state()
        module.set_rng_state = lambda state, device="cuda": torch.set_rng_state(state)
    for creator in ("tensor", "zeros", "ones", "empty", "full", "arange"):
        setattr(torch, creator, _on_cpu(getattr(torch, creator)))
    torch.Tensor.cuda = lambda tensor, *args, **kwargs: tensor
    torch.Tensor.type = _named_like_cuda(torch.Tensor.type)


# ------------------------------------------------------------------------------------------------ start, stop, ranks


def start(layout: Layout, seed: int) -> None:
    """Join the process group that the environment describes (torchrun's variables, ours, or none: one process).

    Sets the device, Megatron's parallel groups and every random seed. Raises ``ConfigError`` when the number of
    processes is no multiple of ``layout.model_ranks``.
    """
    # Megatron's order of kernels and collectives under tensor parallelism relies on it; it warns where it is unset.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    global _layers, _context
    _layers, _context = layout.layers, layout.context
    if not has_gpu():
        install_cpu_patches()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world % layout.model_ranks:
        raise ConfigError(
            f"{world} processes cannot be split into tensor x context x pipeline = {layout.tensor} x {layout.context} x "
            f"{layout.pipeline} = {layout.model_ranks} model ranks: start a multiple of {layout.model_ranks} processes."
        )
    if not dist.is_initialized():
        _join(world)
    # torch 2.13 has new names for collectives that Megatron calls by the old ones; each rank would say so several times.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    # Parts of float32 weights, which the distributed optimizer updates, are views; Megatron gives them their gradients itself.
    warnings.filterwarnings("ignore", message=r"The \.grad attribute of a Tensor that is not a leaf", category=UserWarning)
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import random as streams

    if not has_gpu():
        # Megatron's own would wait with it until there is a GPU, and warns where its stream and the CPU's are the same one.
        streams._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(state)
        logging.getLogger(streams.__name__).setLevel(logging.ERROR)
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor,
        context_parallel_size=layout.context,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.virtual_pipeline if layout.virtual_pipeline > 1 else None,
    )
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    begin_random_numbers(seed)


def _join(world: int) -> None:
    rank = int(os.environ.get("RANK", "0"))
    if has_gpu():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    rendezvous = os.environ.get(RENDEZVOUS)
    if world == 1:
        arguments: dict[str, Any] = {"store": dist.HashStore()}
    elif rendezvous:
        arguments = {"init_method": f"file://{rendezvous}"}
    else:
        arguments = {"init_method": "env://"}
    if not has_gpu() and (world == 1 or rendezvous) and "lo" in (name for _, name in socket.if_nameindex()):
        # Ranks of one machine: gloo would otherwise look up the host's own name, which not every machine can resolve.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if not has_gpu():
        gloo.begin()
    dist.init_process_group("nccl" if has_gpu() else "gloo", rank=rank, world_size=world, timeout=TIMEOUT, **arguments)


def stop() -> None:
    """Leave the process group; a later ``start`` in the same process begins anew."""
    from megatron.core import parallel_state

    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
        gloo.end()


@contextlib.contextmanager
def session(layout: Layout, seed: int) -> Iterator[None]:
    """``start`` .. ``stop`` around a block; after an error the group is left without waiting for the other ranks.

    Forked ranks end with their work: taking gloo's connections apart first is a quarter of a second of waiting.
    """
    start(layout, seed)
    yield
    dist.barrier()
    if dist.get_world_size() == 1 or RENDEZVOUS not in os.environ:
        stop()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def agree(values: list[float], op: str = "max") -> list[float]:
    """The same list of numbers on every rank: element-wise ``max`` or ``sum`` over all of them."""
    tensor = torch.tensor(values, dtype=torch.float64, device=device())
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX if op == "max" else dist.ReduceOp.SUM)
    return tensor.tolist()


# -------------------------------------------------------------------------------------------- layers and precision


def has_transformer_engine() -> bool:
    return not transformer_engine_problem()


@functools.lru_cache(maxsize=None)
def _import_problem(module: str) -> str:
    try:
        importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: a library that it links to is missing
        return f"{module} cannot be imported: {' '.join(str(error).split())[:200]}"
    return ""


def transformer_engine_problem() -> str:
    """Why Transformer Engine is not used at all; empty: it can be."""
    return _import_problem("transformer_engine.pytorch") if has_gpu() else "there is no GPU"


def uses_transformer_engine() -> bool:
    """Whether decoders are built of Transformer Engine's layers, as ``Layout.layers`` asks for.

    Raises ``ConfigError`` where they are demanded and cannot be used.
    """
    if _layers == "te" and not has_transformer_engine():
        raise ConfigError(f"backend: te cannot be used: {transformer_engine_problem()}. Choose auto or torch.")
    return _layers != "torch" and has_transformer_engine()


def torch_parts(shape: ModelShape) -> dict[str, list[str]]:
    """What plain torch computes between Transformer Engine's linear layers, and why: ``attention``, ``norms``; empty lists: nothing.

    Its attention has no soft caps, and ALiBi with slopes of one's own only as a bias of [heads, s, s], which its kernels do not take
    with packed documents (2.11), and with context-parallel ranks takes documents of multiples of 2 n tokens only; its norms are
    RMSNorm and LayerNorm with a bias.
    """
    attention = {
        "context parallelism": _context > 1,
        "ALiBi": shape.position == "alibi",
        "soft-capped scores": shape.attention_softcap is not None,
        "clipped queries, keys and values": shape.clip_qkv is not None,
        "windows": bool(shape.windows),
        "norms over whole projections": shape.qk_norm == "projection",
        # Megatron has one setting for all of them, and one more for those of queries, keys and values.
        "biases of some projections only": shape.proj_bias != shape.mlp_bias or (shape.mlp_bias and not shape.qkv_bias),
    }
    norms = {
        shape.norm.replace("_", " "): shape.norm not in ("rms", "layernorm"),
        f"{shape.norm_place} the layers' parts": shape.norm_place != "before",
    }
    found = {"attention": attention, "norms": norms}
    return {part: [reason for reason, holds in reasons.items() if holds] for part, reasons in found.items()}


def require_own_attention(shape: ModelShape, what: str) -> None:
    """Raises ``ConfigError`` where attention is Transformer Engine's, which does not know ``what``."""
    if uses_transformer_engine() and not torch_parts(shape)["attention"]:
        raise ConfigError(f"{what} is for torch's attention, and this model has Transformer Engine's. Set backend to torch.")


def layers(shape: ModelShape) -> str:
    """In words, what a model's decoder is built of and why."""
    if not uses_transformer_engine():
        return f"plain torch: {why_torch()}"
    return "; ".join(
        ["Transformer Engine"] + [f"{part} in plain torch: {', '.join(why)}" for part, why in torch_parts(shape).items() if why]
    )


def adamw() -> str:
    """In words, whose kernel updates float32 weights by AdamW, all at a time, and why; bf16 weights are always updated by ours."""
    return "Transformer Engine's FusedAdam" if uses_transformer_engine() else f"torch's, fused: {why_torch()}"


def why_torch() -> str:
    """Why layers and optimizer are torch's, where they are."""
    return transformer_engine_problem() or "backend: torch is chosen"


def capability() -> tuple[int, int]:
    """Compute capability of this rank's GPU."""
    return torch.cuda.get_device_capability()


def config_fields(shape: ModelShape, hidden_dropout: float) -> dict[str, Any]:
    """Fields of Megatron's TransformerConfig that depend on the device."""
    swiglu = shape.gated and shape.activation == "silu"
    return {
        "use_cpu_initialization": not has_gpu(),
        "gradient_accumulation_fusion": False,
        "masked_softmax_fusion": False,
        # Megatron's fused GELU is the tanh form, whichever is asked for; other activations are computed as they are.
        "bias_activation_fusion": has_gpu() and swiglu,
        # The hook for a module as gated activation: our SwiGLU in place of Megatron's fused one, which needs a GPU.
        "use_te_activation_func": not has_gpu() and swiglu,
        # Compiled twice, with and without gradients, it need not draw the same when a layer is computed again.
        "bias_dropout_fusion": has_gpu() and hidden_dropout == 0,
        "persist_layer_norm": uses_transformer_engine(),
    }


def recomputed_in_fp8(module: torch.nn.Module, tensor_ranks: dist.ProcessGroup, x: torch.Tensor) -> Any:
    """``module(x)``, computed again for the backward pass by Transformer Engine, which then scales as it did the first time."""
    from megatron.core.extensions.transformer_engine import te_checkpoint
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    return te_checkpoint(module, False, get_cuda_rng_tracker, tensor_ranks, x)


def empty_cache() -> None:
    if has_gpu():
        torch.cuda.empty_cache()


def send(tensor: torch.Tensor, where: torch.device) -> torch.Tensor:
    """``tensor`` on a device: from pinned memory, as a copy from other memory would wait for all that the GPU has yet to compute."""
    return tensor.to(where) if where.type == "cpu" else tensor.pin_memory().to(where, non_blocking=True)


def synchronize() -> None:
    if has_gpu():
        torch.cuda.synchronize()


def peak_memory() -> int:
    """Most bytes held so far: of the GPU, or of this process (resident set)."""
    if has_gpu():
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def begin_random_numbers(seed: int) -> None:
    """Begin both streams of this rank anew: what tensor-parallel ranks have in common, and its own."""
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    model_parallel_cuda_manual_seed(seed)


def own_random_numbers(wanted: bool) -> contextlib.AbstractContextManager[None]:
    """A block in which this rank's own are drawn. Not within another: all layers are in one under sequence parallelism."""
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    return get_cuda_rng_tracker().fork() if wanted else contextlib.nullcontext()


def rng_state() -> dict[str, Any]:
    """Every random state of this rank that training can touch."""
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    kind, keys, *rest = np.random.get_state()
    state: dict[str, Any] = {  # nothing but numbers, strings and tensors: it can be read back without unpickling code
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "tracker": get_cuda_rng_tracker().get_states(),
    }
    if has_gpu():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    get_cuda_rng_tracker().set_states(state["tracker"])
    if has_gpu() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
