"""What makes a step done: ``receipt.json`` in its directory, written last and atomically.

A receipt holds what the result depends on (settings, digests of the inputs). The same again: the step is skipped.
Something else: an error that shows the difference, because silently redoing hours of work, or silently keeping a
result of other settings, are both wrong.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping

from megatron_adapt.data import locking
from megatron_adapt.errors import ConfigError
from megatron_adapt.launch import StepFailed
from megatron_adapt.steps.reporter import Reporter

NAME = "receipt.json"
BEGUN = "begun.json"  # of a resumable step: it is continued with the same settings only
_WHOLE = 256 * 2**20  # files up to this size are hashed whole, larger ones by size, head and tail
_PART = 16 * 2**20
Difference = tuple[str, frozenset[Path] | None]
# What is wrong with the place, not with the program.
_OF_THE_PLACE = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR,
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One unit of work: directories in, one directory out.

    ``action(directory, reporter)`` writes into the directory and returns metrics. A ``resumable`` step works in
    ``output`` itself and may be continued from a folder in it; any other works in a hidden directory beside it, which
    gets its name with the receipt already inside: it is there whole or not at all. ``settings`` and the contents of
    ``inputs`` are all that the result depends on: parallel layout, logging and the places of files are not part of
    them. ``ranks`` > 1: runs as that many processes. A step that ``keeps_parts`` finds in its hidden directory what an
    earlier run that was stopped or killed has left there, and decides itself what of it counts.
    """

    name: str
    verb: str
    output: Path
    action: Callable[[Path, Reporter], Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Path | tuple[Path, ...]] = field(default_factory=dict)
    ranks: int = 1
    resumable: bool = False
    keeps_parts: bool = False
    # Settings, by the beginning of their keys, that may be changed while the step is begun; then also inputs come and go.
    adjustable: frozenset[str] = frozenset()
    derived: bool = False  # made again, not refused, when it was made from other results than those it is now made from
    growing: str = ""  # of a derived step: a mapping among its settings that may get more keys, as inputs may; receipts may lack it

    @property
    def places(self) -> tuple[Path, ...]:
        """Every path that the step takes as input."""
        return tuple(path for where in self.inputs.values() for path in (where if isinstance(where, tuple) else (where,)))


def beside(inputs: Mapping[str, Any], corpora: Mapping[str, Any]) -> dict[str, Any]:
    """Corpora by name beside the other inputs of a step; one that is called like one of these does not take its place."""
    return {**inputs, **{f"corpus {name}" if name in inputs else name: where for name, where in corpora.items()}}


def perform(step: Step, reporter: Reporter, is_first_rank: bool = True) -> None:
    """Do the step and sign it; called on all of its ranks. After an error nothing is left but what can be continued.

    Raises ``ConfigError`` when something that no step has signed stands where the result should go, the place cannot be
    written to, or another process is at the same step.
    """
    with writing(f"step '{step.name}'", step.output), _alone(step) if is_first_rank else contextlib.nullcontext():
        _perform(step, reporter, is_first_rank)


@contextlib.contextmanager
def writing(who: str, place: Path) -> Iterator[None]:
    """Turns what the system says about a place that cannot be written to into ``ConfigError``."""
    try:
        yield
    except OSError as error:
        named = Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else place
        named = named.with_suffix("") if named.suffix == ".tmp" else named  # until it is whole, which the user need not know
        # Of a folder that cannot be made some file systems say that it does not exist. Of other files that is a defect.
        unmade = error.errno == errno.ENOENT and named in (place, *place.parents)
        if error.errno in _OF_THE_PLACE or unmade:
            raise ConfigError(
                f"{who} cannot write {named}: {error.strerror}. Make room or correct the permissions, or choose another output, "
                "and run again."
            ) from error
        raise


