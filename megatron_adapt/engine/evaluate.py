"""Bits per byte of a model on text: the one number that compares models across vocabularies. And its losses there.

Every document is read as ``[BOS or EOS] + tokens``, cut into windows that overlap by one token, so that each token of
the text is predicted exactly once; the bits spent on them are divided by the text's UTF-8 bytes. The loss per token is
the mean over all tokens, in nats; that per document the mean over documents of the mean over each one's tokens, where a
short document counts as much as a long one. Which tokens are whose is known from the documents, never from an EOS.
Of held-out chats only answers count, with the tokens that end them; their bytes are those of what they say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from megatron.core import parallel_state
from megatron_adapt.data import chat
from megatron_adapt.data.corpus import read_documents
from megatron_adapt.engine import backend, vocabulary
from megatron_adapt.engine.backend import Layout
from megatron_adapt.engine.batches import Batch
from megatron_adapt.engine.chunks import run
from megatron_adapt.engine.losses import MicroBatch, forward, micro_batches, positions, row_shape
from megatron_adapt.errors import DataError
from megatron_adapt.hf.tokenizer import Tokenizer


@dataclass(frozen=True)
class Text:
    """Held-out documents tokenized for one model: ``windows`` of at most ``length + 1`` ids, ``bytes`` of the text."""

    windows: list[np.ndarray]
    owners: np.ndarray  # the document of each window, from 0
    lengths: np.ndarray  # tokens of each document that count
    length: int
    bytes: int
    unknown: int
    masks: list[np.ndarray] | None = None  # of each window 1 for the ids that count, where not all do

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def documents(self) -> int:
        return len(self.lengths)


def read(
    path: Path, tokenizer: Tokenizer, length: int, text_key: str = "text", max_bytes: int | None = None, on_error: str = "stop",
    on_skip: Callable[[str], None] | None = None,
) -> Text:
    """Documents as :func:`read_texts` gives them, or held-out chats, tokenized for one model."""
    if not chat.is_stored(path):
        return tokenize(read_texts(path, text_key, max_bytes, on_error, on_skip), tokenizer, length)
    chats, size = [], 0
    for one in chat.read_stored(path):
        if chats and max_bytes is not None and size >= max_bytes:
            break
        chats.append(one)
        size += len(one.text.encode())
    return tokenize_chats(chats, tokenizer, length)


def read_texts(
    path: Path, text_key: str = "text", max_bytes: int | None = None, on_error: str = "stop",
    on_skip: Callable[[str], None] | None = None,
) -> list[str]:
    """Whole documents from the front of a corpus file until ``max_bytes`` of UTF-8 are reached (at least one)."""
    texts: list[str] = []
    size = 0
    for document in read_documents([path], text_key, on_error, on_skip):
        if texts and max_bytes is not None and size >= max_bytes:
            break
        if document.text:
            texts.append(document.text)
            size += len(document.text.encode("utf-8", "replace"))
    if not texts:
        raise DataError(f"{path}: no text to evaluate on.")
    return texts


def sample(path: Path, characters: int) -> str:
    """As many characters from the front of a corpus, of several documents where the first ones are short."""
    return "\n\n".join(read_texts(path, max_bytes=characters))[:characters]


def tokenize(texts: Sequence[str], tokenizer: Tokenizer, length: int) -> Text:
    start = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
    if start is None:
        raise DataError(f"{tokenizer.path}: has neither a BOS nor an EOS token to begin a document with.")
    windows, owners, lengths, unknown = [], [], [], 0
    for number, ids in enumerate(tokenizer.encode(list(texts))):
        # Of the text alone: GPT-2's tokenizer has one token for "unknown" and for the begin of a document.
        unknown += 0 if tokenizer.unk_id is None else int((np.asarray(ids) == tokenizer.unk_id).sum())
        ids = np.concatenate([[start], ids]).astype(np.int64)
        lengths.append(len(ids) - 1)
        begins = range(0, len(ids) - 1, length)
        windows += [ids[i : i + length + 1] for i in begins]
        owners += [number] * len(begins)
    size = sum(len(text.encode("utf-8", "replace")) for text in texts)
    return Text(windows, np.array(owners), np.array(lengths), length, size, unknown)


def tokenize_chats(chats: Sequence[chat.Rendered], tokenizer: Tokenizer, length: int) -> Text:
    """Chats begin as their template says."""
    encoded = chat.encode(tokenizer, chats)
    windows, masks, owners, lengths = [], [], [], []
    for number, (begin, end) in enumerate(zip(encoded.id_offsets[:-1], encoded.id_offsets[1:])):
        mask = encoded.mask[begin:end].copy()
        mask[:1] = 0  # nothing comes before it
        lengths.append(int(mask.sum()))
        begins = [i for i in range(0, len(mask) - 1, length) if mask[i + 1 : i + length + 1].any()]
        windows += [encoded.ids[begin + i : min(begin + i + length + 1, end)].astype(np.int64) for i in begins]
        masks += [mask[i : i + length + 1] for i in begins]
        owners += [number] * len(begins)
    unknown = 0 if tokenizer.unk_id is None else int((encoded.ids == tokenizer.unk_id).sum())
    return Text(windows, np.array(owners), np.array(lengths), length, encoded.bytes, unknown, masks)


def _batches(text: Text, tokens_at_once: int, multiple: int) -> Iterator[list[int]]:
    """Numbers of windows of similar length, at most ``tokens_at_once`` padded tokens (and at least one window) a batch."""
    batch: list[int] = []
    sizes = [len(window) for window in text.windows]
    for number in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
        width = -(-sizes[batch[0] if batch else number] // multiple) * multiple
        if batch and (len(batch) + 1) * width > tokens_at_once:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _pad(text: Text, numbers: Sequence[int], multiple: int, rows: int = 1) -> tuple[Tensor, Tensor]:
    """-> tokens ``[b, s + 1]``, mask ``[b, s]`` of the labels that count; ``s`` a multiple of ``multiple``, ``b`` of ``rows``."""
    batch = [text.windows[number] for number in numbers]
    width = -(-(max(map(len, batch)) - 1) // multiple) * multiple
    count = -(-len(batch) // rows) * rows
    tokens = torch.zeros(count, width + 1, dtype=torch.int64)
    mask = torch.zeros(count, width)
    for row, window in enumerate(batch):
        tokens[row, : len(window)] = torch.from_numpy(window)
        counts = 1 if text.masks is None else torch.from_numpy(text.masks[numbers[row]][1:])
        mask[row, : len(window) - 1] = counts
    return tokens, mask


def _forward_step(batches: Iterator[MicroBatch], model: nn.Module) -> tuple[Tensor, Callable]:
    micro = next(batches)
    return forward(model, micro), partial(_masked_sums, micro)


def _masked_sums(micro: MicroBatch, losses: Tensor) -> tuple[Tensor, Tensor]:
    assert micro.weights is not None
    rows = (losses.double().view_as(micro.weights) * micro.weights).sum(dim=1)
    return rows.sum().float(), rows


@torch.no_grad()
def nats(model: nn.Module, text: Text, layout: Layout, tokens_at_once: int = 8192) -> np.ndarray:
    """Negative log-likelihood of each document, the same numbers on every rank; works in every layout."""
    data_rank, data_size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    totals = np.zeros(text.documents)
    was_training = model.training
    model.eval()
    for number, numbers in enumerate(_batches(text, tokens_at_once, layout.multiple)):
        if number % data_size != data_rank:
            continue
        # Stages that are interleaved need as many micro-batches as there are ranks.
        count = layout.pipeline if layout.virtual_pipeline > 1 else 1
        tokens, mask = _pad(text, numbers, layout.multiple, count)
        batch = Batch(
            tokens.view(count, -1, tokens.size(1)), torch.zeros(count, len(tokens) // count, dtype=torch.int64),
            weights=mask.view(count, -1, mask.size(1)),
        )  # fmt: skip
        outputs = run(_forward_step, model, partial(micro_batches, batch), count, *row_shape(batch), forward_only=True)
        if outputs:
            rows = torch.cat(outputs)[: len(numbers)]
            np.add.at(totals, text.owners[numbers], rows.cpu().numpy())
    model.train(was_training)
    # Only the last pipeline stage has losses, and all its tensor-parallel ranks have the same ones; context-parallel ones a part.
    counts = parallel_state.is_pipeline_last_stage() and parallel_state.get_tensor_model_parallel_rank() == 0
    return np.array(backend.agree((totals if counts else totals * 0).tolist(), "sum"))


def bits_per_byte(model: nn.Module, text: Text, layout: Layout) -> dict[str, Any]:
    """``{bits_per_byte, token_loss, document_loss, tokens, bytes, documents, unknown_tokens}``; losses in nats."""
    totals = nats(model, text, layout)
    total, has_tokens = float(totals.sum()), text.lengths > 0
    return {
        "bits_per_byte": total / math.log(2) / max(text.bytes, 1),
        "token_loss": total / max(text.tokens, 1),
        "document_loss": float((totals[has_tokens] / text.lengths[has_tokens]).mean()),
        "tokens": text.tokens,
        "bytes": text.bytes,
        "documents": text.documents,
        "unknown_tokens": text.unknown,
    }


@torch.no_grad()
def logits(model: nn.Module, tokens: Tensor) -> Tensor:
    """``tokens [b, s]`` -> logits ``[b, s, vocabulary]`` float32 on the CPU, whole on every tensor rank (pipeline = 1)."""
    tokens = tokens.to(backend.device())
    part = model(tokens, positions(tokens), None).float()
    return vocabulary.gathered(part, model.vocab_size).cpu()
