"""Who does which task when: tasks start in order, and each gets its place in the output once those before are encoded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from megatron_adapt.data.documents import Task
from megatron_adapt.data.encoder import Sample
from megatron_adapt.data.pool import Make, Pool
from megatron_adapt.data.worker import BadInput, Comparer


def count(tasks: Sequence[Task], make: Make, workers: int, enough: int | None) -> Iterator[int]:
    """Non-empty documents of each task in order; not necessarily of all tasks once there are ``enough``."""
    if workers == 1:
        worker = make(lambda name, value: None)
        for task in tasks:
            yield worker.count(task)["documents"]
        return
    found: dict[int, int] = {}
    remaining, done, total = iter(tasks), 0, 0
    with Pool() as pool:
        busy = sum(_ask(pool, pool.fork(make), "count", remaining) for _ in range(workers))
        while busy:
            for number, _, value in pool.receive():
                busy -= 1
                found[value["number"]] = value["documents"]
                while done < len(tasks) and tasks[done].number in found:
                    total += found[tasks[done].number]
                    yield found[tasks[done].number]
                    done += 1
                if enough is None or total < enough:
                    busy += _ask(pool, number, "count", remaining)


def _ask(pool: Pool, worker: int, method: str, tasks: Iterator[Task]) -> bool:
    task = next(tasks, None)
    if task is not None:
        pool.ask(worker, method, task)
    return task is not None


class Encoding:
    """All tasks encoded and in their places.

    Args:
        on_report: receives increments, see :class:`Worker`.
        on_encoded: receives the header of each task, in order of the tasks.
        odd: compared first; and samples are, before anything that they were taken from is in its place. None: nothing is.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        make: Make,
        on_report: Callable[[dict[str, int]], None],
        on_encoded: Callable[[dict[str, Any]], None],
        odd: Sample | None,
    ) -> None:
        self.tasks, self.make, self.odd = tasks, make, odd
        self.on_report, self.on_encoded = on_report, on_encoded
        self.offset = 0

    def here(self, comparer: Comparer) -> None:
        """In this process.

        Raises:
            BadInput: the first bad line, unless these are skipped.
        """

        def receive(name: str, value: Any) -> None:
            self.on_report(value) if name == "report" else comparer.compare(*value)

        worker = self.make(receive)
        if self.odd is not None:
            comparer.compare(None, self.odd)
        for task in self.tasks:
            header = worker.encode(task)
            self.on_report(header.pop("report"))
            worker.place(task.number, self._advance(header))

    def forked(self, workers: int, pool: Pool, comparer: int) -> None:
        """In processes of their own, and samples in ``comparer``, a Comparer in the pool that has been asked to load: that
        takes as long as encoding tens of megabytes. The same result, and the same first error. The pool is stopped at the end."""
        owners: dict[int, int] = {}
        headers: dict[int, dict[str, Any]] = {}
        # The first is at work: at the beginning no sample, but the library.
        samples: deque[tuple[int | None, Any]] = deque([(None, None), (None, self.odd)] if self.odd else ())
        failure: BadInput | None = None
        order = [task.number for task in self.tasks]
        remaining, encoded, placed = iter(self.tasks), 0, 0

        def start(worker: int) -> None:
            if failure is None and (task := next(remaining, None)) is not None:
                owners[task.number] = worker
                pool.ask(worker, "encode", task)

        def compare() -> None:
            if samples:
                pool.ask(comparer, "compare", *samples[0])

        for _ in range(workers):
            start(pool.fork(self.make))
        while placed < len(order):
            idle = []
            for worker, name, value in pool.receive():
                if name == "report":
                    self.on_report(value)
                elif name == "sample":
                    samples.append(value)
                    if len(samples) == 1:
                        compare()
                elif name in ("load", "compare"):
                    samples.popleft()
                    compare()
                elif name == "place":
                    placed += 1
                elif name == "bad":
                    if failure is None or value.number < failure.number:
                        failure = value
                else:
                    self.on_report(value.pop("report"))
                    headers[value["number"]] = value
                    idle.append(worker)
            # What a sample waits for has no place yet: a part that is finished is a part that was compared.
            waiting = {number for number, _ in samples}
            while encoded < len(order) and order[encoded] in headers and not waiting & {None, order[encoded]}:
                header = headers.pop(order[encoded])
                pool.ask(owners.pop(order[encoded]), "place", order[encoded], self._advance(header))
                encoded += 1
            for worker in idle:
                start(worker)
            if failure is not None and placed == encoded and order[encoded] == failure.number:
                raise failure
        pool.stop()

    def _advance(self, header: dict[str, Any]) -> int:
        self.on_encoded(header)
        offset = self.offset
        self.offset += header["size"]
        return offset
