"""Text corpora -> a directory with a tokenizer: trained, or a model's own one extended or pruned."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Sequence

from pydantic import ValidationError

from megatron_adapt.config import Corpus, TokenizerExtension, TokenizerPruning, TokenizerTraining
from megatron_adapt.config_checks import training_problems
from megatron_adapt.data.corpus import check_on_error, read_documents
from megatron_adapt.data.held_out import without_held_out
from megatron_adapt.data.sources import find_sources
from megatron_adapt.errors import ConfigError
from megatron_adapt.steps.reporter import Reporter


def training_texts(
    corpora: Sequence[Corpus], max_bytes: int | None = None, on_skip: Callable[[str], None] | None = None
) -> Iterator[str]:
    """The training documents of several corpora, one after the other, the last one cut at ``max_bytes`` of UTF-8 altogether.

    ``on_skip``: receives the message of each bad line, where these are skipped.
    """
    size = 0
    for corpus in corpora:
        paths = [corpus.path] if isinstance(corpus.path, str) else list(corpus.path)
        reading = {"text_key": corpus.text_key, "on_error": corpus.on_error, "text_documents": corpus.text_documents}
        documents = read_documents(paths, on_skip=on_skip, **reading)
        texts = islice((document.text for document in documents if document.text), corpus.max_documents)
        share = Fraction(0) if corpus.held_out_path else Fraction(str(corpus.held_out))
        # A tokenizer must not be fitted to what it will be measured on.
        for text in without_held_out(texts, share):
            encoded = text.encode("utf-8", "replace")
            if max_bytes is not None and size + len(encoded) > max_bytes:
                if rest := encoded[: max_bytes - size].decode("utf-8", "ignore"):
                    yield rest
                return
            size += len(encoded)
            yield text


def telling(log: Callable[[str], None]) -> Callable[[str], None]:
    """For ``on_skip``: each line once, however often the text is read."""
    told: set[str] = set()

    def tell(line: str) -> None:
        if line not in told:
            told.add(line)
            log(f"skipped {line}")

    return tell


Making = TokenizerTraining | TokenizerExtension | TokenizerPruning


HOW: dict[str, type[Making]] = {"train": TokenizerTraining, "extend": TokenizerExtension, "prune": TokenizerPruning}


def making(how: str, given: Mapping[str, Any]) -> Making:
    """Settings from a command line, where options of all ways stand side by side; None and False are not given.

    Raises:
        ConfigError: all that is wrong with them, one a line; an option that belongs to another way.
    """
    fields = HOW[how].model_fields
    defaults = {name: field.default for kind in HOW.values() for name, field in kind.model_fields.items()}
    foreign = [name for name, value in given.items() if name not in fields and value not in (None, False, defaults[name])]
    if foreign:
        listed = ", ".join(f"--{name.replace('_', '-')}" for name in foreign)
        raise ConfigError(f"tokenizer {how} has no option {listed}.")
    values = {name: str(value) if isinstance(value, Path) else value for name, value in given.items() if name in fields and value is not None}
    try:
        found = HOW[how](corpora=["input"], **values)
    except ValidationError as error:
        lines = [f"--{str(entry['loc'][0]).replace('_', '-')}: {_plain(entry)}" for entry in error.errors()]
        raise ConfigError("\n".join(lines)) from None
    if problems := list(training_problems(found)):
        raise ConfigError("\n".join(f"--{key}: {text}." for key, text in problems))
    return found


def _plain(entry: Mapping[str, Any]) -> str:
    return "is missing." if entry["type"] == "missing" else f"{entry['msg'].removeprefix('Value error, ')}."


def files(paths: Sequence[str], text_key: str, on_error: str = "stop") -> list[Corpus]:
    """Files of a command line as a corpus.

    Raises:
        ConfigError: an ``on_error`` that there is not.
        DataError: files that there are not, whether or not they are going to be read.
    """
    check_on_error(on_error)
    find_sources(list(paths))
    return [Corpus.model_construct(path=list(paths), text_key=text_key, on_error=on_error)]


@dataclass(frozen=True)
class Target:
    """The tokenizer that a swap is to: there already, or made of the model's own first."""

    source: Path
    path: Path | None
    making: Making | None
    corpora: list[Corpus]

    def given_to(self, work: Callable[[Path, Path, Reporter], dict[str, Any]]) -> Callable[[Path, Reporter], dict[str, Any]]:
        """``work(tokenizer, folder, reporter)`` with the tokenizer known; one that is made is gone after it."""

        def run(folder: Path, reporter: Reporter) -> dict[str, Any]:
            if self.path is not None:
                return work(self.path, folder, reporter)
            assert self.making is not None
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", suffix=".tokenizer", dir=folder.parent) as place:
                made = Path(place) / "tokenizer"
                stats = make(self.making, self.source, self.corpora, made, reporter)
                return work(made, folder, reporter) | {"tokenizer": stats}

        return run


