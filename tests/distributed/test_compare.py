"""A comparison of vocabulary methods from end to end: ranked, drawn, the best kept, and continued where it was killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
from worlds import World, on_ranks, sentences, write_jsonl

from megatron_adapt import launch
from megatron_adapt.config import Corpus, Probe
from megatron_adapt.errors import ConfigError
from megatron_adapt.hf.weights import WeightReader
from megatron_adapt.steps import compare, swap
from megatron_adapt.steps.reporter import Reporter
from megatron_adapt.vocab.train import train_tokenizer


class Case(NamedTuple):
    """A model, another tokenizer, and text in its language."""

    model: Path
    target: Path
    corpus: Path

    def contest(self, *names: str, steps: int = 3, **changes) -> compare.Contest:
        corpora = [Corpus.model_construct(path=[str(self.corpus)], text_key="text")]
        return compare.Contest(corpora, **({"probe": Probe(methods=list(names), steps=steps, max_bytes=2000), "seed": 3} | changes))


@pytest.fixture(scope="module")
def case(world: World, tmp_path_factory) -> Case:
    folder, texts = tmp_path_factory.mktemp("contest"), sentences(11, 160)
    launch.fork(1, lambda: train_tokenizer(texts, 340, folder / "target") and None, threads=1)
    return Case(world.model("untied"), folder / "target", write_jsonl(folder / "other.jsonl", texts))


def tensors(path: Path) -> dict:
    with WeightReader(path) as reader:
        return {name: reader.get(name).clone() for name in reader.names()}


def fail_after(number: int) -> None:
    """Be killed, as it were, when so many models have been measured."""
    measure, done = compare._measure, []

    def counting(*given):
        if len(done) == number:
            raise KeyboardInterrupt
        done.append(given)
        return measure(*given)

    compare._measure = counting


def test_the_best_is_kept(case, tmp_path):
    given = case.contest("random", "mean", "subwords+calibrate", "clp", "omp", options={"clp": {"helper": case.model}})

    def work():
        lines: list[str] = []
        reporter = Reporter()
        reporter.log = lines.append
        report = compare.run(case.model, case.target, tmp_path / "out", given, reporter, "best")
        choice = swap.Choice("subwords", {}, 3, 1, given.corpora, True)
        swap.run(case.model, case.target, tmp_path / "direct", choice, Reporter(), lambda: compare._material(given))
        return report, lines

    ((report, lines),) = on_ranks(1, work)
    assert report["method"] == "subwords+calibrate"
    results = json.loads((tmp_path / "out" / compare.RESULTS).read_text())
    assert results == report["comparison"] and [entry["method"] for entry in results["ranking"]][0] == "subwords+calibrate"
    bits = [entry["bits_per_byte"] for entry in results["ranking"]]
    assert all(list(one) == ["0", "3"] and one["3"] < one["0"] for one in bits) and len(bits) == 3
    assert sorted(one["3"] for one in bits) == [one["3"] for one in bits]
    # of methods named that cannot run, the reason: a helper with another tokenizer, none at all
    assert "the helper must have the target's tokenizer" in results["not_run"]["clp"]
    assert "option helper: missing" in results["not_run"]["omp"]
    assert any(line.startswith("not run: clp: ") for line in lines) and lines[-1] == "best: subwords+calibrate"
    assert any(line.split()[:3] == ["method", "at", "once"] for line in lines)
    assert (tmp_path / "out" / compare.PICTURE).read_bytes()[:4] == b"\x89PNG"
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["best", compare.RESULTS, compare.PICTURE]
    kept, direct = tensors(tmp_path / "out" / "best"), tensors(tmp_path / "direct")
    assert all(kept[name].equal(direct[name]) for name in direct) and len(kept) == len(direct)


def test_a_killed_comparison_continues(case, tmp_path):
    given, workplace = case.contest("random", "mean", steps=0), tmp_path / "out"

    def killed():
        fail_after(2)  # the old vocabulary and one method
        try:
            compare.run(case.model, case.target, workplace, given, Reporter())
        except KeyboardInterrupt:
            return sorted(json.loads((workplace / compare.PARTS).read_text())["found"])

    def continued():
        fail_after(1)
        return compare.run(case.model, case.target, workplace, given, Reporter())["comparison"]

    def another():
        fail_after(0)  # of another contest nothing counts
        with pytest.raises(KeyboardInterrupt):
            compare.run(case.model, case.target, workplace, case.contest("random", "mean", steps=0, seed=4), Reporter())
        return sorted(file.name for file in workplace.iterdir())

    assert on_ranks(1, killed) == [["old vocabulary", "random"]]
    ((results),) = on_ranks(1, continued)
    assert [list(entry["bits_per_byte"]) for entry in results["ranking"]] == [["0"], ["0"]]
    whole = on_ranks(1, lambda: compare.run(case.model, case.target, tmp_path / "whole", given, Reporter())["comparison"])
    assert whole == [results]
    assert sorted(file.name for file in (tmp_path / "whole").iterdir() if file.suffix in (".json", ".png")) == [
        compare.RESULTS, compare.PICTURE, "config.json", "tokenizer.json", "tokenizer_config.json"
    ]  # fmt: skip
    assert on_ranks(1, another) == [[]]


def test_no_method_can_run(case, tmp_path):
    def work():
        with pytest.raises(ConfigError, match="no vocabulary method can run here:\nomp: .*option helper: missing"):
            compare.run(case.model, case.target, tmp_path / "out", case.contest("omp"), Reporter())

    on_ranks(1, work)
