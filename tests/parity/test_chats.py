"""Training and evaluation on chats: the losses of transformers with labels of -100 for all but answers, in every layout."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from chats import HARD, TEMPLATES, chat, write_chats, write_tokenizer
from worlds import LAYOUTS, SEED, SIZES, Outcome, interrupted_after, on_ranks, phase, run_job, tensors

from megatron_adapt import launch
from megatron_adapt.data.chat import Chats, encode, read_stored
from megatron_adapt.data.packing import FILL
from megatron_adapt.data.preprocess import preprocess
from megatron_adapt.engine import backend, checkpoint, convert, evaluate, loop, model as models
from megatron_adapt.engine.backend import Layout
from megatron_adapt.engine.batches import Batches
from megatron_adapt.families import family_named, find_family, initial_tensors
from megatron_adapt.hf.chat_template import ChatTemplate
from megatron_adapt.hf.directory import HFDirectory
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.hf.weights import WeightWriter

SETTINGS = {"data": {"talk": 1}, "packing": "documents", "sequence_length": 96, "steps": 4, "save_every": 2, "keep_last": 9, "evaluate_every": 4}


class Talk:
    """A model, chats, some of them held out, and a checkpoint to start from."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.model, self.corpus = folder, folder / "model", folder / "talk"
        draw = np.random.default_rng(2)
        # Answers of very different lengths: every rank and micro-batch has another number of targets.
        talks = [chat(f"Sag {n}", " ".join(["Igel"] * int(draw.integers(0, 25)))) for n in range(60)]
        source = write_chats(folder / "talk.jsonl", [*HARD.values(), *talks])

        def make() -> None:
            tokenizer = Tokenizer.load(write_tokenizer(self.model, TEMPLATES["llama3"]))
            chats = Chats("messages", ChatTemplate.load(tokenizer))
            preprocess([source], tokenizer, self.corpus, chats=chats, append_eod=False, held_out=0.1)
            family = family_named("llama")
            config = family.complete_config(SIZES, tokenizer.vocab_size, 0, 1)
            (self.model / "config.json").write_text(json.dumps(config))
            with WeightWriter(self.model) as writer:
                for name, tensor in initial_tensors(family, family.read_config(config), 5, config["dtype"]):
                    writer.add(name, tensor)
            with backend.session(Layout(), SEED):
                checkpoint.save(folder / "start", self._load(), None, checkpoint.Position(), self.model)

        launch.fork(1, make, threads=1)

    def _load(self):
        directory = HFDirectory.open(self.model)
        shape = find_family(directory.config).read_config(directory.config)
        model = models.build(shape, Layout(), "fp32")
        convert.load_hf(model, directory, shape)
        return model

    def train(self, folder: Path, layout: Layout = Layout(), ranks: int = 1, **changes) -> Outcome:
        settings = phase(**{**SETTINGS, **changes})
        job = loop.Job(
            phase=settings, steps=settings.steps, layout=layout, precision="fp32", seed=SEED, start=self.folder / "start", output=folder,
            corpora={"talk": self.corpus}, held_out={"talk": self.folder / "held_out.jsonl"}, evaluation_length=96,
        )  # fmt: skip
        assert not launch.fork(ranks, lambda: run_job(job), threads=1).stopped
        return Outcome(folder)

    def theirs(self) -> dict[str, float]:
        """Of transformers, a chat at a time: the loss of the first batch, and of all held-out chats."""
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32)
        tokenizer = Tokenizer.load(self.model)
        batches = Batches(
            {"talk": self.corpus}, {"talk": 1}, tokenizer_digest=tokenizer.digest, sequence_length=96, batch_size=8, micro_batch_size=2,
            seed=SEED, consumed={}, drawn={}, apart=True,
        )  # fmt: skip
        order = batches.order["talk"]
        pieces = [[piece] for number in range(8) for piece in order.pieces(number) if piece.document != FILL]
        trained = [(order.read(piece).astype(np.int64), order.learnt(piece)) for piece in pieces]
        stored = encode(tokenizer, list(read_stored(self.folder / "held_out.jsonl")))
        spans = list(zip(stored.id_offsets[:-1], stored.id_offsets[1:]))
        held_out = [(stored.ids[a:b].astype(np.int64), stored.mask[a:b]) for a, b in spans]
        losses, totals = [], []
        with torch.no_grad():
            for chats in (trained, held_out):
                sums = []
                for ids, mask in chats:
                    labels = torch.from_numpy(np.where(mask == 1, ids, -100))[None]
                    count = int(mask[1:].sum())
                    sums.append((float(model(torch.from_numpy(ids)[None], labels=labels).loss) * count, count))
                losses.append(sum(loss for loss, _ in sums) / sum(count for _, count in sums))
                totals.append(sum(loss for loss, _ in sums))
        return {"loss": losses[0], "held_out": losses[1], "bits": totals[1] / math.log(2) / stored.bytes}


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Talk:
    return Talk(tmp_path_factory.mktemp("talk"))


