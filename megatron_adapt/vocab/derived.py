"""A tokenizer made from another one by editing its ``tokenizer.json``: what extension and pruning share.

What stays is spelt as before, so that rows follow their tokens, and the result is an ordinary tokenizer directory.
"""

from __future__ import annotations

import copy
import os
import tempfile
from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping

import numpy as np

from megatron_adapt.errors import ConfigError, DataError
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.hf.directory import read_json
from megatron_adapt.hf.tokenizer_files import write_json, write_tokenizer

FILE = "derived.json"  # beside a derived tokenizer: how, and the digest of the tokenizer that it was made from
EXTENDED, PRUNED = "extended", "pruned"
NOT_EXTENDED = {
    "Unigram": "its pieces compete by the probabilities of one training, and new pieces have none among them",
    "WordPiece": "it cuts off the longest piece first, and new pieces would come before old ones wherever they are longer",
}
SAMPLE_BYTES = 1_000_000  # of a text, on which a new tokenizer is compared with the old


class Watched:
    """Texts on their way to whoever reads them: counted, the first megabyte kept."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.documents = self.bytes = 0
        self.sample: list[str] = []

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            if self.bytes < SAMPLE_BYTES and text:
                self.sample.append(text[:SAMPLE_BYTES])
            self.documents += 1
            self.bytes += len(text.encode("utf-8", "replace"))
            yield text
        if not self.bytes:
            raise DataError("the corpus for the tokenizer holds no text.")


def editable(source: Tokenizer, types: tuple[str, ...], what: str) -> dict[str, Any]:
    """A copy of the parsed tokenizer.json.

    Raises:
        ConfigError: there is none, or its model is of another kind than ``types``.
    """
    if source.backend_json is None:
        raise ConfigError(f"{source.path}: a sentencepiece model cannot be {what}; convert it to tokenizer.json first.")
    model = source.backend_json.get("model") or {}
    kind = model.get("type") or ("BPE" if "merges" in model else None)
    if kind not in types:
        able = " and ".join(types) + (" ones" if len(types) > 1 else " alone")
        why = f": {NOT_EXTENDED[kind]}" if what == "extended" and kind in NOT_EXTENDED else ""
        raise ConfigError(f"{source.path}: a {kind} vocabulary cannot be {what}; {able} can{why}.")
    for setting in ("continuing_subword_prefix", "end_of_word_suffix"):
        if kind == "BPE" and model.get(setting):
            raise ConfigError(f"{source.path}: a BPE vocabulary with {setting} {model[setting]!r} cannot be {what}.")
    return copy.deepcopy(source.backend_json) | {"model": copy.deepcopy(model) | {"type": kind}}


def merges_of(parsed: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(left, right) in the order in which they apply; none of a model without merges."""
    merges = (parsed.get("model") or {}).get("merges") or []
    return [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in merges]  # type: ignore[misc]


def set_merges(parsed: dict[str, Any], merges: Iterable[tuple[str, str]]) -> None:
    """In the form that the file has had: "left right", or pairs."""
    model = parsed["model"]
    joined = bool(model["merges"]) and isinstance(model["merges"][0], str)
    model["merges"] = [" ".join(merge) if joined else list(merge) for merge in merges]


def set_vocabulary(parsed: dict[str, Any], ids: Mapping[str, int]) -> None:
    """Give every token its id, wherever the file names one; tokens without are left out.

    Added tokens go into the model's vocabulary, too: the library numbers those that it does not find there anew.
    """
    model = parsed["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = dict(sorted(ids.items(), key=lambda item: item[1]))
    else:  # Unigram: a piece's id is its place
        old = model["vocab"]
        model["vocab"] = sorted(([piece, score] for piece, score in old if piece in ids), key=lambda entry: ids[entry[0]])
        if model.get("unk_id") is not None:
            model["unk_id"] = ids[old[model["unk_id"]][0]]
    parsed["added_tokens"] = [
        {**entry, "id": ids[entry["content"]]} for entry in parsed.get("added_tokens") or [] if entry["content"] in ids
    ]
    parsed["post_processor"] = _renumbered(parsed.get("post_processor"), ids)
    parsed["padding"] = _renumbered(parsed.get("padding"), ids)


def special_entry(token: str) -> dict[str, Any]:
    """An entry of ``added_tokens``, whose id is set with the others'."""
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    return {"id": -1, "content": token, "special": True, **dict.fromkeys(flags, False)}


def _renumbered(value: Any, ids: Mapping[str, int]) -> Any:
    """Ids beside the tokens that they belong to: {"ids", "tokens"}, [token, id] of "sep" and "cls", {"pad_id", "pad_token"}."""
    if isinstance(value, list):
        return [_renumbered(entry, ids) for entry in value]
    if not isinstance(value, dict):
        return value
    new = {key: _renumbered(entry, ids) for key, entry in value.items()}
    if "ids" in value and "tokens" in value:
        new["ids"] = [ids[token] for token in value["tokens"]]
    for key in ("sep", "cls"):
        if isinstance(value.get(key), list):
            new[key] = [value[key][0], ids[value[key][0]]]
    if value.get("pad_token") in ids:
        new["pad_id"] = ids[value["pad_token"]]
    return new


def derivation(path: str | Path, source: Tokenizer) -> str | None:
    """``EXTENDED`` or ``PRUNED`` if the tokenizer in a directory was made so from ``source``, else None."""
    found = read_json(Path(path) / FILE) or {}
    return str(found["how"]) if found.get("from") == source.digest else None


def write(source: Tokenizer, output: Path, parsed: Mapping[str, Any], how: str) -> Tokenizer:
    """Write the directory ``output``, whole or not at all, and read it."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output} already exists; remove it or name another directory.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
        partial = Path(folder) / output.name
        partial.mkdir()
        write_tokenizer(source, partial, parsed)
        write_json(partial / FILE, {"how": how, "from": source.digest})
        os.replace(partial, output)
    return Tokenizer.load(output)


def round_trip(tokenizer: Tokenizer, texts: list[str]) -> dict[str, int]:
    """How many documents come back changed from encoding and decoding."""
    changed = sum(tokenizer.decode(ids) != text for text, ids in zip(texts, tokenizer.encode(texts)))
    return {"documents": len(texts), "changed": changed}



def frequencies(tokenizer: Tokenizer, texts: Iterable[str], batch_characters: int = 2**20) -> np.ndarray:
    """How often every id comes, int64 [vocab_size]."""
    found = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    batch: list[str] = []
    waiting = 0

    def count() -> None:
        for ids in tokenizer.encode(batch):
            found[:] += np.bincount(ids, minlength=len(found))

    for text in texts:
        batch.append(text)
        waiting += len(text)
        if waiting > batch_characters:
            count()
            batch, waiting = [], 0
    count()
    return found
