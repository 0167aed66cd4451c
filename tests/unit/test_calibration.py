"""The output matrix fitted to how often tokens come: the fit itself, and as a part of `swap`."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from method_cases import CORPUS, world
from test_surgery import HEAD, make_model, tensors

from megatron_adapt.config import Corpus
from megatron_adapt.errors import ConfigError, DataError
from megatron_adapt.steps import swap
from megatron_adapt.steps.reporter import Reporter
from megatron_adapt.vocab.calibration import _Fit, _Recipe, calibrated, constant_direction


def states(number: int = 3000, width: int = 12) -> torch.Tensor:
    """Hidden states as models have them: much in common, and something of their own."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(number, width, generator=generator) * 0.5 + torch.linspace(-2, 3, width)


def test_one_direction_is_the_same_for_all_states():
    along = states() @ constant_direction(states())
    assert abs(float(along.mean()) - 1) < 1e-4 and float(along.std()) < 0.2


def test_tokens_become_as_likely_as_they_are_frequent():
    generator = torch.Generator().manual_seed(1)
    hidden, rows = states(), torch.randn(40, 12, generator=generator)
    counts = np.arange(40) ** 2
    shares = (counts + 0.5) / (counts + 0.5).sum()
    following = torch.from_numpy(np.random.default_rng(0).choice(40, len(hidden), p=shares))
    new, report = calibrated(rows, hidden, following, counts)
    mean = (hidden @ new.T).softmax(-1).mean(0).numpy()
    assert np.abs(mean - shares).max() < 0.002
    entropy = -(shares * np.log(shares)).sum()
    # the rows know nothing of these tokens, and that is found out
    assert report["alpha"] == 0 and report["nats_before"] > entropy + 1 and report["nats_after"] < entropy + 0.05


def test_rows_that_know_something_are_kept():
    hidden = states()
    rows = 0.3 * torch.randn(40, 12, generator=torch.Generator().manual_seed(2))
    logits = hidden @ rows.T + torch.linspace(-3, 3, 40)
    following = torch.multinomial(logits.softmax(-1), 1, generator=torch.Generator().manual_seed(3)).flatten()
    new, report = calibrated(rows, hidden, following, np.bincount(following.numpy(), minlength=40))
    true = -float(logits.log_softmax(-1).gather(-1, following[:, None]).mean())
    assert report["alpha"] >= 0.75 and report["nats_after"] < true + 0.1 < report["nats_before"] - 0.1
    assert calibrated(rows, hidden, following, np.ones(40))[0].shape == rows.shape


def test_states_before_a_token_tell_when_it_comes():
    """Normal states around a mean of each token: the fit comes near the exact posterior, and what was not seen keeps its row."""
    generator = torch.Generator().manual_seed(4)
    means = torch.randn(20, 12, generator=generator) + torch.linspace(-2, 3, 12)
    following = torch.randint(20, (6000,), generator=generator)
    hidden = means[following] + 0.7 * torch.randn(6000, 12, generator=generator)
    counts = np.append(np.bincount(following.numpy()), 1)
    rows = torch.randn(21, 12, generator=generator)
    new, report = calibrated(rows, hidden, following, counts)
    exact = -((hidden[:, None] - means) ** 2).sum(-1) / (2 * 0.7**2)
    best = -float(exact.log_softmax(-1).gather(-1, following[:, None]).mean())
    assert report["weight"] in (1.0, 3.0, 10.0) and report["ridge"] == 1.0
    assert report["nats_after"] < 0.5 * (best + math.log(20)) < report["nats_before"]
    fit = _Fit(rows, hidden, following, torch.full((21,), 1 / 21))
    recipe = _Recipe(0.5, 1.0, 3.0)
    seen = fit.occurrences[:, 0]
    smooth = fit.covariance + fit.covariance.diagonal().mean() * torch.eye(12)
    centred = 0.5 * (rows - rows.mean(0))
    found = fit.matrix(recipe, hidden[:2000])
    for token in (0, 7, 20):
        discriminant = torch.linalg.solve(smooth, hidden[following == token].sum(0) - seen[token] * hidden.mean(0))
        expected = (3 * centred[token] + discriminant) / (seen[token] + 3)
        along = (found[token] - expected) / fit.direction  # what is left is a bias along one direction
        assert float(along.std()) < 1e-2 * (1 + float(along.abs().mean()))
    assert seen[20] == 0


def choice(calibrate: bool = True, corpus: str = str(CORPUS / "de.jsonl")) -> swap.Choice:
    corpora = [Corpus.model_construct(path=[corpus], text_key="text", max_documents=150)] if corpus else []
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


def test_what_cannot_be_calibrated(tmp_path):
    target = world().folder / "target"
    tied = make_model(tmp_path / "tied", tied=True)
    with pytest.raises(ConfigError, match="input and output embedding are one matrix .* leave calibrate out"):
        swap.run(tied, target, tmp_path / "out", choice(), Reporter())
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
    with pytest.raises(ConfigError, match="final_logit_softcapping bends the logits, which calibrate does not know"):
        check(model)
