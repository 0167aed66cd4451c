"""The output matrix fitted to how often tokens come: the fit itself, and as a part of `swap`."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from method_cases import CORPUS, world
from test_surgery import EMBEDDING, HEAD, make_model, tensors

from megatron_adapt.config import DEFAULT, Corpus
from megatron_adapt.errors import ConfigError, DataError
from megatron_adapt.steps import calibrate, swap
from megatron_adapt.steps.tokenizer import files
from megatron_adapt.steps.reporter import Reporter
from megatron_adapt.vocab import tied_calibration
from megatron_adapt.vocab.calibration import Moments, _Fit, _Pairs, _Recipe, calibrated, constant_direction


def states(number: int = 3000, width: int = 12) -> torch.Tensor:
    """Hidden states as models have them: much in common, and something of their own."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(number, width, generator=generator) * 0.5 + torch.linspace(-2, 3, width)


def run(rows: torch.Tensor, hidden: torch.Tensor, following: torch.Tensor, text: np.ndarray | None = None, length: int = 21):
    """``calibrated`` on states [n, d] and the token ``following`` each."""
    ids = torch.cat([following[:1], following])
    places = torch.arange(len(following) // (length - 1))[:, None] * (length - 1) + torch.arange(length)  # windows share their ends
    parts = iter([hidden[place.clamp_max(len(hidden) - 1)] for place in places])
    return calibrated(rows, ids[places], lambda window: next(parts), ids.numpy() if text is None else text)


def test_one_direction_is_the_same_for_all_states():
    direction = constant_direction(states().T @ states() / len(states()), states().mean(0))
    along = states() @ direction
    assert abs(float(along.mean()) - 1) < 1e-4 and float(along.std()) < 0.2


def test_tokens_become_as_likely_as_they_are_frequent():
    generator = torch.Generator().manual_seed(1)
    hidden, rows = states(), torch.randn(40, 12, generator=generator)
    weights = (np.arange(40) ** 2 + 0.5) / (np.arange(40) ** 2 + 0.5).sum()
    following = torch.from_numpy(np.random.default_rng(0).choice(40, len(hidden), p=weights))
    new, report = run(rows, hidden, following)
    counts = np.bincount(following, minlength=40)
    shares = (counts + 0.5) / (counts + 0.5).sum()
    mean = (hidden @ new.T).softmax(-1).mean(0).numpy()
    assert np.abs(mean - shares).max() < 0.002
    entropy = -(weights * np.log(weights)).sum()
    # the rows know nothing of these tokens, and that is found out
    assert report["alpha"] == 0 and report["nats_before"] > entropy + 1 and report["nats_after"] < entropy + 0.05
    assert report["positions"] == 3000 and report["tokens_counted"] == 3001


def test_rows_that_know_something_are_kept():
    hidden = states()
    rows = 0.3 * torch.randn(40, 12, generator=torch.Generator().manual_seed(2))
    logits = hidden @ rows.T + torch.linspace(-3, 3, 40)
    following = torch.multinomial(logits.softmax(-1), 1, generator=torch.Generator().manual_seed(3)).flatten()
    new, report = run(rows, hidden, following)
    true = -float(logits.log_softmax(-1).gather(-1, following[:, None]).mean())
    assert report["alpha"] >= 0.75 and report["nats_after"] < true + 0.1 < report["nats_before"] - 0.1


def test_states_before_a_token_tell_when_it_comes():
    """Normal states around a mean of each token: the fit comes near the exact posterior."""
    generator = torch.Generator().manual_seed(4)
    means = torch.randn(20, 12, generator=generator) + torch.linspace(-2, 3, 12)
    following = torch.randint(20, (6000,), generator=generator)
    hidden = means[following] + 0.7 * torch.randn(6000, 12, generator=generator)
    rows = torch.randn(21, 12, generator=generator)
    new, report = run(rows, hidden, following)
    exact = -((hidden[:, None] - means) ** 2).sum(-1) / (2 * 0.7**2)
    best = -float(exact.log_softmax(-1).gather(-1, following[:, None]).mean())
    assert report["weight"] == 10 and report["ridge"] == 1
    assert report["nats_after"] < 0.5 * (best + math.log(20)) < report["nats_before"]


def test_the_fit_by_its_formula():
    """Against sums over every pair and position; a token that no one has seen keeps its row."""
    generator = torch.Generator().manual_seed(5)
    text = torch.randint(6, (4000,), generator=generator)
    ids, hidden = text[100:401], torch.randn(300, 3, generator=generator) + 1
    moments = Moments(7, 3)
    moments.add(hidden, ids)
    pairs = _Pairs(text[1:].numpy(), text[:-1].numpy(), 7)
    rows = torch.randn(7, 3, generator=generator)
    fit = _Fit(rows, moments, torch.full((7,), 1 / 7), pairs)
    centred = hidden - hidden.mean(0)
    after = torch.stack([centred[ids[:-1] == token].sum(0) / (int((ids[:-1] == token).sum()) + 1) for token in range(7)])
    beyond = centred - after[ids[:-1]]
    covariance = centred.T @ centred / 300
    smooth = covariance + 3 * covariance.diagonal().mean() * torch.eye(3)
    recipe = _Recipe(0.5, 3.0, 30.0)
    found, kept = fit.matrix(recipe, hidden), 0.5 * (rows - rows.mean(0))
    for token in range(7):
        known, own = after[text[:-1]][text[1:] == token], beyond[ids[1:] == token]
        mean = known.sum(0) / (len(known) + 30) + own.sum(0) / (len(own) + 10)
        expected = 30 / (len(known) + 30) * kept[token] + torch.linalg.solve(smooth, mean)
        along = (found[token] - expected) / fit.direction  # what is left is a bias along one direction
        assert float(along.std()) < 1e-3 * (1 + float(along.abs().mean()))
        assert token < 6 or torch.equal(known, known[:0])
    fewer = pairs.less(_Pairs(ids[1:].numpy(), ids[:-1].numpy(), 7))
    left = [int(((text[:-1] == a) & (text[1:] == b)).sum() - ((ids[:-1] == a) & (ids[1:] == b)).sum()) for b in range(6) for a in range(6)]
    assert fewer._times.tolist() == left and pairs._times.sum() == 3999


def test_what_is_counted_in_all_of_the_text_helps():
    """Tokens tell the next one, and states tell the token: a long text says more than the few states do."""
    generator = torch.Generator().manual_seed(6)
    chain = (2 * torch.randn(60, 60, generator=generator)).softmax(-1)
    walk = [0]
    draws = torch.rand(20_000, generator=generator)
    sums = chain.cumsum(-1)
    for draw in draws:
        walk.append(min(59, int(torch.searchsorted(sums[walk[-1]], draw))))
    text = torch.tensor(walk)
    states_of = torch.randn(60, 48, generator=generator)
    hidden = states_of[text] + torch.linspace(-1, 2, 48) + 0.1 * torch.randn(len(text), 48, generator=generator)
    rows, following = torch.zeros(60, 48), text[1:601]
    long, short = (run(rows, hidden[:600], following, known.numpy())[1]["nats_after"] for known in (text, text[:601]))
    assert long < short - 0.1


def choice(calibrate: bool = True, corpus: str = str(CORPUS / "de.jsonl")) -> swap.Choice:
    corpora = [Corpus.model_construct(path=[corpus], text_key="text", max_documents=40)] if corpus else []
    return swap.Choice("mean", {}, 1, 1, corpora, calibrate)


def test_swap_calibrates_the_output_alone(tmp_path):
    model, target = make_model(tmp_path / "model", rows=24, dtype="float32"), world().folder / "target"
    plain = swap.run(model, target, tmp_path / "plain", choice(False), Reporter())
    report = swap.run(model, target, tmp_path / "new", choice(), Reporter())
    assert "calibration" not in plain and report["calibration"]["nats_after"] < report["calibration"]["nats_before"]
    before, after = tensors(tmp_path / "plain"), tensors(tmp_path / "new")
    assert set(before) == set(after)
    assert [name for name in before if not before[name].equal(after[name])] == [HEAD]
    assert sorted(file.name for file in (tmp_path / "plain").iterdir()) == sorted(file.name for file in (tmp_path / "new").iterdir())
    assert report["calibration"]["nats_after"] < math.log(900)  # what a model that knows nothing pays
    again = swap.run(model, target, tmp_path / "again", choice(), Reporter())
    assert again["calibration"] == report["calibration"] and tensors(tmp_path / "again")[HEAD].equal(after[HEAD])


def test_the_default_says_what_it_does(tmp_path, monkeypatch):
    """focus, calibrated, where there is text and the model can be; else what is next best, and why."""
    model, tied, target = make_model(tmp_path / "model"), make_model(tmp_path / "tied", tied=True), world().folder / "target"
    told: list[str] = []

    class Listening(Reporter):
        def log(self, text: str) -> None:
            told.append(text)

    def default(source, name: str, corpus: str = str(CORPUS / "de.jsonl"), calibrate: bool | None = None, tokenizer=target):
        told.clear()
        given = swap.choice(DEFAULT, [], 1, 1, files([corpus], "text") if corpus else [], calibrate)
        given = replace(given, corpora=[each.model_copy(update={"max_documents": 40}) for each in given.corpora])
        report = swap.run(source, tokenizer, tmp_path / name, given, Listening())
        return report["method"], "calibration" in report

    assert default(model, "best") == ("focus", True) and told[0] == "method focus, calibrated"
    assert default(model, "plain", calibrate=False) == ("focus", False) and told[0] == "method focus, not calibrated"
    assert default(tied, "tied_new") == ("focus", True)
    assert any(line.startswith("matrix of input and output calibrated on ") for line in told)
    assert default(model, "none", corpus="") == ("subwords", False)
    assert told[0].startswith("method subwords, not calibrated: text in the target language (--corpus")
    monkeypatch.setattr(calibrate, "LARGEST", 10)
    assert default(model, "large") == ("focus", False)
    assert "calibrating holds them in float32 and reads 131,072 tokens" in told[0]
    assert default(model, "asked", calibrate=True) == ("focus", True)
    monkeypatch.undo()
    monkeypatch.setattr(calibrate, "_stream", lambda tokenizer, texts: np.zeros(100, dtype=np.int32))
    assert default(model, "short") == ("focus", False)
    assert any(line.startswith("warning: not calibrated: calibrate needs at least 256 tokens") for line in told)
    with pytest.raises(ConfigError, match="--option dim: options are of one method: name it with --method"):
        swap.choice(DEFAULT, ["dim=3"], 1, 1, [], None)


def test_what_cannot_be_calibrated(tmp_path):
    target = world().folder / "target"
    model = make_model(tmp_path / "model")
    with pytest.raises(ConfigError, match="calibrate counts tokens in text in the target language: name files with --corpus"):
        swap.run(model, target, tmp_path / "out", choice(corpus=""), Reporter())
    assert not (tmp_path / "out").exists()
    (tmp_path / "short.txt").write_text("Kurz.\n")
    with pytest.raises(DataError, match="calibrate needs at least 256 tokens of text in the target language, and there are"):
        swap.run(model, target, tmp_path / "short", choice(corpus=str(tmp_path / "short.txt")), Reporter())


def test_bent_logits_are_refused(tmp_path):
    from megatron_adapt.steps.calibrate import _same_logits, check

    logits = torch.randn(4, 9)
    _same_logits(tmp_path, logits, logits * (1 + 1e-6))
    with pytest.raises(ConfigError, match="its logits are not its output matrix times the last hidden state"):
        _same_logits(tmp_path, logits.tanh(), logits)
    model = make_model(tmp_path / "model")
    check(model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"architectures": ["Gemma2ForCausalLM"], "final_logit_softcapping": 30.0}))
    with pytest.raises(ConfigError, match="final_logit_softcapping bends the logits, which calibrate does not know: leave calibrate out"):
        check(model)


