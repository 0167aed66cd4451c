"""A model's vocabulary exchanged: Hugging Face directory and tokenizer -> Hugging Face directory, no Megatron."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping, Sequence

from megatron_adapt.config import Corpus
from megatron_adapt.errors import ConfigError
from megatron_adapt.steps.reporter import Reporter
from megatron_adapt.vocab import methods, options, surgery

SAMPLE = 100_000  # characters


@dataclass(frozen=True)
class Choice:
    """How the new rows start.

    Attributes:
        options: of the method. seed: of everything that is random.
        pad_to_multiple: the matrices get a multiple of this many rows.
        corpora: text in the target language, for methods that read some; held-out documents are left out.
        calibrate: the output matrix is made to expect every token as often as that text has it.
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 1234
    pad_to_multiple: int = 1
    corpora: Sequence[Corpus] = ()
    calibrate: bool = False


def choice(
    method: str, words: Iterable[str], seed: int, pad_to_multiple: int, files: Sequence[str], text_key: str, calibrate: bool
) -> Choice:
    """From a command line: options as ``key=value``, text as files. Raises ``ConfigError`` for what the method lacks."""
    given = options.from_words(words)
    methods.read_options(method, given)
    corpora = [Corpus.model_construct(path=list(files), text_key=text_key)] if files else []
    return Choice(method, given, seed, pad_to_multiple, corpora, calibrate)


def run(
    source: Path, tokenizer: Path, output: Path, choice: Choice, reporter: Reporter, texts: Callable[[], Iterable[str]] | None = None
) -> dict[str, Any]:
    """``texts`` opens the text to read; without it, the training documents of the choice's corpora are read."""
    from megatron_adapt.steps import calibrate
    from megatron_adapt.steps.tokenizer import training_texts

    if choice.calibrate:
        if not choice.corpora:
            raise ConfigError(
                "calibrate counts tokens in text in the target language: name files with --corpus, or corpora of the recipe under "
                "vocabulary.corpora."
            )
        calibrate.check(source)
    documents = texts or (lambda: training_texts(choice.corpora))
    chosen = methods.read_options(choice.method, choice.options)
    reads = bool(choice.corpora) and methods.reads_text(choice.method, chosen)
    report = surgery.swap(
        source, tokenizer, output, choice.method, choice.seed, choice.pad_to_multiple, choice.options, documents if reads else None
    )
    reporter.log(
        f"{report['target_vocab_size']:,} tokens in {report['target_rows']:,} rows: {report['overlap']['total']:,} are in the old "
        f"vocabulary, {report['copied']:,} rows copied, {report['composed']:,} composed, {report['drawn']:,} drawn"
    )
    if choice.calibrate:
        report["calibration"] = calibrate.run(output, documents(), choice.seed, reporter)
    if (reads or choice.calibrate) and (warning := _wrong_language(documents(), source, output)):
        report["warnings"].append(warning)
    for warning in report["warnings"]:
        reporter.log(f"warning: {warning}")
    return report


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
