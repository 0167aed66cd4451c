"""What to run first on a machine with an NVIDIA GPU: checks of the GPU path, then its speed.

    python benchmarks/gpu/first_call.py --output FOLDER [--part checks|resume|tracking|optimizers|speed|llama|mistral] [--only NAME ...]
    python benchmarks/gpu/first_call.py --output FOLDER --cpu-dry-run

Every section is a process of its own with a time limit, so that one that fails, hangs or breaks the GPU's context does
not stop the next. FOLDER gets NAME.log and NAME.json of each and results.json of all, of earlier calls, too; the latter is what
`megatron-adapt plan --cluster ... --measured` reads. A part takes ten minutes at most. Exits with 1 when a section failed. `--cpu-dry-run` runs all but the Transformer Engine sections on a CPU, with tiny sizes: it proves the script.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

# part -> name -> (file, its function, arguments, needs Transformer Engine, seconds allowed)
FP8 = {"fp8_current": "fp8-current", "fp8_delayed": "fp8-delayed", "fp8_blockwise": "fp8-blockwise"}
PARTS: dict[str, dict[str, tuple]] = {
    "checks": {
        "versions": ("sections", "versions", {}, False, 60),
        "te_layer": ("sections", "te_layer", {}, True, 90),
        "te_parameters": ("sections", "te_parameters", {}, True, 90),
        "parity_fp32": ("sections", "parity_fp32", {}, False, 90),
        "parity_bf16": ("sections", "parity_bf16", {}, False, 120),
        "gradients": ("kernels", "gradients", {}, False, 180),
        "cross_entropy": ("kernels", "cross_entropy", {}, False, 120),
        "fused_update": ("kernels", "fused_update", {}, False, 180),
        "packing": ("sections", "packing", {}, False, 180),
        "across_specs": ("sections", "across_specs", {}, True, 120),
        "train_fp32": ("sections", "train_fp32", {}, False, 120),
        "train_bf16": ("sections", "train_bf16", {}, False, 180),
        "train_bf16_true": ("sections", "train_bf16_true", {}, False, 180),
    },
    "resume": {
        "versions": ("sections", "versions", {}, False, 60),
        "resume_plain": ("sections", "resume", {"spec": "plain"}, False, 150),
        "resume_bf16_true": ("sections", "resume", {"spec": "plain", "precision": "bf16-true"}, False, 150),
        "resume_te": ("sections", "resume", {"spec": "te"}, True, 150),
        **{f"resume_{name}": ("sections", "resume", {"spec": "te", "precision": mode}, True, 150) for name, mode in FP8.items()},
    },
    "tracking": {
        "versions": ("sections", "versions", {}, False, 60),
        "tracking_bf16_true": ("real_text", "tracking", {"precision": "bf16-true", "spec": "plain", "allowed": 0.003}, False, 240),
        **{
            f"tracking_{name}": ("real_text", "tracking", {"precision": mode, "spec": "te", "allowed": 0.02}, True, 240)
            for name, mode in FP8.items()
        },
        **{f"train_{name}": ("sections", "train_fp8", {"precision": mode}, True, 180) for name, mode in FP8.items()},
    },
    "optimizers": {
        "versions": ("sections", "versions", {}, False, 60),
        "train_muon": ("sections", "train_muon", {}, False, 180),
        "train_offload": ("sections", "train_offload", {}, False, 180),
        "train_adamw8bit": ("sections", "train_adamw8bit", {}, False, 240),
    },
    "speed": {
        "versions": ("sections", "versions", {}, False, 60),
        "speed_te": ("throughput", "engine", {"spec": "te"}, True, 240),
        "speed_plain": ("throughput", "engine", {"spec": "plain"}, False, 240),
        "speed_transformers": ("throughput", "transformers", {"precision": "bf16"}, False, 240),
        "speed_transformers_pure_bf16": ("throughput", "transformers", {"precision": "pure-bf16"}, False, 240),
        "profile_te": ("shapes", "profile", {"spec": "te"}, True, 120),
        "profile_plain": ("shapes", "profile", {"spec": "plain"}, False, 120),
    },
    "llama": {
        "versions": ("sections", "versions", {}, False, 60),
        "llama_8b_te": ("shapes", "llama_8b", {"spec": "te", "precision": "bf16-true"}, True, 180),
        "llama_8b_plain": ("shapes", "llama_8b", {"spec": "plain", "precision": "bf16-true"}, False, 180),
        "llama_8b_fp8": ("shapes", "llama_8b", {"spec": "te", "precision": "fp8-current"}, True, 180),
        "llama_1b_packed_te": ("shapes", "llama_1b_packed", {"spec": "te"}, True, 300),
        "llama_1b_packed_plain": ("shapes", "llama_1b_packed", {"spec": "plain"}, False, 300),
    },
    "mistral": {
        "versions": ("sections", "versions", {}, False, 60),
        "mistral_7b_te": ("shapes", "mistral_7b", {"spec": "te"}, True, 240),
        "embedding_only_te": ("shapes", "embedding_only", {"spec": "te"}, True, 240),
        "packed_chat_te": ("shapes", "packed_chat", {"spec": "te"}, True, 240),
        "mistral_7b_plain": ("shapes", "mistral_7b", {"spec": "plain"}, False, 240),
        "embedding_only_plain": ("shapes", "embedding_only", {"spec": "plain"}, False, 240),
        "packed_chat_plain": ("shapes", "packed_chat", {"spec": "plain"}, False, 240),
    },
}
SECTIONS = {name: section for sections in PARTS.values() for name, section in sections.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for logs and JSON")
    parser.add_argument("--part", choices=PARTS, help="these sections alone; each part ends within --minutes")
    parser.add_argument("--minutes", type=float, default=9.5, help="what is not begun by then, of --part, is left out (9.5)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="NAME", help="these sections alone")
    parser.add_argument("--cpu-dry-run", action="store_true", help="prove the script on a CPU, with tiny sizes")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.section:
        sys.exit(run_section(arguments))
    arguments.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="first_call_") as scratch:
        arguments.scratch = Path(scratch)
        results = run_all(arguments)
    compare_speeds(results)
    failed = [name for name, result in results.items() if result["status"] == "failed"]
    print(f"{len(failed)} of {len(results)} sections failed ({', '.join(failed) or 'none'}); see {arguments.output}")
    sys.exit(bool(failed))


def run_all(arguments: argparse.Namespace) -> dict[str, dict]:
    names = arguments.only or PARTS.get(arguments.part, SECTIONS)
    # Parts add to what is there: each may be a call of its own, on another day.
    file = arguments.output / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    end = time.monotonic() + 60 * arguments.minutes if arguments.part else math.inf
    for name in names:
        left = end - time.monotonic()
        if arguments.cpu_dry_run and SECTIONS[name][3]:
            results[name] = {"status": "skipped: needs Transformer Engine"}
        elif left < 20:
            results[name] = {"status": "skipped: no time left"}
        else:
            results[name] = start(name, arguments, min(left, SECTIONS[name][4]))
        print(f"{name:28} {summary(results[name])}", flush=True)
        file.write_text(json.dumps(results, indent=1))
    return {name: results[name] for name in names}


def start(name: str, arguments: argparse.Namespace, seconds: float) -> dict:
    """Run one section in a process of its own, for so long at most; its result."""
    log, result = arguments.output / f"{name}.log", arguments.output / f"{name}.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--section", name]
    command += ["--output", str(arguments.output), "--scratch", str(arguments.scratch)]
    command += ["--cpu-dry-run"] * arguments.cpu_dry_run
    # Sums in a fixed order wherever that can be had: the section on resuming compares bits.
    environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    if name.startswith("resume"):
        environment["NVTE_ALLOW_NONDETERMINISTIC_ALGO"] = "0"
    began = time.perf_counter()
    with log.open("w") as file:
        try:
            subprocess.run(command, stdout=file, stderr=file, timeout=seconds, env=environment)
            problem = "died without a result"
        except subprocess.TimeoutExpired:
            problem = f"took longer than {seconds:.0f} s"
    failed = {"status": "failed", "error": f"{problem}; see {log}"}
    found = json.loads(result.read_text()) if result.exists() else failed
    return found | {"seconds": round(time.perf_counter() - began, 1)}


def run_section(arguments: argparse.Namespace) -> int:
    """In the section's own process: call its function and write NAME.json, whatever happens."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # workload.py
    module, function, options, _, _ = SECTIONS[arguments.section]
    try:
        found = getattr(__import__(module), function)(tiny=arguments.cpu_dry_run, scratch=arguments.scratch, **options)
        result = {"status": "ok", **found}
    except BaseException as error:  # SystemExit as well: the point is to report it
        traceback.print_exc()
        result = {"status": "failed", "error": f"{type(error).__name__}: {error}"[:2000]}
    (arguments.output / f"{arguments.section}.json").write_text(json.dumps(result, indent=1))
    return int(result["status"] == "failed")


def summary(result: dict) -> str:
    def short(value: object) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{short(v)}" if k == "status" else f"{k} {short(v)}" for k, v in result.items())[:600]


def compare_speeds(results: dict[str, dict]) -> None:
    """Print the engine's tokens/s over each transformers loop's, where both ran."""
    for ours in ("speed_te", "speed_plain"):
        for peer in ("speed_transformers", "speed_transformers_pure_bf16"):
            a, b = (results.get(name, {}).get("tokens_per_second") for name in (ours, peer))
            if a and b:
                print(f"{ours} / {peer}: {a / b:.2f}x")


if __name__ == "__main__":
    main()
