"""What Megatron Core calls of Transformer Engine 2.11, in plain torch, for tests on machines without a GPU.

On ``sys.path`` before Megatron is imported it stands in for the package, so that Megatron's own wrappers (TEColumnParallelLinear,
TENorm, ...), layer specs and checkpoints run as they do on a GPU: constructors take what Transformer Engine's take and no more,
parameters have its names and marks, outputs its shapes. Its kernels are not here, and what it says about them is proved on a GPU only.
"""

from __future__ import annotations

import contextlib
import sys
import types

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__version__ = "2.11.0"
__path__: list[str] = []  # a package: what is not registered below cannot be imported

used: list[str] = []  # what was called, in this order; "fp8 Linear": under fp8_autocast
_in_fp8 = False


def _called(name: str) -> None:
    used.append(f"fp8 {name}" if _in_fp8 else name)


class _Module(nn.Module):
    """Its extra state, delayed scaling's history, is here the number of passes in fp8: nothing where the last one was not."""

    def __init__(self):
        super().__init__()
        self.fp8, self.fp8_meta, self.passes = False, {"fp8_checkpoint": False}, 0

    def _begin(self) -> None:
        _called(type(self).__name__)
        self.fp8 = self.fp8_meta["fp8_checkpoint"] = _in_fp8
        self.passes += _in_fp8

    def get_extra_state(self) -> Tensor:
        known = self.fp8 or self.fp8_meta["fp8_checkpoint"]
        return torch.full((int(known),), self.passes, dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        if state is not None and state.numel():
            self.fp8_meta["fp8_checkpoint"], self.passes = True, int(state)


def _normed(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    if bias is None:
        return F.rms_norm(x, weight.shape, weight, eps)
    return F.layer_norm(x, weight.shape, weight, bias, eps)


class RMSNorm(nn.Module):
    has_bias = False

    def __init__(self, normalized_shape=None, eps=1e-5, sequence_parallel=None, params_dtype=None, zero_centered_gamma=False,
                 hidden_size=None, device="cuda"):  # fmt: skip
        super().__init__()
        assert not zero_centered_gamma
        size = normalized_shape if hidden_size is None else hidden_size
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size, dtype=params_dtype, device=device))
        self.bias = nn.Parameter(torch.zeros(size, dtype=params_dtype, device=device)) if self.has_bias else None
        for parameter in self.parameters():
            parameter.sequence_parallel = sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        _called(type(self).__name__)
        return _normed(x, self.weight, self.bias, self.eps)


class LayerNorm(RMSNorm):
    has_bias = True


