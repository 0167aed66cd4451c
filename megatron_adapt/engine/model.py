"""A Megatron GPT model for a family's shape; canonical parameter names; which of them a phase trains."""

from __future__ import annotations

import re
import warnings
from functools import partial
from typing import Any, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron_adapt.analysis import recomputation
from megatron_adapt.config import BF16_ALONE, FP8, Dropout
from megatron_adapt.engine import backend, decoder, fp8, vocabulary
from megatron_adapt.engine.backend import Layout
from megatron_adapt.engine.chunks import Chunks, chunks
from megatron_adapt.engine.cross_entropy import LanguageModel
from megatron_adapt.errors import ConfigError
from megatron_adapt.families.family import ModelShape
from megatron_adapt.families.selection import is_selected

DTYPES = {"fp32": torch.float32, "bf16-mixed": torch.bfloat16, "bf16-true": torch.bfloat16}
DTYPES |= {precision: torch.bfloat16 for precision in FP8}
EMBEDDING = "embedding.word_embeddings.weight"
HEAD = "output_layer.weight"

# The local layer spec keeps norms apart; Transformer Engine fuses them into the following linear layer. Checkpoints
# (and our rule tables) use the fused spelling for both.
_LOCAL_NAMES = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}
ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh")}
POSITIONS = {"rope": "rope", "learned": "learned_absolute", "alibi": "none"}  # what Megatron calls them


