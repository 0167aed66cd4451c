"""Causal self-attention in plain torch, with everything that the families' attention differs in."""

from __future__ import annotations

import copy
import inspect
import math
from functools import lru_cache, partial
from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron.core.transformer import attention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron_adapt.engine import backend, context
from megatron_adapt.engine.layers import ProjectionNorm
from megatron_adapt.engine.packing import Documents
from megatron_adapt.families.family import ModelShape


class SelfAttention(attention.SelfAttention):
    """Megatron's projections around rotary embedding and causal grouped-query SDPA of torch.

    Megatron rotates in its own layout ``[s, b, heads, d]``, by way of four copies, and hands the result to the kernel with
    one position's batch between neighbouring positions. Here queries and keys are copied once, into ``[b, heads, s, d]``,
    and rotated there: on a CPU attention takes up to half the time.
    """

    def __init__(
        self, config: TransformerConfig, submodules: object, layer_number: int, *args: object, shape: ModelShape, **kwargs: object
    ) -> None:
        # Megatron has one setting for the biases of attention's output and of the MLP.
        config = copy.copy(config)
        config.add_bias_linear = shape.proj_bias
        super().__init__(config, submodules, layer_number, *args, **kwargs)
        self.shape = shape
        self.window = shape.window(layer_number - 1)
        heads, groups = self.num_attention_heads_per_partition, self.num_query_groups_per_partition
        if shape.qk_norm == "projection":
            self.q_layernorm = ProjectionNorm(config, heads, shape.head_dim, self.world_size)
            self.k_layernorm = ProjectionNorm(config, groups, shape.head_dim, self.world_size)
        self.slopes: tuple[float, ...] = ()
        if shape.position == "alibi":
            first = self.tp_group.rank() * heads
            self.slopes = tuple(alibi_slopes(shape.num_attention_heads)[first : first + heads].tolist())

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *,
        rotary_pos_emb: Tensor | None,
        packed_seq_params: Documents | None = None,
        **_ignored: object,
    ) -> tuple[Tensor, Tensor | None]:
        """``hidden_states [s, b, h]``, angles ``[s, 1, 1, rotated d]`` -> (``[s, b, h]``, bias).

        With documents b is 1, and positions are counted in each of them, as Transformer Engine does. Context-parallel ranks have
        documents always: their parts of whole samples, if nothing else.
        """
        assert attention_mask is None and self.attn_mask_type == AttnMaskType.causal
        assert packed_seq_params is not None or self.config.context_parallel_size == 1
        projected = self.get_query_key_value_tensors(hidden_states)
        if self.shape.clip_qkv is not None:
            projected = [tensor.clamp(-self.shape.clip_qkv, self.shape.clip_qkv) for tensor in projected]
        q, k, v = (tensor.permute(1, 2, 0, 3).contiguous() for tensor in projected)
        if rotary_pos_emb is not None:
            angles = rotary_pos_emb[:, 0, 0]
            if self.window is not None and self.shape.local_rope is not None:
                angles = local_angles(self.shape, len(angles), q.device)
            if packed_seq_params is not None:
                angles = angles[packed_seq_params.within]
            q, k = rotate(q, angles), rotate(k, angles)
        # Under sequence parallelism all random numbers of a layer are the rank's own.
        with backend.own_random_numbers(dropout(self) > 0 and not self.config.sequence_parallel):
            if packed_seq_params is None:
                out = self._attend((q.size(2), k.size(2)), q, k, v)
            else:
                out = self._attend_apart(q, k, v, packed_seq_params)
        return self.linear_proj(out.permute(2, 0, 1, 3).flatten(2))

    def _attend_apart(self, q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
        """As ``_attend``, of documents in one row: all at once where a kernel can, else one after the other."""
        if documents.both_ways:
            k, v = (tensor.index_select(2, documents.keys) for tensor in (k, v))
        elif documents.keys is not None:
            k, v = context.gathered(k, v, documents.keys)
        most = documents.max_seqlen_q, documents.max_seqlen_kv
        varlen = varlen_attention()
        if varlen is None or not self._suits_varlen(q) or documents.both_ways:
            return documents.apart(partial(self._attend, most), q, k, v)
        # The kernel's window is what is seen before a position, itself not counted.
        window = (-1 if self.window is None else self.window - 1, 0)
        if q.size(1) != k.size(1) and not takes(varlen, "enable_gqa"):
            k, v = (tensor.repeat_interleave(q.size(1) // k.size(1), dim=1) for tensor in (k, v))
        options = {"enable_gqa": True} if q.size(1) != k.size(1) else {}
        bounds = documents.cu_seqlens_q, documents.cu_seqlens_kv
        rows = (tensor[0].transpose(0, 1) for tensor in (q, k, v))  # [tokens, heads, d]
        # Of fewer queries than keys it takes the last to stand at the same place, as _attend does.
        out = varlen(*rows, *bounds, *most, scale=self.shape.softmax_scale, window_size=window, **options)
        return out.transpose(0, 1)[None]

    def _suits_varlen(self, q: Tensor) -> bool:
        """Whether flash attention has kernels for these queries and this model's attention."""
        plain = self.shape.attention_softcap is None and not self.slopes
        fits = q.dtype in (torch.bfloat16, torch.float16) and q.size(-1) % 8 == 0 and q.size(-1) <= 256
        return q.device.type != "cpu" and plain and dropout(self) == 0 and fits

    def _attend(self, most: tuple[int, int], q: Tensor, k: Tensor, v: Tensor, both_ways: bool = False) -> Tensor:
        """``q [b, heads, s, d]``, ``k, v [b, groups, t, d]`` -> ``[b, heads, s, d]``; the queries are of the last s of t positions.

        ``most``: no sequence has more queries, or keys. ``both_ways``: every position sees all; not with windows or ALiBi.
        """
        assert not both_ways or (self.window is None and not self.slopes), "the recipe is checked"
        scale, queries, keys = self.shape.softmax_scale, q.size(2), k.size(2)
        window = self.window if self.window is not None and self.window < keys else None
        if self.shape.attention_softcap is not None:
            seen = mask(*most, window, (), q.dtype, q.device)[-queries:, -keys:] | both_ways
            return capped_attention(q, k, v, scale, self.shape.attention_softcap, seen, dropout(self))
        options = {"dropout_p": dropout(self), "enable_gqa": q.size(1) != k.size(1)}
        if both_ways or (window is None and not self.slopes and queries == keys):
            return F.scaled_dot_product_attention(q, k, v, is_causal=not both_ways, scale=scale, **options)
        bias = mask(*most, window, self.slopes, q.dtype, q.device)[..., -queries:, -keys:]
        return F.scaled_dot_product_attention(q, k, v, bias, scale=scale, **options)


def dropout(module: SelfAttention) -> float:
    return module.config.attention_dropout if module.training else 0.0


@lru_cache(maxsize=None)
def varlen_attention() -> Callable[..., Tensor] | None:
    """torch's flash attention over documents of any lengths, with the arguments it has had since 2.11; None: it is older."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if takes(varlen_attn, "scale") and takes(varlen_attn, "window_size") else None


def takes(function: Callable, name: str) -> bool:
    return name in inspect.signature(function).parameters


@lru_cache(maxsize=2)  # all layers share them, those with a window and those without
def mask(
    queries: int, keys: int, window: int | None, slopes: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """What the last s of t positions see: bool ``[s, t]``, or with ALiBi what is added to the scores, ``[heads, s, t]``.

    ``window``: so many positions, itself included. ALiBi (Press et al. 2022) takes slope * distance off; from distances,
    not from positions, so that half precision rounds small numbers.
    """
    positions = torch.arange(keys, device=device)
    distance = positions[keys - queries :, None] - positions
    seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    if not slopes:
        return seen
    bias = torch.tensor(slopes, device=device)[:, None, None] * -distance.float()
    return bias.masked_fill(~seen, -math.inf).to(dtype)


def alibi_slopes(heads: int, most: float = 8.0) -> Tensor:
    """float32 ``[heads]``: 2^(-most i / n) for i = 1 .. n, n the next power of two; of more than ``heads`` first every
    second one (as in MPT)."""
    count = 2 ** math.ceil(math.log2(heads))
    slopes = 1.0 / torch.pow(2, torch.arange(1, count + 1).float() * (most / count))
    return slopes if count == heads else torch.cat([slopes[1::2], slopes[::2]])[:heads]


def capped_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, cap: float, seen: Tensor, dropout_p: float) -> Tensor:
    """Attention with scores cap * tanh(score / cap), which no kernel of torch has (Gemma 2)."""
    groups = q.size(1) // k.size(1)
    k, v = (tensor.repeat_interleave(groups, dim=1) for tensor in (k, v))
    scores = cap * torch.tanh(q @ k.transpose(-1, -2) * scale / cap)
    weights = torch.softmax(scores.masked_fill(~seen, -math.inf), dim=-1, dtype=torch.float32)
    return F.dropout(weights.to(q.dtype), dropout_p) @ v


@lru_cache(maxsize=1)
def local_angles(shape: ModelShape, length: int, device: torch.device) -> Tensor:
    """Angles ``[s, rotated d]`` of layers with a window that have a rotary base of their own (Gemma 3)."""
    angles = torch.outer(torch.arange(length, device=device).float(), shape.local_frequencies().to(device))
    return torch.cat([angles, angles], dim=-1)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary embedding (Su et al. 2021, eq. 34) of the first r rows of every head in ``x [b, heads, s, d]``.

    Dimension i turns with dimension i + r/2, as in Llama; ``angles [s, r]`` holds every angle in both places.
    """
    size = angles.size(-1)
    if size < x.size(-1):
        return torch.cat([rotate(x[..., :size], angles), x[..., size:]], dim=-1)
    half = size // 2
    sine = angles.sin()
    sine[:, :half].neg_()
    return torch.addcmul(x * angles.cos().to(x.dtype), x.roll(half, -1), sine.to(x.dtype))
