"""Corpora of chats: preprocessed, packed whole, and drawn in batches in which only answers count."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from chats import HARD, TEMPLATES, chat, write_chats, write_tokenizer

from megatron_adapt.data import worker
from megatron_adapt.data.chat import Chats, encode, from_json, is_stored, read_stored
from megatron_adapt.data.indexed import IndexedReader
from megatron_adapt.data.loss_mask import open_mask
from megatron_adapt.data.packing import FILL, PackedOrder, pack
from megatron_adapt.data.preprocess import open_corpus, preprocess
from megatron_adapt.engine import evaluate
from megatron_adapt.engine.batches import Batches
from megatron_adapt.errors import ConfigError, DataError
from megatron_adapt.hf.chat_template import ChatTemplate
from megatron_adapt.hf.tokenizer import Tokenizer

LENGTH = 96


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_tokenizer(tmp_path_factory.mktemp("tokenizer"), TEMPLATES["chatml"]))


@pytest.fixture(scope="module")
def chats(tokenizer: Tokenizer) -> Chats:
    return Chats("messages", ChatTemplate.load(tokenizer))


def many(count: int, seed: int = 0) -> list[list[dict[str, str]]]:
    draw = np.random.default_rng(seed)
    words = ["Igel", "Garten", "Wo", "heute", "nicht", "Ja"]
    return [chat(*(" ".join(draw.choice(words, draw.integers(1, 6))) for _ in range(2 * draw.integers(1, 4)))) for _ in range(count)]


def made(tokenizer: Tokenizer, chats: Chats, folder: Path, messages, **options) -> tuple[Path, dict]:
    folder.mkdir(parents=True, exist_ok=True)
    source = write_chats(folder / "chats.jsonl", messages)
    return folder / "corpus", preprocess([source], tokenizer, folder / "corpus", chats=chats, append_eod=False, **options)


def expected(tokenizer: Tokenizer, chats: Chats, messages) -> list[tuple[list[int], list[int]]]:
    """(ids, mask) of each chat that has an answer, each encoded alone."""
    documents = [document for document, _ in map(chats.document, messages) if document]
    found = [encode(tokenizer, [from_json(document)]) for document in documents]
    return [(one.ids.tolist(), one.mask.tolist()) for one in found]


def stored(prefix: Path) -> list[tuple[list[int], list[int]]]:
    reader = IndexedReader(prefix)
    mask = open_mask(reader)
    parts = [(reader.first_token(number), int(size)) for number, size in enumerate(reader.sizes)]
    return [(reader.tokens[begin : begin + size].tolist(), mask[begin : begin + size].tolist()) for begin, size in parts]


def test_what_is_stored(tokenizer, chats, tmp_path):
    messages = [*HARD.values(), [{"role": "user", "content": "nur gefragt"}], chat("Ende?", "Ende.")]
    prefix, stats = made(tokenizer, chats, tmp_path, messages)
    assert stored(prefix) == expected(tokenizer, chats, messages)
    assert stats["documents"] == len(HARD) + 1 and stats["empty"] == 1 and stats["loss_mask"] == "corpus.loss_mask"
    assert stats["trained_tokens"] == sum(sum(mask) for _, mask in stored(prefix)) and stats["tokenizer_backend"] == "tokenizers"
    rendered = [from_json(chats.document(one)[0]) for one in messages if chats.document(one)[0]]
    assert stats["bytes"] == sum(len(one.text.encode()) for one in rendered) and stats["trained_bytes"] == sum(one.bytes for one in rendered)
    assert json.loads((tmp_path / "corpus.json").read_text())["trained_tokens"] == stats["trained_tokens"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["chats.jsonl", "corpus.bin", "corpus.idx", "corpus.json", "corpus.loss_mask"]


def test_workers_change_nothing(tokenizer, chats, tmp_path):
    messages = many(300)
    one, _ = made(tokenizer, chats, tmp_path / "one", messages, workers=1)
    three, _ = made(tokenizer, chats, tmp_path / "three", messages, workers=3, chunk_bytes=4000)
    for suffix in (".bin", ".idx", ".loss_mask"):
        assert Path(f"{one}{suffix}").read_bytes() == Path(f"{three}{suffix}").read_bytes(), suffix


def test_ids_and_masks_stay_together_after_a_kill(tokenizer, chats, tmp_path, monkeypatch):
    """Of parts that an earlier run finished nothing is done again, and a damaged mask is one that is made again."""
    messages = many(200)
    place, kills = worker.Worker.place, [3, 5]

    def killed(self, number, offset):
        if kills and number == kills[0]:
            kills.pop(0)
            raise KeyboardInterrupt
        return place(self, number, offset)

    monkeypatch.setattr(worker.Worker, "place", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            made(tokenizer, chats, tmp_path, messages, workers=1, chunk_bytes=4000)
        (tmp_path / "corpus.parts" / "00000001.mask").write_bytes(b"\0")
    prefix, _ = made(tokenizer, chats, tmp_path, messages, workers=1, chunk_bytes=4000)
    assert stored(prefix) == expected(tokenizer, chats, messages) and not (tmp_path / "corpus.parts").exists()


def test_another_template_begins_anew(tokenizer, chats, tmp_path):
    """Nothing of an unfinished run with another template, or other tokens that are learnt, is used."""
    other = ChatTemplate(chats.template.name, chats.template.source + " ", chats.template.tokens, chats.template.closings)
    told = {repr(chats), repr(Chats("messages", other)), repr(Chats("messages", chats.template, "all")), repr(Chats("m", chats.template))}
    assert len(told) == 4 and repr(Chats("messages", ChatTemplate.load(tokenizer))) == repr(chats)


def test_text_of_the_same_name_removes_the_mask(tokenizer, chats, tmp_path):
    prefix, _ = made(tokenizer, chats, tmp_path, many(3))
    (tmp_path / "text.jsonl").write_text('{"text": "Igel"}\n')
    preprocess([tmp_path / "text.jsonl"], tokenizer, prefix)
    assert not Path(f"{prefix}.loss_mask").exists() and "loss_mask" not in open_corpus(prefix)[1]


def test_held_out_chats_are_stored_with_their_answers(tokenizer, chats, tmp_path):
    messages = many(20)
    _, stats = made(tokenizer, chats, tmp_path, messages, held_out=0.2)
    kept = list(read_stored(tmp_path / "held_out.jsonl"))
    rendered = [from_json(chats.document(one)[0]) for one in messages]
    assert kept == rendered[4::5] and stats["held_out_documents"] == 4 and is_stored(tmp_path / "held_out.jsonl")
    assert stats["held_out_bytes"] == sum(len(one.text.encode()) for one in kept)
    write_chats(tmp_path / "dev.jsonl", messages[:3])
    made(tokenizer, chats, tmp_path, messages, held_out_path=tmp_path / "dev.jsonl")
    assert list(read_stored(tmp_path / "held_out.jsonl")) == rendered[:3]
    (tmp_path / "held_out.jsonl").write_text('{"text": "a", "answers": []}\n')
    with pytest.raises(DataError, match="held_out.jsonl:1 is no chat that was held out .*preprocess its corpus again"):
        list(read_stored(tmp_path / "held_out.jsonl"))
    (tmp_path / "no.jsonl").write_text("no JSON\n")
    (tmp_path / "qa.jsonl").write_text('{"text": "Ein Text, zu dem gefragt wird.", "answers": ["Text"]}\n')
    assert not is_stored(tmp_path / "qa.jsonl") and evaluate.read(tmp_path / "qa.jsonl", tokenizer, LENGTH).bytes == 30
    assert not any(map(is_stored, (tmp_path / "dev.jsonl", tmp_path / "no.jsonl", tmp_path, tmp_path / "corpus.bin", tmp_path / "missing.jsonl")))


def test_max_documents_counts_chats_with_an_answer(tokenizer, chats, tmp_path):
    messages = [[{"role": "user", "content": "a"}], *many(5)]
    prefix, stats = made(tokenizer, chats, tmp_path, messages, max_documents=3)
    assert stored(prefix) == expected(tokenizer, chats, messages[:4]) and stats["documents"] == 3


def test_bad_lines_stop_or_are_skipped(tokenizer, chats, tmp_path):
    tmp_path.joinpath("chats.jsonl").write_text(
        json.dumps({"messages": chat("a", "b")}) + '\n{"messages": 3}\n' + json.dumps({"messages": chat("c", "d")}) + "\n"
    )
    with pytest.raises(DataError, match="chats.jsonl:2: the value of 'messages' is a JSON number instead of a list of messages; correct it"):
        preprocess([tmp_path / "chats.jsonl"], tokenizer, tmp_path / "corpus", chats=chats, append_eod=False)
    stats = preprocess([tmp_path / "chats.jsonl"], tokenizer, tmp_path / "corpus", chats=chats, append_eod=False, on_error="skip")
    assert stats["documents"] == 2 and stats["skipped"] == 1
    assert "instead of a list of messages" in (tmp_path / "corpus.skipped.jsonl").read_text()


def test_columns_of_a_table(tokenizer, chats, tmp_path):
    import pyarrow
    from pyarrow import parquet

    messages = many(30)
    parquet.write_table(pyarrow.table({"messages": messages, "n": list(range(30))}), tmp_path / "chats.parquet", row_group_size=10)
    stats = preprocess([tmp_path / "chats.parquet"], tokenizer, tmp_path / "corpus", chats=chats, append_eod=False, chunk_bytes=1)
    assert stored(tmp_path / "corpus") == expected(tokenizer, chats, messages) and stats["documents"] == 30
    rows = [messages[0], None, messages[1], [{"role": "critic", "content": "x"}]]
    parquet.write_table(pyarrow.table({"messages": rows}), tmp_path / "bad.parquet")
    with pytest.raises(DataError, match="bad.parquet:2: the value of 'messages' is a JSON null instead of a list of messages"):
        preprocess([tmp_path / "bad.parquet"], tokenizer, tmp_path / "bad", chats=chats, append_eod=False)
    stats = preprocess([tmp_path / "bad.parquet"], tokenizer, tmp_path / "bad", chats=chats, append_eod=False, on_error="skip")
    assert stored(tmp_path / "bad") == expected(tokenizer, chats, messages[:2]) and stats["skipped"] == 2


def test_what_cannot_be_preprocessed(tokenizer, chats, tmp_path):
    (tmp_path / "a.txt").write_text("Igel")
    with pytest.raises(DataError, match="a.txt is plain text, and chats are lists of messages: JSON lines or a column of a table"):
        preprocess([tmp_path / "a.txt"], tokenizer, tmp_path / "corpus", chats=chats, append_eod=False)
    with pytest.raises(ConfigError, match="of chats their template writes all special tokens"):
        preprocess([tmp_path / "a.txt"], tokenizer, tmp_path / "corpus", chats=chats)
    with pytest.raises(DataError, match="0 bad lines were skipped, 1 chats have nothing to learn"):
        made(tokenizer, chats, tmp_path, [[{"role": "user", "content": "a"}]])


# --------------------------------------------------------------------------------------------------------------- packing


def test_every_chat_once_in_every_epoch_and_whole(tokenizer, chats, tmp_path):
    prefix, _ = made(tokenizer, chats, tmp_path, many(200))
    reader = IndexedReader(prefix)
    length = 55
    order = PackedOrder(reader, length, 3, "talk")
    fits = [number for number, size in enumerate(reader.sizes) if size <= length + 1]
    assert order.left_out == reader.num_documents - len(fits) > 0 and order.chats == 200
    assert order.free == pytest.approx(1 - sum(int(reader.sizes[number]) for number in fits) / (order.samples * (length + 1)))
    epochs = []
    for epoch in range(3):
        samples = [order.pieces(epoch * order.samples + number) for number in range(order.samples)]
        found = [piece for pieces in samples for piece in pieces if piece.document != FILL]
        assert sorted(piece.document for piece in found) == fits
        assert all(piece.begin == 0 and piece.end == reader.sizes[piece.document] for piece in found)
        assert all(sum(piece.end for piece in pieces) == length + 1 for pieces in samples)
        assert order.epoch(epoch * order.samples) == epoch
        epochs.append([tuple(piece.document for piece in pieces) for pieces in samples])
    assert sorted(epochs[0]) == sorted(epochs[1]) and epochs[0] != epochs[1] != epochs[2]
    again = PackedOrder(reader, length, 3, "talk")  # from the file
    assert [again.pieces(n) for n in range(9)] == [order.pieces(n) for n in range(9)]
    assert [PackedOrder(reader, length, 4, "talk").pieces(n) for n in range(9)] != [order.pieces(n) for n in range(9)]


def test_samples_are_full(tokenizer):
    """Long-tailed lengths as of instructions: next-fit in the same order fills nine tenths."""
    draw = np.random.default_rng(1)
    sizes = np.minimum(draw.lognormal(6.3, 0.8, 20_000).astype(int) + 10, 8192)
    owners = pack(sizes.tolist(), 8193)
    rooms = np.bincount(owners, weights=sizes)
    assert rooms.max() <= 8193 and sorted(set(owners)) == list(range(len(rooms)))
    assert sizes.sum() / 8193 / len(rooms) > 0.995


def test_only_answers_count_in_a_batch(tokenizer, chats, tmp_path):
    messages = many(60)
    prefix, _ = made(tokenizer, chats, tmp_path, messages)
    alone = {tuple(ids): mask for ids, mask in expected(tokenizer, chats, messages)}
    batch = batches(tokenizer, {"talk": prefix}).next()
    seen = Counter()
    for micro, rows in enumerate(batch.tokens):
        lengths = iter(batch.lengths[micro])
        for row, weights in zip(rows, batch.weights[micro]):
            begin, ids, mask = 0, row.tolist(), [0, *weights.int().tolist()]
            while begin < LENGTH:
                size = next(lengths)
                end = begin + size
                if end == LENGTH and tuple(ids[begin:]) in alone:  # the last one may have its last token as a label only
                    end += 1
                key = tuple(ids[begin:end])
                seen["known" if key in alone else "fill"] += 1
                assert mask[begin:end] == ([0] + alone[key][1:] if key in alone else [0] * (end - begin))
                begin += size
    assert seen["known"] > 8 and seen["fill"] <= 8


def batches(tokenizer: Tokenizer, prefixes, consumed=None, drawn=None, **changes) -> Batches:
    settings = {
        "tokenizer_digest": tokenizer.digest, "sequence_length": LENGTH, "batch_size": 8, "micro_batch_size": 2, "seed": 3, "apart": True,
        "consumed": {} if consumed is None else consumed, "drawn": {} if drawn is None else drawn,
    }  # fmt: skip
    return Batches(prefixes, dict.fromkeys(prefixes, 1.0), **{**settings, **changes})


@pytest.fixture(scope="module")
def mixed(tokenizer, chats, tmp_path_factory) -> dict[str, Path]:
    """Chats and a corpus of text."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": " ".join(m["content"] for m in one)}) + "\n" for one in many(80, 5)))
    preprocess([folder / "text.jsonl"], tokenizer, folder / "text")
    return {"talk": made(tokenizer, chats, folder, many(80))[0], "text": folder / "text"}


