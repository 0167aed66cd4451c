"""What makes a step done: ``receipt.json`` in its directory, written last and atomically.

A receipt holds what the result depends on (settings, digests of the inputs). The same again: the step is skipped.
Something else: an error that shows the difference, because silently redoing hours of work, or silently keeping a
result of other settings, are both wrong.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Mapping

from megatron_adapt.errors import ConfigError
from megatron_adapt.steps.reporter import Reporter

NAME = "receipt.json"
BEGUN = "begun.json"  # of a resumable step: it is continued with the same settings only
_WHOLE = 256 * 2**20  # files up to this size are hashed whole, larger ones by size, head and tail
_PART = 16 * 2**20


@dataclass(frozen=True)
class Step:
    """One unit of work: directories in, one directory out.

    ``action(directory, reporter)`` writes into the directory and returns metrics. A ``resumable`` step works in
    ``output`` itself and may be continued; any other works in a hidden directory beside it, which gets its name with
    the receipt already inside: it is there whole or not at all. ``settings`` and the contents of ``inputs`` are all that the result depends on: parallel layout, logging and the
    places of files are not part of them. ``ranks`` > 1: runs as that many processes.
    """

    name: str
    verb: str
    output: Path
    action: Callable[[Path, Reporter], Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Path | tuple[Path, ...]] = field(default_factory=dict)
    ranks: int = 1
    resumable: bool = False


def perform(step: Step, reporter: Reporter, is_first_rank: bool = True) -> None:
    """Do the step and sign it; called on all of its ranks.

    Raises ``ConfigError`` when something that no step has signed stands where the result should go.
    """
    began = time.monotonic()
    workplace = step.output if step.resumable else step.output.with_name(f".{step.output.name}.partial")
    if is_first_rank:
        if not step.resumable:
            if step.output.exists():
                raise ConfigError(f"{step.output} exists, but no step has signed it ({NAME} is missing): move it away.")
            shutil.rmtree(workplace, ignore_errors=True)
        workplace.parent.mkdir(parents=True, exist_ok=True)
        if step.resumable:
            workplace.mkdir(exist_ok=True)
            write_json(workplace / BEGUN, _identity(step))
    metrics = step.action(workplace, reporter)
    if is_first_rank:
        workplace.mkdir(exist_ok=True)
        sign(step, workplace, metrics, time.monotonic() - began)
        if not step.resumable:
            os.replace(workplace, step.output)


def read(folder: Path, name: str = NAME) -> dict[str, Any] | None:
    path = Path(folder) / name
    return json.loads(path.read_text()) if path.is_file() else None


def is_done(step: Step) -> bool:
    """Whether the step is signed for these settings and inputs; ``ConfigError`` when it is signed for others."""
    signed = read(step.output)
    begun = read(step.output, BEGUN) if step.resumable else None
    for state, word in ((signed, "finished"), (begun, "begun")):
        differences = _differences(state, _identity(step)) if state else []
        if differences:
            raise ConfigError(
                f"step '{step.name}' was {word} with other settings or inputs: {'; '.join(differences)}. Delete {step.output} "
                f"to redo it, or choose another output."
            )
    return signed is not None


def _identity(step: Step) -> dict[str, Any]:
    return {"settings": _plain(step.settings), "inputs": digests(step)}


def sign(step: Step, folder: Path, metrics: Mapping[str, Any], seconds: float) -> None:
    """Write the receipt into ``folder``: under its final name it makes the step done."""
    receipt = {
        "step": step.name,
        "verb": step.verb,
        **_identity(step),
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


def digests(step: Step) -> dict[str, str]:
    return {label: _combined(where) for label, where in step.inputs.items()}


def _combined(where: Path | tuple[Path, ...]) -> str:
    if isinstance(where, tuple):
        return hashlib.sha256("".join(digest(path) for path in where).encode()).hexdigest()
    return digest(where)


def digest(path: Path) -> str:
    """Of a signed directory: of its receipt's settings and inputs. Of other files and directories: of the contents."""
    path = Path(path)
    if path.is_dir():
        signed = read(path)
        if signed is not None:
            text = json.dumps([signed["verb"], signed["settings"], signed["inputs"]], sort_keys=True)
        else:
            files = sorted(file for file in path.rglob("*") if file.is_file())
            text = "".join(f"{file.relative_to(path)} {digest(file)}\n" for file in files)
        return hashlib.sha256(text.encode()).hexdigest()
    if not path.exists():
        return "absent"
    size = path.stat().st_size
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


def _differences(signed: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    found = []
    old, new = _flat(signed["settings"]), _flat(now["settings"])
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            found.append(f"{key} was {old.get(key, 'absent')}, is now {new.get(key, 'absent')}")
    for label in sorted(signed["inputs"].keys() | now["inputs"].keys()):
        if signed["inputs"].get(label) != now["inputs"].get(label):
            found.append(f"the content of its input '{label}' changed")
    return found


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    return {key: leaf for name, inner in value.items() for key, leaf in _flat(inner, f"{prefix}.{name}" if prefix else name).items()}
