"""Time that training loses per checkpoint: saved in the foreground, and in the background (`async_save`).

    python benchmarks/checkpoint_time.py [--size 260k|20m] [--steps 12] [--save-every 3]

Claim: with `async_save` training loses less than half of the time that a save in the foreground costs. The same steps are
run three times, without saves but the last, with saves waited for, and with saves in the background; each in a forked
process of its own with one thread, `--repeat` times in turn. Lost per save: the difference of the medians over the number
of saves. The background copy of the state and the thread that writes still take processor time: on a machine whose cores
are all busy little is won. Exits with 1 when the claim does not hold.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import workload

from megatron_adapt import launch
from megatron_adapt.engine import backend, loop

LENGTH, BATCH = 128, 4
KINDS = {"no saves": {}, "foreground": {"async_save": False}, "background": {"async_save": True}}


def seconds(folder: Path, scratch: Path, kind: str, steps: int, every: int) -> float:
    """Wall seconds of the steps, the last save excluded: it is waited for in all three."""
    saves = {} if kind == "no saves" else {"save_every": every, **KINDS[kind]}
    settings = workload.phase(steps, LENGTH, BATCH, BATCH, **saves)
    job = workload.job(settings, "fp32", folder / "start", scratch, folder / "corpus")

    def work() -> None:
        with backend.session(job.layout, job.seed):
            times = []
            loop.train(job, log=lambda line: None, progress=lambda done, total: times.append(time.perf_counter()))
        (folder / "seconds").write_text(str(times[-1] - times[0]))

    launch.fork(1, work, threads=1)
    return float((folder / "seconds").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("260k", "20m"), default="20m")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--save-every", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hf = workload.write_model(folder / "hf", workload.SIZES[given.size])
        workload.write_corpus(folder, hf, LENGTH * BATCH * (given.steps + 2))

        def make() -> None:
            with backend.session(backend.Layout(), workload.SEED):
                workload.import_model(folder / "start", hf, "fp32")

        launch.fork(1, make, threads=1)
        found: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for turn in range(given.repeat):
            for kind in KINDS:
                found[kind].append(seconds(folder, folder / f"{kind}{turn}", kind, given.steps, given.save_every))
    median = {kind: statistics.median(times) for kind, times in found.items()}
    saves = (given.steps - 1) // given.save_every
    lost = {kind: (median[kind] - median["no saves"]) / saves for kind in ("foreground", "background")}
    print("| | seconds | lost per save |\n|---|---|---|")
    for kind, value in median.items():
        print(f"| {kind} | {value:.2f} | {f'{lost[kind]:.2f} s' if kind in lost else ''} |")
    sys.exit(0 if lost["background"] < lost["foreground"] / 2 else "more than half of a save's time is lost in the background")


if __name__ == "__main__":
    main()
