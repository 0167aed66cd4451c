"""What to run first on a machine with an NVIDIA GPU: checks of the GPU path, then its speed.

    python benchmarks/gpu/first_call.py --output FOLDER [--part checks ...] [--only NAME ...] [--minutes 8.5] [--known results.json]
    python benchmarks/gpu/first_call.py --output FOLDER --cpu-dry-run [--stand-in]

Every section is a process of its own with a time limit (``processes``), so that one that fails, hangs or breaks the GPU's
context does not stop the next. FOLDER gets three files, complete after every section: results.json, which `megatron-adapt plan
--cluster ... --measured` reads; results.md, to be pasted into RESULTS.md; log.txt, what the sections said; and the tables of
profilers. What is ok in --known (an earlier call's results.json) is not run again, what failed there comes last. Exits with 1 when a section failed. `--cpu-dry-run` runs
all but the Transformer Engine sections on a CPU, with tiny sizes: it proves the script; with `--stand-in` those, too, and all
of their path but Transformer Engine's kernels (tests/stand_ins).
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # workload.py

import processes
from goals import verdicts
from parts import PARTS, SECTIONS
from report import compare_speeds, markdown, summary

LOG_BYTES = 200_000  # of a section, its end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for results.json, results.md and log.txt")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}; all")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="NAME", help="these sections alone")
    parser.add_argument("--minutes", type=float, default=math.inf, help="what cannot end by then is left out")
    parser.add_argument("--known", type=Path, help="results.json of an earlier call: what is ok there is not run again")
    parser.add_argument("--cpu-dry-run", action="store_true", help="prove the script on a CPU, with tiny sizes")
    parser.add_argument("--stand-in", action="store_true", help="of a dry run: Transformer Engine's sections, too, without its kernels")
    parser.add_argument("--fresh", action="store_true", help="a fresh interpreter for each section instead of a fork")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.section:
        sys.exit(run_section(arguments))
    arguments.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="first_call_") as scratch:
        arguments.scratch = Path(scratch)
        results = run_all(arguments)
    print("\n".join((*compare_speeds(results), *verdicts(results))))
    failed = [name for name, result in results.items() if result["status"] == "failed"]
    print(f"{len(failed)} of {len(results)} sections failed ({', '.join(failed) or 'none'}); see {arguments.output}")
    sys.exit(bool(failed))


def run_all(arguments: argparse.Namespace) -> dict[str, dict]:
    known = json.loads(arguments.known.read_text()) if arguments.known and arguments.known.exists() else {}
    results = dict(known)
    end = time.monotonic() + 60 * arguments.minutes
    log = arguments.output / "log.txt"
    log.write_text("")
    if not arguments.fresh:
        began = time.monotonic()
        processes.preload(arguments.stand_in)
        print(f"imports: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    for name in order(arguments, known):
        left, section = end - time.monotonic(), SECTIONS[name]
        if left < min(section.seconds, 60):
            results.setdefault(name, {"status": "skipped: no time left"})
        elif arguments.cpu_dry_run and section.needs_te and not (arguments.stand_in and name != "te_layer"):
            results[name] = {"status": "skipped: needs Transformer Engine"}
        else:
            results[name] = start(name, arguments, min(left, section.seconds), log)
        print(f"{name:28} {summary(results[name])}", flush=True)
        (arguments.output / "results.json").write_text(json.dumps(results, indent=1))
        (arguments.output / "results.md").write_text(markdown(results))
    return results


def order(arguments: argparse.Namespace, known: dict[str, dict]) -> list[str]:
    """Sections to run: versions, what has not been run yet, what failed before."""
    wanted = arguments.only or [name for part in arguments.part for name in PARTS[part]]
    status = {name: known.get(name, {}).get("status", "") for name in wanted}
    again = [name for name in wanted if status[name] == "failed"]
    return ["versions", *(name for name in wanted if name != "versions" and status[name] not in ("ok", "failed")), *again]


def start(name: str, arguments: argparse.Namespace, seconds: float, log: Path) -> dict:
    """Run one section in a process of its own, for so long at most; its result."""
    own, result, kept = arguments.scratch / f"{name}.log", arguments.scratch / f"{name}.json", arguments.scratch / "kept"
    kept.mkdir(exist_ok=True)
    command = [sys.executable, __file__, "--section", name]
    command += ["--output", str(arguments.output), "--scratch", str(arguments.scratch)]
    command += ["--cpu-dry-run"] * arguments.cpu_dry_run + ["--stand-in"] * arguments.stand_in + ["--fresh"]
    # Sums in a fixed order wherever that can be had: the section on resuming compares bits.
    environment = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    if name.startswith("resume"):
        environment["NVTE_ALLOW_NONDETERMINISTIC_ALGO"] = "0"
    began = time.perf_counter()
    process = processes.Process(environment, own)
    if arguments.fresh:
        code = process.fresh(command).wait(seconds)
    else:
        arguments.section = name
        code = process.fork(lambda: run_section(arguments)).wait(seconds)
        if code == processes.NO_CUDA:
            arguments.fresh = True  # from now on: what was imported here has used CUDA
            code = process.fresh(command).wait(seconds)
    with log.open("ab") as file:
        file.write(f"\n{'=' * 20} {name}\n".encode() + own.read_bytes()[-LOG_BYTES:])
    for table in kept.iterdir():
        shutil.move(table, arguments.output / table.name)
    problem = f"took longer than {seconds:.0f} s" if code is None else f"died without a result (exit code {code})"
    failed = {"status": "failed", "error": f"{problem}; see {log.name}"}
    found = json.loads(result.read_text()) if result.exists() else failed
    return found | {"seconds": round(time.perf_counter() - began, 1)}


def run_section(arguments: argparse.Namespace) -> int:
    """In the section's own process: call its function and write NAME.json, whatever happens."""
    section = SECTIONS[arguments.section]
    try:
        if arguments.fresh and arguments.stand_in:
            processes.prepare_stand_in()
        function = getattr(__import__(section.module), section.function)
        found = function(tiny=arguments.cpu_dry_run, scratch=arguments.scratch, **section.options)
        result = {"status": "ok", **found}
    except BaseException as error:  # SystemExit as well: the point is to report it
        traceback.print_exc()
        result = {"status": "failed", "error": f"{type(error).__name__}: {error}"[:2000]}
    (arguments.scratch / f"{arguments.section}.json").write_text(json.dumps(result, indent=1))
    return int(result["status"] == "failed")


if __name__ == "__main__":
    main()
