"""Which samples a phase draws: the same for every data-parallel size, continued across phases, resumed exactly."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from vocabularies import write_tokenizer

from megatron_adapt.data.preprocess import preprocess
from megatron_adapt.data.sampling import Passes
from megatron_adapt.engine.batches import Batches
from megatron_adapt.errors import ConfigError, DataError
from megatron_adapt.hf.tokenizer import Tokenizer

LENGTH = 8
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], str]:
    """Two corpora of letters (one token each): 1,000 and 200 tokens; and the digest of their tokenizer."""
    folder = tmp_path_factory.mktemp("corpora")
    tokens = ["<s>", "</s>", *LETTERS]
    special = {"bos": "<s>", "eos": "</s>"}
    tokenizer = Tokenizer.load(write_tokenizer(folder / "tokenizer", tokens, "byte-level", special))
    draw = np.random.default_rng(0)
    prefixes = {}
    for name, size in (("large", 1000), ("small", 200)):
        text = "".join(draw.choice(list(LETTERS), size))
        (folder / f"{name}.txt").write_text(text)
        preprocess([folder / f"{name}.txt"], tokenizer, folder / name, append_eod=False)
        prefixes[name] = folder / name
    return prefixes, tokenizer.digest


def batches(corpora, consumed=None, drawn=None, weights=None, **changes) -> Batches:
    prefixes, digest = corpora
    settings = {
        "tokenizer_digest": digest, "sequence_length": LENGTH, "batch_size": 12, "micro_batch_size": 2, "seed": 3,
        "consumed": {} if consumed is None else consumed, "drawn": {} if drawn is None else drawn,
    }  # fmt: skip
    return Batches(prefixes, weights or {"large": 0.75, "small": 0.25}, **{**settings, **changes})


def windows(source: Batches, steps: int) -> list[list[tuple[int, ...]]]:
    """For every step the sequences of this rank, in order."""
    return [[tuple(row) for row in source.next().tokens.flatten(0, 1).tolist()] for _ in range(steps)]


def test_shapes_and_the_corpus_of_each_sample(corpora):
    source = batches(corpora)
    batch = source.next()
    assert batch.tokens.shape == (6, 2, LENGTH + 1) and batch.corpus.shape == (6, 2)
    assert np.bincount(batch.corpus.flatten()).tolist() == [9, 3] and source.names == ["large", "small"]
    numbers = dict.fromkeys(source.names, 0)
    for row, corpus in zip(batch.tokens.flatten(0, 1).tolist(), batch.corpus.flatten().tolist()):
        name = source.names[corpus]
        assert row == source.order[name].tokens(numbers[name]).tolist()
        numbers[name] += 1
    assert source.bytes_per_token == {"large": 1, "small": 1}


@pytest.mark.parametrize("size, micro", [(2, 2), (3, 2), (3, 4), (6, 1), (1, 12), (12, 1)])
def test_the_global_batch_does_not_depend_on_the_data_parallel_size(corpora, size, micro):
    whole = windows(batches(corpora), 5)
    ranks = [windows(batches(corpora, data_rank=r, data_size=size, micro_batch_size=micro), 5) for r in range(size)]
    for step, expected in enumerate(whole):
        together: list = []
        for number in range(12 // (size * micro)):  # micro-batch by micro-batch, all ranks side by side
            for rank in ranks:
                together += rank[step][number * micro : (number + 1) * micro]
        assert together == expected


def test_every_rank_has_the_same_counters(corpora):
    sources = [batches(corpora, data_rank=rank, data_size=3) for rank in range(3)]
    for source in sources:
        windows(source, 4)
        assert source.drawn == {"large": 36, "small": 12}
        assert source.consumed == {f"large@{LENGTH}": 36, f"small@{LENGTH}": 12}


@pytest.mark.parametrize("before", [1, 7, 20])
def test_resumed_from_the_counters(corpora, before):
    """Step 20 lies beyond the small corpus's second epoch."""
    uninterrupted = windows(batches(corpora), before + 3)
    first = batches(corpora)
    windows(first, before)
    counters = copy.deepcopy({"consumed": first.consumed, "drawn": first.drawn})
    assert all(type(count) is int for part in counters.values() for count in part.values())
    assert windows(batches(corpora, **counters, data_size=1), 3) == uninterrupted[before:]


def test_the_next_phase_goes_on_in_each_corpus(corpora):
    """Nothing is seen twice before all has been seen once, although the mix changes."""
    consumed: dict[str, int] = {}
    first = windows(batches(corpora, consumed, weights={"large": 1}), 4)
    second = windows(batches(corpora, consumed, weights={"small": 0.5, "large": 0.5}), 8)
    assert consumed == {f"large@{LENGTH}": 48 + 48, f"small@{LENGTH}": 48}
    large = [row for step in first for row in step] + [row for step in second for row in step[1::2]]
    order = batches(corpora).order["large"]
    assert large == [tuple(order.tokens(number).tolist()) for number in range(96)] and order.epoch(96) == 0


