"""Tiny configurations of every family, and random transformers models of them with logits and gradients to compare with.

A new family is tested by adding an entry to ``CONFIGS``; ``test_family_parity.py`` fails while there is none.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_adapt.families import Family, families
from megatron_adapt.pipeline import preload_transformers

VOCABULARY = 51  # not a multiple of the tensor-parallel ranks
LENGTH = 24
LLAMA = {
    "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "vocab_size": VOCABULARY, "pad_token_id": None,
}  # fmt: skip
MHA = {"num_key_value_heads": 4, "tie_word_embeddings": True}
ODD = {"hidden_size": 36, "intermediate_size": 22, "num_attention_heads": 6, "num_key_value_heads": 2}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", "factor": 2.0}
GEMMA = {**LLAMA, "head_dim": 12, "query_pre_attn_scalar": 20, "sliding_window": 7}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1}
NEOX = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
MPT = {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64, "vocab_size": VOCABULARY}

# family -> name -> the keys of config.json that are not transformers' defaults
CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "llama": {
        "gqa": LLAMA,
        "odd, yarn": {**LLAMA, **ODD, "head_dim": 14, "rope_theta": 100.0, "rope_scaling": YARN, "attention_bias": True},
        "mha, tied, yarn, all biases": {
            **LLAMA, **MHA, "rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.4, "beta_fast": 8},
            "attention_bias": True, "mlp_bias": True,
        },
    },
    "mistral": {
        "window": {**LLAMA, "sliding_window": 7, "tie_word_embeddings": True},
        "no window": {**LLAMA, **ODD, "sliding_window": None},
    },
    "qwen2": {
        "gqa": LLAMA,
        "window above": {**LLAMA, **MHA, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    },
    "qwen3": {
        "gqa": {**LLAMA, "head_dim": 16},
        "tied, window": {
            **LLAMA, **ODD, "head_dim": 6, "tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention"], "attention_bias": True,
        },
    },
    "olmo2": {"gqa": LLAMA, "odd, tied": {**LLAMA, **ODD, "tie_word_embeddings": True, "attention_bias": True}},
    "gemma2": {
        "as released": GEMMA,
        "untied, uncapped": {
            **GEMMA, **ODD, "tie_word_embeddings": False, "attn_logit_softcapping": None, "final_logit_softcapping": 5.0,
            "attention_bias": True, "layer_types": ["full_attention", "sliding_attention"],
        },
        "tight caps": {**GEMMA, "attn_logit_softcapping": 0.8, "final_logit_softcapping": 0.5, "num_key_value_heads": 4},
    },
    "gemma3": {
        "one of two sliding": {**GEMMA, "layer_types": ["sliding_attention", "full_attention"]},
        "linear, capped": {
            **GEMMA, **ODD, "rope_scaling": LINEAR, "rope_theta": 500.0, "rope_local_base_freq": 50.0,
            "layer_types": ["full_attention", "sliding_attention"], "final_logit_softcapping": 2.0,
            "attention_bias": True,
        },
    },
    "gpt2": {
        "released": GPT2,
        "untied, exact gelu": {**GPT2, "n_embd": 36, "n_head": 6, "n_inner": 22, "activation_function": "gelu",
                               "tie_word_embeddings": False},
    },
    "gpt_neox": {
        "parallel": {**NEOX, "rotary_pct": 0.25, "layer_norm_eps": 1e-3},
        "sequential, tied": {**NEOX, "use_parallel_residual": False, "rotary_pct": 1.0, "hidden_act": "gelu_fast",
                             "tie_word_embeddings": True, "rope_scaling": LINEAR},
        "odd": {**NEOX, "hidden_size": 60, "num_attention_heads": 6, "rotary_emb_base": 100, "rotary_pct": 0.4, "attention_bias": False},
    },
    "mpt": {
        "released": MPT,
        "six heads, clipped": {**MPT, "d_model": 36, "n_heads": 6, "tie_word_embeddings": False,
                               "attn_config": {"clip_qkv": 0.9, "softmax_scale": 0.5}},
    },
}  # fmt: skip


def import_models() -> None:
    """What transformers loads on first use: once before ranks are forked, or each of them does it again."""
    from transformers.models.auto.configuration_auto import model_type_to_module_name
    from transformers.utils import logging

    logging.disable_progress_bar()
    for family in families().values():
        module = model_type_to_module_name(family.model_types[0])
        importlib.import_module(f"transformers.models.{module}.modeling_{module}")
    preload_transformers()


def tokens() -> Tensor:
    """``[2, LENGTH + 1]``"""
    return torch.randint(0, VOCABULARY, (2, LENGTH + 1), generator=torch.Generator().manual_seed(11))


def make(family: Family, config: dict[str, Any], path: Path) -> None:
    """Write a random model as transformers does, and beside it ``reference.pt`` with its logits and gradients.

    Every number is drawn, biases and norms too: one in the wrong place shows.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(5)
    full = AutoConfig.for_model(family.model_types[0], **config)
    model = AutoModelForCausalLM.from_config(full, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.15))
    model.save_pretrained(path)
    rows = tokens()
    logits = model(rows[:, :-1]).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    torch.save({"logits": logits.detach(), "gradients": gradients}, path / "reference.pt")
