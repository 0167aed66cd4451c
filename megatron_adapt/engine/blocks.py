"""Arrangements of a decoder layer that Megatron lacks: attention and MLP side by side, norms after a sub-layer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from megatron.core.tensor_parallel import checkpoint
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer
from megatron_adapt.engine import backend
from megatron_adapt.engine.layers import NORMS
from megatron_adapt.engine.packing import Documents
from megatron_adapt.families.family import ModelShape


class DecoderLayer(TransformerLayer):
    """Megatron's layer with the norms and residual connections that ``ModelShape`` describes.

    ``parallel_residual``: x + attention(norm(x)) + mlp(norm'(x)) (GPT-NeoX). ``norm_place`` "after": x + norm(attention(x)),
    then the same with the MLP (OLMo 2); "around": with norms before each, too (Gemma). Dropout is of what is added to x.
    """

    def __init__(self, config: TransformerConfig, submodules: object, *args: object, shape: ModelShape, **kwargs: object) -> None:
        super().__init__(config, submodules, *args, **kwargs)
        self.parallel = shape.parallel_residual
        self.norm_after = shape.norm_place != "before"
        if self.norm_after:
            norm = NORMS[shape.norm]
            self.post_self_attn_layernorm = norm(config, config.hidden_size, config.layernorm_epsilon)
            self.post_mlp_layernorm = norm(config, config.hidden_size, config.layernorm_epsilon)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_pos_emb: Tensor | None = None,
        packed_seq_params: Documents | None = None,
        **_ignored: object,
    ) -> tuple[Tensor, None]:
        """``[s, b, h]`` -> (``[s, b, h]``, no context)."""
        normed, positions = self.input_layernorm(hidden_states), {"rotary_pos_emb": rotary_pos_emb}
        attended = _sum(self.self_attention(normed, attention_mask, packed_seq_params=packed_seq_params, **positions))
        if self.norm_after:
            attended = self.post_self_attn_layernorm(attended)
        between = hidden_states + self._thinned(attended)
        normed = self.pre_mlp_layernorm(hidden_states if self.parallel else between)
        mapped = _sum(self._map_again(normed) if self.recompute_mlp and self.training else self.mlp(normed))
        if self.norm_after:
            mapped = self.post_mlp_layernorm(mapped)
        return between + self._thinned(mapped), None

    def _thinned(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.hidden_dropout, self.training)

    def _map_again(self, normed: Tensor) -> tuple[Tensor, Tensor | None]:
        """The MLP, whose insides the backward pass computes again instead of keeping them."""
        if not self.config.fp8:
            return checkpoint(self.mlp, False, normed)
        return backend.recomputed_in_fp8(self.mlp, self.tp_group, normed)


def _sum(output_and_bias: tuple[Tensor, Tensor | None]) -> Tensor:
    output, bias = output_and_bias
    return output if bias is None else output + bias
