"""Documents packed into one row are as if each were alone, in every family; and in every layout as on one rank."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from family_models import CONFIGS, VOCABULARY, import_models, make
from worlds import LAYOUTS, SEED, STEPS, World, assert_identical, hf_model, interrupted_after, on_ranks, tensors

from megatron_adapt.data.preprocess import open_corpus
from megatron_adapt.data.sampling import SampleOrder
from megatron_adapt.engine import attention
from megatron_adapt.engine.batches import Batch
from megatron_adapt.engine.losses import language_model_loss, micro_batches
from megatron_adapt.families import families
from megatron_adapt.hf.tokenizer import Tokenizer

import_models()
LENGTH = 24
# Of two samples of 24 positions: the documents' lengths, one of them of a single token, one filling its sample.
LENGTHS = [(9, 1, 14), (24,)]


def batch(rows: torch.Tensor, lengths=LENGTHS) -> Batch:
    """One micro-batch ``[1, b, s + 1]`` whose documents have these lengths; the last label of a sample is its own."""
    weights = torch.ones(len(rows), rows.size(1) - 1)
    for row, parts in zip(weights, lengths):
        row[torch.tensor(parts[:-1], dtype=torch.int64).cumsum(0) - 1] = 0
    flat = tuple(length for parts in lengths for length in parts)
    return Batch(rows[None], torch.zeros(1, len(rows)).long(), [flat], weights[None])


def losses(model: torch.nn.Module, made: Batch, restart: bool = True) -> torch.Tensor:
    """``[b, s]`` of one micro-batch, 0 where nothing is to be predicted."""
    (micro,) = micro_batches(made, 1.0, restart)
    packed = {} if micro.documents is None else {"packed_seq_params": micro.documents}
    found = model(micro.inputs, micro.positions, None, labels=micro.labels, **packed)
    return found.view(len(made.tokens[0]), -1) * (1 if made.weights is None else made.weights[0])


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def differences(path: Path) -> dict[str, float]:
    """Packed against each document alone, largest difference of losses and (by the largest) of gradients; and what a
    document's losses change by when another one changes."""
    model, shape = hf_model(path)
    draw = torch.Generator().manual_seed(3)
    rows = torch.randint(0, VOCABULARY, (2, LENGTH + 1), generator=draw)
    packed = losses(model, batch(rows))
    ours = gradients(model, packed.sum())
    alone = torch.zeros_like(packed)
    for row, parts in enumerate(LENGTHS):
        begin = 0
        for length in parts:
            # The label of a document's last token is the next one's first, unless the sample ends within it.
            last = begin + length == LENGTH
            if length > 1 or last:
                piece = rows[row, begin : begin + length + last][None]
                found = losses(model, Batch(piece[None], torch.zeros(1, 1).long()))
                alone[row, begin : begin + found.size(1)] = found[0]
            begin += length
    theirs = gradients(model, alone.sum())
    largest = max(gradient.abs().max() for gradient in theirs.values())
    other = rows.clone()
    other[0, :9] = (other[0, :9] + 1) % VOCABULARY  # the first document
    moved = (losses(model, batch(other)) - packed).abs()
    once = losses(model, batch(rows), restart=False)  # counted once in each sample
    return {
        "losses": (packed - alone).abs().max().item(),
        "gradients": (max((ours[name] - theirs[name]).abs().max() for name in ours) / largest).item(),
        "others": moved[0, 9:].max().item() + moved[1].max().item(),
        "itself": moved[0, :8].max().item(),
        "boundary": packed[0, [8, 9]].abs().max().item(),
        "counted once": (once - packed).abs().max().item() if shape.position == "learned" else math.inf,
        "counted once, first": (once - packed)[0, :9].abs().max().item(),
    }


@pytest.mark.parametrize("name", families())
def test_every_document_is_as_if_alone(tmp_path: Path, name):
    paths = {key: tmp_path / str(number) for number, key in enumerate(CONFIGS[name])}

    def work() -> dict[str, dict[str, float]]:
        for key, path in paths.items():
            make(families()[name], {**CONFIGS[name][key], "vocab_size": VOCABULARY}, path)
        return {key: differences(path) for key, path in paths.items()}

    for key, found in on_ranks(1, work)[0].items():
        assert found["losses"] <= 4e-6 and found["gradients"] <= 2e-6, key
        assert found["others"] == 0 and found["boundary"] == 0, key  # not one bit
        assert found["itself"] > 1e-2, key
        # Learned positions that do not begin anew are others, from the second document on.
        assert found["counted once"] > 1e-2 and found["counted once, first"] <= 1e-6, key


