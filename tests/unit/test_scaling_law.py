"""Laws of the loss: published values, limits, monotony, what follows from them, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from megatron_adapt.analysis import allocation, scaling_law
from megatron_adapt.analysis.scaling_law import FORMS, PUBLISHED, Law
from megatron_adapt.errors import ConfigError

C4, MASSIVE, PENALTY = (PUBLISHED[name] for name in ("c4", "massivetext", "c4-penalty"))
LAWS = [*PUBLISHED.values(), replace(C4, form=FORMS["repeated-data"], constants={k: v for k, v in C4.constants.items() if k != "rn_star"})]
SIZES = st.floats(math.log(1e6), math.log(1e12)).map(math.exp)


@pytest.mark.parametrize(
    ("n", "d", "u", "loss"), [(6.34e9, 242e9, 25e9, 2.2256440890), (8.67e9, 178e9, 25e9, 2.2269634075)]
)
def test_losses_of_the_published_code(n: float, d: float, u: float, loss: float) -> None:
    assert C4.loss(n, d, u) == pytest.approx(loss, abs=1e-9)


def test_chinchilla_of_massivetext() -> None:
    assert [MASSIVE.constants[name] for name in "EAB"] == pytest.approx([1.69, 406.4, 410.7], rel=2e-3)
    assert MASSIVE.loss(70e9, 1.4e12) == pytest.approx(1.69 + 406.4 / 70e9**0.34 + 410.7 / 1.4e12**0.28, rel=2e-4)


def test_the_worth_of_epochs() -> None:
    table = {2: 1.97, 3: 2.88, 4: 3.73, 5: 4.52, 7: 5.97, 10: 7.81, 14: 9.78, 20: 11.9, 40: 15.2, 44: 15.4}
    for worth in allocation.worths(C4, 1e9, list(table)):
        assert worth.effective / 1e9 == pytest.approx(table[int(worth.epochs)], rel=5e-3)
        assert worth.next_token == pytest.approx(math.exp(-(worth.epochs - 1) / 15.387756))
    assert C4.effective_tokens(1e15, 1e9) / 1e9 == pytest.approx(16.387756)  # at most
    assert C4.next_token(16.387756e9, 1e9) == pytest.approx(1 / math.e)
    assert C4.next_token(1e9 * (1 + allocation.half_life(C4)), 1e9) == pytest.approx(0.5)


def test_four_epochs_are_nearly_as_good_as_new_data() -> None:
    """The paper's: 8.7 billion parameters, 178 billion tokens; losses by the law, not the measured ones."""
    assert C4.loss(8.67e9, 178e9, 178e9 / 4) / C4.loss(8.67e9, 178e9) < 1.01
    assert C4.loss(8.67e9, 178e9, 178e9 / 44) / C4.loss(8.67e9, 178e9) > 1.05


def test_the_best_parameters_for_tokens() -> None:
    assert C4.best_parameters(19.61e9) == pytest.approx(1e9, rel=1e-3)  # 1 / G^2 tokens for each
    n = C4.best_parameters(1e9)
    assert C4.effective_parameters(n / 2, 1e9) == n / 2 and MASSIVE.effective_parameters(1e12, 1e9) == 1e12
    assert C4.effective_parameters(6.309743 * n, 1e9) == pytest.approx(n * (1 + 5.309743 * (1 - 1 / math.e)))
    assert C4.loss(1e6 * n, 1e9) == pytest.approx(replace(C4, form=FORMS["repeated-data"]).loss(6.309743 * n, 1e9))  # at most so many


# ------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.form.name)
def test_without_repeats_every_form_is_chinchillas(law: Law) -> None:
    c, d = law.constants, 20e9
    n = law.best_parameters(d)
    assert law.loss(n, d) == pytest.approx(c["E"] + c["A"] / n ** c["alpha"] + c["B"] / d ** c["beta"], rel=1e-12)
    assert law.loss(n, d, 3 * d) == law.loss(n, d)  # more than are read make no difference
    assert law.effective_tokens(d, 3 * d) == pytest.approx(d)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.form.name)
def test_arrays_and_numbers_agree(law: Law) -> None:
    n, d = np.array([1e8, 1e9])[:, None], np.array([1e9, 5e9, 2e10])
    losses = law.loss(n, d, 1e9)
    assert losses.shape == (2, 3)
    assert losses[1, 2] == pytest.approx(law.loss(1e9, 2e10, 1e9), rel=1e-14)


