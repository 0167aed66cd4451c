"""What first_call.py runs, what matters most first: part -> section -> (file, its function, arguments, needs Transformer
Engine, seconds allowed).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import family_checks


class Section(NamedTuple):
    module: str
    function: str
    options: dict[str, Any]
    needs_te: bool
    seconds: int


FP8 = {"fp8_current": "fp8-current", "fp8_delayed": "fp8-delayed", "fp8_blockwise": "fp8-blockwise", "fp8_current_true": "fp8-current-true"}


def checks(function: str, seconds: int, module: str = "sections", te: bool = False, **options: Any) -> Section:
    return Section(module, function, options, te, seconds)


def row(function: str, seconds: int, spec: str, **options: Any) -> Section:
    return Section("shapes", function, {"spec": spec, **options}, spec == "te", seconds)


PARTS: dict[str, dict[str, Section]] = {
    "checks": {
        "te_layer": checks("te_layer", 90, te=True),
        "te_parameters": checks("te_parameters", 90, te=True),
        "parity_fp32": checks("parity_fp32", 90),
        "parity_bf16": checks("parity_bf16", 120),
        "gradients": checks("gradients", 120, "kernel_checks"),
        "gradient_fusion": checks("gradient_fusion", 150, "fusion", te=True),
        "packing": checks("packing", 180),
        "contexts": checks("contexts", 90, "kernel_checks"),
        "one_card": checks("one_card", 150, "one_card"),
        "across_specs": checks("across_specs", 120, te=True),
        "fused_update": checks("fused_update", 150, "kernel_checks"),
        "cross_entropy": checks("cross_entropy", 120, "kernel_checks"),
        "train_bf16": checks("train_bf16", 120),
        "train_bf16_true": checks("train_bf16_true", 120),
        "shared_update": checks("shared_update", 120, "kernel_checks"),
        "train_fp32": checks("train_fp32", 90),
    },
    "families": {f"family_{name}": checks("family", 120, "family_checks", family=name) for name in family_checks.SIZES},
    "llama": {
        "llama_8b_te": row("llama_8b", 240, "te", precision="bf16-true"),
        "llama_8b_fp8": row("llama_8b", 240, "te", precision="fp8-current-true"),
        "llama_1b_packed_te": row("llama_1b_packed", 150, "te"),
        "llama_1b_packed_transformers": Section("shapes", "llama_1b_transformers", {}, False, 240),
    },
    "tracking": {
        "tracking_bf16_true": checks("tracking", 180, "real_text", precision="bf16-true", spec="plain", allowed=0.003),
        **{f"tracking_{name}": checks("tracking", 180, "real_text", te=True, precision=mode, spec="te", allowed=0.02) for name, mode in FP8.items()},
    },
    "mistral": {
        "mistral_7b_te": row("mistral_7b", 200, "te"),
        "embedding_only_te": row("embedding_only", 200, "te"),
        "packed_chat_te": row("packed_chat", 150, "te"),
    },
    "product": {"doctor": checks("doctor", 120, "product"), "quickstart": checks("quickstart", 300, "product")},
    "resume": {
        "resume_te": checks("resume", 120, te=True, spec="te"),
        "resume_fp8_delayed": checks("resume", 120, te=True, spec="te", precision="fp8-delayed"),
        "resume_bf16_true": checks("resume", 120, spec="plain", precision="bf16-true"),
        **{f"resume_{name}": checks("resume", 120, te=True, spec="te", precision=mode) for name, mode in FP8.items() if name != "fp8_delayed"},
        "resume_plain": checks("resume", 120, spec="plain"),
    },
    "speed": {
        "profile_te": checks("profile", 120, "profiles", te=True, spec="te", precision="bf16-true"),
        "profile_fp8": checks("profile", 120, "profiles", te=True, spec="te", precision="fp8-current-true"),
        "profile_1b": checks("profile_1b", 120, "profiles", te=True, spec="te"),
        "counters": checks("counters", 180, "profiles"),
        "speed_te": Section("throughput", "engine", {"spec": "te"}, True, 150),
        "speed_plain": Section("throughput", "engine", {"spec": "plain"}, False, 150),
        "speed_transformers": Section("throughput", "transformers", {"precision": "bf16"}, False, 150),
        "speed_transformers_pure_bf16": Section("throughput", "transformers", {"precision": "pure-bf16"}, False, 150),
    },
    "optimizers": {
        "adamw": checks("adamw", 90, "kernel_checks"),
        "train_muon": checks("train_muon", 180),
        "train_offload": checks("train_offload", 180),
        "train_adamw8bit": checks("train_adamw8bit", 240),
        **{f"train_{name}": checks("train_fp8", 120, te=True, precision=mode) for name, mode in FP8.items()},
    },
    # The same rows once more without Transformer Engine.
    "plain": {
        "llama_8b_plain": row("llama_8b", 240, "plain", precision="bf16-true"),
        "llama_1b_packed_plain": row("llama_1b_packed", 150, "plain"),
        "mistral_7b_plain": row("mistral_7b", 200, "plain"),
        "embedding_only_plain": row("embedding_only", 200, "plain"),
        "packed_chat_plain": row("packed_chat", 150, "plain"),
    },
}  # fmt: skip
VERSIONS = Section("sections", "versions", {}, False, 60)
SECTIONS = {"versions": VERSIONS} | {name: section for sections in PARTS.values() for name, section in sections.items()}
