"""Every vocabulary method tried on one model and ranked by bits per byte on held-out text; the best becomes the swap.

Behind ``swap --method auto``, ``compare`` and ``vocabulary.method: auto``. The corpora are divided: one document of twenty is
measured on and hidden from all methods, the rest is what they read, calibrate on and, for ``steps`` steps that train the rows
of the vocabulary alone, learn from. One candidate at a time is written and removed again. Results are kept as they come: the same
command continues after the last one that was measured.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator, Mapping, Sequence

import numpy as np

from megatron_adapt import options
from megatron_adapt.analysis.report import columns
from megatron_adapt.config import CALIBRATED, Corpus, Probe
from megatron_adapt.config_types import did_you_mean
from megatron_adapt.data.held_out import divided
from megatron_adapt.data.sources import data_sets, files_of
from megatron_adapt.errors import ConfigError, DataError
from megatron_adapt.steps import calibrate, receipt, swap
from megatron_adapt.steps.reporter import Reporter
from megatron_adapt.steps.tokenizer import telling, training_texts
from megatron_adapt.vocab import methods

if TYPE_CHECKING:
    from megatron_adapt.engine.evaluate import Text
    from megatron_adapt.hf.tokenizer import Tokenizer

RESULTS, PICTURE, PARTS = "comparison.json", "comparison.png", "measured.json"
SHARE = Fraction(1, 20)  # of the documents, measured on
LENGTH = 256  # tokens, of measuring and training
OLD = "old vocabulary"  # the reference line


@dataclass(frozen=True)
class Contest:
    """Who takes part, and what is asked of them.

    Attributes:
        options: of methods, by name. seed: of everything that is random.
        corpora: text in the target language; documents that a recipe holds out are not touched.
        calibrate: whether methods that are not named are calibrated; None: where the model can be.
        probe: which methods (``subwords+calibrate``; none named: all), how many steps, how much text is measured on.
    """

    corpora: Sequence[Corpus]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seed: int = 1234
    pad_to_multiple: int = 1
    calibrate: bool | None = None
    probe: Probe = Probe()


def contest(
    words: Sequence[str], names: Sequence[str], seed: int, pad_to_multiple: int, corpora: Sequence[Corpus], calibrate: bool | None,
    steps: int,
) -> Contest:
    """From a command line: options as ``method.key=value``.

    Raises:
        ConfigError: all that is wrong with them.
    """
    given: dict[str, dict[str, str]] = {}
    problems = [] if corpora else ["methods are compared on text in the target language: name files with --corpus."]
    for key, value in options.from_words(words).items():
        method, separator, name = key.partition(".")
        if separator:
            given.setdefault(method, {})[name] = value
        else:
            problems.append(f"--option {key}={value}: of which method? Several are run: METHOD.{key}={value}.")
    checks = methods.checks()
    for name in [*(name.removesuffix(CALIBRATED) for name in names), *given]:
        if name not in checks:
            problems.append(f"no vocabulary method '{name}'.{did_you_mean(name, checks, 'There are')}")
        elif name in given:
            problems += [f"--option {name}.{key}: {text}" for key, text in checks[name](given[name])]
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return Contest(list(corpora), given, seed, pad_to_multiple, calibrate, Probe(methods=list(names), steps=steps))


def run(source: Path, tokenizer: Path, workplace: Path, contest: Contest, reporter: Reporter, best: str = "") -> dict[str, Any]:
    """Measure all candidates; leave the best one's Hugging Face directory in ``workplace / best``, RESULTS and PICTURE in
    ``workplace``.

    What an earlier run of the same contest on the same files has measured stands in ``workplace`` and is not repeated.

    Raises:
        ConfigError: no method can run here. DataError: no text to measure on. CheckpointError: broken weights.
    """
    from megatron_adapt.analysis.plots import draw_ranking
    from megatron_adapt.hf.tokenizer import Tokenizer

    measured = _Measured(workplace / PARTS, _identity(source, tokenizer, contest))
    names, left_out = candidates(source, contest)
    length = min(LENGTH, _shape(source)[1].max_position_embeddings)
    held_out = _held_out(contest, reporter)
    old = measured.found.get(OLD) or measured.add(OLD, _measure(source, _text(source, held_out, length), None, contest))
    reporter.log(f"{OLD}: {_words(old)}")
    folder = workplace / "candidate"
    text = windows = None
    for number, name in enumerate(names):
        reporter.progress(number, len(names))
        if name in measured.found:
            continue
        try:
            facts = _swap(source, tokenizer, folder, name, contest)
        except ConfigError as error:  # of this method or what it needs: the others can still run
            left_out[name] = str(error)
            continue
        if text is None or windows is None:
            text, windows = _text(folder, held_out, length), _windows(Tokenizer.load(folder), contest, length)
        reporter.log(f"{name}: {_words(measured.add(name, facts | _measure(folder, text, windows, contest)))}")
    shutil.rmtree(folder, ignore_errors=True)
    ranking = rank(measured.found)
    if not ranking:
        raise ConfigError("no vocabulary method can run here:\n" + "\n".join(f"{name}: {why}" for name, why in left_out.items()))
    report = _swap(source, tokenizer, folder, ranking[0], contest)
    if best:
        shutil.rmtree(workplace / best, ignore_errors=True)
        os.replace(folder, workplace / best)
    else:
        for file in folder.iterdir():
            os.replace(file, workplace / file.name)
        folder.rmdir()
    results = {
        "best": ranking[0], "steps": contest.probe.steps, "documents": len(held_out), "bytes": sum(len(t.encode()) for t in held_out),
        "old_vocabulary": old, "ranking": [{"method": name, **measured.found[name]} for name in ranking], "not_run": left_out,
    }  # fmt: skip
    receipt.write_json(workplace / RESULTS, results)
    bars = [(name, list(measured.found[name]["bits_per_byte"].values())) for name in ranking]
    draw_ranking(bars, _marks(contest), (OLD, old["bits_per_byte"]["0"]), workplace / PICTURE)
    for line in table(results):
        reporter.log(line)
    measured.path.unlink()
    return {"method": ranking[0], "comparison": results, "swap": report}


def candidates(source: Path, contest: Contest) -> tuple[list[str], dict[str, str]]:
    """Names of those to try, and of those that lack something, with what.

    Raises:
        ConfigError: calibration was asked for, and the model cannot be calibrated.
    """
    if contest.probe.methods:
        return list(contest.probe.methods), {}
    suffix, left_out = CALIBRATED, {}
    try:
        calibrate.check(source)
    except ConfigError as error:
        if contest.calibrate:
            raise
        suffix, left_out = "", {"calibration": str(error)}
    if contest.calibrate is False:
        suffix, left_out = "", {}
    names = []
    for method, check in methods.checks().items():
        missing = [key for key, _ in check(contest.options.get(method, {}))]
        if missing:
            left_out[method] = f"needs {', '.join(missing)}: give {', '.join(f'{method}.{key}' for key in missing)} as options"
        else:
            names.append(method + suffix)
    return names, left_out


def rank(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of the methods, the best first: by bits per byte after training, then at once, then by name."""
    return sorted(
        (name for name in found if name != OLD), key=lambda name: (*reversed(found[name]["bits_per_byte"].values()), name)
    )