@pytest.fixture(scope="module")
def one(talk: Talk) -> Outcome:
    return talk.train(talk.folder / "one")


def test_losses_are_those_of_transformers(talk, one):
    expected = on_ranks(1, talk.theirs)[0]
    assert one.losses[0] == pytest.approx(expected["loss"], rel=1e-5)
    untrained = talk.train(talk.folder / "untrained", optimizer={"lr": 1e-12}, steps=1, evaluate_every=1).metrics[-1]
    assert untrained["held_out_loss/talk"] == pytest.approx(expected["held_out"], rel=1e-5)
    assert untrained["held_out/talk"] == pytest.approx(expected["bits"], rel=1e-5)
    assert one.metrics[-1]["held_out/talk"] < expected["bits"]


@pytest.mark.parametrize("name, micro", [("DP2", 2), ("one", 8), ("TP2", 2), ("PP2", 2), ("DP2+DO", 1)])
def test_every_target_weighs_the_same_in_every_layout(talk, one, tmp_path, name, micro):
    """Not every rank's mean, nor every micro-batch's: these have different numbers of targets."""
    layout, ranks = LAYOUTS[name]
    other = talk.train(tmp_path, layout, ranks, micro_batch_size=micro)
    assert other.losses == pytest.approx(one.losses, rel=2e-5)
    assert other.norms == pytest.approx(one.norms, rel=2e-4)
    assert other.metrics[-1]["held_out/talk"] == pytest.approx(one.metrics[-1]["held_out/talk"], rel=1e-4)


def test_a_run_that_was_interrupted_is_the_same(talk, one, tmp_path):
    resumed = talk.train(interrupted_after(2, one, tmp_path / "resumed"))
    assert resumed.metrics == one.metrics
    assert all(torch.equal(tensor, tensors(one.folder)[name]) for name, tensor in tensors(resumed.folder).items())


def test_chats_too_long_are_told(talk, tmp_path, capfd):
    talk.train(tmp_path, sequence_length=40, steps=1, evaluate_every=None)
    assert "chats are longer than sequence_length 40 and left out" in capfd.readouterr().out


def test_long_held_out_chats_are_cut_into_windows(talk):
    """Each learnt token counts once, windows without any are left out."""
    tokenizer = Tokenizer.load(talk.model)
    whole, cut = (evaluate.read(talk.folder / "held_out.jsonl", tokenizer, length) for length in (500, 7))
    assert cut.tokens == whole.tokens and cut.bytes == whole.bytes and max(map(len, cut.windows)) == 8
    assert sum(int(mask[1:].sum()) for mask in cut.masks) == whole.tokens and all(mask[1:].any() for mask in cut.masks)
    assert evaluate.read(talk.folder / "held_out.jsonl", tokenizer, 500, max_bytes=1).documents == 1