def test_the_gradient_is_that_of_differences() -> None:
    import torch

    for law in LAWS:
        names = list(law.constants)
        values = torch.tensor([law.constants[name] for name in names], dtype=torch.float64, requires_grad=True)
        runs = [torch.tensor(v, dtype=torch.float64) for v in ([1e8, 1e9, 1e10], [1e9, 4e9, 6e10], [1e9, 1e9, 1e9])]
        loss = law.form.log_loss(torch, dict(zip(names, values)), *runs).sum()
        (gradient,) = torch.autograd.grad(loss, values)
        for i, name in enumerate(names):
            ends = []
            for sign in (1, -1):
                changed = {**law.constants, name: law.constants[name] * (1 + sign * 1e-5)}
                ends.append(float(np.sum(law.form.log_loss(np, changed, *(run.numpy() for run in runs)))))
            assert gradient[i].item() == pytest.approx((ends[0] - ends[1]) / (2e-5 * law.constants[name]), rel=1e-4), name


@settings(max_examples=60, deadline=None)
@given(n=SIZES, d=SIZES, u=SIZES, factor=st.floats(1.01, 10))
def test_more_data_never_hurts_where_repeats_decay(n: float, d: float, u: float, factor: float) -> None:
    for law in (C4, LAWS[-1]):
        here = law.loss(n, d, u)
        assert law.loss(n, d * factor, u) <= here * (1 + 1e-12)
        assert law.loss(n, d, u * factor) <= here * (1 + 1e-12)
        assert law.loss(n * factor, d, u) <= here * (1 + 1e-12)
        assert here > law.constants["E"]
        used = min(u, d)
        assert used * (1 - 1e-12) <= law.effective_tokens(d, u) <= min(d, used * (1 + law.constants["rd_star"])) * (1 + 1e-12)


@settings(max_examples=40, deadline=None)
@given(n=SIZES, d=SIZES, u=SIZES)
def test_effective_tokens_of_the_penalty_form_teach_as_much(n: float, d: float, u: float) -> None:
    assert PENALTY.loss(n, PENALTY.effective_tokens(d, u, n)) == pytest.approx(PENALTY.loss(n, d, u), rel=1e-9)


def test_the_penalty_form_knows_harm() -> None:
    assert PENALTY.loss(2.8e9, 36e9, 1e8) > PENALTY.loss(2.8e9, 3e9, 1e8)
    assert PENALTY.next_token(36e9, 1e8, 2.8e9) < 0 < PENALTY.next_token(2e8, 1e8, 1e7)
    assert PENALTY.next_token(1e8, 1e8, 1e7) is None


# ----------------------------------------------------------------------------------------------------- what follows


def test_the_published_allocation() -> None:
    best = allocation.optimum(C4, 1e22, 25e9)
    assert (best.parameters, best.tokens) == (pytest.approx(7.026e9, rel=1e-3), pytest.approx(237.21e9, rel=1e-3))
    assert best.epochs == pytest.approx(9.49, rel=1e-3) and best.flops == pytest.approx(1e22)
    extreme = allocation.optimum(C4, 1e24, 25e9)
    assert extreme.epochs == pytest.approx(120, rel=0.01) and extreme.loss == pytest.approx(2.1559, abs=1e-4)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.form.name)
@pytest.mark.parametrize(("flops", "unique"), [(1e20, 1e11), (1e21, 1e9), (3e22, 2e10), (1e19, 5e7), (1e30, 1e6)])
def test_no_other_choice_is_better(law: Law, flops: float, unique: float) -> None:
    best = allocation.optimum(law, flops, unique)
    n = np.geomspace(best.parameters / 1e6, best.parameters * 1e6, 40_001)
    losses = law.loss(n, flops / 6 / n, np.full_like(n, unique))
    assert best.loss <= losses.min() * (1 + 1e-12)
    assert best.loss == pytest.approx(losses.min(), rel=1e-5)


def test_the_closed_form_while_the_data_lasts() -> None:
    for law in LAWS:
        free = allocation.optimum(law, 1e21)
        assert allocation.optimum(law, 1e21, 2 * free.tokens) == free
        n = free.parameters * np.geomspace(0.5, 2, 2001)
        assert free.loss <= replace(law, form=FORMS["chinchilla"]).loss(n, 1e21 / 6 / n).min() * (1 + 1e-12)
    at_the_end = allocation.optimum(C4, 1e21, 0.999999 * allocation.optimum(C4, 1e21).tokens)
    assert at_the_end.loss == pytest.approx(allocation.optimum(C4, 1e21).loss, rel=1e-6)