def test_a_phase_resumed_after_another_one(corpora):
    consumed: dict[str, int] = {}
    windows(batches(corpora, consumed), 3)
    uninterrupted = windows(batches(corpora, dict(consumed)), 6)
    drawn: dict[str, int] = {}
    windows(batches(corpora, consumed, drawn), 2)
    assert windows(batches(corpora, consumed, drawn), 4) == uninterrupted[2:]


def test_another_length_is_another_cut_and_begins_anew(corpora):
    consumed: dict[str, int] = {}
    windows(batches(corpora, consumed), 2)
    longer = batches(corpora, consumed, sequence_length=2 * LENGTH)
    assert longer.read_otherwise == ["large", "small"]
    assert windows(longer, 1) == windows(batches(corpora, sequence_length=2 * LENGTH), 1)
    assert consumed[f"large@{LENGTH}"] == 18 and consumed[f"large@{2 * LENGTH}"] == 9
    assert not batches(corpora).read_otherwise  # nothing was read before
    for length in (LENGTH, 2 * LENGTH):  # or it goes on where it stopped
        assert not batches(corpora, consumed, sequence_length=length).read_otherwise


def test_the_seed_and_nothing_else_changes_the_order(corpora):
    assert windows(batches(corpora), 3) == windows(batches(corpora), 3)
    assert windows(batches(corpora), 3) != windows(batches(corpora, seed=4), 3)
    alone = windows(batches(corpora, weights={"small": 1}), 1)[0]
    mixed = [row for step in windows(batches(corpora, weights={"large": 0.5, "small": 0.5}), 2) for row in step[1::2]]
    assert alone == mixed  # what else is in the mix has no influence on a corpus's own order


def test_passes_belong_to_their_corpus(corpora):
    part = batches(corpora, weights={"large": 0.5, "small": 0.5}, passes={"small": Passes(unique_tokens=40)})
    assert (part.order["large"].num_tokens, part.order["small"].num_tokens) == (1000, 40)
    samples = part.next().tokens.flatten(0, 1)[1::2].tolist()
    assert samples == [part.order["small"].tokens(number).tolist() for number in range(6)]
    assert part.order["small"].epoch(5) == 1


@pytest.fixture(scope="module")
def documents(corpora, tmp_path_factory) -> tuple[dict[str, Path], str]:
    """400 documents of 1 to 12 letters between BOS and EOS, some of them with the letters of neither."""
    folder, (prefixes, digest) = tmp_path_factory.mktemp("documents"), corpora
    tokenizer = Tokenizer.load(prefixes["large"].with_name("tokenizer"))
    draw = np.random.default_rng(1)
    texts = ["".join(draw.choice(list(LETTERS), draw.integers(1, 13))) for _ in range(400)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    preprocess([folder / "text.jsonl"], tokenizer, folder / "documents", append_bos=True)
    return {"documents": folder / "documents"}, digest


def test_documents_end_where_their_stored_lengths_say(documents):
    source = batches(documents, weights={"documents": 1}, apart=True)
    order = source.order["documents"]
    assert batches(documents, weights={"documents": 1}).next().lengths is None
    for step in range(3):
        batch = source.next()
        assert len(batch.lengths) == 6 and batch.weights.shape == (6, 2, LENGTH)
        for micro in range(6):
            expected: list[int] = []
            for row in range(2):
                pieces = order.pieces(step * 12 + micro * 2 + row)
                starts = np.cumsum([0, *(piece.end - piece.begin for piece in pieces)])
                tokens, weights = batch.tokens[micro, row], batch.weights[micro, row]
                for place in range(LENGTH):
                    assert weights[place] == (place + 1 not in starts)
                # BOS stands first where a document begins, and is never predicted; EOS always is.
                assert tokens[1:][weights == 1].eq(0).sum() == 0
                assert weights[tokens[1:] == 1].eq(1).all()
                expected += np.diff(np.minimum(starts, LENGTH)).tolist()
            assert list(batch.lengths[micro]) == [length for length in expected if length]
            assert sum(batch.lengths[micro]) == 2 * LENGTH


def test_errors_name_the_corpus(corpora):
    prefixes, _ = corpora
    with pytest.raises(DataError, match="another tokenizer"):
        batches(corpora, tokenizer_digest="0" * 64)
    with pytest.raises(DataError, match="the corpus small has 200 tokens, fewer than one sample"):
        batches(corpora, sequence_length=300)
    with pytest.raises(ConfigError, match="the data position is of the corpora other, the blend of large, small"):
        batches(corpora, drawn={"other": 3}).next()
    with pytest.raises(ConfigError, match="batch_size 12 is not divisible by .* data-parallel ranks = 2 x 5"):
        batches(corpora, data_size=5)
    with pytest.raises(DataError, match="nowhere.json is missing"):
        batches(({**prefixes, "small": prefixes["small"].with_name("nowhere")}, corpora[1]))
