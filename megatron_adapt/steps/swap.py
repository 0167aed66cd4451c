"""A model's vocabulary exchanged: Hugging Face directory and tokenizer -> Hugging Face directory, no Megatron."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping, Sequence

from megatron_adapt.config import Corpus
from megatron_adapt.errors import ConfigError
from megatron_adapt.steps.reporter import Reporter
from megatron_adapt.vocab import methods, options, surgery


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


def run(source: Path, tokenizer: Path, output: Path, choice: Choice, reporter: Reporter) -> dict[str, Any]:
    from megatron_adapt.steps import calibrate
    from megatron_adapt.steps.tokenizer import training_texts

    def texts() -> Iterator[str]:
        return training_texts(choice.corpora)

    if choice.calibrate:
        if not choice.corpora:
            raise ConfigError(
                "calibrate counts tokens in text in the target language: name files with --corpus, or corpora of the recipe under "
                "vocabulary.corpora."
            )
        calibrate.check(source)
    chosen = methods.read_options(choice.method, choice.options)
    reads = bool(choice.corpora) and methods.reads_text(choice.method, chosen)
    report = surgery.swap(
        source, tokenizer, output, choice.method, choice.seed, choice.pad_to_multiple, choice.options, texts if reads else None
    )
    reporter.log(
        f"{report['target_vocab_size']:,} tokens in {report['target_rows']:,} rows: {report['overlap']['total']:,} are in the old "
        f"vocabulary, {report['copied']:,} rows copied, {report['composed']:,} composed, {report['drawn']:,} drawn"
    )
    if choice.calibrate:
        report["calibration"] = calibrate.run(output, texts(), choice.seed, reporter)
    for warning in report["warnings"]:
        reporter.log(f"warning: {warning}")
    return report