def table(results: Mapping[str, Any]) -> list[str]:
    """Lines for a terminal: the ranking, the old vocabulary, and what was not run."""
    marks = list(results["ranking"][0]["bits_per_byte"])
    header = ["method", *("at once" if mark == "0" else f"after {mark} steps" for mark in marks), "rows copied", "composed", "drawn"]
    rows = []
    for entry in results["ranking"]:
        rows.append([entry["method"], *(f"{value:.3f}" for value in entry["bits_per_byte"].values())])
        rows[-1] += [f"{entry[key]:,}" for key in ("copied", "composed", "drawn")]
    rows.append([OLD, f"{results['old_vocabulary']['bits_per_byte']['0']:.3f}"])
    rows = [row + [""] * (len(header) - len(row)) for row in rows]
    lines = columns(header, rows)
    first = f"bits per byte on {results['documents']} held-out documents ({results['bytes']:,} bytes), lower is better"
    others = [f"not run: {name}: {reason}" for name, reason in results["not_run"].items()]
    warnings = [f"warning: {entry['method']}: {text}" for entry in results["ranking"] for text in entry["warnings"]]
    return [first, *lines, *others, *warnings, f"best: {results['best']}"]


class _Measured:
    """What has been measured so far, in a file; another contest's results do not count, nor do its files stay."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path, self._identity = path, identity
        kept = receipt.read(path.parent, path.name)
        self.found: dict[str, Any] = kept["found"] if kept and kept["identity"] == identity else {}
        if not self.found:
            shutil.rmtree(path.parent, ignore_errors=True)
            path.parent.mkdir(parents=True)

    def add(self, name: str, facts: dict[str, Any]) -> dict[str, Any]:
        self.found[name] = facts
        receipt.write_json(self.path, {"identity": self._identity, "found": self.found})
        return facts


def _identity(source: Path, tokenizer: Path, contest: Contest) -> dict[str, Any]:
    """All that a measurement depends on, as JSON gives it back."""
    inputs = {"model": source, "tokenizer": tokenizer}
    settings: dict[str, Any] = {"seed": contest.seed, "pad_to_multiple": contest.pad_to_multiple, "steps": contest.probe.steps}
    settings["max_bytes"] = contest.probe.max_bytes
    for method, given in contest.options.items():
        chosen = methods.read_options(method, given)
        settings[method] = options.settings(chosen)
        inputs |= {f"{method}.{key}": path for key, path in options.paths(chosen).items()}
    files = [[*map(receipt.digest, files_of(corpus.path)), *data_sets(corpus.path)] for corpus in contest.corpora]
    reading = [corpus.model_dump(include={"text_key", "text_documents", "held_out", "on_error", "max_documents"}) for corpus in contest.corpora]
    return {"settings": settings, "inputs": {key: receipt.digest(path) for key, path in inputs.items()}, "corpora": [files, reading]}


class _Silent(Reporter):
    def log(self, text: str) -> None:
        """What a single swap says is in the results; the comparison has lines of its own."""


def _swap(source: Path, tokenizer: Path, folder: Path, name: str, contest: Contest) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    method = name.removesuffix(CALIBRATED)
    choice = swap.Choice(
        method, contest.options.get(method, {}), contest.seed, contest.pad_to_multiple, contest.corpora, name != method
    )
    report = swap.run(source, tokenizer, folder, choice, _Silent(), lambda: _material(contest))
    return {key: report[key] for key in ("copied", "composed", "drawn", "warnings", "details", "calibration") if key in report}


def _material(contest: Contest) -> Iterator[str]:
    return (text for text, is_held_out in divided(training_texts(contest.corpora), SHARE) if not is_held_out)


def _held_out(contest: Contest, reporter: Reporter) -> list[str]:
    """The front of every held-out document, equally long in bytes, ``max_bytes`` in all (some more where few are short).

    Raises:
        DataError: fewer than two documents.
    """
    documents = training_texts(contest.corpora, on_skip=telling(reporter.log))
    texts = [text for text, is_held_out in divided(documents, SHARE) if is_held_out]
    if not texts:
        raise DataError("methods are compared on documents that they have not seen, and the text has fewer than two: give more.")
    most = max(1, contest.probe.max_bytes // len(texts))
    return [text.encode("utf-8", "replace")[:most].decode("utf-8", "ignore") for text in texts]


def _shape(model: Path) -> tuple[Any, Any]:
    from megatron_adapt.hf.directory import HFDirectory
    from megatron_adapt.vocab.surgery import shape_of

    directory = HFDirectory.open(model)
    return directory, shape_of(directory)


def _text(model: Path, texts: Sequence[str], length: int) -> Text:
    from megatron_adapt.engine import evaluate
    from megatron_adapt.hf.tokenizer import Tokenizer

    return evaluate.tokenize(texts, Tokenizer.load(model), length)


def _windows(tokenizer: Tokenizer, contest: Contest, length: int) -> np.ndarray:
    """Training text, int64 [n, length + 1]: up to four times what the steps take, so that their order is not the corpus's."""
    from megatron_adapt.engine import probe

    wanted = 4 * contest.probe.steps * probe.BATCH * (length + 1)
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    parts: list[np.ndarray] = []
    size = 0
    for text in _material(contest):
        if size >= wanted:
            break
        parts.append(np.concatenate([tokenizer.encode([text])[0], end]).astype(np.int64))
        size += len(parts[-1])
    if wanted and size < length + 1:
        raise DataError(f"training for {contest.probe.steps} steps needs at least {length + 1} tokens of text, and there are {size}.")
    count = size // (length + 1)
    return np.concatenate(parts)[: count * (length + 1)].reshape(count, length + 1) if count else np.zeros((0, length + 1), np.int64)


