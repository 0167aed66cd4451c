"""Documents cut into sentences by nltk's punkt models, as Megatron's ``--split-sentences`` does."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from megatron_adapt.errors import ConfigError


def splitter(language: str, keep_newlines: bool) -> Callable[[str], list[str]]:
    """text -> its sentences.

    Args:
        language: of a punkt model, like "english".
        keep_newlines: white space behind a sentence, line ends among it, stays with the sentence; else it vanishes.

    Raises:
        ConfigError: nltk or its model is missing.
    """
    _model(language)  # once, before processes are forked
    return _Splitter(language, keep_newlines)


class _Splitter:
    def __init__(self, language: str, keep_newlines: bool) -> None:
        self.language, self.keep_newlines = language, keep_newlines

    def __call__(self, text: str) -> list[str]:
        spans = list(_model(self.language).span_tokenize(text))
        if not self.keep_newlines:
            return [text[begin:end] for begin, end in spans]
        begins = [0, *(begin for begin, _ in spans[1:]), len(text)] if spans else [0, len(text)]
        return [text[begin:end] for begin, end in zip(begins[:-1], begins[1:])]


@lru_cache(maxsize=2)
def _model(language: str):  # type: ignore[no-untyped-def]
    try:
        from nltk.tokenize.punkt import PunktTokenizer
    except ImportError:
        raise ConfigError("splitting sentences needs nltk 3.9 or newer: pip install 'megatron_adapt[sentences]'") from None
    try:
        return PunktTokenizer(language)
    except (LookupError, OSError):
        raise ConfigError(
            f"nltk has no punkt model for {language!r}: run `python -m nltk.downloader punkt_tab` once (its folder is "
            "found through NLTK_DATA), or name another language with --lang"
        ) from None
