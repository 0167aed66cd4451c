"""Plain-torch layers for Megatron's decoder where Transformer Engine is absent.

Megatron's own unfused attention materialises every score matrix and its torch RMSNorm refuses sequence parallelism;
these modules replace them. The CPU step becomes several times faster with the same losses (benchmarks/README.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron.core.transformer import attention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, ``[s, b, h] -> [s, b, h]`` (Zhang & Sennrich 2019, eq. 4)."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_ignored: object) -> None:
        super().__init__()
        self.eps = eps
        self.shape = (hidden_size,)
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        # Under sequence parallelism each rank sees its own positions: Megatron sums the gradient of weights marked so.
        self.weight.sequence_parallel = config.sequence_parallel

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.shape, self.weight, self.eps)


class SelfAttention(attention.SelfAttention):
    """Megatron's projections around rotary embedding and causal grouped-query SDPA of torch.

    Megatron rotates in its own layout ``[s, b, heads, d]``, by way of four copies, and hands the result to the kernel with
    one position's batch between neighbouring positions. Here queries and keys are copied once, into ``[b, heads, s, d]``,
    and rotated there: on a CPU attention takes up to half the time.
    """

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *,
        rotary_pos_emb: Tensor,
        packed_seq_params: object | None = None,
        **_ignored: object,
    ) -> tuple[Tensor, Tensor | None]:
        """``hidden_states [s, b, h]``, angles ``[s, 1, 1, d]`` -> (``[s, b, h]``, bias)."""
        config = self.config
        assert attention_mask is None and packed_seq_params is None and self.attn_mask_type == AttnMaskType.causal
        assert config.context_parallel_size == 1, "context parallelism needs Transformer Engine"
        projected = self.get_query_key_value_tensors(hidden_states)
        q, k, v = (tensor.permute(1, 2, 0, 3).contiguous() for tensor in projected)
        q, k = rotate(q, rotary_pos_emb[:, 0, 0]), rotate(k, rotary_pos_emb[:, 0, 0])
        dropout = config.attention_dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout, enable_gqa=q.size(1) != k.size(1))
        return self.linear_proj(out.permute(2, 0, 1, 3).flatten(2))


class SwiGLU(MegatronModule):
    """``[..., gate | up] -> silu(gate) * up`` (Shazeer 2020, eq. 6)."""

    def forward(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        # On half-rows torch's CPU kernel for the gradient takes three times as long as on a copy.
        return F.silu(gate.contiguous()) * up


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary embedding (Su et al. 2021, eq. 34) of ``x [b, heads, s, d]`` by ``angles [s, d]``.

    Dimension i turns with dimension i + d/2, as in Llama; ``angles`` holds every angle in both places.
    """
    half = x.size(-1) // 2
    sine = angles.sin()
    sine[:, :half].neg_()
    return torch.addcmul(x * angles.cos().to(x.dtype), x.roll(half, -1), sine.to(x.dtype))