def target(
    source: Path, path: Path | None, prune: bool, changes: Mapping[str, Any], corpora: Sequence[Corpus]
) -> Target:
    """From a command line: ``--tokenizer``, ``--extend`` (``changes["tokens"]``) or ``--prune``; ``corpora``: text to learn from.

    Raises:
        ConfigError: not one of them, no text for the second and third, or an option of another.
    """
    ways = [name for name, given in (("--tokenizer", path), ("--extend", changes["tokens"]), ("--prune", prune)) if given]
    if len(ways) != 1:
        raise ConfigError(f"swap HF_DIR OUT needs one of --tokenizer DIR, --extend N and --prune, got {' and '.join(ways) or 'none'}.")
    if path is not None:
        if foreign := [f"--{name.replace('_', '-')}" for name, value in changes.items() if value]:
            raise ConfigError(f"{', '.join(foreign)}: for --extend and --prune only; --tokenizer is taken as it is.")
        return Target(source, path, None, [])
    if not corpora:
        raise ConfigError(f"{ways[0]} learns from text: name files with --corpus.")
    return Target(source, None, making("prune" if prune else "extend", changes), list(corpora))


def make(
    making: Making, own: Path | None, corpora: Sequence[Corpus], output: Path, reporter: Reporter
) -> dict[str, Any]:
    """``own``: the tokenizer to extend or prune."""
    texts = training_texts(corpora, making.max_bytes, telling(reporter.log))
    if isinstance(making, TokenizerTraining):
        return _train(making, texts, output, reporter)
    from megatron_adapt.hf.tokenizer import Tokenizer

    assert own is not None
    source = Tokenizer.load(own)
    return (_extend if isinstance(making, TokenizerExtension) else _prune)(making, source, texts, output, reporter)


def _train(training: TokenizerTraining, texts: Iterator[str], output: Path, reporter: Reporter) -> dict[str, Any]:
    from megatron_adapt.vocab.train import Scheme, train_tokenizer

    like = Path(training.like) if training.like else None
    scheme = Scheme(training.digits, training.whitespace, training.multiple, like, training.sentinels or 0)
    stats = train_tokenizer(texts, training.vocab_size, output, training.type, scheme)
    reporter.log(f"{stats['vocab_size']:,} pieces ({training.type}), {stats['bytes_per_token']:.2f} bytes a token")
    _tell_losses(stats, reporter)
    return stats


def _extend(extension: Any, source: Any, texts: Iterator[str], output: Path, reporter: Reporter) -> dict[str, Any]:
    from megatron_adapt.vocab.extension import extend

    stats = extend(source, texts, extension.tokens, output, extension.min_count, extension.reuse, extension.sentinels or 0)
    reused = ", ".join(f"{count:,} {reason}" for reason, count in stats["reused"].items())
    before, after = stats["bytes_per_token"]
    reporter.log(
        f"{stats['new_tokens']:,} new tokens{f' (on ids reused: {reused})' if reused else ''}, {stats['vocab_size']:,} in all; "
        f"{stats['reachable']:,} are reachable, {stats['seen']:,} come in the text; bytes a token {before:.2f} -> {after:.2f}"
    )
    if stats["unreachable_examples"]:
        reporter.log(f"warning: no text of their own makes {', '.join(map(repr, stats['unreachable_examples']))}")
    _tell_losses(stats, reporter)
    return stats


def _prune(pruning: Any, source: Any, texts: Iterator[str], output: Path, reporter: Reporter) -> dict[str, Any]:
    from megatron_adapt.vocab.pruning import prune

    stats = prune(source, texts, output, pruning.min_count, pruning.keep)
    before, after = stats["bytes_per_token"]
    reporter.log(
        f"{stats['vocab_size']:,} of {stats['source_vocab_size']:,} tokens stay, {stats['kept_of_text']:.2%} of the running ones; "
        f"bytes a token {before:.2f} -> {after:.2f}"
    )
    _tell_losses(stats, reporter)
    return stats


def _tell_losses(stats: dict[str, Any], reporter: Reporter) -> None:
    changed, documents = stats["round_trip"]["changed"], stats["round_trip"]["documents"]
    if changed:
        reporter.log(f"warning: {changed} of {documents} documents come back changed when they are decoded")
