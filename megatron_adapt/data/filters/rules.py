"""rules: documents that do not look like running text, by the rules of MassiveText and C4.

Defaults are those of Gopher's MassiveText (Rae et al. 2021, appendix A.1), where it has the rule; ``min_terminals`` is what C4
(Raffel et al. 2020) asks of lines, ``max_digits`` and ``min_letters`` are common additions. Exactly what is measured stands in
csrc/text_rules.h. Words are runs of letters, digits and marks; of scripts that are written without spaces each character is
one, and lengths of words are not asked where these are most of a document. Of repeated lines, paragraphs and n-grams the
first does not count. No rule knows a language, except that stop words are looked for where a list of them is given.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from megatron_adapt.data import folding
from megatron_adapt.data.parts import digest_of
from megatron_adapt.data.texts import Outcome, Texts
from megatron_adapt.errors import ConfigError, DataError
from megatron_adapt.options import option


@dataclass(frozen=True)
class Options:
    min_words: int = option(50, "words", low=0)
    max_words: int = option(100_000, "words", low=1)
    min_word_length: float = option(3.0, "mean length of words", low=0)
    max_word_length: float = option(10.0, "mean length of words", low=0)
    max_symbols: float = option(0.1, "# and ellipses per word", low=0)
    max_digits: float = option(0.25, "share of digits among characters", low=0, high=1)
    min_letters: float = option(0.0, "share of letters among characters", low=0, high=1)
    min_letter_words: float = option(0.8, "share of words that have a letter", low=0, high=1)
    max_bullets: float = option(0.9, "share of lines that begin with a bullet", low=0, high=1)
    max_ellipses: float = option(0.3, "share of lines that end in an ellipsis", low=0, high=1)
    min_terminals: float = option(0.0, "share of lines that end like a sentence", low=0, high=1)
    max_repeated_lines: float = option(0.3, "share of lines that stood before", low=0, high=1)
    max_repeated_line_characters: float = option(0.2, "share of characters in such lines", low=0, high=1)
    max_repeated_paragraphs: float = option(0.3, "share of paragraphs that stood before", low=0, high=1)
    max_repeated_paragraph_characters: float = option(0.2, "share of characters in such paragraphs", low=0, high=1)
    max_top_2gram: float = option(0.2, "share of characters in the commonest pair of words", low=0, high=1)
    max_top_3gram: float = option(0.18, "the same of three words", low=0, high=1)
    max_top_4gram: float = option(0.16, "the same of four words", low=0, high=1)
    max_repeated_5grams: float = option(0.15, "share of characters in five words that stood before", low=0, high=1)
    max_repeated_6grams: float = option(0.14, "the same of six words", low=0, high=1)
    max_repeated_7grams: float = option(0.13, "the same of seven words", low=0, high=1)
    max_repeated_8grams: float = option(0.12, "the same of eight words", low=0, high=1)
    max_repeated_9grams: float = option(0.11, "the same of nine words", low=0, high=1)
    max_repeated_10grams: float = option(0.1, "the same of ten words", low=0, high=1)
    stop_words: Path | None = option(None, "file of the language's commonest words")
    min_stop_words: int = option(2, "different ones of these", low=0)


_COLUMNS = {
    "words": 1, "word_length": 2, "symbols": 3, "digits": 4, "letters": 5, "letter_words": 6, "bullets": 7, "ellipses": 8,
    "terminals": 9, "repeated_lines": 10, "repeated_line_characters": 11, "repeated_paragraphs": 12,
    "repeated_paragraph_characters": 13, "top_2gram": 14, "top_3gram": 15, "top_4gram": 16,
    **{f"repeated_{n}grams": 12 + n for n in range(5, 11)}, "stop_words": 23,
}  # fmt: skip


def check(options: Options) -> None:
    """ConfigError for ranges that nothing is in."""
    pairs = [("min_words", "max_words"), ("min_word_length", "max_word_length")]
    wrong = [f"{low} is above {high}" for low, high in pairs if getattr(options, low) > getattr(options, high)]
    if wrong:
        raise ConfigError(f"filter rules: {', '.join(wrong)}: no document would be left")
    if options.stop_words is not None and not options.stop_words.is_file():
        raise ConfigError(f"filter rules: the file of stop words {options.stop_words} does not exist")


def run(texts: Texts, options: Options, threads: int) -> Outcome:
    from megatron_adapt import _C

    facts: dict[str, object] = {"unicode": folding.VERSION}
    stop_words = b""
    if options.stop_words is not None:
        stop_words = _read(options.stop_words)
        facts["stop_words_sha256"] = digest_of(options.stop_words)
    measured = _C.text_rules(
        texts.text, texts.begins, texts.ends, folding.table(), stop_words=stop_words, threads=threads
    )
    names = tuple(field.name for field in fields(options) if field.name.startswith(("min_", "max_")))
    reasons, values = np.full(len(texts), -1, np.int16), np.full(len(texts), np.nan)
    for number, name in enumerate(names):
        if name == "min_stop_words" and options.stop_words is None:
            continue
        kind, _, column = name.partition("_")
        found, bound = measured[:, _COLUMNS[column]], getattr(options, name)
        is_out = found < bound if kind == "min" else found > bound
        if column == "word_length":
            is_out &= found > 0
        is_new = is_out & (reasons < 0)  # the first rule that a document breaks
        reasons[is_new], values[is_new] = number, found[is_new]
    return Outcome(names, reasons, values=values, facts=facts)


def _read(file: Path) -> bytes:
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise DataError(f"the file of stop words {file} is not UTF-8") from None
    if not text.strip():
        raise DataError(f"the file of stop words {file} is empty")
    return text.encode("utf-8")
