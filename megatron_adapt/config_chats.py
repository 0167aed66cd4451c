"""What must hold of the corpora of a recipe that are chats, and of whatever names one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from megatron_adapt.config import Corpus, Phase, Recipe

_Path = tuple[str | int, ...]


def check(
    data: Mapping[str, Any], named: Iterable[tuple[_Path, Any]], phases: Iterable[tuple[_Path, Phase]]
) -> Iterator[tuple[_Path, str]]:
    """(path of a key, what is wrong with it).

    Args:
        data: the corpora by name.
        named: every mention of a corpus, with its path.
        phases: every phase, with its path.
    """
    corpora = {name: corpus for name, corpus in data.items() if isinstance(corpus, Corpus)}
    chats = {name for name, corpus in corpora.items() if isinstance(corpus.messages, str)}
    for name, corpus in corpora.items():
        for key, text in _of_chats(corpus) if name in chats else _of_text(corpus):
            yield ("data", name, key), text
    for path, name in named:
        if path[-2] in ("corpora", "against") and path[0] != "evaluation" and isinstance(name, str) and name in chats:
            yield path, f"'{name}' holds chats, and only text is read here"
    for path, phase in phases:
        found = [name for name in phase.data if name in chats] if isinstance(phase.data, dict) else []
        if found and phase.packing == "chunks":
            yield (*path, "packing"), f"chats ({', '.join(found)}) must not see one another, nor be cut; set it to 'documents'"


def learnt_last(recipe: Recipe, phases: Sequence[Phase]) -> Corpus | None:
    """The chats that a model has learnt last in these phases, of several those with a template file; None: only text."""
    for phase in reversed(phases):
        chats = [recipe.data[name] for name in phase.data if recipe.data[name].messages is not None]
        if chats:
            return next((corpus for corpus in chats if corpus.chat_template), chats[0])
    return None


def _of_chats(corpus: Corpus) -> Iterator[tuple[str, str]]:
    if isinstance(corpus.text_key, str) and corpus.text_key != "text":
        yield "text_key", "belongs to text, and 'messages' says that these are chats; remove one of them"
    if corpus.text_documents in ("lines", "files"):
        yield "text_documents", "belongs to .txt files, which hold no chats; remove it"
    for key, given in (("bos", corpus.bos is True or corpus.bos is False), ("eos", corpus.eos is False)):
        if given:
            yield key, "belongs to text: where special tokens stand in chats their template says; remove it"
    for key, default in (("unique_tokens", None), ("shuffled_epochs", 1)):
        if isinstance(given := getattr(corpus, key), int) and given != default:
            yield key, "belongs to text: chats are not cut, and every epoch has each once; remove it (max_documents takes fewer)"


def _of_text(corpus: Corpus) -> Iterator[tuple[str, str]]:
    if corpus.messages is None:
        defaults = {"chat_template": None, "chat_template_kwargs": {}, "tools": "tools", "system": "system", "loss_on": "answers"}
        for key, given in ((key, getattr(corpus, key) != default) for key, default in defaults.items()):
            if given:
                yield key, "belongs to chats, which 'messages' names the key of; give that too, or remove it"