def _measure(model: Path, text: Text, windows: np.ndarray | None, contest: Contest) -> dict[str, Any]:
    """``bits_per_byte`` at once and, where there is text to train on, after the steps; in one process, in float32."""
    import torch

    from megatron_adapt.engine import backend, convert, evaluate, model as models, probe
    from megatron_adapt.engine.backend import Layout

    directory, shape = _shape(model)
    with backend.session(Layout(), contest.seed):
        built = models.build(shape, Layout(), "fp32")
        convert.load_hf(built, directory, shape)
        bits = {"0": evaluate.bits_per_byte(built, text, Layout())["bits_per_byte"]}
        if windows is not None and contest.probe.steps:
            probe.train(built, torch.from_numpy(windows), contest.probe.steps, contest.seed)
            bits[str(contest.probe.steps)] = evaluate.bits_per_byte(built, text, Layout())["bits_per_byte"]
        del built
        backend.empty_cache()
    return {"bits_per_byte": bits}


def _marks(contest: Contest) -> list[str]:
    return ["at once", *([f"after {contest.probe.steps} steps"] if contest.probe.steps else [])]


def _words(facts: Mapping[str, Any]) -> str:
    first, *later = facts["bits_per_byte"].items()
    return ", ".join([f"{first[1]:.3f} bits per byte", *(f"{value:.3f} after {mark} steps" for mark, value in later)])