@contextlib.contextmanager
def _alone(step: Step) -> Iterator[None]:
    """Two runs of one step would remove each other's files."""
    file = step.output.with_name(f".{step.output.name}.lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = locking.take(file)
    except TimeoutError:
        raise ConfigError(
            f"step '{step.name}': another process is writing {step.output}. Wait for it or stop it, or choose another output."
        ) from None
    except OSError as error:
        if error.filename == str(file):
            error.filename = str(file.parent)  # the user knows nothing of the lock
        raise
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(lock)


def _perform(step: Step, reporter: Reporter, is_first_rank: bool) -> None:
    began = time.monotonic()
    workplace = step.output if step.resumable else step.output.with_name(f".{step.output.name}.partial")
    if is_first_rank:
        _refuse_occupied(step)
    try:
        if is_first_rank:
            if not step.resumable and not step.keeps_parts:
                shutil.rmtree(workplace, ignore_errors=True)
            workplace.parent.mkdir(parents=True, exist_ok=True)
            if step.resumable:
                workplace.mkdir(exist_ok=True)
                write_json(workplace / BEGUN, identity(step))
        metrics = step.action(workplace, reporter)
        if is_first_rank:
            workplace.mkdir(exist_ok=True)
            sign(step, workplace, metrics, time.monotonic() - began)
            if not step.resumable:
                old = step.output.with_name(f".{step.output.name}.old")
                shutil.rmtree(old, ignore_errors=True)
                if step.derived and step.output.exists():
                    os.replace(step.output, old)
                os.replace(workplace, step.output)
                shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        stopped = isinstance(error, (KeyboardInterrupt, StepFailed))  # asked to stop, or a process of it was killed
        if is_first_rank and not (stopped and step.keeps_parts):
            _discard(step, workplace)
        raise


def _refuse_occupied(step: Step) -> None:
    here = step.output
    if not step.derived and read(here) is not None:
        raise ConfigError(
            f"step '{step.name}': another process has finished {here} since this one began. Stop one of them, or run the same "
            "command again: it does what remains."
        )
    is_mine = step.derived and read(here) is not None
    is_mine |= step.resumable and ((here / BEGUN).is_file() or not _is_occupied(here))
    if not is_mine and here.exists():
        raise ConfigError(f"{here} exists, but no step has signed it ({NAME} is missing): move it away.")


def _is_occupied(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def _discard(step: Step, workplace: Path) -> None:
    """Remove what an error left; not a resumable step with a finished part (any folder not called *.tmp) in it."""
    if not step.resumable or not any(part.is_dir() and part.suffix != ".tmp" for part in workplace.glob("*")):
        shutil.rmtree(workplace, ignore_errors=True)


def read(folder: Path, name: str = NAME) -> dict[str, Any] | None:
    """The receipt in a folder; None where there is none, ``ConfigError`` where somebody has damaged it."""
    path = Path(folder) / name
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON ({error}): delete {folder} to repeat its step.") from None


@dataclass(frozen=True)
class State:
    """A step's receipt against what the plan asks for.

    ``digest`` is what others that take this step's output as input will sign, done or not. ``differences``: in words,
    with the places whose content changed: empty for an input that is none any more, None for a setting.
    """

    done: bool
    word: str
    digest: str
    differences: tuple[Difference, ...]


def state(step: Step, known: Mapping[Path, str] | None = None) -> State:
    """``known``: digests of outputs of earlier steps, which need not exist yet."""
    now = identity(step, known)
    signed = read(step.output)
    begun = read(step.output, BEGUN) if step.resumable else None
    found: tuple[Difference, ...] = ()
    word = "finished" if signed else "begun"
    if signed or begun:
        found = tuple(_differences(signed or begun, now, step, step.adjustable if not signed else frozenset()))
    # What agrees may still be written otherwise: a key that is newer than the receipt, and none. Others have signed the receipt.
    return State(signed is not None, word, _signature(step.verb, signed if signed and not found else now), found)


def identity(step: Step, known: Mapping[Path, str] | None = None) -> dict[str, Any]:
    """What the result depends on, as a receipt holds it."""
    return {
        "settings": _plain(step.settings),
        "inputs": {label: _combined(where, known or {}) for label, where in step.inputs.items()},
    }


def sign(step: Step, folder: Path, metrics: Mapping[str, Any], seconds: float) -> None:
    """Write the receipt into ``folder``: under its final name it makes the step done."""
    receipt = {
        "step": step.name,
        "verb": step.verb,
        **identity(step),
        "metrics": _plain(metrics),
        "ranks": step.ranks,
        "seconds": round(seconds, 2),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": versions(),
    }
    write_json(folder / NAME, receipt)


def write_json(path: Path, value: Any) -> None:
    """Atomically: readers see the old file or the whole new one."""
    partial = path.with_name(path.name + ".tmp")
    with open(partial, "w") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def versions() -> dict[str, str]:
    names = ("megatron_adapt", "megatron-core", "torch", "transformers", "tokenizers", "transformer-engine")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _combined(where: Path | tuple[Path, ...], known: Mapping[Path, str]) -> str:
    if isinstance(where, tuple):
        return hashlib.sha256("".join(digest(path) for path in where).encode()).hexdigest()
    return known[where] if where in known else digest(where)


def _signature(verb: str, identity: Mapping[str, Any]) -> str:
    text = json.dumps([verb, identity["settings"], identity["inputs"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def digest(path: Path) -> str:
    """Of a signed directory: of its receipt's settings and inputs. Of other files and directories: of the contents."""
    path = Path(path)
    if path.is_dir():
        signed = read(path)
        if signed is not None:
            return _signature(signed["verb"], signed)
        files = sorted(file for file in path.rglob("*") if file.is_file())
        text = "".join(f"{file.relative_to(path)} {digest(file)}\n" for file in files)
        return hashlib.sha256(text.encode()).hexdigest()
    if not path.exists():
        return "absent"
    found = path.stat()
    return _file_digest(path, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=None)
def _file_digest(path: Path, size: int, _mtime_ns: int) -> str:
    state = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        if size <= _WHOLE:
            while block := file.read(2**20):
                state.update(block)
        else:
            state.update(file.read(_PART))
            file.seek(size - _PART)
            state.update(file.read(_PART))
    return state.hexdigest()


def _plain(value: Any) -> Any:
    """As JSON gives it back, so that what was written compares equal to what is asked for."""
    return json.loads(json.dumps(value, default=str))


def _differences(
    signed: Mapping[str, Any], now: Mapping[str, Any], step: Step, adjustable: frozenset[str]
) -> Iterator[Difference]:
    old, new = _flat(signed["settings"]), _flat(now["settings"])
    for key in sorted(old.keys() | new.keys()):
        is_new = key.split(".")[0] == step.growing and key not in old
        if is_new and step.growing not in signed["settings"]:
            continue
        may_change = key.split(".")[0] in adjustable or (adjustable and key.startswith("corpora.") and not (key in old and key in new))
        if old.get(key) != new.get(key) and not may_change:
            yield f"{key} was {old.get(key, 'absent')}, is now {new.get(key, 'absent')}", frozenset() if is_new else None
    for label in sorted(signed["inputs"].keys() | now["inputs"].keys()):
        was, is_now = label in signed["inputs"], label in now["inputs"]
        if signed["inputs"].get(label) == now["inputs"].get(label) or (adjustable and not (was and is_now)):
            continue
        where = step.inputs.get(label, ())
        what = f"the content of its input '{label}' changed" if was and is_now else f"its input '{label}' was {'absent' if is_now else 'there'}, is now {'there' if is_now else 'absent'}"
        yield what, frozenset(where if isinstance(where, tuple) else (where,))


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {key: leaf for name, inner in value.items() for key, leaf in _flat(inner, f"{prefix}.{name}" if prefix else name).items()}