def varlen_by_mask(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
    """``torch.nn.attention.varlen.varlen_attn``, which runs on GPUs only, as its documentation says it computes.

    Of fewer queries than keys, as there are beside a cache of keys, the last of both are of one position.
    """
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32 and window_size[1] == 0
    assert (cu_seq_q[-1], cu_seq_k[-1]) == (len(query), len(key)) and bool((cu_seq_q.diff() <= cu_seq_k.diff()).all())
    assert (enable_gqa or query.size(1) == key.size(1)) and max_q >= int(cu_seq_q.diff().max()) and max_k >= int(cu_seq_k.diff().max())
    places, numbers = [], []
    for rows, bounds in ((query, cu_seq_q), (key, cu_seq_k)):
        numbers.append(torch.searchsorted(bounds.long(), torch.arange(len(rows)), right=True))
        places.append(torch.arange(len(rows)) - bounds.long()[numbers[-1]])  # from the end
    distance = places[0][:, None] - places[1]
    seen = (numbers[0][:, None] == numbers[1]) & (distance >= 0)
    seen &= distance <= (window_size[0] if window_size[0] >= 0 else len(key))
    key, value = (tensor.repeat_interleave(query.size(1) // key.size(1), dim=1) for tensor in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -math.inf).softmax(-1), value)


def varlen_without_groups(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):
    return varlen_by_mask(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size)


@pytest.mark.parametrize("kernel", [varlen_by_mask, varlen_without_groups])
def test_all_documents_in_one_kernel(tmp_path: Path, monkeypatch, kernel):
    """What a GPU is asked for, with and without a window, with grouped queries: the same losses and gradients."""
    calls = []

    def counted(*args, **options):
        calls.append(options["window_size"])
        return kernel(*args, **options)

    counted.__signature__ = inspect.signature(kernel)

    def work() -> tuple[float, float, list]:
        make(families()["mistral"], {**CONFIGS["mistral"]["window"], "vocab_size": VOCABULARY}, tmp_path / "hf")
        model, shape = hf_model(tmp_path / "hf")
        assert shape.num_query_groups < shape.num_attention_heads
        rows = torch.randint(0, VOCABULARY, (2, LENGTH + 1), generator=torch.Generator().manual_seed(3))
        one = losses(model, batch(rows.clone()))
        expected = gradients(model, one.sum())
        model.decoder.layers[0].self_attention.window = None
        unlimited = losses(model, batch(rows.clone()))
        assert not calls  # on a CPU there is none
        monkeypatch.setattr(attention, "varlen_attention", lambda: counted)
        monkeypatch.setattr(attention.SelfAttention, "_suits_varlen", lambda self, q: True)
        again = losses(model, batch(rows.clone()))
        model.decoder.layers[0].self_attention.window = model.decoder.layers[1].self_attention.window
        both = losses(model, batch(rows.clone()))
        found = gradients(model, both.sum())
        largest = max(gradient.abs().max() for gradient in expected.values())
        off = max((found[name] - expected[name]).abs().max() for name in found) / largest
        return max((again - unlimited).abs().max().item(), (both - one).abs().max().item()), off.item(), sorted(set(calls))

    difference, off, windows = on_ranks(1, work)[0]
    assert difference <= 4e-6 and off <= 2e-6
    assert windows == [(-1, 0), (6, 0)]


@pytest.mark.parametrize("change, suits", [
    ({}, True), ({"dtype": torch.float32}, False), ({"size": 20}, False), ({"size": 264}, False), ({"device": "cpu"}, False),
])  # fmt: skip
def test_what_the_kernel_is_for(change, suits):
    settings = {"dtype": torch.bfloat16, "size": 64, "device": "meta", **change}
    module = SimpleNamespace(
        shape=SimpleNamespace(attention_softcap=None), slopes=(), config=SimpleNamespace(attention_dropout=0.1), training=False
    )
    q = torch.empty(1, 2, 3, settings["size"], dtype=settings["dtype"], device=settings["device"])
    assert attention.SelfAttention._suits_varlen(module, q) == suits
    for name, value in (("slopes", (0.5,)), ("training", True), ("shape", SimpleNamespace(attention_softcap=50.0))):
        other = SimpleNamespace(**{**vars(module), name: value})
        assert not attention.SelfAttention._suits_varlen(other, q)


@pytest.fixture(scope="module")
def one_rank(world: World, tmp_path_factory: pytest.TempPathFactory):
    return world.train(tmp_path_factory.mktemp("one"), start="untied", packing="documents", evaluate_every=5)


@pytest.mark.parametrize(
    "layout, micro", [("TP2", 2), ("PP2", 1), ("DP2", 1), ("DP2", 4), ("TP2+SP", 4), ("TP2xPP2", 2), ("PP2xVP2", 2), ("one", 8)]
)
def test_every_layout_equals_one_rank(world: World, one_rank, tmp_path: Path, layout, micro):
    """Micro-batches with other numbers of targets included: the mean is that of the global batch."""
    settings = {"packing": "documents", "micro_batch_size": micro, "evaluate_every": 5}
    run = world.train(tmp_path, *LAYOUTS[layout], start="untied", **settings)
    for ours, theirs in zip(run.metrics, one_rank.metrics):
        for key in ("loss", "grad_norm", "bits_per_byte", "loss/first", "loss/second"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-5), key
    assert run.metrics[-1]["held_out/text"] == pytest.approx(one_rank.metrics[-1]["held_out/text"], rel=1e-5)
    ours, theirs = tensors(run.folder), tensors(one_rank.folder)
    assert max((ours[name] - theirs[name]).abs().max().item() for name in theirs) < 1e-4


def test_first_loss_is_transformers_on_each_document(world: World, one_rank, tmp_path: Path):
    """The lengths stored with the corpora say where documents end; EOS ends none, and is predicted."""

    def reference() -> float:
        model = transformers.AutoModelForCausalLM.from_pretrained(world.model("untied"), dtype=torch.float32)
        total = targets = 0.0
        # The first batch: 70 and 30 percent of 8 samples, as drawn.
        for name, samples in (("first", 6), ("second", 2)):
            reader, _ = open_corpus(world.corpora[name], Tokenizer.load(world.tokenizer).digest)
            order = SampleOrder(reader, 32, SEED, name)
            for number in range(samples):
                for piece in order.pieces(number):
                    ids = torch.from_numpy(reader[piece.document][piece.begin : piece.end].astype("int64"))
                    if len(ids) > 1:
                        logits = model(ids[None, :-1]).logits[0]
                        total += torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum").item()
                        targets += len(ids) - 1
        return total / targets

    assert one_rank.losses[0] == pytest.approx(on_ranks(1, reference)[0], rel=1e-6)
    chunks = world.train(tmp_path, start="untied", steps=1)
    assert abs(chunks.losses[0] / one_rank.losses[0] - 1) > 1e-5  # which across documents is another number


def test_resumed_in_bf16(world: World, tmp_path: Path):
    settings = {**STEPS, "packing": "documents", "precision": "bf16-mixed"}
    whole = world.train(tmp_path / "whole", **settings)
    assert_identical(world.train(interrupted_after(4, whole, tmp_path / "run"), **settings), whole)
    fp32 = world.train(tmp_path / "fp32", **{**settings, "precision": "fp32"})
    assert whole.losses == pytest.approx(fp32.losses, rel=2e-2)


def test_nothing_to_predict_is_no_division_by_zero():
    """Documents of one token each."""
    made = batch(torch.zeros(1, 4, dtype=torch.int64), [(1, 1, 1)])
    made.weights.zero_()

    class Model(torch.nn.Module):
        def forward(self, inputs, *_args, labels, packed_seq_params):
            assert packed_seq_params.within.tolist() == [0, 0, 0] and packed_seq_params.cu_seqlens_q.tolist() == [0, 1, 2, 3]
            return torch.ones_like(labels, dtype=torch.float32)

    losses, finish = language_model_loss(1)(micro_batches(made, 1.0), Model())
    loss, sums = finish(losses)
    assert loss.item() == 0 and sums.tolist() == [[0.0], [0.0], [3.0]]
