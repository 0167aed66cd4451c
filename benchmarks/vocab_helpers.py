"""What methods of the vocabulary need besides text, made from what there is: a small model with the new tokenizer, a dictionary, vectors of words.

Used by ``vocab_methods.py --helper-steps N --pairs FILE --source-text FILE``. All are as good as what they are made from; better ones only help.
"""

from __future__ import annotations

import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Iterable

import numpy as np
import torch

from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.vocab import word_vectors

WIDTH, LAYERS, HEADS = 64, 4, 4
BATCH = 8  # windows a step
WARMUP = 20  # steps
LR = 3e-3
LEAST = 3  # sentences in which two words come together
CERTAIN = 0.3  # Dice coefficient from which one is taken for the translation of the other
DIM, COMPANY, RARE = 100, 5, 5  # of vectors of words: dimensions, words to each side, occurrences one needs


def train_helper(target: Tokenizer, windows: torch.Tensor, steps: int, seed: int, output: Path) -> float:
    """A Llama of width 64 with a head of its own, trained on ``windows`` [n, length] and written to ``output``; its last loss, in nats."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=target.vocab_size, hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, max_position_embeddings=windows.shape[1], tie_word_embeddings=False,
        bos_token_id=target.bos_id, eos_token_id=target.eos_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.1)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
    loss = math.nan
    for step in range(steps):
        rate = min((step + 1) / WARMUP, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = LR * rate
        chosen = windows[order[torch.arange(step * BATCH, (step + 1) * BATCH) % len(order)]]
        found = model(chosen, labels=chosen).loss
        found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss = float(found.detach())
    model.save_pretrained(output)
    for file in target.files:
        shutil.copy(file, output)
    return loss


def write_dictionary(pairs: Iterable[tuple[str, str]], output: Path) -> int:
    """A line for every pair of words that come in the same sentences (Dice: 2 both / (one + other)), source first; how many lines."""
    one, other, both = Counter(), Counter(), Counter()
    for pair in pairs:
        words = [set(_words(sentence)) for sentence in pair]
        one.update(words[0])
        other.update(words[1])
        both.update((a, b) for a in words[0] for b in words[1])
    dice = {(a, b): 2 * times / (one[a] + other[b]) for (a, b), times in both.items() if times >= LEAST}
    best: dict[str, float] = {}
    for (_, b), value in dice.items():
        best[b] = max(best.get(b, 0.0), value)
    found = sorted((a, b) for (a, b), value in dice.items() if value >= CERTAIN and value == best[b])
    output.write_text("".join(f"{a}\t{b}\n" for a, b in found), encoding="utf-8")
    return len(found)


def write_word_vectors(texts: Iterable[str], output: Path) -> int:
    """Vectors of the words of ``texts`` in fastText's text format, the most frequent word first; how many there are."""
    documents = [_words(text, lower=False) for text in texts]
    words = [word for word, times in Counter(word for document in documents for word in document).most_common() if times >= RARE]
    index = {word: number for number, word in enumerate(words)}
    ids = [np.array([index[word] for word in document if word in index]) for document in documents]
    vectors, _ = word_vectors.from_corpus(ids, len(words), DIM, COMPANY, RARE, seed=0)
    lines = (f"{word} {' '.join(f'{value:.5f}' for value in row)}\n" for word, row in zip(words, vectors))
    output.write_text(f"{len(words)} {DIM}\n" + "".join(lines), encoding="utf-8")
    return len(words)


def _words(text: str, lower: bool = True) -> list[str]:
    parts = (text.lower() if lower else text).split()
    return [word for word in (part.strip(".,;:!?\"'()»«„“”–-") for part in parts) if word]
