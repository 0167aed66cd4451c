"""What is read off measured rows: rows made by the formulas give back what they were made with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_cluster import phases

from megatron_adapt.analysis import cluster as clusters
from megatron_adapt.analysis.measured import Measured
from megatron_adapt.analysis.step_cost import Cluster, Rates, step_seconds
from megatron_adapt.config import Parallel
from megatron_adapt.errors import ConfigError

ONE = Cluster(1, 1, "h100")
DEVICE = {"device": "NVIDIA H100 80GB HBM3"}
CONFIGS = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_key_value_heads": 8},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_key_value_heads": 8},
}


def row(name: str, precision: str, rates: Rates, **changes: Any) -> dict[str, Any]:
    """One of first_call.py's, of a GPU with these rates."""
    ((_, phase, shape),) = phases(name, batch_size=4, **changes)
    config = {"model_type": "llama", "num_attention_heads": 32, "max_position_embeddings": 131072, "vocab_size": 128_256, **CONFIGS[name]}
    seconds = step_seconds(shape, phase, precision, Parallel(), ONE, rates)
    return {
        "status": "ok", "precision": "fp8" if "fp8" in precision else "bf16", "mode": precision, "step_seconds": seconds, "tflops": 1.0,
        "config": config, "phase": phase.model_dump(mode="json", exclude_defaults=True),
    }  # fmt: skip


def measured(folder: Path, device: dict[str, str] = DEVICE, **rows: Any) -> Measured:
    return Measured(written(folder, device, **rows), Cluster(1, 8, "h100"))


def written(folder: Path, device: Any = DEVICE, **rows: Any) -> Path:
    file = folder / "results.json"
    file.write_text(json.dumps({"versions": device, **rows}))
    return file


def rates(found: Measured, name: str, precision: str, **changes: Any) -> tuple[Rates, list[str]]:
    ((_, phase, shape),) = phases(name, **changes)
    return found.rates(shape, phase, precision)


def test_bf16_rows_give_the_share_of_the_peak(tmp_path: Path) -> None:
    """Whatever they recompute and update; of the model nearest in width, of the same packing, of several the fastest."""
    found = measured(
        tmp_path, small=row("1b", "bf16-mixed", Rates(0.45), recompute="none"), large=row("8b", "bf16-true", Rates(0.55), recompute=20),
        slow={"status": "ok", "full": row("8b", "bf16-true", Rates(0.5)), "times_full": 1.5},
        packed=row("1b", "bf16-mixed", Rates(0.3), packing="documents"), failed={"status": "failed", "error": "OutOfMemory"},
    )  # fmt: skip
    for name, changes, share, said in (
        ("1b", {}, 0.45, "445 TFLOP/s in small"), ("8b", {}, 0.55, "544 TFLOP/s in large"), ("70b", {}, 0.55, "544 TFLOP/s in large"),
        ("8b", {"packing": "documents"}, 0.3, "297 TFLOP/s in packed"),
    ):  # fmt: skip
        reached, (line,) = rates(found, name, "bf16-mixed", **changes)
        assert reached.share == pytest.approx(share) and reached.products is None
        assert line == f"training at {share:.0%} of 989 TFLOP/s, measured: {said} on NVIDIA H100 80GB HBM3"


def test_a_row_that_tells_its_speed_alone_counts_where_there_is_no_other(tmp_path: Path) -> None:
    speed = {"status": "ok", "precision": "bf16", "tflops": 494.5, "step_seconds": 1.0}
    assert rates(measured(tmp_path, speed_te=speed), "1b", "fp32")[0] == Rates(0.5)
    both = measured(tmp_path, speed_te=speed, large=row("8b", "bf16-true", Rates(0.55)))
    assert rates(both, "1b", "bf16-mixed")[0].share == pytest.approx(0.55)


def test_fp8_rows_of_two_shapes_give_products_and_casts(tmp_path: Path) -> None:
    truth = Rates(0.5, 0.6, 1.7)
    bf16 = {"a": row("8b", "bf16-true", truth), "b": row("1b", "bf16-true", truth)}
    fp8 = {"c": row("8b", "fp8-current-true", truth, recompute="none"), "d": row("1b", "fp8-current", truth)}
    found, lines = rates(measured(tmp_path, **bf16, **fp8), "8b", "fp8-current")
    assert (found.share, found.products, found.casts) == pytest.approx((0.5, 0.6, 1.7))
    words = "layers' products at 1187 of 1979 TFLOP/s, bringing operands into fp8 takes 1.70 times the formula's time"
    assert lines[1:] == [f"fp8 measured: {words}, by c, d"]
    # Those of another kind of fp8 count where there are none of this one, and it is said.
    other = {"e": row("8b", "fp8-delayed", Rates(0.5, 0.7, 1.7)), "f": row("1b", "fp8-delayed", Rates(0.5, 0.7, 1.7))}
    every = measured(tmp_path, **bf16, **fp8, **other)
    assert rates(every, "8b", "fp8-delayed-true")[0].products == pytest.approx(0.7)
    assert rates(every, "8b", "fp8-blockwise")[1][1].endswith(", by c, d, e, f, which is not fp8-blockwise")


