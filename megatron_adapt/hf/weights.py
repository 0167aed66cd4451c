"""Weights of a Hugging Face directory: lazy reading with everything checked at open, and sharded atomic writing.

Tensors are read into memory of their own rather than mapped: a mapping counts as memory in use for as long as it lives,
and the file would be held whole in the end. Safetensors is 8 bytes (little-endian length n), n bytes of JSON (name -> dtype, shape, offsets), then the data.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from megatron_adapt.errors import CheckpointError
from megatron_adapt.streams.files import fill

if TYPE_CHECKING:
    from torch import Tensor

# Where weights are looked for, in this order.
WEIGHTS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)

# safetensors' code -> (name in torch, bytes per element)
DTYPES = {
    "F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2),
    "I64": ("int64", 8), "I32": ("int32", 4), "I16": ("int16", 2), "I8": ("int8", 1), "U8": ("uint8", 1),
    "BOOL": ("bool", 1), "F8_E4M3": ("float8_e4m3fn", 1), "F8_E5M2": ("float8_e5m2", 1),
}  # fmt: skip
LONGEST_HEADER = 100_000_000  # the limit of the safetensors library
INDEX_PARTIAL = ".weights-index.partial"
MAPPED = 256 * 2**20  # bytes of a pickle file that may be mapped at a time

Info = tuple[tuple[int, ...], str]


def weights_file(folder: Path) -> str | None:
    """The name of the file that a directory's weights, or their index, are in; None where there is none."""
    return next((name for name in WEIGHTS if (folder / name).is_file()), None)


