"""Advice on layouts: what the cost model recommends, how it moves, and what it says where nothing fits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tiny import phase as tiny_phase

from megatron_adapt.analysis import cluster as clusters, estimate, recomputation, step_cost
from megatron_adapt.analysis.step_cost import GPUS, Cluster, Rates
from megatron_adapt.config import Parallel, Phase
from megatron_adapt.errors import ConfigError
from megatron_adapt.families import family_named
from megatron_adapt.families.family import ModelShape

SIZES = {  # hidden, feed-forward, layers, heads, groups
    "1b": (2048, 8192, 16, 32, 8),
    "8b": (4096, 14336, 32, 32, 8),
    "70b": (8192, 28672, 80, 64, 8),
}


def shape(name: str) -> ModelShape:
    hidden, ffn, layers, heads, groups = SIZES[name]
    config = {
        "architectures": ["LlamaForCausalLM"], "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": groups, "max_position_embeddings": 131072,
    }  # fmt: skip
    family = family_named("llama")
    return family.read_config(family.complete_config(config, 128_256, None, None))


def phases(name: str, **changes: Any) -> list[tuple[str, Phase, ModelShape]]:
    settings = tiny_phase("full", 100, sequence_length=4096, batch_size=256, micro_batch_size=1, recompute="full")
    return [("adapted", Phase(**{**settings, **changes}), shape(name))]


def best(name: str, cluster: str, precision: str = "bf16-mixed", **changes: Any) -> clusters.Cost:
    fitting, _ = clusters.ranked(phases(name, **changes), precision, clusters.parse(cluster), [Rates()])
    return fitting[0]


def seconds(
    name: str, parallel: Parallel, cluster: Cluster = Cluster(1, 8, "h100"), share: float = 0.4, precision: str = "bf16-mixed", **changes: Any
) -> float:
    ((_, phase, its_shape),) = phases(name, **changes)
    return step_cost.step_seconds(its_shape, phase, precision, parallel, cluster, Rates(share))


def test_small_models_are_not_split() -> None:
    for cluster in ("gpus=8,gpu=h100", "gpus=4,gpu=a100", "nodes=4,gpus=8,gpu=h200", "gpus=1,gpu=h200"):
        chosen = best("1b", cluster)
        found = chosen.parallel
        assert chosen.recompute == ("none",)
        assert (found.tensor, found.pipeline, found.data) == (1, 1, clusters.parse(cluster).world)
        assert found.distributed_optimizer == (found.data > 1)


def test_muon_keeps_matrices_whole() -> None:
    found = list(clusters.layouts(phases("1b", optimizer={"lr": 1e-3, "type": "muon"}), "bf16-mixed", Cluster(1, 8, "h100")))
    assert max(one.data for one in found) == 8 and not any(one.distributed_optimizer for one in found)


def test_fp8_is_not_split_into_what_it_does_not_take() -> None:
    (branch, phase, model), cluster = phases("1b", sequence_length=1056)[0], Cluster(1, 8, "h100")

    def widths(precision: str, narrow: ModelShape = model) -> set[int]:
        return {one.tensor for one in clusters.layouts([(branch, phase, narrow)], precision, cluster)}

    assert widths("bf16-mixed") == {1, 2, 4, 8} and widths("fp8-current") == {1}  # 1056 = 33 x 32
    (branch, phase, _), narrow = phases("1b")[0], replace(model, ffn_hidden_size=64)
    assert widths("fp8-current") == {1, 2, 4, 8} and widths("fp8-current", narrow) == {1, 2, 4} and widths("fp8-mx", narrow) == {1, 2}


def test_a_model_is_split_where_memory_asks_for_it() -> None:
    large = best("70b", "nodes=4,gpus=8,gpu=h100")
    assert large.parallel.tensor * large.parallel.pipeline > 1 and large.memory < 80 * 2**30
    assert large.parallel.sequence == (large.parallel.tensor > 1)
    assert best("8b", "gpus=8,gpu=h100").parallel.tensor == 1  # the shared optimizer makes it fit
    # Across nodes tensor parallelism would go over the network: it is not even considered.
    assert all(one.tensor <= 2 for one in clusters.layouts(phases("1b"), "bf16-mixed", Cluster(4, 2, "h100")))


def test_no_more_is_recomputed_than_memory_asks_for() -> None:
    alone = best("8b", "gpus=1,gpu=h100", "bf16-true", sequence_length=8192)
    (layers,), ((_, phase, model),) = alone.recompute, phases("8b", sequence_length=8192)
    assert isinstance(layers, int) and 0 < layers < 32
    usable = 80 * 2**30 * recomputation.USABLE
    needed = [recomputation.needs(count, model, Parallel(), phase, "bf16-true") for count in (layers - 1, layers)]
    assert needed[0] > usable >= needed[1] == alone.memory
    times = [seconds("8b", Parallel(), precision="bf16-true", sequence_length=8192, recompute=count) for count in ("none", layers, "full")]
    assert alone.seconds == (seconds("8b", Parallel(), Cluster(1, 1, "h100"), precision="bf16-true", sequence_length=8192, recompute=layers),)
    assert times[1] == pytest.approx(times[0] + layers / 32 * (times[2] - times[0]))
    assert best("8b", "gpus=1,gpu=h200", "bf16-true", sequence_length=8192).recompute == ("none",)
    # The recipe is told where it says something else, each phase by its place.
    base = [("base", phase.model_copy(update={"name": "first", "recompute": "none"}), model)]
    auto = [("copy", phase.model_copy(update={"name": "long", "recompute": "auto"}), model)]
    said = list(clusters.lines(base + auto + [("copy", phase, model)], "bf16-true", clusters.parse("gpus=1,gpu=h100")))
    assert said[1].endswith(f" model.from_scratch.phases.first.recompute={layers} phases.full.recompute={layers}")
    assert said[3].endswith(f"of the peak; {layers} of 32 layers are computed again")


def test_where_nothing_fits_it_says_what_would() -> None:
    with pytest.raises(ConfigError) as error:
        list(clusters.lines(phases("70b"), "bf16-mixed", clusters.parse("gpus=8,gpu=a100-40gb")))
    message = str(error.value)
    assert "1 x 8 a100-40gb: 40 GB of each GPU can be used" in message and "the smallest layout (parallel.tensor=8" in message
    assert "What would fit:" in message and "8 nodes" in message
    with pytest.raises(ConfigError, match=r"with all layers computed again. What would fit: precision: bf16-true; or 2 nodes"):
        list(clusters.lines(phases("8b", sequence_length=8192), "bf16-mixed", clusters.parse("gpus=1,gpu=h100")))
    with pytest.raises(ConfigError, match=r"no layout of 8 GPUs divides .* multiple of micro_batch_size x 8, a sequence_length that is one of 16"):
        ((branch, phase, _),) = phases("1b", batch_size=1, sequence_length=4095)
        list(clusters.lines([(branch, phase, tiny_shape())], "fp32", clusters.parse("gpu=h100")))


def test_sequences_are_cut_where_nothing_else_fits() -> None:
    assert best("8b", "gpus=8,gpu=h100", sequence_length=32768, batch_size=8).parallel.context == 1
    long = best("8b", "nodes=8,gpus=1,gpu=h100", sequence_length=262144, batch_size=8)
    assert long.parallel.context > 1 and long.memory < 80 * 2**30
    assert "parallel.context=" in clusters.overrides(long.parallel) and "context" not in clusters.overrides(Parallel())
    # A batch of one sequence for a model that can be split neither way.
    ((branch, phase, _),) = phases("1b", batch_size=1)
    fitting, _ = clusters.ranked([(branch, phase, tiny_shape())], "bf16-mixed", Cluster(1, 8, "h100"), [Rates()])
    lonely = fitting[0].parallel
    assert (lonely.context, lonely.data, lonely.distributed_optimizer) == (8, 1, True)
    # 1,056 positions cannot be cut into twice as many parts as ranks, or not into multiples of 32 for fp8.
    for precision, expected in (("bf16-mixed", {2, 4, 8}), ("fp8-current", set())):
        cut = clusters.layouts(phases("1b", sequence_length=1056), precision, Cluster(1, 8, "h100"), contexts=True)
        assert {one.context for one in cut if one.tensor == 1} == expected


def test_the_work_of_context_ranks_by_hand() -> None:
    """Half of the computation each, and two thirds of what is more goes for keys and values under full recomputation."""
    ((_, phase, model),) = phases("1b", sequence_length=32768)
    head = model.vocab_size * model.hidden_size
    causal = estimate.flops_per_token(model, 32768) - 6 * 16 * 2048 * 32768
    flops = 256 * 32768 * (causal * 4 / 3 - 2 * head + 2 * head) / 2
    keys = 256 * 3 * 16 * (step_cost.LATENCY + 2 * 32768 * 2 * 512 / 2 / (450e9 * 0.8))
    sums = step_cost.LATENCY + 4 * model.num_parameters() / (450e9 * 0.8)
    update = 2 * 18 * model.num_parameters() / 3.35e12
    found = seconds("1b", Parallel(context=2), sequence_length=32768)
    assert found == pytest.approx(flops / (989e12 * 0.4) + keys + sums + update)
    assert seconds("1b", Parallel(), sequence_length=32768) / found > 1.9


def tiny_shape() -> ModelShape:
    family = family_named("llama")
    sizes = {"hidden_size": 32, "intermediate_size": 49, "num_hidden_layers": 3, "num_attention_heads": 1, "num_key_value_heads": 1}
    return family.read_config(family.complete_config({"architectures": ["LlamaForCausalLM"], **sizes, "max_position_embeddings": 8192}, 401, None, None))


def test_one_gpu_is_compute_and_update() -> None:
    """By hand: no communication on a single rank."""
    ((_, phase, model),) = phases("1b", recompute="none")
    head = model.vocab_size * model.hidden_size
    tokens = 256 * 4096
    # At 128k rows x 4,096 positions the logits are computed in slices, and once more in the backward pass.
    # Of the scores half, as none is computed of what stands behind a position.
    computed = (estimate.flops_per_token(model, 4096) - 6 * 16 * 2048 * 4096 + 2 * head) * tokens
    update = 2 * 18 * model.num_parameters() / 3.35e12
    found = seconds("1b", Parallel(), recompute="none")
    assert found == pytest.approx(computed / (989e12 * 0.4) + update)
    frozen = seconds("1b", Parallel(), recompute="none", train=["embedding", "output"])
    layers = model.num_parameters() - 2 * head
    update = 2 * 18 * 2 * head / 3.35e12
    assert frozen == pytest.approx((computed - 2 * layers * tokens) / (989e12 * 0.4) + update)
    half = seconds("1b", Parallel(), recompute="none", train=["embedding", "output", "layers[:8]"])
    assert frozen < half < found and half - frozen == pytest.approx(found - half, rel=1e-3)


def test_what_is_computed_again_by_hand() -> None:
    ((_, phase, model),) = phases("8b", recompute="none")
    tokens, rate = 256 * 4096, 989e12 * 0.4
    forward = (2 * (model.num_parameters() - 2 * model.vocab_size * model.hidden_size) + 2 * 32 * 4096 * 4096) * tokens / rate
    kept, eight, full = (seconds("8b", Parallel(), recompute=count) for count in ("none", 8, "full"))
    assert eight - kept == pytest.approx(forward / 4) and full - kept == pytest.approx(forward)
    mlps = seconds("8b", Parallel(), recompute="selective") - kept
    assert mlps == pytest.approx(2 * 32 * 3 * 4096 * 14336 * tokens / rate)
    # So are the sums over tensor ranks: of two halves of layers, and of MLPs one; embedding and head have one each.
    slow = {name: seconds("8b", Parallel(tensor=2), share=1e9, recompute=name) for name in ("none", 8, "full", "selective")}
    one = step_cost.LATENCY + 2 * 4096 * 4096 / (450e9 * 0.8)
    for name, sums in ((8, 16), ("full", 64), ("selective", 32)):
        assert slow[name] - slow["none"] == pytest.approx(256 * sums * one), name
    update = 2 * 18 * estimate.parameters_per_rank(model, Parallel(tensor=2)) / 3.35e12
    assert slow["none"] == pytest.approx(256 * (32 * 4 + 2) * one + update, rel=1e-4)
    # And the keys of context ranks.
    keys = {name: seconds("8b", Parallel(context=2), share=1e9, recompute=name) for name in ("none", 8)}
    again = step_cost.LATENCY + 2 * 4096 * 2 * 1024 / 2 / (450e9 * 0.8)
    assert keys[8] - keys["none"] == pytest.approx(256 * 8 * again, rel=1e-4)


def test_tied_matrices_at_both_ends_of_a_pipeline_are_summed() -> None:
    ((_, phase, model),) = phases("1b", recompute="none")
    pair = (replace(model, tied=True), model)
    ends = [step_cost.step_seconds(one, phase, "bf16-mixed", Parallel(pipeline=2), Cluster(1, 8, "h100"), Rates()) for one in pair]
    assert ends[0] - ends[1] == pytest.approx(step_cost.LATENCY + 4 * model.vocab_size * model.hidden_size / (450e9 * 0.8), rel=1e-3)


def test_fp8_by_hand() -> None:
    """Only products with the layers' weights become faster, and their operands have to be brought into fp8."""
    hidden, ffn, layers, tokens = 4096, 14336, 32, 256 * 4096
    weights = layers * (hidden * 6144 + hidden * hidden + 3 * hidden * ffn)
    numbers = layers * ((3 * hidden + ffn) + (6144 + 2 * hidden + 2 * ffn))
    again = layers * (3 * hidden + ffn)

    def saved(**changes: Any) -> float:
        found = [seconds("8b", Parallel(), precision=name, **changes) for name in ("bf16-mixed", "fp8-current")]
        return (found[0] - found[1]) / tokens

    product = (1 / 989e12 - 1 / 1979e12) / 0.8
    assert saved(recompute="none") == pytest.approx(6 * weights * product - 4 * numbers / 3.35e12)
    assert saved(recompute="full") == pytest.approx(8 * weights * product - 4 * (numbers + again) / 3.35e12)
    assert saved(recompute="none", train=["embedding"]) == pytest.approx(4 * weights * product - 4 * numbers / 3.35e12)
    ways = [seconds("8b", Parallel(), precision=name) for name in ("bf16-mixed", "fp8-current")]
    assert 1.1 < ways[0] / ways[1] < 2
    ((_, phase, model),) = phases("8b", recompute="selective")
    saves = [step_cost.fp8_saves(model, phase, GPUS["h200"], Rates(share), 0.0) for share in (0.9, 0.4)]
    assert 0 < saves[0] < saves[1]


