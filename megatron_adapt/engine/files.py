"""Megatron's writer of checkpoint files, run in the process and thread that calls it, with checksums of all that it writes."""

from __future__ import annotations

import contextlib
import queue
from functools import partial
from typing import Any, BinaryIO, Iterator

from torch.serialization import get_crc32_options, set_crc32_options

from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron_adapt.streams.checksums import Running


def write_here(checksums: dict[str, list[int]]) -> None:
    """Let the next save write its files in the process, and the thread, that it is called in, and fill ``checksums``.

    0.16 forks for each file; what it forked outlives a trainer that is killed, waits for it for ever and keeps its pipes open.
    And it would start a whole interpreter (a multiprocessing manager) to get results from a process that there is none of.
    """
    if getattr(filesystem_async, "_results_queue", "absent") is None:
        filesystem_async._results_queue = queue.SimpleQueue()
    writer = filesystem_async.FileSystemWriterAsync
    name = "write_preloaded_data_multiproc"
    if not hasattr(writer, name):
        name = "write_preloaded_data_multithread"  # 0.19
    setattr(writer, name, staticmethod(partial(_write, checksums)))


def _write(
    checksums: dict[str, list[int]], transforms: list, _use_msc: bool, _rank: int, files: list, results: queue.SimpleQueue
) -> None:
    """What Megatron's function does: puts {number of file: what was written} or an error into ``results``."""
    written: dict[int, list] = {}
    with _no_zip_checksums():
        for number, file in enumerate(files):
            told, turns, passing = queue.SimpleQueue(), queue.Queue(), Running()
            turns.put(number)
            watched = [_Watched(each, passing) for each in transforms]
            filesystem_async.FileSystemWriterAsync.write_preloaded_data(watched, number, file, told, turns, True)
            _, found = told.get()
            if isinstance(found, Exception):
                results.put(found)
                return
            written[number] = found
            checksums[file[1]] = passing.blocks()
    results.put(written)


@contextlib.contextmanager
def _no_zip_checksums() -> Iterator[None]:
    """torch's own, which it never compares and which take longer than ours."""
    before = get_crc32_options()
    set_crc32_options(False)
    try:
        yield
    finally:
        set_crc32_options(before)


class _Watched:
    """torch's transformations of the streams that tensors are written to, and behind them a look at all bytes."""

    def __init__(self, transforms: Any, passing: Running) -> None:
        self.transforms, self.passing = transforms, passing

    def transform_save_stream(self, item: Any, stream: BinaryIO) -> tuple[Any, list[str]]:
        return self.transforms.transform_save_stream(item, _Tee(stream, self.passing))


class _Tee:
    def __init__(self, stream: BinaryIO, passing: Running) -> None:
        self.stream, self.passing = stream, passing

    def write(self, data: Any) -> int:
        self.passing.add(data)
        return self.stream.write(data)

    def flush(self) -> None:
        self.stream.flush()
