"""What the benchmarks share: a random Llama and a corpus made on the spot, and the plain transformers loop as peer.

Nothing is downloaded. The tokenizer has one token per number, so a corpus of any vocabulary can be written as text and
goes through the project's own preprocessing.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_adapt.config import Optimizer, Phase
from megatron_adapt.data.preprocess import preprocess
from megatron_adapt.engine import backend, checkpoint, convert, loop, model as models
from megatron_adapt.engine.backend import Layout
from megatron_adapt.engine.batches import Batches
from megatron_adapt.families import Family, find_family
from megatron_adapt.families.initial import initial_tensors
from megatron_adapt.families.llama import FAMILY
from megatron_adapt.hf.directory import HFDirectory
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.hf.weights import WeightWriter

SPECIAL = ["<s>", "</s>", "<unk>"]
SEED = 1234


def llama(
    vocabulary: int, hidden: int, ffn: int, layers: int, heads: int, groups: int, tied: bool = True
) -> dict[str, Any]:
    """Keys of config.json, as a recipe's ``model.from_scratch.config`` gives them, and ``vocab_size``."""
    return {
        "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": groups, "max_position_embeddings": 4096,
        "tie_word_embeddings": tied, "rms_norm_eps": 1e-5,
    }  # fmt: skip


SIZES = {
    "260k": llama(512, 64, 172, 5, 8, 4),
    "20m": llama(8192, 384, 1024, 9, 6, 6),
    "1b": llama(32000, 2048, 5632, 22, 32, 4, tied=False),  # TinyLlama's shape
}


def write_model(
    folder: Path, sizes: dict[str, Any], dtype: str = "float32", tokenizer: Path | None = None, family: Family = FAMILY
) -> Path:
    """A Hugging Face directory with random weights and the tokenizer of numbers, or a given directory's.

    Of families other than Llama norms and biases are random, too: one in the wrong place would not show.
    """
    folder.mkdir(parents=True)
    vocabulary = sizes["vocab_size"]
    if tokenizer is None:
        write_tokenizer(folder, vocabulary)
    else:
        for file in tokenizer.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    given = {key: value for key, value in sizes.items() if key != "vocab_size"} | {"dtype": dtype}
    config = family.complete_config(given, vocabulary, bos=0, eos=1)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    with WeightWriter(folder) as writer:
        draw = torch.Generator().manual_seed(SEED)
        for name, tensor in initial_tensors(family, family.read_config(config), SEED, dtype):
            if family is not FAMILY and tensor.dim() == 1:
                tensor = tensor + 0.1 * torch.randn(tensor.shape, generator=draw).to(tensor.dtype)
            writer.add(name, tensor)
    return folder


def write_tokenizer(folder: Path, vocabulary: int) -> None:
    words = SPECIAL + [str(number) for number in range(vocabulary - len(SPECIAL))]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True} for i, token in enumerate(SPECIAL)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "<unk>"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    names = dict(zip(("bos_token", "eos_token", "unk_token"), SPECIAL))
    (folder / "tokenizer_config.json").write_text(json.dumps(names | {"tokenizer_class": "PreTrainedTokenizerFast"}))


def write_corpus(folder: Path, hf: Path, tokens: int) -> Path:
    """A tokenized corpus of about ``tokens`` ids with Zipf's distribution, in documents of 600; returns its prefix."""
    tokenizer = Tokenizer.load(hf)
    words = tokenizer.vocab_size - len(SPECIAL)
    chances = 1 / np.arange(1, words + 1)
    drawn = np.random.default_rng(SEED).choice(words, size=(-(-tokens // 600), 600), p=chances / chances.sum())
    text = folder / "corpus.jsonl"
    with text.open("w") as file:
        for document in drawn:
            file.write(json.dumps({"text": " ".join(map(str, document))}) + "\n")
    preprocess([text], tokenizer, folder / "corpus")
    return folder / "corpus"


def import_model(folder: Path, hf: Path, precision: str) -> Path:
    """A Megatron checkpoint of ``hf``'s weights; inside a started backend of one process."""
    directory = HFDirectory.open(hf)
    shape = find_family(directory.config).read_config(directory.config)
    model = models.build(shape, Layout(), precision)
    convert.load_hf(model, directory, shape)
    return checkpoint.save(folder, model, None, checkpoint.Position(), hf)


def phase(steps: int, length: int, batch: int, micro_batch: int, **changes: Any) -> Phase:
    """All weights trained on the corpus, constant learning rate, gradients clipped to 1."""
    return Phase(
        name="benchmark",
        data={"corpus": 1.0},
        steps=steps,
        sequence_length=length,
        batch_size=batch,
        micro_batch_size=micro_batch,
        optimizer=Optimizer(lr=1e-3),
        schedule={"type": "constant"},
        log_every=1,
        **changes,
    )


def job(phase: Phase, precision: str, start: Path, output: Path, corpus: Path) -> loop.Job:
    assert phase.steps is not None
    return loop.Job(phase, phase.steps, Layout(), precision, SEED, start, output, {"corpus": corpus})


def batches(phase: Phase, hf: Path, corpus: Path) -> Iterator[Tensor]:
    """The batches ``[m, b, s + 1]`` that the engine trains on in this phase, in its order."""
    source = Batches(
        {"corpus": corpus},
        dict(phase.data),
        tokenizer_digest=Tokenizer.load(hf).digest,
        sequence_length=phase.sequence_length,
        batch_size=phase.batch_size,
        micro_batch_size=phase.micro_batch_size,
        seed=SEED,
        consumed={},
        drawn={},
    )
    while True:
        yield source.next().tokens


class TransformersLoop:
    """The loop that one writes by hand: transformers' model, torch's AdamW, clipping; no decay of norms.

    ``precision``: "fp32"; "bf16" for float32 weights under autocast, which is the engine's arithmetic; or "pure-bf16"
    for weights and optimizer state in bfloat16, which is cheaper and loses small updates.
    """

    def __init__(
        self, hf: Path | torch.nn.Module, settings: Optimizer, precision: str = "fp32", fused: bool | None = None
    ) -> None:
        from transformers import AutoModelForCausalLM

        self.settings = settings
        self.autocast = precision == "bf16"
        dtype = torch.bfloat16 if precision == "pure-bf16" else torch.float32
        model = hf.to(dtype) if isinstance(hf, torch.nn.Module) else AutoModelForCausalLM.from_pretrained(hf, dtype=dtype)
        self.model = model.to(backend.device()).train()
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        vectors = [p for p in self.model.parameters() if p.dim() == 1]
        groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        betas = (settings.beta1, settings.beta2)
        self.optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=betas, eps=settings.eps, fused=fused)

    def step(self, batch: Tensor) -> float:
        """One optimizer step on ``[m, b, s + 1]``; the mean loss per token before it."""
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=backend.device())
        for rows in batch.to(backend.device()):
            with torch.autocast(rows.device.type, torch.bfloat16) if self.autocast else contextlib.nullcontext():
                logits = self.model(input_ids=rows[:, :-1], use_cache=False).logits
            loss = F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten()) / len(batch)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_grad)
        self.optimizer.step()
        return total.item()