class _Product(torch.autograd.Function):
    """A weight's gradient is added to ``main_grad``, or begins the sum there, and what is returned in its place is garbage; a
    bias gets one beside the weight's only."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, adds: bool, first: bool | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.adds, ctx.first = adds, first
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_weight = of_bias = None
        if ctx.needs_input_grad[1]:
            flat = gradient.flatten(0, -2)
            of_weight, of_bias = flat.t() @ x.flatten(0, -2), flat.sum(0) if ctx.needs_input_grad[2] else None
            if ctx.adds:
                weight.main_grad.mul_(0 if ctx.first else 1).add_(of_weight)
                of_weight = None
                if hasattr(weight, "grad_added_to_main_grad"):
                    weight.grad_added_to_main_grad, of_weight = True, torch.full_like(weight, torch.nan)
        return gradient @ weight, of_weight, of_bias, None, None


class Linear(_Module):
    def __init__(self, in_features, out_features, sequence_parallel=False, fuse_wgrad_accumulation=False, tp_group=None,
                 tp_size=1, get_rng_state_tracker=None, rng_tracker_name=None, init_method=None, bias=True, return_bias=False,
                 params_dtype=None, parallel_mode=None, device="cuda"):  # fmt: skip
        super().__init__()
        assert parallel_mode in ("column", "row")
        self.fuse_wgrad_accumulation = fuse_wgrad_accumulation
        self.row, self.group, self.parallel_mode = parallel_mode == "row", tp_group, parallel_mode
        self.sequence_parallel = sequence_parallel and tp_size > 1
        self.in_features, self.out_features, self.tp_size = in_features, out_features, tp_size
        self.return_bias, self.use_bias, self.save_original_input = return_bias, bias, False
        self.apply_bias = bias and not return_bias
        self.gemm_bias_unfused_add = self.row and self.apply_bias
        if self.row:
            in_features //= tp_size
        else:
            out_features //= tp_size
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=params_dtype, device=device))
        init_method(self.weight)
        self._mark(self.weight, int(self.row))
        self.bias = torch.empty(0, dtype=params_dtype, device=device)
        if bias:
            self.bias = nn.Parameter(torch.zeros(out_features, dtype=params_dtype, device=device))
            if self.row:
                self.bias.sequence_parallel = self.sequence_parallel
            else:
                self._mark(self.bias, 0)

    @staticmethod
    def _mark(parameter: nn.Parameter, dim: int) -> None:
        parameter.tensor_model_parallel, parameter.partition_dim, parameter.partition_stride = True, dim, 1

    def forward(self, x: Tensor, is_first_microbatch: bool | None = None) -> Tensor | tuple[Tensor, Tensor]:
        self._begin()
        return self._mapped(x, is_first_microbatch)

    def _mapped(self, x: Tensor, first: bool | None) -> Tensor | tuple[Tensor, Tensor]:
        from megatron.core.tensor_parallel import mappings

        if self.row:
            into = mappings.reduce_scatter_to_sequence_parallel_region if self.sequence_parallel else (
                mappings.reduce_from_tensor_model_parallel_region
            )  # fmt: skip
            out = into(self._product(x, first), group=self.group)
        else:
            from_all = mappings.gather_from_sequence_parallel_region if self.sequence_parallel else (
                mappings.copy_to_tensor_model_parallel_region
            )  # fmt: skip
            out = self._product(from_all(x, group=self.group), first)
        if self.gemm_bias_unfused_add:
            out = out + self.bias
        return (out, self.bias) if self.return_bias else out

    def _product(self, x: Tensor, first: bool | None) -> Tensor:
        for tensor in (x, self.weight) if _in_fp8 else ():
            assert tensor[..., 0].numel() % 8 == 0 and tensor.size(-1) % 16 == 0, f"fp8 takes no {list(tensor.shape)}"
        bias = self.bias if self.apply_bias and not self.gemm_bias_unfused_add else None
        return _Product.apply(x, self.weight, bias, self.fuse_wgrad_accumulation, first)


class LayerNormLinear(Linear):
    def __init__(self, in_features, out_features, eps=1e-5, normalization="LayerNorm", return_layernorm_output=False,
                 zero_centered_gamma=False, params_dtype=None, device="cuda", **options):  # fmt: skip
        super().__init__(in_features, out_features, params_dtype=params_dtype, device=device, **options)
        assert not return_layernorm_output and not zero_centered_gamma and not self.row
        self.eps = eps
        self.layer_norm_weight = nn.Parameter(torch.ones(in_features, dtype=params_dtype, device=device))
        self.layer_norm_weight.sequence_parallel = self.sequence_parallel
        self.layer_norm_bias = None
        if normalization == "LayerNorm":
            self.layer_norm_bias = nn.Parameter(torch.zeros(in_features, dtype=params_dtype, device=device))
            self.layer_norm_bias.sequence_parallel = self.sequence_parallel

    def forward(self, x: Tensor, is_first_microbatch: bool | None = None) -> Tensor | tuple[Tensor, Tensor]:
        self._begin()
        return self._mapped(_normed(x, self.layer_norm_weight, self.layer_norm_bias, self.eps), is_first_microbatch)


class DotProductAttention(_Module):
    def __init__(self, num_attention_heads, kv_channels, num_gqa_groups=None, attention_dropout=0.0, attn_mask_type="causal",
                 sequence_parallel=False, tp_size=1, get_rng_state_tracker=None, tp_group=None, layer_number=None,
                 attention_type="self", softmax_scale=None):  # fmt: skip
        super().__init__()
        assert attention_type == "self" and attn_mask_type == "causal"
        self.scale, self.dropout = softmax_scale, attention_dropout
        # Under sequence parallelism Megatron runs whole layers with the rank's own random numbers.
        self.random = contextlib.nullcontext if sequence_parallel else get_rng_state_tracker().fork

    def forward(self, query, key, value, attention_mask=None, qkv_format="sbhd", cu_seqlens_q=None, cu_seqlens_kv=None,
                cu_seqlens_q_padded=None, cu_seqlens_kv_padded=None, max_seqlen_q=None, max_seqlen_kv=None, attn_mask_type=None,
                total_tokens=None, seq_idx=None, num_splits=None, pad_between_seqs=None):  # fmt: skip
        """``[s, b, heads, d]`` -> ``[s, b, heads d]``; with ``thd`` ``[t, heads, d]`` -> ``[t, heads d]``, documents apart."""
        self._begin()
        assert attention_mask is None
        if qkv_format == "sbhd":
            assert attn_mask_type == "causal"
            return self._attend(query, key, value).flatten(2)
        assert (qkv_format, attn_mask_type) == ("thd", "padding_causal")
        lengths = cu_seqlens_q.diff().tolist()
        assert max(lengths) <= max_seqlen_q and sum(lengths) == len(query)
        parts = zip(*(tensor[:, None].split(lengths) for tensor in (query, key, value)))
        return torch.cat([self._attend(*part) for part in parts]).flatten(1)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        with self.random():
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale, enable_gqa=True, dropout_p=dropout)
        return out.permute(2, 0, 1, 3)


def apply_rotary_pos_emb(t, freqs, tensor_format="sbhd", interleaved=False, fused=False, cu_seqlens=None, cp_size=1, cp_rank=0):
    """Fused rotation of whole heads, in float32."""
    assert fused and not interleaved and cp_size == 1 and freqs.size(-1) == t.size(-1)
    _called("rope")
    if tensor_format == "thd":
        parts = t[:, None].split(cu_seqlens.diff().tolist())
        return torch.cat([_rotated(part, freqs[: len(part)]) for part in parts])[:, 0]
    return _rotated(t, freqs[: len(t)])


def _rotated(t: Tensor, freqs: Tensor) -> Tensor:
    half = t.size(-1) // 2
    turned = torch.cat([-t[..., half:], t[..., :half]], dim=-1)
    return (t.float() * freqs.cos() + turned.float() * freqs.sin()).type_as(t)


@contextlib.contextmanager
def fp8_autocast(enabled=True, fp8_recipe=None, fp8_group=None):
    global _in_fp8
    before, _in_fp8 = _in_fp8, enabled
    try:
        yield
    finally:
        _in_fp8 = before


def checkpoint(function, *args, distribute_saved_activations=False, get_rng_state_tracker=None, tp_group=None, **kwargs):
    """Activation recomputation that remembers whether it was under fp8_autocast."""
    _called("checkpoint")
    within = _in_fp8

    def run(*again):
        with fp8_autocast(within):
            return function(*again, **kwargs)

    return torch.utils.checkpoint.checkpoint(run, *args, use_reentrant=True)


class FusedAdam(torch.optim.Optimizer):
    """AdamW as its kernel computes it, with one count of steps for a group."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False, *, bias_correction=True,
                 adam_w_mode=True, capturable=False, master_weights=False, use_decoupled_grad=False):  # fmt: skip
        assert adam_w_mode and not (amsgrad or capturable or master_weights or use_decoupled_grad)
        super().__init__(params, dict(lr=lr, bias_correction=bias_correction, betas=betas, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None):
        _called("FusedAdam")
        for group in self.param_groups:
            if not group["params"]:
                continue
            group["step"] = step = group.get("step", 0) + 1
            beta1, beta2 = group["betas"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                assert weight.dtype == weight.grad.dtype == torch.float32
                first, second = (self.state[weight].setdefault(name, torch.zeros_like(weight)) for name in ("exp_avg", "exp_avg_sq"))
                first.mul_(beta1).add_(weight.grad, alpha=1 - beta1)
                second.mul_(beta2).add_(weight.grad**2, alpha=1 - beta2)
                update = first / (1 - beta1**step) / ((second / (1 - beta2**step)).sqrt() + group["eps"])
                weight.sub_(group["lr"] * (update + group["weight_decay"] * weight))


def _needs_a_gpu(*args, **kwargs):
    raise NotImplementedError("Transformer Engine's kernels for many tensors run on a GPU only")


class _Recipe:
    def __init__(self, **options):
        self.options = options


def _absent(name: str) -> type:
    """What Megatron derives classes from or names when it is imported, and no test uses."""
    if name.startswith("__"):
        raise AttributeError(name)

    def refuse(self, *args, **kwargs):
        raise NotImplementedError(f"the stand-in has no {name}")

    return type(name, (), {"__init__": refuse})


def _register(name: str, **members: object) -> None:
    module = types.ModuleType(f"{__name__}.{name}")
    module.__path__ = []
    vars(module).update(members)
    sys.modules[module.__name__] = module
    parent, _, last = module.__name__.rpartition(".")
    setattr(sys.modules[parent], last, module)


_recipes = {name: type(name, (_Recipe,), {}) for name in ("DelayedScaling", "Float8CurrentScaling", "Float8BlockScaling")}
_register("common")
_register("common.recipe", Format=types.SimpleNamespace(E4M3="e4m3", HYBRID="hybrid"), **_recipes)
_register("pytorch", Linear=Linear, LayerNormLinear=LayerNormLinear, DotProductAttention=DotProductAttention, RMSNorm=RMSNorm,
          LayerNorm=LayerNorm, GroupedLinear=_absent("GroupedLinear"), fp8_autocast=fp8_autocast)  # fmt: skip
_register("pytorch.fp8", FP8GlobalStateManager=_absent("FP8GlobalStateManager"), fp8_autocast=fp8_autocast, fp8_model_init=None)
_register("pytorch.optimizers", FusedAdam=FusedAdam, FusedSGD=_absent("FusedSGD"), multi_tensor_applier=_needs_a_gpu,
          multi_tensor_l2norm=_needs_a_gpu, multi_tensor_scale=_needs_a_gpu, multi_tensor_scale_tensor=_needs_a_gpu)  # fmt: skip
_register("pytorch.ops", __getattr__=_absent)
_register("pytorch.router", __getattr__=_absent)
_register("pytorch.tensor", __getattr__=_absent)
_register("pytorch.distributed", CudaRNGStatesTracker=_absent("CudaRNGStatesTracker"), checkpoint=checkpoint,
          activation_recompute_forward=contextlib.nullcontext)  # fmt: skip
_register("pytorch.attention")
_register("pytorch.attention.rope", apply_rotary_pos_emb=apply_rotary_pos_emb)