def test_one_fp8_row_scales_both_together(tmp_path: Path) -> None:
    """By the formula products reach 80%; 0.8 / 1.25 of the peak and 1.25 times the casts is that, 1.25 times as slow."""
    bf16 = {"a": row("8b", "bf16-true", Rates(0.5))}
    found = measured(tmp_path, **bf16, c=row("8b", "fp8-current-true", Rates(0.5, 0.8 / 1.25, 1.25)))
    reached, lines = rates(found, "8b", "fp8-current-true")
    assert (reached.products, reached.casts) == pytest.approx((0.64, 1.25))
    assert lines[1] == "fp8 measured: layers' products and bringing operands into fp8 take 1.25 times the formula's time, by c"
    # Faster than products can be at 80%: they have the peak, and casts what is left.
    found = measured(tmp_path, **bf16, c=row("8b", "fp8-current-true", Rates(0.5, 1.0, 0.25)))
    reached, _ = rates(found, "8b", "fp8-current-true")
    assert (reached.products, reached.casts) == pytest.approx((1.0, 0.25))
    # Without fp8 rows the formula; bf16 needs none.
    _, lines = rates(measured(tmp_path, **bf16), "8b", "fp8-current")
    assert lines[1] == "fp8 is predicted, not measured: layers' products at 1979 TFLOP/s, all else as in bf16"
    assert len(rates(found, "8b", "bf16-true")[1]) == 1


def test_predictions_give_back_what_was_measured(tmp_path: Path) -> None:
    truth = Rates(0.5, 0.6, 1.7)
    rows = {"a": row("8b", "bf16-true", truth), "c": row("8b", "fp8-current-true", truth), "d": row("1b", "fp8-current-true", truth)}
    file, asked = written(tmp_path, **rows), phases("8b", batch_size=4)
    text = "\n".join(clusters.lines(asked, "fp8-current-true", clusters.parse("gpus=1,gpu=h100"), file))
    assert text.startswith("1 x 1 h100; training at 50% of 989 TFLOP/s, measured: ") and "\nfp8 measured: " in text
    reached, _ = clusters.rates_of(asked, "fp8-current-true", ONE, file)
    ((_, phase, shape),) = asked
    assert step_seconds(shape, phase, "fp8-current-true", Parallel(), ONE, reached[0]) == pytest.approx(rows["c"]["step_seconds"])


@pytest.mark.parametrize("changes, message", [
    ({"step_seconds": 0}, "row 'a': step_seconds: 0 is no number above 0"),
    ({"step_seconds": "1"}, "row 'a': step_seconds: '1' is no number above 0"),
    ({"step_seconds": True}, "row 'a': step_seconds: True is no number above 0"),
    ({"step_seconds": 0.01}, "row 'a': step_seconds 0.01 are fewer than its update alone takes, 0.0"),
    ({"step_seconds": 0.6}, "row 'a': its speed is 190% of the GPU's peak, which cannot be"),
    ({"mode": "fp4"}, "row 'a': mode: 'fp4' is no precision that a row is measured in"),
    ({"phase": {}}, "row 'a': .*validation errors? for Phase"),
    ({"config": {"model_type": "rwkv"}}, "row 'a': .*rwkv"),
])  # fmt: skip
def test_rows_that_cannot_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"--measured .*results.json: {message}"):
        measured(tmp_path, a={**row("8b", "bf16-true", Rates(0.5)), **changes})


def test_fp8_rows_that_cannot_be(tmp_path: Path) -> None:
    rows = {"a": row("8b", "bf16-true", Rates(0.5)), "c": row("8b", "fp8-current", Rates(0.5))}
    for seconds, message in (
        (0.3, "row 'c': step_seconds 0.3 are fewer than what is not in fp8 takes alone at the bf16 rows' speed, "),
        (None, "'c': faster than the fp8 products alone are at the peak of 1979 TFLOP/s"),
    ):
        fast = row("8b", "fp8-current", Rates(0.5, 1.5, 0.0))["step_seconds"]
        found = measured(tmp_path, **{**rows, "c": {**rows["c"], "step_seconds": seconds or fast}})
        with pytest.raises(ConfigError, match=message):
            rates(found, "8b", "fp8-current")


def test_files_that_are_none(tmp_path: Path) -> None:
    good = {"a": row("8b", "bf16-true", Rates(0.5))}
    for device, rows, message in (
        ({"device": "NVIDIA A100"}, good, "measured on NVIDIA A100, not on h100"),
        (DEVICE, {"c": row("8b", "fp8-current", Rates(0.5))}, "no bf16 training speed in it; run the llama part of"),
        (None, good, "not the results.json of benchmarks/gpu/first_call.py"),
        (DEVICE, {"a": 5}, "not the results.json of benchmarks/gpu/first_call.py"),
    ):
        with pytest.raises(ConfigError, match=message):
            Measured(written(tmp_path, device, **rows), ONE)
    with pytest.raises(ConfigError, match="not the results.json"):
        Measured(tmp_path / "none.json", ONE)
    with pytest.raises(ConfigError, match="measured on NVIDIA GH200 480GB, not on h200"):
        Measured(written(tmp_path, {"device": "NVIDIA GH200 480GB"}, **good), Cluster(1, 1, "h200"))