def test_fp8_that_a_gpu_has_not() -> None:
    with pytest.raises(ConfigError, match="--cluster: phase 'full': a100 has no fp8-delayed, which came with Ada and Hopper.$"):
        list(clusters.lines(phases("1b"), "fp8-delayed-true", clusters.parse("gpu=a100")))
    both = phases("1b", precision="fp8-mx") + phases("1b", precision="fp8-mx-true")
    with pytest.raises(ConfigError, match="h200 has no fp8-mx, which came with Blackwell; phase 'full': h200 has no fp8-mx, .*$"):
        list(clusters.lines(both, "bf16-mixed", clusters.parse("gpu=h200")))
    assert list(clusters.lines(both, "bf16-mixed", clusters.parse("gpu=b200")))


def test_it_moves_the_right_way() -> None:
    one, two, eight = (seconds("8b", Parallel(data=ranks), Cluster(8, 8, "h100")) for ranks in (1, 2, 8))
    assert one > two > eight and eight > one / 8  # sums of gradients cost something
    assert seconds("8b", Parallel(tensor=2)) > one / 2  # so do sums of activations
    assert seconds("8b", Parallel(pipeline=4)) > one / 4  # a pipeline idles at both ends
    few, many = (seconds("8b", Parallel(pipeline=4), batch_size=size) / size for size in (4, 64))
    assert few > many
    shared = [seconds("8b", Parallel(data=8, distributed_optimizer=on)) for on in (True, False)]
    assert shared[0] < shared[1]
    for name in ("none", "selective"):
        assert seconds("8b", Parallel(), recompute=name) < one
    assert seconds("8b", Parallel(data=64), Cluster(8, 8, "h100", network=10)) > seconds("8b", Parallel(data=64), Cluster(8, 8, "h100"))
    assert seconds("8b", Parallel(), share=0.5) < one
    assert seconds("8b", Parallel(), Cluster(1, 8, "a100")) > one > seconds("8b", Parallel(), Cluster(1, 8, "b200"))


def test_the_lines() -> None:
    text = "\n".join(clusters.lines(phases("70b"), "fp8-current", clusters.parse("nodes=8,gpus=8,gpu=h200")))
    assert "training at 40% of 989 TFLOP/s, assumed: 40% of the peak; measure with benchmarks/gpu/first_call.py" in text
    assert "recommended: parallel.tensor=" in text and "instead: parallel.tensor=" in text
    assert "tokens/s predicted" in text
    assert "\nfp8 is predicted, not measured: layers' products at 1979 TFLOP/s, all else as in bf16\n" in text
    assert "data parallelism alone would need" in text


@pytest.mark.parametrize(
    "text, message",
    [
        ("gpus=8", "gpu= is none of a100"),
        ("gpu=tpu", "gpu=tpu is none of"),
        ("nodes=x,gpu=h100", "nodes=x is not a number"),
        ("nodes=0,gpu=h100", "nodes has to be above 0"),
        ("rack=3,gpu=h100", "unknown key 'rack' .there are nodes, gpus, gpu, network"),
    ],
)
def test_a_cluster_that_is_none(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        clusters.parse(text)
