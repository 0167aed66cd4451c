"""The layer spec: of which modules Megatron builds a decoder's layers, in what arrangement.

Linear layers are Transformer Engine's, of any model, or Megatron's own. Around Transformer Engine's stand its norms (inside the
linear layer that follows) and its attention where they compute exactly this model, else ours. Parallel residuals, ALiBi, windows
and the rest are cut over tensor-parallel ranks in the same way with both, and checkpoints have the same names.
"""

from __future__ import annotations

from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.attention import SelfAttention as MegatronsAttention
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron_adapt.engine import backend
from megatron_adapt.engine.attention import SelfAttention
from megatron_adapt.engine.blocks import DecoderLayer
from megatron_adapt.engine.layers import NORMS, SwiGLU
from megatron_adapt.families.family import ModelShape


def layer_spec(config: TransformerConfig, shape: ModelShape, stage: int | None = None) -> TransformerBlockSubmodules:
    """The decoder layers of this pipeline rank, or of its ``stage``."""
    layer = get_gpt_layer_local_spec(normalization="RMSNorm")
    attention, mlp = layer.submodules.self_attention, layer.submodules.mlp  # mlp: a partial() in later versions
    mlp_submodules = getattr(mlp, "submodules", None) or mlp.keywords["submodules"]
    mlp_submodules.activation_func = SwiGLU
    norm = NORMS[shape.norm]
    before = IdentityOp if shape.norm_place == "after" else norm
    layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = before
    if backend.uses_transformer_engine():
        from megatron.core.extensions.transformer_engine_spec_provider import TESpecProvider

        modules = TESpecProvider()
        column = modules.column_parallel_linear()
        if not backend.torch_parts(shape)["norms"]:
            norm, column = modules.layer_norm(), modules.column_parallel_layer_norm_linear()
            layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = IdentityOp
        attention.submodules.linear_qkv = mlp_submodules.linear_fc1 = column
        attention.submodules.linear_proj = mlp_submodules.linear_fc2 = modules.row_parallel_linear()
        attention.submodules.core_attention = modules.core_attention()
    if fuses_attention(shape):
        attention.module = MegatronsAttention
    else:
        attention.module = SelfAttention
        attention.params = {**(attention.params or {}), "shape": shape}
        attention.submodules.core_attention = IdentityOp  # nothing is left for it to do
    if config.qk_layernorm:
        attention.submodules.q_layernorm = attention.submodules.k_layernorm = norm
    if shape.parallel_residual or shape.norm_place != "before":
        layer.module, layer.params = DecoderLayer, {"shape": shape}
    return TransformerBlockSubmodules(layer_specs=[layer] * get_num_layers_to_build(config, stage), layer_norm=norm)


def fuses_attention(shape: ModelShape) -> bool:
    """Whether Transformer Engine's attention kernels, which Megatron's own module calls, are used."""
    return backend.uses_transformer_engine() and not backend.torch_parts(shape)["attention"]


def fuses_rotation(shape: ModelShape) -> bool:
    """Whether its kernel rotates queries and keys; parts of heads are rotated in torch."""
    return fuses_attention(shape) and shape.position == "rope" and shape.rotary_dim == shape.head_dim
