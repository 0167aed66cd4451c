"""perplexity: documents that a KenLM n-gram model finds too odd, or too ordinary.

As CCNet (Wenzek et al. 2020) does: each line by itself, in the model's normalisation, cut into the pieces of its sentencepiece
model; perplexity = 10^(-sum of log10 probabilities / number of pieces and line ends). Lines are never glued, and the text that is
kept is the text that came. ``normalize=none`` is for models of raw text; without ``pieces`` words lie between white space.

Percentiles are exact, over all documents that reach this filter: "Scaling Data-Constrained Language Models" kept those up to
the 25th or the 50th, or between the 25th and the 75th. Bounds are kept.
"""

from __future__ import annotations

import importlib.util
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from megatron_adapt.data.parts import digest_of
from megatron_adapt.data.pool import Pool
from megatron_adapt.data.texts import Outcome, Texts
from megatron_adapt.errors import ConfigError, DataError
from megatron_adapt.options import option

_TASK_BYTES = 1 << 20
_NEEDS = "needs the library kenlm: pip install 'megatron_adapt[filter]'"
_PUNCTUATION = {
    "，": ",", "。": ".", "、": ",", "„": '"', "”": '"', "“": '"', "«": '"', "»": '"', "」": '"', "「": '"', "《": '"', "》": '"',
    "´": "'", "∶": ":", "：": ":", "？": "?", "！": "!", "（": "(", "）": ")", "；": ";", "–": "-", "—": " - ", "．": ". ", "～": "~",
    "’": "'", "…": "...", "━": "-", "〈": "<", "〉": ">", "【": "[", "】": "]", "％": "%", "►": "-",
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    model: Path = option(..., "KenLM's model, .arpa or .bin")
    pieces: Path | None = option(None, "sentencepiece .model whose pieces it counts")
    normalize: str = option("ccnet", "ccnet: lower case, no accents, digits as 0; none: as it is", choices=("ccnet", "none"))
    from_percentile: float = option(0.0, "keep documents from this percentile of perplexity", low=0, high=100)
    to_percentile: float = option(100.0, "up to this one", low=0, high=100)
    min: float = option(0.0, "keep perplexities from this on", low=0)
    max: float | None = option(None, "up to this", low=0)


def check(options: Options) -> None:
    """ConfigError for files that do not exist, for ranges that nothing is in and where nothing is asked for."""
    problems = [
        f"the {name} {file} does not exist"
        for name, file in (("model", options.model), ("pieces", options.pieces))
        if file is not None and not file.is_file()
    ]
    if options.from_percentile >= options.to_percentile:
        problems.append(f"from_percentile {options.from_percentile:g} is not below to_percentile {options.to_percentile:g}")
    if options.max is not None and options.min > options.max:
        problems.append(f"min {options.min:g} is above max {options.max:g}")
    if options.from_percentile == 0 and options.to_percentile == 100 and options.min == 0 and options.max is None:
        problems.append("nothing would be dropped: give from_percentile, to_percentile, min or max")
    if problems:
        raise ConfigError("\n".join(f"filter perplexity: {problem}" for problem in problems))


def missing() -> str | None:
    """What has to be installed first, without loading it."""
    return None if importlib.util.find_spec("kenlm") else f"perplexity {_NEEDS}"


def run(texts: Texts, options: Options, threads: int) -> Outcome:
    scorer = Scorer(texts, options)
    scores = _scores(texts, scorer, threads)
    has_score = np.isfinite(scores)
    bounds = [options.min, np.inf if options.max is None else options.max]
    if has_score.any():
        low, high = np.percentile(scores[has_score], [options.from_percentile, options.to_percentile])
        bounds = [max(bounds[0], float(low)), min(bounds[1], float(high))]
    reasons = np.full(len(texts), -1, np.int16)
    reasons[scores < bounds[0]] = 0
    reasons[scores > bounds[1]] = 1
    reasons[~has_score] = 2
    shares = (5, 25, 50, 75, 95)
    facts = {
        "kept_from": bounds[0], "kept_to": bounds[1] if np.isfinite(bounds[1]) else None,
        "percentiles": dict(zip(map(str, shares), np.percentile(scores[has_score], shares).tolist())) if has_score.any() else {},
        "model_sha256": digest_of(options.model), "kenlm": version("kenlm"), "unicode": unicodedata.unidata_version,
    }  # fmt: skip
    if options.pieces is not None:
        facts |= {"pieces_sha256": digest_of(options.pieces), "sentencepiece": version("sentencepiece")}
    return Outcome(("perplexity too low", "perplexity too high", "nothing to score"), reasons, values=scores, facts=facts)


class Scorer:
    """Perplexities by a model that is loaded once, and shared by the processes that are forked from this one.

    Raises:
        ConfigError: KenLM is not installed. DataError: a model cannot be read.
    """

    def __init__(self, texts: Texts, options: Options) -> None:
        try:
            import kenlm
        except ImportError:
            raise ConfigError(f"filter perplexity {_NEEDS}") from None
        self.texts = texts
        self.normalize: Callable[[str], str] = ccnet if options.normalize == "ccnet" else str.strip
        try:
            self.model = kenlm.Model(str(options.model))
        except (OSError, RuntimeError) as error:
            raise DataError(f"KenLM cannot read {options.model}: {' '.join(str(error).split())}") from error
        self.pieces: Any = None
        if options.pieces is not None:
            import sentencepiece

            try:
                self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(options.pieces))
            except (OSError, RuntimeError) as error:
                raise DataError(f"sentencepiece cannot read {options.pieces}: {' '.join(str(error).split())}") from error

    def score(self, begin: int, end: int) -> tuple[int, np.ndarray]:
        """The perplexities of documents [begin, end), NaN without text; and ``begin``."""
        return begin, np.array([self.perplexity(self.texts[number]) for number in range(begin, end)], np.float64)

    def perplexity(self, text: str) -> float:
        lines = [line for line in map(self.normalize, text.split("\n")) if line]
        cut = [line.split() for line in lines] if self.pieces is None else self.pieces.encode(lines, out_type=str)
        cut = [pieces for pieces in cut if pieces]
        count = sum(len(pieces) + 1 for pieces in cut)
        if not count:
            return np.nan
        return 10.0 ** (-sum(self.model.score(" ".join(pieces)) for pieces in cut) / count)