class WeightReader:
    """All tensors of a directory, read one at a time. Safetensors, in one file or sharded with an index; a
    ``pytorch_model.bin`` is read too (without executing what it holds). ``file``: only this one of the directory.

    Raises (at construction):
        CheckpointError: truncated, inconsistent or missing files, with the expected and the actual size.
    """

    def __init__(self, path: str | Path, file: str | None = None) -> None:
        self.path = Path(path)
        kind = file or weights_file(self.path)
        if kind is None:
            raise CheckpointError(f"{self.path} holds no weights: neither model.safetensors nor its index.")
        open_file = _SafetensorsFile if "safetensors" in kind else _PickleFile
        if not kind.endswith(".index.json"):
            self._files = {kind: open_file(self.path / kind)}
            self._home = {name: kind for name in self._files[kind].infos}
            return
        self._home = _read_index(self.path / kind)
        self._files = {name: open_file(self.path / name) for name in sorted(set(self._home.values()))}
        for name, home in self._home.items():
            if name not in self._files[home].infos:
                raise CheckpointError(f"{self.path / kind} places {name} in {home}, which does not hold it.")
        for file, opened in self._files.items():
            if extra := [name for name in opened.infos if self._home.get(name) != file]:
                raise CheckpointError(f"{self.path / file} holds {extra[0]}, which {kind} does not place there.")

    def names(self) -> list[str]:
        """Names of all tensors, file by file, in the order in which they are stored."""
        return [name for file in self._files.values() for name in file.infos]

    def info(self, name: str) -> Info:
        """Shape and dtype ("float32", "bfloat16", ...) of a tensor, without reading it."""
        return self._files[self._home[name]].infos[name]

    def get(self, name: str) -> Tensor:
        """The tensor on the CPU, in memory of its own."""
        return self._files[self._home[name]].get(name)

    def read(self, name: str, first: int, out: np.ndarray) -> None:
        """Fill ``out [rows, ...]``, unsigned integers as wide as the dtype, with the tensor's rows from ``first`` on."""
        self._files[self._home[name]].read(name, first, out)

    def locate(self, name: str) -> tuple[Path, int] | None:
        """The file that holds a tensor and where in it its bytes begin; None in a pickle file."""
        file = self._files[self._home[name]]
        return (file.path, file.offsets[name]) if isinstance(file, _SafetensorsFile) else None

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def __enter__(self) -> WeightReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _SafetensorsFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.infos, self.offsets = _read_header(path)
        self._file: IO[bytes] | None = None

    def get(self, name: str) -> Tensor:
        import torch

        shape, dtype = self.infos[name]
        tensor = torch.empty(shape, dtype=getattr(torch, dtype), device="cpu")
        self._fill(self.offsets[name], np.frombuffer(bytes_of(tensor), np.uint8))
        return tensor

    def read(self, name: str, first: int, out: np.ndarray) -> None:
        row = out.itemsize * math.prod(out.shape[1:])
        self._fill(self.offsets[name] + first * row, out)

    def _fill(self, offset: int, out: np.ndarray) -> None:
        if self._file is None:
            self._file = self.path.open("rb", buffering=0)
        self._file.seek(offset)
        try:
            if out.flags.c_contiguous:
                fill(self._file, out)
            else:
                part = np.empty(out.shape, out.dtype)
                fill(self._file, part)
                out[...] = part
        except EOFError:
            raise CheckpointError(f"{self.path} has become shorter since it was opened.") from None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class _PickleFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise CheckpointError(f"{path} is missing, although the index names it.")
        try:
            self._map()
            self.infos = {name: (tuple(t.shape), str(t.dtype).split(".")[1]) for name, t in self._tensors.items()}
        except Exception as error:  # torch raises many kinds for a broken, outdated or unsafe file
            if named := re.search(r"GLOBAL ([\w.]+)", str(error)):  # where torch goes on about how to let it run
                raise CheckpointError(
                    f"{path} is refused: reading it would run {named[1]}, which makes no tensor. Use a safetensors file of this model."
                ) from None
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{path} cannot be read ({path.stat().st_size} bytes): {reason} Convert it to safetensors."
            ) from None

    def _map(self) -> None:
        import torch

        self._tensors = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        self._mapped = 0

    def _remap(self) -> None:
        """The pages that were read stay in memory as long as the mapping does."""
        self._tensors = {}
        self._map()

    def get(self, name: str) -> Tensor:
        if self._mapped > MAPPED:
            self._remap()
        tensor = self._tensors[name].clone()
        self._mapped += tensor.nbytes
        return tensor

    def read(self, name: str, first: int, out: np.ndarray) -> None:
        import torch

        if self._mapped > MAPPED:
            self._remap()
        rows = self._tensors[name][first : first + len(out)]
        np.copyto(out, rows.contiguous().view(getattr(torch, f"int{8 * out.itemsize}")).numpy().view(out.dtype))
        self._mapped += out.nbytes

    def close(self) -> None:
        self._tensors = {}


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, to be read or written."""
    import torch

    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())


def _read_index(path: Path) -> dict[str, str]:
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}.") from None
    weight_map = parsed.get("weight_map") if isinstance(parsed, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map; it is not an index of weights.")
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{path} places {name} in {file!r}, which is not a file name.")
    return weight_map


def _read_header(path: Path) -> tuple[dict[str, Info], dict[str, int]]:
    """Names, shapes and dtypes of a safetensors file, whose size is checked to the byte; and where each tensor begins."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing, although the index names it.")
    actual = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(LONGEST_HEADER, actual - 8):
            wanted = f"at least {8 + length}" if len(prefix) == 8 and length <= LONGEST_HEADER else "more"
            raise CheckpointError(
                f"{path} is truncated or not a safetensors file: its header needs {wanted} bytes, found {actual}."
            )
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            entries = sorted(header.items(), key=lambda entry: entry[1]["data_offsets"])
            infos, offsets, end = {}, {}, 0
            for name, entry in entries:
                offsets[name] = 8 + length + end
                infos[name], end = _check_entry(path, name, entry, end)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} has a broken header ({type(error).__name__}: {error}).") from None
    expected = 8 + length + end
    if actual != expected:
        what = "truncated" if actual < expected else "longer than its header says"
        raise CheckpointError(f"{path} is {what}: expected {expected} bytes, found {actual}. Copy the file again.")
    return infos, offsets