def _recomputation(recompute: str | int, layout: Layout) -> dict[str, Any]:
    """Fields of Megatron's TransformerConfig, by a phase's ``recompute``: what is computed again in the backward pass instead of being
    kept."""
    if recompute == "none":
        return {}
    if recompute == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": ["mlp"]}
    method = {"recompute_method": "uniform", "recompute_num_layers": 1}
    if isinstance(recompute, int):  # of each of a rank's stages the first, where a backward pass has the most memory left
        method = {"recompute_method": "block", "recompute_num_layers": recompute // layout.virtual_pipeline}
    # Nor are weights in fp8, 2 bytes each, kept from one micro-batch to the next: memory is what is short.
    return {"recompute_granularity": "full", **method, "disable_parameter_transpose_cache": True}


def transformer_config(
    shape: ModelShape, layout: Layout, precision: str, recompute: str | int = "none", dropout: Dropout = Dropout()
) -> TransformerConfig:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its own default of a CUDA-graph setting
        return _transformer_config(shape, layout, DTYPES[precision], recompute, dropout, fp8.precision_fields(precision))


def _transformer_config(
    shape: ModelShape, layout: Layout, dtype: torch.dtype, recompute: str | int, dropout: Dropout, more: dict
) -> TransformerConfig:
    return TransformerConfig(
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.ffn_hidden_size,
        num_attention_heads=shape.num_attention_heads,
        num_query_groups=shape.num_query_groups,
        kv_channels=shape.head_dim,
        normalization="LayerNorm" if shape.norm.startswith("layernorm") else "RMSNorm",
        layernorm_epsilon=shape.norm_epsilon,
        gated_linear_unit=shape.gated,
        activation_func=ACTIVATIONS[shape.activation],
        add_bias_linear=shape.mlp_bias,
        add_qkv_bias=shape.qkv_bias,
        # Makes Megatron sum these norms' gradients over the ranks, which have a part of the heads each.
        qk_layernorm=shape.qk_norm == "head",
        softmax_scale=shape.softmax_scale,
        hidden_dropout=dropout.hidden,
        attention_dropout=dropout.attention,
        tensor_model_parallel_size=layout.tensor,
        context_parallel_size=layout.context,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.virtual_pipeline if layout.virtual_pipeline > 1 else None,
        # Of 2 ranks each is before and behind the other: sent together, what goes forward and what goes back are mistaken for
        # one another.
        overlap_p2p_comm=layout.virtual_pipeline > 1,
        batch_p2p_comm=layout.virtual_pipeline == 1,
        sequence_parallel=layout.sequence,
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        # Weights always come from a checkpoint or a Hugging Face directory (a model from scratch is one, too).
        perform_initialization=False,
        **_recomputation(recompute, layout),
        **more,
        apply_rope_fusion=decoder.fuses_rotation(shape),
        **backend.config_fields(shape, dropout.hidden),
    )


def build(
    shape: ModelShape, layout: Layout, precision: str, recompute: str | int = "none", logits: str = "auto",
    dropout: Dropout = Dropout(),
) -> LanguageModel | Chunks:
    """This rank's part of the model, weights undefined; on the device, in the precision's dtype.

    ``recompute``: of the activations, in training: as in a phase, but for ``auto``. ``logits``: as in a phase, on the way to losses; ``dropout``:
    inside layers, where ``noise`` has its random numbers from.
    """
    if problems := shape.layout_problems(layout.tensor, layout.pipeline, layout.virtual_pipeline):
        raise ConfigError("; ".join(problems) + ".")
    if why := recomputation.problem(recompute, shape, layout.pipeline, layout.virtual_pipeline):
        raise ConfigError(f"{why}.")
    config = transformer_config(shape, layout, precision, recompute, dropout)
    if problems := shape.fp8_problems(precision, layout.tensor):
        raise ConfigError("; ".join(problems) + ".")
    if layout.virtual_pipeline == 1:
        return _build(shape, config, recompute, logits, None)
    return Chunks(_build(shape, config, recompute, logits, stage) for stage in range(layout.virtual_pipeline))


def _build(shape: ModelShape, config: TransformerConfig, recompute: str | int, logits: str, stage: int | None) -> LanguageModel:
    """``stage``: which of the rank's, where it has several."""
    model = LanguageModel(
        config,
        decoder.layer_spec(config, shape, stage),
        vocab_size=vocabulary.most(shape.vocab_size) * config.tensor_model_parallel_size,
        max_sequence_length=shape.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=stage),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=stage),
        vp_stage=stage,
        parallel_output=True,
        share_embeddings_and_output_weights=shape.tied,
        position_embedding_type=POSITIONS[shape.position],
    )
    vocabulary.cut(model, shape.vocab_size)
    if shape.position == "rope":
        # Megatron knows one kind of rope scaling, with its constants fixed; the family's frequencies are exact for all.
        model.rotary_pos_emb.inv_freq = shape.inverse_frequencies()
    if shape.embedding_scale != 1 and model.pre_process:
        model.embedding.register_forward_hook(partial(_scale, shape.embedding_scale))
    model.logits, model.softcap = logits, shape.logit_softcap
    if shape.logit_softcap is not None and model.post_process:
        model.output_layer.register_forward_hook(partial(_cap, shape.logit_softcap))
    if recompute != "none" and model.pre_process:
        model.embedding.register_forward_hook(_require_gradient)
    if recompute == "selective" and shape.mlp_bias:
        for layer in model.decoder.layers:
            # A bias that leaves the recomputed part as itself would be taken for its result: the backward pass never ended.
            layer.mlp.linear_fc2.register_forward_hook(_with_bias)
    _mark_sharded_parameters(model)
    # Megatron makes learned positions in float32 whatever the model's precision is.
    return model.to(backend.device(), config.params_dtype)


