"""Several nodes that run one recipe: which of them this is, and what the others know of the first one."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator

from megatron_adapt.errors import ConfigError
from megatron_adapt.launch import Outcome, StepFailed
from megatron_adapt.steps.receipt import write_json, writing

SEEN_WITHIN = 60.0  # seconds until a file that one node has written is seen on all (NFS remembers directories so long)
BEAT = 10.0  # seconds between two signs of life of the first node
SILENT = 120.0  # seconds without one until the others give it up
LATE = 900.0  # seconds that it may begin after the others: so long torchrun waits for a node, too


@dataclass(frozen=True)
class Nodes:
    """The nodes that share the ranks of a step, and which of them this is: torchrun's own words for it."""

    count: int = 1
    rank: str = "$NODE_RANK"  # the cluster's launcher starts a line of ``plan`` once on each node, with these variables set
    address: str = "$MASTER_ADDR"
    port: str = "$MASTER_PORT"

    @property
    def is_first(self) -> bool:
        return self.count == 1 or self.rank == "0"

    @classmethod
    def from_environment(cls, count: int) -> Nodes:
        """This node, by the variables that launchers set. Raises ``ConfigError`` with all that are missing or no good."""
        if count == 1:
            return cls()
        rank = os.environ.get("NODE_RANK", os.environ.get("SLURM_NODEID", ""))
        address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
        problems = [f"{name} is not set" for name, value in (("MASTER_ADDR", address), ("MASTER_PORT", port)) if not value]
        if not rank.isdecimal() or int(rank) >= count:
            problems.append(f"NODE_RANK (under Slurm SLURM_NODEID) is {rank!r}, not a number below {count}")
        if problems:
            raise ConfigError(
                f"--nnodes {count}: {'; '.join(problems)}. Start the same command once on each node, with NODE_RANK 0 to "
                f"{count - 1}, and MASTER_ADDR and MASTER_PORT naming a free port of node 0."
            )
        return cls(count, rank, address, port)

    def ranks(self, total: int) -> range:
        """This node's share of the ranks of a step."""
        each = total // self.count
        return range(int(self.rank) * each, (int(self.rank) + 1) * each)

    def torchrun(self, ranks: int) -> list[str]:
        """torchrun's arguments for a step of so many ranks in all."""
        if self.count == 1:
            where = ["--standalone"]  # any free port
        else:
            where = ["--nnodes", str(self.count), "--node-rank", self.rank, "--master-addr", self.address, "--master-port", self.port]
        return [*where, "--nproc-per-node", str(ranks // self.count)]


def _file(output: Path) -> Path:
    """Where the first node of a run says how it is: ``{run, beat, end}``, ``end`` null as long as it is at work."""
    return output / ".first-node.json"


def _launch() -> str:
    """What a launcher calls this start of all nodes; empty where it does not say."""
    parts = [os.environ.get(f"SLURM_{name}", "") for name in ("JOB_ID", "STEP_ID", "RESTART_COUNT")]
    return ".".join(parts) if parts[1] else ""


@contextlib.contextmanager
def heard(output: Path) -> Iterator[Callable[[Outcome], None]]:
    """Around the first node's work: the others hear that it is alive, and how it ends. What is yielded takes the outcome."""
    word: dict[str, Any] = {"run": _launch() or str(time.time_ns()), "beat": 0, "end": None}
    with writing("this run", output):
        output.mkdir(parents=True, exist_ok=True)
        write_json(_file(output), word)
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT):
            with contextlib.suppress(OSError):  # a full disk, say: the step itself will tell, or it gets better
                word["beat"] += 1
                write_json(_file(output), word)

    def end(outcome: Outcome) -> None:
        word["end"] = "stopped" if outcome.stopped else "done"

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield end
    except BaseException as error:
        word["end"] = f"failed: {getattr(error, 'cause', '') or error or type(error).__name__}"
        raise
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(OSError):  # it must not hide the error; the others hear nothing any more
            write_json(_file(output), word)


class FirstNode:
    """The first node as another one hears it. What it said before this is made is of an earlier run, unless a launcher that
    gives its starts names has started both."""

    def __init__(self, output: Path) -> None:
        self.output, self.last, self.since = output, {}, time.monotonic()
        found = self._read()
        self.old = {} if found.get("run") == _launch() else found

    def _read(self) -> dict[str, Any]:
        try:
            return json.loads(_file(self.output).read_text())
        except (OSError, ValueError):  # not there yet, or not visible for a moment
            return {}

    def has_stopped(self) -> bool:
        """Whether it has come to an end, done or asked to stop; raises ``StepFailed`` when it has failed or is silent."""
        word = self._read()
        if word and word != self.last and word["run"] != self.old.get("run"):
            self.last, self.since = word, time.monotonic()
        end, silent = self.last.get("end"), time.monotonic() - self.since
        if end is not None and end.startswith("failed: "):
            raise StepFailed(f"the first node {end}")
        if end is not None:
            return end == "stopped" or silent > SEEN_WITHIN
        if self.last and silent > SILENT:
            raise StepFailed(f"the first node has given no sign of life for {silent:.0f} s ({_file(self.output)}).")
        if not self.last and silent > LATE:
            before = f" Of an earlier run it said: {self.old['end']}." if self.old.get("end") else ""
            raise StepFailed(f"the first node has not begun within {silent:.0f} s ({_file(self.output)}).{before}")
        return False
