"""A window of text -> a sample of which a part is hidden and learnt, by one of UL2's denoisers (Tay et al. 2022).

    R and X   [BOS] mode  text with a sentinel for each hidden span  [separator]  each sentinel and its span  EOS
    S         [BOS] mode  begin of the text  [separator]  the rest  [EOS]
    causal    the tokens as they are stored

How many tokens and spans are hidden follows from the length of the window alone (as in T5, Raffel et al. 2020), and so does the
length of the sample: samples can be packed before a span is drawn. Where the spans lie is a function of 128 bits.

What is learnt is what comes behind the corrupted text: spans, the sentinels before them, EOS. Without a separator nothing says where
the corrupted text ends, so the first sentinel says it: it is always the same one, and not learnt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from megatron_adapt.errors import ConfigError

if TYPE_CHECKING:
    from megatron_adapt.config import Denoising
    from megatron_adapt.hf.tokenizer import Tokenizer


class Sample(NamedTuple):
    """ids int64 and learnt uint8, [tokens]: 1 for those that are to be predicted; ``prefix``: tokens before those of the targets."""

    ids: np.ndarray
    learnt: np.ndarray
    prefix: int


class Mixture:
    """Lengths of a mixture's samples: denoisers are numbered as in the recipe, and the last number is of text that stays as it is.

    Args:
        size: tokens that a sample has at most.
        bos, eos: whether documents are stored with them.

    Attributes:
        capacities: [denoisers + 1] tokens of text in the longest window of each.
        sentinels: so many are needed.

    Raises:
        ConfigError: not one token of text fits.
    """

    def __init__(self, settings: Denoising, size: int, bos: bool, eos: bool) -> None:
        self.settings, self.bos, self.eos = settings, bos, eos
        self.causal = len(settings.mixture)  # its number
        weights = np.array([denoiser.weight for denoiser in settings.mixture])
        self.shares = np.append(weights / weights.sum() * (1 - settings.causal), settings.causal)
        # The share is 1 but for rounding, and the last denoiser that is drawn at all takes what is missing.
        self._bounds = np.cumsum(self.shares)
        self._bounds[np.flatnonzero(self.shares)[-1] :] = 1.0
        sizes = np.arange(1, max(size, 1) + 1)
        self.capacities = np.array([np.count_nonzero(self.lengths(number, sizes) <= size) for number in range(self.causal + 1)])
        if not self.capacities.all():
            raise ConfigError(f"a sequence of {size - 1} tokens is too short for denoising; lengthen sequence_length")
        if settings.window is not None:
            self.capacities = np.minimum(self.capacities, settings.window)
        spans = (self.spans(number, self.capacities[number : number + 1])[0] for number in range(self.causal))
        self.sentinels = int(max(spans))

    def draw(self, numbers: np.ndarray) -> np.ndarray:
        """Denoisers of uint64 random ``numbers``, as often as their weights say."""
        return np.searchsorted(self._bounds, (numbers >> np.uint64(11)) * 2.0**-53, side="right")

    def hidden(self, denoiser: int, text: np.ndarray) -> np.ndarray:
        """How many of so many tokens of text are hidden; of S on average."""
        if denoiser == self.causal:
            return np.asarray(text)
        rounded = np.floor(np.asarray(text) * self.settings.mixture[denoiser].ratio + 0.5).astype(np.int64)
        return np.clip(rounded, 1, np.maximum(text - 1, 1))

    def spans(self, denoiser: int, text: np.ndarray) -> np.ndarray:
        """In how many spans, each of which has a sentinel: 0 for S and text as it is. No two of them touch."""
        span = None if denoiser == self.causal else self.settings.mixture[denoiser].span
        if span is None:
            return np.zeros_like(text)
        hidden = self.hidden(denoiser, text)
        wanted = np.maximum(np.floor(hidden / span + 0.5).astype(np.int64), 1)
        return np.minimum(wanted, np.minimum(hidden, text - hidden + 1))

    def lengths(self, denoiser: int, text: np.ndarray, begins: np.ndarray | bool = True, ends: np.ndarray | bool = True) -> np.ndarray:
        """Tokens of the samples of windows of so many tokens of text; ``begins``, ``ends``: at an end of their document."""
        last = np.asarray(ends) & self.eos
        if denoiser == self.causal:
            return text + (np.asarray(begins) & self.bos) + last
        spanned = self.settings.mixture[denoiser].span is not None
        around = self.bos + 1 + (self.settings.separator is not None) + (1 if spanned else last)
        return text + 2 * self.spans(denoiser, text) + around

    def rates(self) -> tuple[float, float]:
        """(tokens of text, and hidden ones) by tokens of samples, where documents are long."""
        full = np.array([self.lengths(number, self.capacities[number], False, False) for number in range(self.causal + 1)])
        hidden = np.array([self.hidden(number, self.capacities[number]) for number in range(self.causal + 1)])
        return float(self.shares @ self.capacities / (self.shares @ full)), float(self.shares @ hidden / (self.shares @ full))


@dataclass(frozen=True)
class Ids:
    """The tokens that samples need besides text."""

    sentinels: np.ndarray  # int64, in their order
    modes: tuple[int, ...]  # of each denoiser
    separator: int | None
    bos: int | None
    eos: int

    @classmethod
    def find(cls, settings: Denoising, tokenizer: Tokenizer) -> Ids:
        """Those of a tokenizer; see :meth:`among`."""
        return cls.among(settings, tokenizer.special_tokens(), tokenizer.bos_id, tokenizer.eos_id, f"the tokenizer {tokenizer.path}")

    @classmethod
    def among(cls, settings: Denoising, special: Mapping[str, int], bos: int | None, eos: int | None, where: str) -> Ids:
        """Those of a tokenizer with such special tokens, which no text can make.

        Raises:
            ConfigError: one is missing, or is two things at once.
        """
        modes = [denoiser.mode for denoiser in settings.mixture]
        named = [*dict.fromkeys(modes), *([settings.separator] if settings.separator else [])]
        problems = [f"no special token {token!r}" for token in named if token not in special]
        if eos is None:
            problems.append("no EOS, with which what is hidden ends")
        sentinels: list[int] = []
        while (token := settings.sentinel.format(len(sentinels))) in special:
            sentinels.append(special[token])
        twice = [token for token in named if token in special and special[token] in (*sentinels, eos, bos)]
        twice += [token for token in modes if token == settings.separator]
        problems += [f"{token!r} for more than one purpose" for token in dict.fromkeys(twice)]
        if problems:
            raise ConfigError(
                f"denoising: {where} has {', '.join(problems)}; make one with `sentinels`, or name tokens that it has "
                "(denoising.sentinel, denoising.mixture[].token, denoising.separator)"
            )
        ids = special.get(settings.separator) if settings.separator else None
        return cls(np.array(sentinels, np.int64), tuple(special[token] for token in modes), ids, bos, eos)

    def enough(self, mixture: Mixture) -> None:
        """Raises ``ConfigError`` where the longest window has more spans than there are sentinels."""
        if mixture.sentinels > len(self.sentinels):
            raise ConfigError(too_few(mixture, len(self.sentinels)))


def too_few(mixture: Mixture, there: int) -> str:
    """What to do about it that there are only so many sentinels."""
    sizes, fitting = np.arange(1, int(mixture.capacities.max()) + 1), []
    for number in range(mixture.causal):
        fitting.append(np.count_nonzero(mixture.spans(number, sizes) <= there))
    window = f", or set denoising.window to {min(fitting)} or less" if min(fitting) else ""
    pattern = mixture.settings.sentinel
    return (
        f"denoising: {mixture.sentinels} sentinels ({pattern.format(0)} ... {pattern.format(mixture.sentinels - 1)}) are needed and the "
        f"tokenizer has {there}: make one with `sentinels: {mixture.sentinels}`{window}"
    )


def made(mixture: Mixture, ids: Ids, denoiser: int, text: np.ndarray, hidden: int, key: bytes, begins: bool, ends: bool) -> Sample:
    """The sample of a window.

    Args:
        text: int64, without BOS and EOS. hidden: how many of its tokens are.
        key: 16 bytes, which decide where.
        begins, ends: the window is at an end of its document.
    """
    bos = [ids.bos] if mixture.bos else []
    last = [ids.eos] if ends and mixture.eos else []
    if denoiser == mixture.causal:
        tokens = np.concatenate([bos if begins else [], text, last]).astype(np.int64)
        return Sample(tokens, np.arange(len(tokens)) > 0, 0)
    head, gap = [*bos, ids.modes[denoiser]], [] if ids.separator is None else [ids.separator]
    spans = int(mixture.spans(denoiser, np.array([len(text)]))[0])
    if spans:
        shown, targets = corrupted(text, hidden, spans, ids.sentinels, key)
        targets = np.append(targets, ids.eos)
    else:
        cut = len(text) - hidden
        shown, targets = text[:cut], np.concatenate([text[cut:], last])
    tokens = np.concatenate([head, shown, gap, targets]).astype(np.int64)
    prefix = len(tokens) - len(targets)
    learnt = np.arange(len(tokens)) >= prefix + (1 if spans and not gap else 0)
    return Sample(tokens, learnt, prefix)


def corrupted(text: np.ndarray, hidden: int, spans: int, sentinels: np.ndarray, key: bytes) -> tuple[np.ndarray, np.ndarray]:
    """(the text with a sentinel for each span, each sentinel and its span), every choice of spans as likely as any other.

    Spans lie in different ones of the gaps between, before and behind the tokens that are shown, and the hidden tokens are
    cut among them into parts of at least one: in time that grows with the text.
    """
    shown = len(text) - hidden
    numbers = np.random.Philox(key=np.frombuffer(key, np.uint64)).random_raw(shown + hidden)
    gaps = _chosen(numbers[: shown + 1], spans)
    cuts = _chosen(numbers[shown + 1 :], spans - 1) + 1
    begins = np.concatenate([[0], cuts])  # of the spans, among the hidden tokens
    owner = np.zeros(hidden, np.int64)
    owner[cuts] = 1
    where = gaps[np.cumsum(owner)] + np.arange(hidden)  # of each hidden token in the text
    is_hidden = np.zeros(len(text), bool)
    is_hidden[where] = True
    marks = sentinels[:spans]
    return np.insert(text[~is_hidden], gaps, marks), np.insert(text[is_hidden], begins, marks)


def _chosen(numbers: np.ndarray, count: int) -> np.ndarray:
    """The places of the ``count`` smallest numbers, ascending."""
    if not count:
        return np.empty(0, np.int64)
    found = np.zeros(len(numbers), bool)
    found[np.argpartition(numbers, count - 1)[:count]] = True
    return np.flatnonzero(found)