def _scale(factor: float, module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
    # Rounded to the weights' precision, as in transformers.
    return output * torch.tensor(factor, dtype=output.dtype).item()


def _require_gradient(module: nn.Module, inputs: tuple, output: Tensor) -> None:
    """What is recomputed of an input without gradient gives its weights none, silently: under a frozen embedding."""
    if torch.is_grad_enabled() and not output.requires_grad:
        output.requires_grad_()


def _cap(cap: float, module: nn.Module, inputs: tuple, output: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    logits, bias = output
    return cap * torch.tanh(logits / cap), bias


def _mark_sharded_parameters(model: GPTModel) -> None:
    """Say of each sharded weight along which dimension it is cut.

    Megatron does so only while initialising. Unmarked, a shard counts as a replica and drops out of the gradient norm
    on every tensor-parallel rank but the first.
    """
    for module in model.modules():
        if isinstance(module, (ColumnParallelLinear, VocabParallelEmbedding, RowParallelLinear)):
            weight = module.weight
            if weight is not None and not getattr(weight, "tensor_model_parallel", False):
                set_tensor_model_parallel_attributes(weight, True, int(isinstance(module, RowParallelLinear)), 1)


def named_parameters(model: GPTModel | Chunks) -> Iterator[tuple[str, nn.Parameter]]:
    """(canonical name, parameter) of this rank: global layer numbers, one spelling for both layer specs.

    On a pipeline's last stage the head of a tied model is a copy; it bears the embedding's name.
    """
    for chunk in chunks(model):
        yield from _named_parameters(chunk)


def _named_parameters(model: GPTModel) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        match = re.match(r"decoder\.layers\.(\d+)\.(.+)", name)
        if match:
            number = model.decoder.layers[int(match[1])].layer_number - 1
            rest = match[2]
            for local, fused in _LOCAL_NAMES.items():
                rest = fused + rest.removeprefix(local) if rest.startswith(local) else rest
            name = f"decoder.layers.{number}.{rest}"
        elif name == HEAD and model.share_embeddings_and_output_weights:
            name = EMBEDDING
        yield name, parameter


def freeze(model: GPTModel | Chunks, patterns: Sequence[str]) -> int:
    """Leave only the selected parameters trainable; returns how many elements of this rank train.

    Has to happen before ``wrap``: what is unfrozen afterwards is never synchronised. Raises ``ConfigError`` for a
    pattern that selects nothing of the whole model.
    """
    num_layers, tied = model.config.num_layers, model.share_embeddings_and_output_weights
    trainable, found = 0, [0.0] * len(patterns)
    for name, parameter in named_parameters(model):
        selecting = [is_selected(name, pattern, num_layers, tied) for pattern in patterns]
        found = [count + hit for count, hit in zip(found, selecting)]
        parameter.requires_grad_(any(selecting))
        trainable += parameter.numel() if parameter.requires_grad else 0
    for pattern, count in zip(patterns, backend.agree(found)):
        if not count:
            raise ConfigError(
                f"train: {pattern!r} selects nothing of this model of {num_layers} layers, whose parameters have names "
                f"such as {EMBEDDING} and decoder.layers.0.mlp.linear_fc1.weight."
            )
    _add_biases_behind(model)
    return trainable


def _add_biases_behind(model: nn.Module) -> None:
    """Add biases that train without their weights to the product's result.

    Inside the product, neither Megatron nor Transformer Engine computes a bias's gradient where the weight has none.
    """
    for part in model.modules():
        bias = getattr(part, "bias", None)
        if bias is None or not bias.requires_grad or part.weight.requires_grad:
            continue
        if isinstance(part, ColumnParallelLinear) and not part.skip_bias_add:
            part.skip_bias_add = True
            part.register_forward_hook(_with_bias)
        elif getattr(part, "apply_bias", False):
            part.gemm_bias_unfused_add = True  # as Transformer Engine does in row-parallel layers


def _with_bias(module: nn.Module, inputs: tuple, output: tuple[Tensor, Tensor | None]) -> tuple[Tensor, None]:
    result, bias = output
    return result if bias is None else result + bias, None


def wrap(model: GPTModel | Chunks, precision: str, distributed_optimizer: bool = False) -> DistributedDataParallel | Chunks:
    """Megatron's data-parallel wrapper, around its half-precision one where needed; gradients are summed in fp32, except
    under ``bf16-true`` and ``fp8-...-true``. ``distributed_optimizer``: each data-parallel rank gets the sum of its part only."""
    if isinstance(model, Chunks):
        return Chunks(wrap(chunk, precision, distributed_optimizer) for chunk in model)
    config = model.config
    for part in model.modules():
        if hasattr(part, "fuse_wgrad_accumulation"):
            # Layers of Transformer Engine add weight gradients to the wrapper's sums themselves, in the matrix product. Megatron's
            # setting for that, ``gradient_accumulation_fusion``, would also ask the output layer, which needs Apex for it.
            part.fuse_wgrad_accumulation = True
    module = Float16Module(config, model) if config.bf16 else model
    return DistributedDataParallel(
        config,
        DistributedDataParallelConfig(
            grad_reduce_in_fp32=precision not in BF16_ALONE, use_distributed_optimizer=distributed_optimizer
        ),
        module,
    )