def test_alternatives_cost_the_same() -> None:
    found = dict(allocation.alternatives(C4, 1e22, 25e9))
    assert list(found) == ["no limit of data", "best", "1 epoch", "2 epochs", "4 epochs"]
    assert all(each.flops == pytest.approx(1e22) for each in found.values())
    assert found["no limit of data"].loss < found["best"].loss < min(found[f"{e}"].loss for e in ("1 epoch", "2 epochs", "4 epochs"))


@pytest.mark.parametrize("law", [C4, PENALTY, LAWS[-1]], ids=lambda law: law.form.name)
def test_unique_tokens_that_are_needed(law: Law) -> None:
    needed = allocation.unique_needed(law, 1e9, 40e9, 0.01)
    assert law.loss(1e9, 40e9, needed) == pytest.approx(1.01 * law.loss(1e9, 40e9), rel=1e-6)
    assert allocation.unique_needed(law, 1e9, 40e9, 0.001) > needed


def test_returns() -> None:
    now = allocation.choice(C4, 1e9, 40e9, 10e9)
    found = dict(allocation.returns(C4, now))
    assert found["twice the unique tokens and tokens"].loss < found["twice the tokens, by repeating"].loss < now.loss
    assert found["twice the unique tokens, as many in all"].epochs == 2


def test_repeats_in_words() -> None:
    assert allocation.repeats(4e9, 1e9) == (
        "4 epochs of 1B tokens; the repeated 3B are worth 2.73B new ones, one more 0.82 (law fitted to pretraining on C4)"
    )


def test_readable() -> None:
    values = {999: "999", 1000: "1K", 1.3e9: "1.3B", 999.6e6: "1B", 2.5e12: "2.5T", 1e22: "1e+22", 0.25: "0.25", 25_400: "25.4K"}
    assert {value: scaling_law.readable(value) for value in values} == values


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("values", [(0, 1e9, 1e9), (1e9, -1, 1e9), (1e9, 1e9, 0), (math.nan, 1e9, 1e9), (1e9, math.inf, 1e9)])
def test_sizes_that_are_none(values: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigError, match="must be above 0"):
        C4.loss(*values)


def test_what_a_law_cannot_say() -> None:
    with pytest.raises(ConfigError, match="repeated tokens count as new"):
        allocation.unique_needed(MASSIVE, 1e9, 1e10, 0.01)
    with pytest.raises(ConfigError, match="give --parameters"):
        PENALTY.effective_tokens(2e9, 1e9)
    with pytest.raises(ConfigError, match="flops must be above 0"):
        allocation.optimum(C4, 0, 1e9)


def test_cautions() -> None:
    inside = C4.cautions(parameters=1e9, tokens=1e10, unique_tokens=1e9, epochs=10)
    assert inside == [f"c4: {C4.caution}"]
    outside = C4.cautions(parameters=1e11, tokens=1e10, unique_tokens=1e6, epochs=1e4)
    assert outside[1].startswith("beyond some 40 epochs")
    assert outside[2] == "parameters 100B: outside of the 7.1M to 8.67B of the runs behind 'c4'"
    assert outside[3].startswith("unique tokens 1M: outside of the 100M to 178B")
    assert len(PENALTY.cautions(epochs=1e4)) == 1  # it knows


def test_names() -> None:
    assert scaling_law.find("c4") is C4
    with pytest.raises(ConfigError, match="no law 'c4-penalti'. Did you mean 'c4-penalty'?"):
        scaling_law.find("c4-penalti")
    with pytest.raises(ConfigError, match="no law 'pile'. Besides FILE.json of law fit there are: c4, massivetext, c4-penalty"):
        scaling_law.find("pile")


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(scaling_law.as_json(C4)))
    assert scaling_law.find(str(file)) == C4
    good = scaling_law.as_json(PENALTY)
    bad = {
        "cannot be read as a law": "{",
        "is no law: 'form'": "[]",
        "the form penalty has the constants E, A, alpha, B, beta, P, delta, kappa": json.dumps({**good, "constants": {"E": 1}}),
        "alpha must be a number above 0, got the number -1": json.dumps({**good, "constants": {**good["constants"], "alpha": -1}}),
        "kappa must be a number, got 'x'": json.dumps({**good, "constants": {**good["constants"], "kappa": "x"}}),
        "'ranges' should be the smallest and the largest": json.dumps({**good, "ranges": {"tokens": [1]}}),
    }
    for words, text in bad.items():
        file.write_text(text)
        with pytest.raises(ConfigError, match=words):
            scaling_law.find(str(file))
    with pytest.raises(ConfigError, match="cannot be read as a law"):
        scaling_law.find(str(tmp_path / "absent.json"))