def ccnet(line: str) -> str:
    """A line as in the corpora that CCNet's models count: lower case, without accents, digits as 0, plain punctuation."""
    line = line.strip().lower()
    if not line.isascii():
        line = unicodedata.normalize("NFD", line)
    return line.translate(_table())


@lru_cache(maxsize=1)
def _table() -> dict[int, str | None]:
    table: dict[int, str | None] = {}
    for point in range(0x110000):
        kind = unicodedata.category(chr(point))
        if kind == "Mn":
            table[point] = None
        elif kind == "Nd":
            table[point] = "0"
        elif kind == "Cc":
            table[point] = " " if chr(point).isspace() else None  # CCNet glues what a tab is between
    return table | {ord(mark): plain for mark, plain in _PUNCTUATION.items()}


def _scores(texts: Texts, scorer: Scorer, workers: int) -> np.ndarray:
    tasks, begin, size = [], 0, 0
    for number, length in enumerate((texts.ends - texts.begins).tolist()):
        size += length
        if size >= _TASK_BYTES or number + 1 == len(texts):
            tasks.append((begin, number + 1))
            begin, size = number + 1, 0
    scores = np.empty(len(texts))
    if min(workers, len(tasks)) <= 1:
        for task in tasks:
            scores[task[0] : task[1]] = scorer.score(*task)[1]
        return scores
    _table()  # once, not in every process
    remaining = iter(tasks)
    with Pool() as pool:
        for _ in range(min(workers, len(tasks))):
            pool.ask(pool.fork(lambda send: scorer), "score", *next(remaining))
        done = 0
        while done < len(tasks):
            for worker, _, (first, values) in pool.receive():
                scores[first : first + len(values)] = values
                done += 1
                task = next(remaining, None)
                if task is not None:
                    pool.ask(worker, "score", *task)
        pool.stop()
    return scores
