"""What must hold of the filters of a recipe's corpora."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron_adapt.config_types import did_you_mean

if TYPE_CHECKING:
    from megatron_adapt.config import Corpus

_Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Kind:
    """A filter as far as a recipe has to know it.

    Attributes:
        problems: gives (key, text) of every option that is wrong; key "" where several do not go together.
        compares: whether it compares documents, and so can with those of other corpora.
    """

    problems: Callable[[Mapping[str, Any]], list[tuple[str, str]]]
    compares: Callable[[], bool]


Filters = Mapping[str, Kind]


def check(corpora: Mapping[str, Corpus], filters: Filters | None) -> Iterator[tuple[_Path, str]]:
    """(path of a key, what is wrong with it).

    Args:
        corpora: those whose filters can be looked at, by name.
        filters: those there are; None: their options are not checked.
    """
    for name, corpus in corpora.items():
        path: _Path = ("data", name)
        chosen = corpus.filters if isinstance(corpus.filters, list) else []
        if isinstance(corpus.messages, str) and chosen:
            yield (*path, "filters"), "filters read text and know nothing of who speaks, and 'messages' says that these are chats; remove it"
            continue
        if filters is not None:
            for number, one in enumerate(chosen):
                yield from (((*path, "filters", number, *key), text) for key, text in _filter(one, filters))
        yield from (((*path, "against", *key), text) for key, text in _against(name, corpora, filters))


def _filter(one: Any, filters: Filters) -> Iterator[tuple[_Path, str]]:
    if not isinstance(getattr(one, "name", None), str):
        return  # told as a value of its own
    if one.name not in filters:
        yield ("name",), f"unknown filter '{one.name}'.{did_you_mean(one.name, filters, 'There are')}"
        return
    for key, text in filters[one.name].problems(one.options):
        if key in one.options:
            yield (key,), text
        else:
            yield (), f"option {key} of {one.name} is {text}" if key else f"{one.name}: {text}"


def _against(name: str, corpora: Mapping[str, Corpus], filters: Filters | None) -> Iterator[tuple[_Path, str]]:
    """Others are compared with, by something that compares, and none in a circle."""
    corpus = corpora[name]
    if not isinstance(corpus.against, list) or not corpus.against or not isinstance(corpus.filters, list):
        return
    known = [one.name for one in corpus.filters if isinstance(getattr(one, "name", None), str)]
    if not corpus.filters:
        yield (), "names what filters compare this corpus with, and it has none; give 'filters', too"
    elif filters is not None and len(known) == len(corpus.filters) and not any(one not in filters or filters[one].compares() for one in known):
        able = [one for one, kind in filters.items() if kind.compares()]
        yield (), f"of the filters {', '.join(able)} compare documents, not {', '.join(known)}; add one of them, or remove this"
    for number, other in enumerate(corpus.against):
        if other == name:
            yield (number,), "a corpus is compared with itself anyway; remove it"
        elif corpus.against.index(other) < number:
            yield (number,), f"'{other}' is named twice; remove one of them"
        elif isinstance(other, str) and name in _behind(other, corpora):
            yield (number,), f"'{other}' is itself cleaned of what stands in '{name}', and one of them has to come first; remove it here or there"


def _behind(name: str, corpora: Mapping[str, Corpus]) -> set[str]:
    """All corpora that come before this one is clean."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        corpus = corpora.get(waiting.pop())
        named = corpus.against if corpus is not None and isinstance(corpus.against, list) else []
        new = {other for other in named if isinstance(other, str)} - found
        found |= new
        waiting += new
    return found
