"""Plain-torch norms and activations for Megatron's decoder where Transformer Engine is absent or has no such layer.

Megatron's torch norms refuse sequence parallelism, and it has none of the variants below. A step on a CPU becomes
several times faster with these modules and those of ``attention.py`` (benchmarks/README.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint


class _Norm(nn.Module):
    """Normalises the last dimension; every rank holds the whole weight."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_ignored: object) -> None:
        super().__init__()
        self.eps = eps
        self.shape = (hidden_size,)
        # Under sequence parallelism each rank sees its own positions: Megatron sums the gradient of what is marked so.
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel


class RMSNorm(_Norm):
    """Root-mean-square norm, ``[s, b, h] -> [s, b, h]`` (Zhang & Sennrich 2019, eq. 4)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.shape, self.weight, self.eps)


class RMSNormPlusOne(_Norm):
    """Root-mean-square norm that multiplies by 1 + weight, in float32 (Gemma); the weight is kept as it is stored."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.shape, 1.0 + self.weight.float(), self.eps).type_as(x)


class LayerNorm(_Norm):
    """Layer norm with weight and bias (Ba et al. 2016)."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_ignored: object) -> None:
        super().__init__(config, hidden_size, eps)
        self.bias = nn.Parameter(torch.zeros(hidden_size, dtype=config.params_dtype))
        self.bias.sequence_parallel = config.sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.shape, self.weight, self.bias, self.eps)


class LayerNormNoBias(_Norm):
    """Layer norm with a weight alone (MPT)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.shape, self.weight, None, self.eps)


# By ModelShape.norm.
NORMS = {"rms": RMSNorm, "rms_plus_one": RMSNormPlusOne, "layernorm": LayerNorm, "layernorm_no_bias": LayerNormNoBias}


class ProjectionNorm(nn.Module):
    """Root-mean-square norm of all heads' queries (or keys) together, ``[s, b, heads, d]`` of this rank (OLMo 2).

    The mean runs over the heads of all tensor-parallel ranks; of the weight each rank holds the part of its heads.
    """

    def __init__(self, config: TransformerConfig, heads: int, head_dim: int, tensor_ranks: int) -> None:
        super().__init__()
        self.eps = config.layernorm_epsilon
        self.size = heads * head_dim * tensor_ranks
        self.weight = nn.Parameter(torch.ones(heads * head_dim, dtype=config.params_dtype))
        set_tensor_model_parallel_attributes(self.weight, True, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        squares = wide.square().sum(dim=(-2, -1), keepdim=True)
        # Summed over the ranks in both directions: each rank's output depends on all ranks' inputs.
        squares = copy_to_tensor_model_parallel_region(reduce_from_tensor_model_parallel_region(squares))
        scaled = wide * torch.rsqrt(squares / self.size + self.eps)
        return (self.weight.float() * scaled.flatten(2)).view_as(x).type_as(x)

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> dict:
        return make_sharded_tensors_for_checkpoint(self.state_dict(keep_vars=True), prefix, {"weight": 0}, sharded_offsets)


class SwiGLU(MegatronModule):
    """``[..., gate | up] -> silu(gate) * up`` (Shazeer 2020, eq. 6)."""

    def forward(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        # On half-rows torch's CPU kernel for the gradient takes three times as long as on a copy.
        return F.silu(gate.contiguous()) * up
