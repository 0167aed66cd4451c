"""benchmarks/gpu/first_call.py without a GPU: what it would run exists, what it writes, how it goes on."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import pytest
from harness import ROOT

GPU = ROOT / "benchmarks" / "gpu"
sys.path.insert(0, str(GPU))

import fitting
import parts
import report
from test_cluster import phases

from megatron_adapt.analysis import recomputation
from megatron_adapt.config import Parallel


def test_every_section_is_a_function_that_takes_its_options() -> None:
    for name, section in parts.SECTIONS.items():
        tree = ast.parse((GPU / f"{section.module}.py").read_text())
        (found,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == section.function)
        arguments = [argument.arg for argument in found.args.args]
        without = len(arguments) - len(found.args.defaults)
        given = ["tiny", "scratch", *section.options]
        assert set(given) <= set(arguments) and set(arguments[:without]) <= set(given), name


def test_results_say_what_each_section_is() -> None:
    named = re.findall(r"`([a-z0-9_*]+)`", (GPU / "RESULTS.md").read_text())
    assert not [name for name in parts.SECTIONS if not any(fnmatch(name, pattern) for pattern in named)]


RESULTS = {
    "versions": {"status": "ok", "device": "GPU 1", "torch": "2.0", "memory_gb": 85.0},
    "llama_8b_te": {
        "status": "ok", "tokens_per_second": 9000.0, "tflops": 470.0, "matmul_tflops": 790.0, "share_of_matmul": 0.595, "memory_gb": 70.0,
        "estimated_gb": 80.5, "estimated_to_measured": 1.15, "layers": 32, "of_layers": 32, "mode": "bf16-true", "state_bytes_per_parameter": 8.0, "ids": "text",
    },
    "llama_8b_fp8": {"status": "failed", "error": "OutOfMemory: | 3 GB", "seconds": 12.0},
    "llama_1b_packed_te": {"status": "ok", "tokens_per_second": 50.0, "tflops": 1.0, "matmul_tflops": 2.0, "share_of_matmul": 0.5, "memory_gb": 1.0},
    "llama_1b_packed_transformers": {"status": "ok", "eager_tokens_per_second": 20.0, "compiled_tokens_per_second": 40.0},
}  # fmt: skip


def test_what_is_pasted_into_results() -> None:
    text = report.markdown(RESULTS)
    assert ", GPU 1\n" in text and "torch 2.0; 85 GB" in text
    assert "| `llama_8b_te` | 32/32 | 9,000 | 470 | 59.5% of 790 | 70.0 (80.5) | 8 | bf16-true | ids text |" in text
    assert "- llama_1b_packed_te / llama_1b_packed_transformers (compiled): 1.25x" in text
    assert "bf16: share of the measured matrix rate: 0.595, wanted 0.6: not met\n" in text
    assert "eager and compiled: 1.25, wanted 1.5: not met\n" in text and "in fp8" not in text
    assert "- memory of llama_8b_te: 80.5 GB estimated, 70.0 measured (1.15): not met\n" in text
    assert "| `llama_8b_fp8` | **failed**: OutOfMemory: / 3 GB | 12.0 |  |" in text
    assert "Not run: te_layer, " in text and "llama_8b_te" not in text.split("Not run: ")[1]
    assert list(report.compare_speeds(RESULTS))[0] == "llama_1b_packed_te / llama_1b_packed_transformers (eager): 2.50x"


def test_what_of_a_shape_fits() -> None:
    """All layers of an 8B model in bf16 alone on 80 GB and 141 GB, fewer with main weights in float32; no more is recomputed than
    has to be."""
    ((_, phase, shape),) = phases("8b", sequence_length=8192, batch_size=4, recompute="auto")

    def fit(gibibytes: int, precision: str, recompute: str = "auto") -> fitting.Fit:
        asked = phase.model_copy(update={"recompute": recompute})
        return fitting.first(lambda layers: replace(shape, num_layers=layers), 32, asked, precision, gibibytes * 2**30)

    assert fit(141, "bf16-true") == (32, "none")
    for precision in ("bf16-true", "fp8-current-true"):
        layers, recompute = fit(80, precision)
        assert layers == 32 and isinstance(recompute, int) and 16 < recompute < 28
        needed = [recomputation.needs(count, shape, Parallel(), phase, precision) / (80 * 2**30) for count in (recompute, recompute - 1)]
        assert needed[0] <= recomputation.USABLE < needed[1]
    layers, recompute = fit(80, "bf16-mixed")
    assert fit(80, "bf16-mixed", "full") == (layers, "full") and layers < 18 and isinstance(recompute, int) and recompute < layers
    assert fit(4, "bf16-true", "none").layers == 1


def test_what_is_tried_after_an_out_of_memory() -> None:
    tried: list[fitting.Fit | None] = [fitting.Fit(32, "none")]
    while (last := tried[-1]) is not None and len(tried) < 12:
        tried.append(fitting.after_out_of_memory(last, "auto"))
    counts = [("none"), 4, 8, 12, 16, 20, 24, 28, "full"]
    assert tried == [*((32, count) for count in counts), (28, "full"), (25, "full"), (22, "full")]
    assert fitting.after_out_of_memory(fitting.Fit(32, "none"), "none") == (28, "none")
    assert fitting.after_out_of_memory(fitting.Fit(1, "full"), "auto") is None


def test_a_call_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    known = tmp_path / "known.json"
    known.write_text(json.dumps(RESULTS))
    command = [sys.executable, str(GPU / "first_call.py"), "--output", str(tmp_path / "out"), "--cpu-dry-run", "--known", str(known)]
    found = subprocess.run([*command, "--only", "llama_8b_fp8", "te_layer", "llama_8b_te"], capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stdout + found.stderr
    said = [line.split()[0] for line in found.stdout.splitlines()[:3]]
    assert said == ["versions", "te_layer", "llama_8b_fp8"]  # not what is ok, and last what failed
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["llama_8b_te"] == RESULTS["llama_8b_te"] and results["te_layer"]["status"] == "skipped: needs Transformer Engine"
    assert results["versions"]["status"] == "ok" and results["versions"]["device"].startswith("CPU")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"results.json", "results.md", "log.txt"}
    # Without time left nothing is run, and what is known stays.
    found = subprocess.run([*command, "--minutes", "0", "--only", "te_parameters", "llama_8b_fp8"], capture_output=True, text=True, timeout=300)
    assert "1 of" in found.stdout and found.returncode == 1, found.stdout + found.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("name", parts.PARTS["checks"])
def test_on_a_gpu(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(GPU / "first_call.py"), "--output", str(tmp_path), "--only", name]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout[-3000:] + (tmp_path / "log.txt").read_text()[-3000:]
