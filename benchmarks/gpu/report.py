"""results.json of first_call.py in words: lines while it runs, and Markdown to be pasted into RESULTS.md."""

from __future__ import annotations

import datetime
import shlex
import sys
from typing import Any, Iterator

from goals import verdicts
from parts import PARTS

PEERS = {  # what is compared with what: whoever has more tokens/s is faster on the same ids
    "speed_te": ("speed_transformers", "speed_transformers_pure_bf16"),
    "speed_plain": ("speed_transformers", "speed_transformers_pure_bf16"),
    "llama_1b_packed_te": ("llama_1b_packed_transformers",),
    "llama_1b_packed_plain": ("llama_1b_packed_transformers",),
    "llama_8b_fp8": ("llama_8b_te",),
}
HEAD = "| row | layers | tokens/s | model TFLOP/s | of the product's | GB (estimated) | bytes/parameter | mode | also |"


def short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def summary(result: dict[str, Any]) -> str:
    return ", ".join(short(value) if key == "status" else f"{key} {short(value)}" for key, value in result.items())[:600]


def compare_speeds(results: dict[str, dict]) -> Iterator[str]:
    """Tokens/s of ours over each peer's, where both ran."""
    for ours, peers in PEERS.items():
        for peer in peers:
            found = results.get(ours, {}).get("tokens_per_second")
            theirs = {key: value for key, value in results.get(peer, {}).items() if key.endswith("tokens_per_second")}
            for key, value in theirs.items() if found else ():
                label = key.removesuffix("tokens_per_second").strip("_")
                yield f"{ours} / {peer}{f' ({label})' if label else ''}: {found / value:.2f}x"


def markdown(results: dict[str, dict]) -> str:
    """A section for RESULTS.md: the machine, a table of speeds, one of checks."""
    machine = results.get("versions", {})
    packages = ("torch", "transformer-engine", "megatron-core", "transformers", "triton", "cuda", "cudnn")
    versions = ", ".join(f"{name} {machine[name]}" for name in packages if machine.get(name))
    command = shlex.join(["python", "benchmarks/gpu/first_call.py", *sys.argv[1:]])
    lines = [f"### {datetime.date.today().isoformat()}, {machine.get('device', 'device unknown')}", ""]
    lines += [f"`{command}`; {versions}; {short(machine.get('memory_gb', '?'))} GB", "", HEAD, "|---" * (HEAD.count("|") - 1) + "|"]
    speeds = {name: result for name, result in results.items() if "share_of_matmul" in result}
    lines += [f"| `{name}` | {' | '.join(columns(result))} |" for name, result in speeds.items()]
    lines += ["", *(f"- {line}" for line in (*compare_speeds(results), *verdicts(results))), "", "| section | outcome | seconds | numbers |", "|---|---|---|---|"]
    for name, result in results.items():
        if name not in speeds and name != "versions":
            status = result["status"] if result["status"] != "failed" else f"**failed**: {result['error']}"
            numbers = [f"{key} {short(value)}" for key, value in result.items() if key not in ("status", "seconds", "error") and not isinstance(value, dict)]
            cells = (status, str(result.get("seconds", "")), "; ".join(numbers))
            lines.append(f"| `{name}` | " + " | ".join(" ".join(cell.replace("|", "/").split())[:600] for cell in cells) + " |")
    missing = [name for sections in PARTS.values() for name in sections if name not in results]
    return "\n".join(lines + ["", f"Not run: {', '.join(missing) or 'nothing'}.", ""])


def columns(result: dict[str, Any]) -> list[str]:
    memory = f"{result['memory_gb']:.1f} ({result['estimated_gb']:.1f})" if "estimated_gb" in result else f"{result['memory_gb']:.1f}"
    known = {
        "layers", "of_layers", "tokens_per_second", "tflops", "matmul_tflops", "share_of_matmul", "memory_gb", "estimated_gb", "parameters",
        "state_bytes_per_parameter", "mode", "tokens_per_second_at_full_depth", "status", "spec", "precision", "seconds", "first_loss", "estimated_to_measured",
    }  # fmt: skip
    if result.get("layers") != result.get("of_layers"):
        known.remove("tokens_per_second_at_full_depth")
    more = [f"{key} {short(value)}" for key, value in result.items() if key not in known and not isinstance(value, dict) and value != []]
    return [
        f"{result.get('layers', '')}/{result.get('of_layers', '')}".strip("/"), f"{result['tokens_per_second']:,.0f}",
        f"{result['tflops']:.4g}", f"{result['share_of_matmul']:.1%} of {result['matmul_tflops']:.4g}", memory,
        short(result.get("state_bytes_per_parameter", "")), str(result.get("mode", result.get("precision", ""))), "; ".join(more),
    ]  # fmt: skip