def test_chats_beside_text(tokenizer, mixed):
    source = batches(tokenizer, mixed)
    batch, order = source.next(), source.order["talk"]
    first = f"talk: an epoch has {order.samples} sequences of whole chats, which leave {order.free:.1%} of them empty"
    assert list(source.notes()) == [first] and not source.learns_all and batches(tokenizer, {"text": mixed["text"]}).learns_all
    short = batches(tokenizer, mixed, sequence_length=40)
    assert f"talk: {short.order['talk'].left_out} of 80 chats are longer than sequence_length 40 and left out" in short.notes()
    is_text = batch.corpus.flatten() == 1
    weights = batch.weights.flatten(0, 1)
    assert is_text.sum() == 4 and weights[is_text].mean() > 0.8 and 0 < weights[~is_text].mean() < 0.6


def test_the_order_does_not_depend_on_ranks_and_continues(tokenizer, mixed):
    def drawn(source, steps):
        return [[(row.tolist(), w.tolist()) for b in [source.next()] for row, w in zip(b.tokens.flatten(0, 1), b.weights.flatten(0, 1))] for _ in range(steps)]

    whole = drawn(batches(tokenizer, mixed), 12)  # beyond an epoch of the chats
    first = batches(tokenizer, mixed)
    assert drawn(first, 5) == whole[:5]
    counters = copy.deepcopy({"consumed": first.consumed, "drawn": first.drawn})
    assert drawn(batches(tokenizer, mixed, **counters), 7) == whole[5:]
    ranks = [drawn(batches(tokenizer, mixed, data_rank=rank, data_size=2), 12) for rank in range(2)]
    for step, rows in enumerate(whole):
        assert [row for pair in range(2) for rank in ranks for row in rank[step][2 * pair : 2 * pair + 2]] == rows


def test_chats_are_not_cut(tokenizer, mixed):
    with pytest.raises(ConfigError, match="the corpus talk is of chats, which must not see one another: set packing to documents"):
        batches(tokenizer, mixed, apart=False)


def test_too_long_or_damaged(tokenizer, chats, tmp_path):
    prefix, _ = made(tokenizer, chats, tmp_path, many(5))
    shortest = min(IndexedReader(prefix).sizes)
    with pytest.raises(DataError, match=f"every chat of the corpus talk is longer than sequence_length 4 .the shortest has {shortest} tokens.; lengthen it"):
        PackedOrder(IndexedReader(prefix), 4, 0, "talk")
    mask = Path(f"{prefix}.loss_mask")
    content = mask.read_bytes()
    mask.write_bytes(content[:-1])
    with pytest.raises(DataError, match="corpus.loss_mask has [0-9]+ bytes, one for each token, but the corpus [0-9]+ tokens"):
        PackedOrder(IndexedReader(prefix), LENGTH, 0, "talk")
    mask.unlink()
    with pytest.raises(DataError, match="cannot open .*corpus.loss_mask: No such file or directory; preprocess the corpus of chats again"):
        PackedOrder(IndexedReader(prefix), LENGTH, 0, "talk")