def test_swap_calibrates_a_tied_matrix(tmp_path):
    """One matrix changes, by rows nearer to their mean and one direction, and the tokens are likelier through the whole model."""
    model, target = make_model(tmp_path / "tied", tied=True, dtype="float32"), world().folder / "target"
    stored = tensors(model)
    save_file(stored | {EMBEDDING: stored[EMBEDDING] + 0.1}, model / "model.safetensors")  # rows, and so states, agree somewhere
    swap.run(model, target, tmp_path / "plain", choice(False), Reporter())
    found = swap.run(model, target, tmp_path / "new", choice(), Reporter())["calibration"]
    before, after = tensors(tmp_path / "plain"), tensors(tmp_path / "new")
    assert set(before) == set(after) and [name for name in before if not before[name].equal(after[name])] == [EMBEDDING]
    change = after[EMBEDDING] - found["alpha"] * before[EMBEDDING]
    values = torch.linalg.svdvals(change)
    assert values[2] < 1e-4 * values[0]  # the mean is in all rows, the biases are along one direction
    assert found["nats_after"] < found["nats_before"] - 0.5 and found["tokens_counted"] > found["positions"] > 0


def tied(rows: torch.Tensor, ids: torch.Tensor, length: int = 41):
    """``tied_calibration.calibrated`` on a model whose hidden states are the rows read, and something that all share."""
    common = torch.linspace(-2, 3, rows.shape[1])
    windows = ids[: len(ids) // length * length].view(-1, length)
    return tied_calibration.calibrated(rows, windows, lambda matrix, window: matrix[window] + common, ids.numpy())


def test_tied_rows_become_as_likely_as_they_are_frequent():
    """Where states tell nothing of the next token, what is left to gain is how often each comes; and common tokens move least."""
    weights = 1 / np.arange(1, 61) ** 1.2
    weights /= weights.sum()
    ids = torch.from_numpy(np.random.default_rng(1).choice(60, 8000, p=weights))
    rows = torch.randn(61, 12, generator=torch.Generator().manual_seed(1))  # the last never comes
    new, report = tied(rows, ids)
    entropy = -(weights * np.log(weights)).sum()
    assert report["alpha"] == 0.25 and report["nats_before"] > entropy + 1 and report["nats_after"] < entropy + 0.1
    shares = torch.from_numpy(np.append(weights, 0)).float()
    moved = new - rows.mean(0) - 0.25 * (rows - rows.mean(0))
    assert float((shares @ moved).norm()) < 0.1 * float(moved[-1].norm())  # nothing is added to all


def test_tied_rows_that_are_right_stay():
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(30, 12, generator=generator)
    rows = rows - rows @ torch.linspace(-2, 3, 12)[:, None] * torch.linspace(-2, 3, 12) / torch.linspace(-2, 3, 12).square().sum()
    odds = (rows @ rows.T).softmax(-1)
    walk = [0]
    for draw in torch.rand(8000, generator=generator):
        walk.append(min(29, int(torch.searchsorted(odds[walk[-1]].cumsum(0), draw))))
    new, report = tied(rows, torch.tensor(walk))
    assert report["alpha"] in (None, 1.0) and report["nats_before"] - 0.02 < report["nats_after"] <= report["nats_before"]
