"""Stand-ins for what the recipes of the literature name: configurations of the real shapes, tokenizers of the real sizes."""

from __future__ import annotations

import json
import math
from pathlib import Path

from megatron_adapt.families import find_family
from megatron_adapt.families.rules import expand

MISTRAL = {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 32768, "sliding_window": 4096, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip
PYTHIA = {
    "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "vocab_size": 50304, "hidden_size": 1024,
    "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "max_position_embeddings": 2048,
    "hidden_act": "gelu", "layer_norm_eps": 1e-5, "rotary_pct": 0.25, "rotary_emb_base": 10000, "use_parallel_residual": True,
    "tie_word_embeddings": False,
}  # fmt: skip
MPT = {
    "architectures": ["MPTForCausalLM"], "model_type": "mpt", "vocab_size": 50432, "d_model": 4096, "n_heads": 32, "n_layers": 32,
    "max_seq_len": 2048, "expansion_ratio": 4, "no_bias": True, "attn_config": {"alibi": True, "alibi_bias_max": 8},
}  # fmt: skip
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 500000.0, "tie_word_embeddings": False,
    "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    },
}  # fmt: skip
LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim"
    " + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MODELS = {"Llama-3.1-8B-Instruct": LLAMA, "Mistral-7B-v0.1": MISTRAL, "pythia-410m": PYTHIA, "mpt-7b": MPT, "gpt2-wechsel-german-ds-meg": PYTHIA}
TOKENIZERS = {"sp-bpe-de-32k": 32768, "sp-bpe-ar-32k": 32768, "czech-64k": 64000, "gpt2": 50257, "gpt2-wechsel-german-ds-meg": 50257}


def write(folder: Path) -> None:
    """Models whose weights are holes in their files, tokenizers, a line of text for each corpus."""
    for name, config in MODELS.items():
        (folder / "models" / name).mkdir(parents=True)
        (folder / "models" / name / "config.json").write_text(json.dumps(config))
        write_weights(folder / "models" / name, config)
        write_tokenizer(folder / "models" / name, TOKENIZERS.get(name, 1000))
    for name, size in TOKENIZERS.items():
        write_tokenizer(folder / "tokenizers" / name, size)
    llama = folder / "models" / "Llama-3.1-8B-Instruct"
    tokenizer = json.loads((llama / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [{"id": 1, "content": "<|eot_id|>", "special": True}]
    tokenizer["added_tokens"][0] |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["model"]["vocab"] = {**{f"w{n}": n for n in range(1000) if n != 1}, "<|eot_id|>": 1}
    (llama / "tokenizer.json").write_text(json.dumps(tokenizer))
    (llama / "tokenizer_config.json").write_text(json.dumps({"chat_template": LLAMA_TEMPLATE}))
    write_text(folder / "corpora/latxa/part.jsonl")
    for name in ("magpie-eu", "magpie-en", "aya-eu", "magpie-ultra-1k"):
        chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        (folder / "corpora" / f"{name}.jsonl").write_text(json.dumps({"conversations": chat}) + "\n")
    for name in ("oscar-2301-de", "culturax-de", "culturax-ar", "oscar-de"):
        for part in ("train", "dev", "valid"):
            write_text(folder / "corpora" / name / f"{part}.jsonl")
    for name in ("czech-gpt2", "czech-2", "czech-3", "c4/train"):
        write_text(folder / "corpora" / name / "part.jsonl")
    write_text(folder / "corpora/c4/validation.jsonl")
    (folder / "dictionaries").mkdir()
    (folder / "dictionaries/en-cs.tsv").write_text("dog\tpes\n")


def write_weights(folder: Path, config: dict, **changes: list[int] | None) -> None:
    """The weights of a configuration, all zero in no space on the disk; ``changes``: other shapes by name, None: no such tensor."""
    family = find_family(config)
    shape = family.read_config(config)
    sizes = {name: list(size) for rule in expand(family, shape) for name, size in zip(rule.hf, rule.hf_shapes(shape))}
    header, end = {}, 0
    for name, size in (sizes | changes).items():
        if size is not None:
            begin, end = end, end + 2 * math.prod(size)
            header[name] = {"dtype": "BF16", "shape": size, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def write_text(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"text": "a"}\n')


def write_tokenizer(folder: Path, size: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model = {"type": "WordLevel", "vocab": {f"w{n}": n for n in range(size)}, "unk_token": "w0"}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
