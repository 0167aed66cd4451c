"""What this machine and this installation can do, and what is missing: facts first, problems last."""

from __future__ import annotations

import importlib.util
import os
import platform
import resource
import shutil
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Iterator, Literal

from packaging.requirements import Requirement

from megatron_adapt import launch
from megatron_adapt.engine import backend
from megatron_adapt.errors import ConfigError
from megatron_adapt.families import find_family
from megatron_adapt.hf.directory import HFDirectory

PROJECT = "megatron_adapt"
FEW_FILES = 4096  # open at once: a rank of a large run has a file for each shard that it reads
LITTLE_DISK = 20 * 2**30  # bytes


@dataclass(frozen=True)
class Finding:
    """``ok``: as it should be. ``note``: works, and is worth knowing. ``problem``: something cannot work."""

    kind: Literal["ok", "note", "problem"]
    topic: str
    text: str


def run(model: Path | None = None) -> list[Finding]:
    """All findings; with the directory of a Hugging Face model also what its layers would be built of.

    Raises ``ConfigError`` for a model that is not there or not supported.
    """
    return [*_requirements(), *_extension(), *_devices(), *_extras(), *_machine(), *(_model(model) if model else ())]


def table(findings: list[Finding]) -> Iterator[str]:
    marks = {"ok": " ", "note": "i", "problem": "!"}
    width = max(len(finding.topic) for finding in findings)
    for finding in findings:
        yield f"{marks[finding.kind]} {finding.topic:<{width}}  {finding.text}"
    problems = sum(finding.kind == "problem" for finding in findings)
    yield f"{problems} problem{'' if problems == 1 else 's'}" if problems else "everything that is needed is here"


def as_json(findings: list[Finding]) -> list[dict[str, Any]]:
    return [asdict(finding) for finding in findings]


def _requirements() -> Iterator[Finding]:
    """What the package declares, against what is installed."""
    yield Finding("ok", "Python", f"{platform.python_version()}, {platform.platform()}")
    try:
        required = metadata.requires(PROJECT) or []
    except metadata.PackageNotFoundError:
        required = []
        yield Finding("note", PROJECT, "runs from its sources and is not installed: what it needs is not known here")
    for text in required:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            yield Finding("problem", wanted.name, f"is not installed; pip install '{wanted.name}{wanted.specifier}'")
            continue
        if wanted.specifier.contains(found, prereleases=True):
            yield Finding("ok", wanted.name, found)
        else:
            yield Finding("problem", wanted.name, f"{found} is not {wanted.specifier}; pip install '{wanted.name}{wanted.specifier}'")


def _extension() -> Iterator[Finding]:
    try:
        from megatron_adapt import _C

        yield Finding("ok", "C++ extension", str(_C.__file__))
    except ConfigError as error:
        yield Finding("problem", "C++ extension", str(error))


def _devices() -> Iterator[Finding]:
    gpus = backend.gpus()
    for number, gpu in enumerate(gpus):
        fp8 = "" if tuple(map(int, gpu["capability"].split("."))) >= (8, 9) else ", no FP8"
        yield Finding("ok", f"GPU {number}", f"{gpu['name']}, {gpu['memory'] / 2**30:.0f} GiB, capability {gpu['capability']}{fp8}")
    for name, version in backend.versions().items():
        yield Finding("ok", name, version)
    if not gpus:
        yield Finding("note", "device", f"no GPU: ranks are processes on {launch.cores()} cores that talk through gloo")
    reason = backend.transformer_engine_problem()
    if reason:
        yield Finding("note", "layers", f"plain torch (scaled_dot_product_attention): {reason}")
    else:
        yield Finding("ok", "layers", "Transformer Engine's; its norms and attention where they are the model's exactly (--model HF_DIR tells)")
    yield Finding("note" if reason else "ok", "AdamW", f"{backend.adamw()} (weights in bf16 alone, as in bf16-true: this project's own)")


def _extras() -> Iterator[Finding]:
    """What is used where it is found."""
    for module, package, use in (
        ("transformer_engine", "transformer-engine", "fused layers and FP8 on a GPU"),
        ("flash_attn", "flash-attn", "an attention kernel that Transformer Engine may choose"),
        ("bitsandbytes", "bitsandbytes", "optimizer adamw8bit"),
        ("datasets", "datasets", "corpora named hf:NAME"),
        ("nltk", "nltk", "preprocess --split-sentences"),
    ):
        try:
            yield Finding("ok", package, f"{metadata.version(package)}: {use}")
        except metadata.PackageNotFoundError:
            yield Finding("note", package, f"not installed: {use}")
    if importlib.util.find_spec("apex") is not None:
        is_nvidias = importlib.util.find_spec("apex.optimizers") is not None
        text = "NVIDIA's" if is_nvidias else "an unrelated package of that name; pip uninstall apex"
        yield Finding("ok" if is_nvidias else "problem", "apex", text)


def _machine() -> Iterator[Finding]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Finding("ok", "memory", f"{memory / 2**30:.0f} GiB")
    free = shutil.disk_usage(Path.cwd()).free
    yield Finding("ok" if free > LITTLE_DISK else "note", "disk", f"{free / 2**30:.0f} GiB free in {Path.cwd()}")
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < FEW_FILES:
        yield Finding("note", "open files", f"limited to {files}; ulimit -n {FEW_FILES if most < 0 else min(most, FEW_FILES)} raises it")
    else:
        yield Finding("ok", "open files", "unlimited" if files == resource.RLIM_INFINITY else str(files))


def _model(path: Path) -> Iterator[Finding]:
    directory = HFDirectory.open(str(path))
    where = str(directory.config_path)
    family = find_family(directory.config, where)
    shape = family.read_config(directory.config, where)
    yield Finding("ok", "model", f"{family.name}, {shape.num_parameters():,} parameters, {shape.num_layers} layers")
    yield Finding("ok", "its layers", backend.layers(shape))
