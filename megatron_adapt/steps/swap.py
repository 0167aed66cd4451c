"""A model's vocabulary exchanged: Hugging Face directory and tokenizer -> Hugging Face directory, no Megatron."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping, Sequence

from megatron_adapt import options
from megatron_adapt.config import DEFAULT, Corpus
from megatron_adapt.errors import ConfigError, DataError
from megatron_adapt.steps.reporter import Reporter
from megatron_adapt.vocab import methods, surgery
from megatron_adapt.vocab.derived import derivation

SAMPLE = 100_000  # characters
WITH_TEXT, WITHOUT_TEXT = "focus", "subwords"  # the methods behind DEFAULT


@dataclass(frozen=True)
class Choice:
    """How the new rows start.

    Attributes:
        options: of the method. seed: of everything that is random.
        pad_to_multiple: the matrices get a multiple of this many rows.
        corpora: text in the target language, for methods that read some; held-out documents are left out.
        calibrate: the output matrix is made to expect every token where and as often as that text has it; None: with method DEFAULT,
            where there is text and the model can be.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 1234
    pad_to_multiple: int = 1
    corpora: Sequence[Corpus] = ()
    calibrate: bool | None = None


def choice(
    method: str, words: Iterable[str], seed: int, pad_to_multiple: int, corpora: Sequence[Corpus], calibrate: bool | None
) -> Choice:
    """From a command line: options as ``key=value``. Raises ``ConfigError`` for what the method lacks."""
    given = options.from_words(words)
    if method != DEFAULT:
        methods.read_options(method, given)
    elif given:
        raise ConfigError(f"--option {next(iter(given))}: options are of one method: name it with --method.")
    return Choice(method, given, seed, pad_to_multiple, list(corpora), calibrate)


def reads_text(choice: Choice) -> bool:
    """Whether text in the target language would be read."""
    return choice.method == DEFAULT or bool(choice.calibrate) or methods.reads_text(choice.method, methods.read_options(choice.method, choice.options))


def run(
    source: Path, tokenizer: Path, output: Path, choice: Choice, reporter: Reporter, texts: Callable[[], Iterable[str]] | None = None
) -> dict[str, Any]:
    """``texts`` opens the text to read; without it, the training documents of the choice's corpora are read."""
    from megatron_adapt.steps import calibrate
    from megatron_adapt.steps.tokenizer import telling, training_texts

    if choice.calibrate:
        if not choice.corpora:
            raise ConfigError(
                "calibrate counts tokens in text in the target language: name files with --corpus, or corpora of the recipe under "
                "vocabulary.corpora."
            )
        calibrate.check(source)
    tell = telling(reporter.log)
    documents = texts or (lambda: training_texts(choice.corpora, on_skip=tell))
    method, calibrating = choice.method, bool(choice.calibrate)
    if method == DEFAULT:
        method, calibrating = _default(source, tokenizer, choice, reporter)
    chosen = methods.read_options(method, choice.options)
    reads = bool(choice.corpora) and methods.reads_text(method, chosen)
    report = surgery.swap(
        source, tokenizer, output, method, choice.seed, choice.pad_to_multiple, choice.options, documents if reads else None
    )
    reporter.log(
        f"{report['target_vocab_size']:,} tokens in {report['target_rows']:,} rows: {report['overlap']['total']:,} are in the old "
        f"vocabulary, {report['copied']:,} rows copied, {report['composed']:,} composed, {report['drawn']:,} drawn"
    )
    if calibrating:
        try:
            report["calibration"] = calibrate.run(output, documents(), choice.seed, reporter)
        except DataError as error:
            if choice.calibrate:
                raise
            report["warnings"].append(f"not calibrated: {error}")
    if (reads or calibrating) and (warning := _wrong_language(documents(), source, output)):
        report["warnings"].append(warning)
    for warning in report["warnings"]:
        reporter.log(f"warning: {warning}")
    return report


def _default(source: Path, tokenizer: Path, choice: Choice, reporter: Reporter) -> tuple[str, bool]:
    """The method of ``DEFAULT`` and whether it is calibrated, as ``benchmarks/README.md`` has found best."""
    from megatron_adapt.hf.tokenizer import Tokenizer
    from megatron_adapt.steps import calibrate

    if derivation(tokenizer, Tokenizer.load(source)) is not None:
        reporter.log("method subwords: the model's own vocabulary, of which old rows stay and new tokens are made of")
        return WITHOUT_TEXT, bool(choice.calibrate)
    if not choice.corpora:
        reporter.log("method subwords, not calibrated: text in the target language (--corpus, vocabulary.corpora) would make it a better one")
        return WITHOUT_TEXT, False
    if choice.calibrate is None and (why := calibrate.obstacle(source) or calibrate.costly(source)):
        reporter.log(f"method {WITH_TEXT}, not calibrated: {why}")
        return WITH_TEXT, False
    calibrating = choice.calibrate is not False
    reporter.log(f"method {WITH_TEXT}, {'calibrated' if calibrating else 'not calibrated'}")
    return WITH_TEXT, calibrating


def _wrong_language(texts: Iterable[str], source: Path, target: Path) -> str | None:
    """A warning where the old tokenizer, of no larger vocabulary, cuts a text into fewer tokens than the new one."""
    from megatron_adapt.hf.tokenizer import Tokenizer

    old, new = Tokenizer.load(source), Tokenizer.load(target)
    sample: list[str] = []
    for text in texts:
        sample.append(text[:SAMPLE])
        if sum(map(len, sample)) >= SAMPLE:
            break
    counts = [sum(map(len, tokenizer.encode(sample))) for tokenizer in (old, new)]
    if old.vocab_size > new.vocab_size or counts[0] >= counts[1]:
        return None
    return (
        f"the old tokenizer cuts the text into fewer tokens ({counts[0]:,}) than the new one ({counts[1]:,}): is it in the target "
        f"language?"
    )
