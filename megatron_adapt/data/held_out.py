"""Text set aside for evaluation while the rest of a corpus is tokenized."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

from megatron_adapt.errors import ConfigError, DataError


class HeldOutWriter:
    """A jsonl file under a temporary name, made by the first document and removed unless it is published."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.documents = self.bytes = 0
        self._temporary = Path(f"{path}.tmp")
        self._stream: BinaryIO | None = None

    def write(self, entry: dict[str, Any]) -> None:
        """A line with a "text"."""
        with writing(self._temporary):
            self._open().write(json.dumps(entry, ensure_ascii=False).encode("utf-8") + b"\n")
        self.documents += 1
        self.bytes += len(entry["text"].encode("utf-8"))

    def append(self, file: Path, documents: int, size: int) -> None:
        """Lines that are written already, of documents with ``size`` bytes of text."""
        with writing(self._temporary), file.open("rb") as lines:
            shutil.copyfileobj(lines, self._open(), 1 << 20)
        self.documents += documents
        self.bytes += size

    def _open(self) -> BinaryIO:
        if self._stream is None:
            self._stream = self._temporary.open("wb")
        return self._stream

    def sync(self) -> None:
        if self._stream is not None:
            with writing(self._temporary):
                self._stream.flush()
                os.fsync(self._stream.fileno())

    def publish(self) -> None:
        if self._stream is not None:
            with writing(self.path):
                os.replace(self._temporary, self.path)

    def __enter__(self) -> HeldOutWriter:
        with writing(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._stream is not None:
            with contextlib.suppress(OSError):  # what could not be written was reported by write or sync
                self._stream.close()
            self._temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a failed write (no space, no permission) into a DataError that names the file."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot write {error.filename or path}: {error.strerror}") from error


def held_out_between(begin: int, end: int, share: Fraction, last: int | None) -> list[int]:
    """Numbers i of the held-out documents, begin <= i < end: floor((i + 1) * share) > floor(i * share), or ``last``.

    ``last`` is the one document that is held out where the share is too small for any.
    """
    if last is not None:
        return [last] if begin <= last < end else []
    before, behind = (number * share.numerator // share.denominator for number in (begin, end))
    # The k-th held-out document is the first i with (i + 1) * share >= k.
    return [-(-k * share.denominator // share.numerator) - 1 for k in range(before + 1, behind + 1)]


def without_held_out(texts: Iterator[str], share: Fraction) -> Iterator[str]:
    """The non-empty texts that are not held out."""
    return (text for text, is_held_out in divided(texts, share) if not is_held_out)


def divided(texts: Iterator[str], share: Fraction) -> Iterator[tuple[str, bool]]:
    """The non-empty texts in order, each with whether it is held out. Of two or more at least one is, if share is not 0.

    Whether the last one is, is known at the end: each is passed on late.
    """
    previous: tuple[str, bool] | None = None
    number, taken = -1, 0
    for number, text in enumerate(text for text in texts if text):
        if previous is not None:
            yield previous
        previous = text, bool(share and held_out_between(number, number + 1, share, None))
        taken += previous[1]
    if previous is not None:
        yield previous[0], previous[1] or bool(share and number > 0 and not taken)


def refuse_shared(held_out_file: Path, prefix: Path) -> None:
    """ConfigError if the file is the held-out text of another corpus in the same folder than ``prefix``."""
    for index in held_out_file.parent.glob("*.idx"):
        owner = index.with_suffix(".json")
        is_claimed = owner.exists() and f'"held_out": "{held_out_file.name}"' in owner.read_text(encoding="utf-8")
        if is_claimed and index.stem != prefix.name:
            raise ConfigError(
                f"{held_out_file} belongs to the corpus {index.stem}; give {prefix.name} a folder of its own"
            )
