"""Denoising in a recipe: how it is written, what is refused before anything runs, and what `check` tells."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import tiny
from commands import signals_kept
from harness import ROOT

from megatron_adapt import checks, plan, recipe
from megatron_adapt.config_denoising import Denoiser
from megatron_adapt.data.denoising import Ids
from megatron_adapt.errors import ConfigError
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.steps import preprocess
from megatron_adapt.steps.reporter import Reporter
from megatron_adapt.vocab.extension import extend
from megatron_adapt.vocab.train import KINDS, Scheme, train_tokenizer

CORPUS = ROOT / "examples" / "quickstart" / "corpus" / "de.jsonl"
TEXTS = [json.loads(line)["text"] for line in CORPUS.read_text(encoding="utf-8").splitlines()[:50]]
MADE = {"train": {"corpora": ["german"], "vocab_size": 400, "sentinels": 8}}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny.corpora(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def loaded(place: Path, denoising: object = "ul2", tokenizer: object = MADE, corpus=None, ranks=None, config=None, **changes) -> recipe.Recipe:
    """From scratch on German text and chats."""
    settings = {"data": {"german": 1}, "packing": "documents", "sequence_length": 64, "denoising": denoising, **changes}
    data = {"german": {"path": "de.jsonl", **(corpus or {})}, "talk": {"path": "talk.jsonl", "messages": "messages"}}
    model = {"from_scratch": {"config": config or tiny.CONFIG, "tokenizer": tokenizer}}
    phases = [tiny.phase("ul2", 9) | settings]
    return recipe.load(tiny.write(place, tiny.recipe(model=model, data=data, phases=phases, vocabulary=None, parallel=ranks, evaluation=None)))


def test_as_a_word_a_list_or_a_mapping(place):
    (phase,) = loaded(place).phases
    assert [denoiser.name for denoiser in phase.denoising.mixture] == [
        "R 3/0.15", "R 8/0.15", "S 0.25", "X 3/0.5", "X 8/0.5", "X 64/0.15", "X 64/0.5",
    ]  # fmt: skip
    one = {"kind": "X", "span": 2, "ratio": 0.3, "token": "<extra_id_7>"}
    for written in ([one], {"mixture": [one]}):
        (denoiser,) = loaded(place, written).phases[0].denoising.mixture
        assert denoiser == Denoiser(**one) and denoiser.mode == "<extra_id_7>" and Denoiser(kind="S", ratio=0.1).mode == "[S]"
    given = loaded(place, {"causal": 0.5, "corpora": ["german"]})
    assert given.phases[0].denoises("german") and not given.phases[0].denoises("talk") and not loaded(place, None).phases[0].denoises("german")
    assert recipe.load(tiny.write(place, json.loads(json.dumps(given.model_dump())), "again.yaml")) == given


REFUSED = {
    "chunks": ({"packing": "chunks"}, "phases[0].packing: samples of denoising must not see one another, nor be cut; set it to 'documents'"),
    "chats": ({"data": {"talk": 1}}, "phases[0].denoising: belongs to text, and all of this phase's corpora are chats (talk); remove it"),
    "named chats": ({"denoising": {"corpora": ["talk"]}, "data": {"talk": 1, "german": 1}}, "denoising.corpora[0]: 'talk' holds chats, and only text"),
    "elsewhere": ({"denoising": {"corpora": ["english"]}}, "phases[0].denoising.corpora[0]: 'english' is not in this phase's data: german"),
    "pattern": ({"denoising": {"sentinel": "<x>"}}, "denoising.sentinel: needs one {} where the number of a sentinel stands, such as <extra_id_{}>, got '<x>'"),
    "span of S": ({"denoising": [{"kind": "S", "ratio": 0.2, "span": 3}]}, "mixture[0].span: belongs to R and X: what S hides is the text's end"),
    "no span": ({"denoising": [{"kind": "R", "ratio": 0.2}]}, "denoising.mixture[0].span: missing; R and X: tokens of a hidden span, on average"),
    "name": ({"denoising": "ul3"}, "phases[0].denoising.mixture: expected 'ul2' or a list of denoisers, got 'ul3'"),
    "none": ({"denoising": []}, "phases[0].denoising.mixture: must not be empty"),
    "context": ({"denoising": {"decoder": "prefix"}, "ranks": {"context": 2}}, "phases[0].denoising.decoder: 'prefix' goes with whole sequences, which"),
    "ratio": ({"denoising": [{"kind": "S", "ratio": 1}]}, "denoising.mixture[0].ratio: must be less than 1, got 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together(place, name):
    changes, message = REFUSED[name]
    with pytest.raises(ConfigError, match=re.escape(message)):
        loaded(place, **changes)


def test_tokens_are_asked_for_before_anything_runs(place):
    train_tokenizer(TEXTS, 300, place / "plain")
    train_tokenizer(TEXTS, 300, place / "made", scheme=Scheme(sentinels=5))
    train_tokenizer(TEXTS, 300, place / "reserved", scheme=Scheme(multiple=320))
    reserved = [{"kind": "S", "ratio": 0.2, "token": "<|reserved_19|>"}, {"kind": "R", "span": 3, "ratio": 0.2, "token": "<|reserved_18|>"}]
    good = {"mixture": reserved, "sentinel": "<|reserved_{}|>"}

    def problems(tokenizer: object, denoising: object = "ul2") -> str:
        with pytest.raises(ConfigError) as error:
            checks.check(plan.build(loaded(place, denoising, tokenizer)))
        return str(error.value)

    checks.check(plan.build(loaded(place)))
    few = "phase 'ul2': denoising: 8 sentinels (<extra_id_0> ... <extra_id_7>) are needed and the tokenizer has 5: make one with `sentinels: 8`"
    assert few in problems("made") and few in problems({"train": {**MADE["train"], "sentinels": 5}})
    checks.check(plan.build(loaded(place, {"window": 32}, "made")))
    missing = "has no special token '[R]', no special token '[S]', no special token '[X]'; make one with `sentinels`, or name tokens that it has"
    assert f"phase 'ul2': denoising: the tokenizer plain {missing}" in problems("plain")
    assert f"the tokenizer that is to be made {missing}" in problems({"train": {"corpora": ["german"], "vocab_size": 400}})
    assert "the tokenizer reserved has '<|reserved_19|>' for more than one purpose, '<|reserved_18|>' for more" in problems("reserved", good)
    apart = [{**one, "token": token} for one, token in zip(reserved, ("<s>", "[R]"))]
    assert "the tokenizer made has '<s>' for more than one purpose;" in problems("made", {"mixture": apart, "window": 9})
    assert "a sequence of 2 tokens is too short for denoising" in problems_of_length(place, 2)
    ids = {"train": {**MADE["train"], "like": "made"}}
    checks.check(plan.build(loaded(place, tokenizer=ids)))


def test_models_whose_attention_has_a_direction(place, monkeypatch):
    """And the export is told, to say what transformers does not do."""
    given = {"denoising": {"decoder": "prefix"}}
    windows = {**tiny.CONFIG, "architectures": ["MistralForCausalLM"], "sliding_window": 16}
    with pytest.raises(ConfigError, match="phase 'ul2': denoising.decoder: 'prefix' has no meaning for windows of attention, which this model has; use 'causal'"):
        checks.check(plan.build(loaded(place, config=windows, **given)))
    checks.check(plan.build(loaded(place, config=windows)))
    told: list[tuple[str, ...]] = []
    monkeypatch.setattr("megatron_adapt.steps.export_hf.run", lambda *args, learnt, **options: told.append(learnt.both_ways))
    for denoising in ("ul2", given["denoising"]):
        plan.build(loaded(place, denoising)).step("export").action(place / "model", Reporter())
    assert told == [(), ("ul2",)]


def test_transformer_engine_does_not_know_prefixes(monkeypatch):
    from megatron_adapt.engine import backend
    from megatron_adapt.families import find_family

    shape = find_family(tiny.CONFIG).read_config(find_family(tiny.CONFIG).complete_config(tiny.CONFIG, 400, None, None))
    backend.require_own_attention(shape, "this")
    monkeypatch.setattr(backend, "uses_transformer_engine", lambda: True)
    with pytest.raises(ConfigError, match="this is for torch's attention, and this model has Transformer Engine's. Set backend to torch."):
        backend.require_own_attention(shape, "this")


def problems_of_length(place: Path, length: int) -> str:
    with pytest.raises(ConfigError) as error:
        checks.check(plan.build(loaded(place, sequence_length=length)))
    return str(error.value)


def test_what_check_tells(place):
    """Before the corpus is tokenized what formulas say, then what packing makes of it; and epochs are what samples hold."""
    changes = {"steps": None, "epochs": 2, "corpus": {"unique_tokens": 9000, "shuffled_epochs": 2}}
    built = plan.build(loaded(place, {"causal": 0.2}, **changes))
    assert (
        "ul2: denoising (R 3/0.15 11%, R 8/0.15 11%, S 0.25 11%, X 3/0.5 11%, X 8/0.5 11%, X 64/0.15 11%, X 64/0.5 11%, text as it is 20%) of up "
        "to 65 tokens of text at a time; of long documents 91% of a sequence is text and 42% is hidden text; 8 sentinels needed, 8 there"
    ) in list(checks.summary(built))
    for step in built.steps:
        if step.verb == "tokenizer":
            train_tokenizer(TEXTS, 400, step.output, scheme=Scheme(sentinels=8))
        elif step.verb == "preprocess":
            step.output.mkdir(parents=True)
            stats = preprocess.run(built.recipe.data["german"], built.steps[0].output, step.output, Reporter(), 1234, "german")
            (step.output / "receipt.json").write_text(json.dumps({"verb": "preprocess", "metrics": stats}))
            folder = step.output
    (phase,) = built.recipe.phases
    order = preprocess.windows(folder, phase, 1234, "german", built.recipe.data["german"])
    size = preprocess.epoch_tokens(folder, 1234, "german", built.recipe.data["german"], denoised=True)
    assert size(phase) == order.counts(0).samples * 64 // 2 and size(phase.model_copy(update={"denoising": None})) == 9000
    steps = -(-2 * size(phase) // (64 * 4))
    lines = list(checks.summary(built))
    assert any(f"ul2: german: {order.counts(0).samples:,} sequences an epoch, " in line and "left free by packing" in line for line in lines)
    assert any(f"steps {steps:,}" in line or f"steps {steps}" in line for line in lines)
    assert any("german: " in line and " epochs of " in line for line in lines)


def test_a_sample_is_shown_before_training(place, capsys, monkeypatch):
    """What the engine's batches hold, and what of it counts there; by the command that a user types."""
    from megatron_adapt import cli
    from megatron_adapt.engine.batches import Batches

    def inspected(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["megatron-adapt", "inspect", "recipe.yaml", *words])
        with signals_kept(), pytest.raises(SystemExit):
            cli.main()
        return "".join(capsys.readouterr())

    built = plan.build(loaded(place, {"mixture": [{"kind": "R", "span": 3, "ratio": 0.3}], "decoder": "prefix"}))
    assert "error: --phase is missing; the recipe's phases are: ul2." in inspected()
    assert "error: --phase full: there is no such phase; the recipe's phases are: ul2." in inspected("--phase", "full")
    assert "error: the corpus german is not tokenized yet (out/data/base/german): run megatron-adapt preprocess" in inspected("--phase", "ul2")
    assert "error: --document: about a corpus; of a recipe's phase a --sample is shown." in inspected("--phase", "ul2", "--document", "1")
    folder = Path("out/data/base/german")
    folder.mkdir(parents=True)
    train_tokenizer(TEXTS, 400, built.steps[0].output, scheme=Scheme(sentinels=8))
    stats = preprocess.run(built.recipe.data["german"], built.steps[0].output, folder, Reporter(), 1234, "german")
    (folder / "receipt.json").write_text(json.dumps({"verb": "preprocess", "metrics": stats}))
    capsys.readouterr()
    found = json.loads(inspected("--phase", "ul2", "--sample", "5", "--json"))
    tokenizer = Tokenizer.load(built.steps[0].output)
    (phase,) = built.recipe.phases
    batches = Batches(
        {"german": folder / "text"}, {"german": 1}, tokenizer_digest=tokenizer.digest, sequence_length=64, batch_size=6, micro_batch_size=6, seed=1234,
        consumed={}, drawn={}, apart=True, denoising=(phase.denoising, Ids.find(phase.denoising, tokenizer)),
    )  # fmt: skip
    batch = batches.next()
    runs = [run for document in found["documents"] for run in document["runs"]]
    ids, begin = batch.tokens[0, 5].tolist(), 0
    for document in found["documents"]:
        size = document["runs"][-1]["end"]
        assert "[R]" in document["runs"][0]["text"] or begin
        counts = [learnt for run in document["runs"] for learnt in [run["learnt"]] * (run["end"] - run["begin"])]
        assert counts[1:] == (batch.weights[0, 5, begin : begin + size - 1] > 0).tolist() and not counts[0]
        assert "".join(run["text"] for run in document["runs"]) == tokenizer.decode(ids[begin : begin + size])
        begin += size
    assert begin == found["tokens"] == 65 and found["learnt"] == int(batch.weights[0, 5].sum()) > 5
    assert any(run["learnt"] and "<extra_id_0>" not in run["text"] for run in runs) and any(document["both_ways"] for document in found["documents"])
    shown = inspected("--phase", "ul2", "--sample", "5")
    assert f"phase ul2, sample 5: 65 tokens of german, {found['learnt']} of them to be predicted, by " in shown
    first = found["documents"][0]
    assert f"document 0, whose first {first['both_ways']} tokens see one another in both directions:" in shown
    assert f"learnt {json.dumps(next(run for run in first['runs'] if run['learnt'])['text'], ensure_ascii=False)}" in shown


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_sentinels_in_a_new_tokenizer(tmp_path, kind):
    train_tokenizer(TEXTS, 300, tmp_path / "like", scheme=Scheme(sentinels=2))
    report = train_tokenizer(TEXTS, 361, tmp_path / "t", kind, Scheme(like=tmp_path / "like", sentinels=4, multiple=8))
    tokenizer = Tokenizer.load(tmp_path / "t")
    named = ["[R]", "[S]", "[X]", *(f"<extra_id_{number}>" for number in range(4))]
    assert report["vocab_size"] == 368 and set(named) <= set(tokenizer.special_tokens()) and tokenizer.eos_id is not None
    assert len(set(tokenizer.tokens())) == 368
    text = "Der <extra_id_1> [R]"
    assert tokenizer.decode(tokenizer.encode([text])[0]) == text  # written out, it is text
    assert not set(tokenizer.encode([text])[0].tolist()) & {tokenizer.special_tokens()[name] for name in named}
    with pytest.raises(ConfigError, match="too small: 256 bytes, .* special tokens .<s> ... <extra_id_99>. need|too small: 256 bytes, .* leave no piece"):
        train_tokenizer(TEXTS, 330, tmp_path / "small", kind, Scheme(sentinels=100))


def test_sentinels_in_a_models_own(tmp_path):
    train_tokenizer(TEXTS, 300, tmp_path / "own")
    own = Tokenizer.load(tmp_path / "own")
    report = extend(own, TEXTS, 3, tmp_path / "new", sentinels=2)
    new = Tokenizer.load(tmp_path / "new")
    names = ["[R]", "[S]", "[X]", "<extra_id_0>", "<extra_id_1>"]
    assert report["vocab_size"] == new.vocab_size == 308 and report["new_tokens"] == 3
    assert new.tokens()[:300] == own.tokens() and new.tokens()[303:] == names and set(names) <= set(new.special_tokens())
    assert not set(new.encode([" ".join(names)])[0].tolist()) & set(range(303, 308))
    again = extend(new, TEXTS, 1, tmp_path / "more", sentinels=3)
    assert again["vocab_size"] == 310 and Tokenizer.load(tmp_path / "more").tokens()[309] == "<extra_id_2>"