def _check_entry(path: Path, name: str, entry: dict[str, Any], previous_end: int) -> tuple[Info, int]:
    """Info of one header entry and where its data ends; entries must fill the file without gap or overlap."""
    if entry["dtype"] not in DTYPES:
        raise CheckpointError(f"{path}: {name} has dtype {entry['dtype']}, which is not supported.")
    dtype, width = DTYPES[entry["dtype"]]
    begin, end = entry["data_offsets"]
    shape = tuple(int(size) for size in entry["shape"])
    if begin != previous_end or end - begin != math.prod(shape) * width:
        raise CheckpointError(
            f"{path}: {name}, {dtype} {list(shape)}, should take {math.prod(shape) * width} bytes from offset "
            f"{previous_end}; the header says {begin} to {end}."
        )
    return (shape, dtype), end


class WeightWriter:
    """Writes ``model.safetensors``, or numbered shards with an index once ``max_shard_bytes`` is passed.

    Files get their final names in :meth:`close`, the index last; until then, and after an error inside a ``with``
    statement, the directory holds no weights. Memory: one shard.

    Raises:
        CheckpointError: the directory already holds weights, or writing failed (disk full, ...).
    """

    def __init__(self, path: str | Path, max_shard_bytes: float = 5e9) -> None:
        self.path = Path(path)
        self.max_shard_bytes = max_shard_bytes
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        self._shards: list[list[str]] = []
        self._names: set[str] = set()
        self._total_bytes = 0
        if self.path.is_dir() and any((self.path / name).exists() for name in WEIGHTS):
            raise CheckpointError(f"{self.path} already holds weights; choose another directory or remove them.")
        self.path.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, tensor: Tensor) -> None:
        """Append one tensor (moved to the CPU, dtype kept); a full shard is written at once."""
        assert name not in self._names, f"{name} was added twice"
        tensor = tensor.detach().cpu().contiguous()
        size = tensor.numel() * tensor.element_size()
        if self._pending and self._pending_bytes + size > self.max_shard_bytes:
            self._write_shard()
        self._names.add(name)
        self._pending[name] = tensor
        self._pending_bytes += size
        self._total_bytes += size

    def close(self) -> None:
        """Write what is pending, and give all files their names."""
        if self._pending:
            self._write_shard()
        files = shard_names(len(self._shards))
        try:
            for number, file in enumerate(files):
                os.replace(self._partial(number), self.path / file)
            finish(self.path, dict(zip(files, self._shards)), self._total_bytes)
        except OSError as error:
            self.discard()
            raise CheckpointError(f"could not write the weights to {self.path}: {error}.") from None

    def discard(self) -> None:
        """Remove everything that has no final name yet."""
        (self.path / INDEX_PARTIAL).unlink(missing_ok=True)
        for number in range(len(self._shards) + 1):
            self._partial(number).unlink(missing_ok=True)
        self._pending = {}

    def __enter__(self) -> WeightWriter:
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def _partial(self, number: int) -> Path:
        return self.path / f".weights-{number:05d}.partial"

    def _write_shard(self) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        partial = self._partial(len(self._shards))
        try:
            save_file(self._pending, partial, metadata={"format": "pt"})
            synchronize(partial)
        except (OSError, SafetensorError) as error:
            self.discard()
            raise CheckpointError(f"could not write the weights to {self.path}: {error}.") from None
        self._shards.append(list(self._pending))
        self._pending, self._pending_bytes = {}, 0


def shard_names(count: int) -> list[str]:
    """What the files of ``count`` shards are called."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def finish(path: Path, shards: dict[str, list[str]], total_bytes: int) -> None:
    """Write the index where there are several files (file -> its tensors), and flush the directory."""
    if len(shards) > 1:
        weight_map = {name: file for file, names in shards.items() for name in names}
        index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
        partial = path / INDEX_PARTIAL
        partial.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        synchronize(partial)
        os.replace(partial, path / WEIGHTS[0])
    synchronize(path)


def synchronize(path: Path) -> None:
    """Force a file or directory to disk, so that a rename never precedes its data."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
