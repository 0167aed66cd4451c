"""The Triton kernels compiled for Hopper, which needs no GPU: they are accepted, and move 16 bytes at a time.

    python tests/unit/kernel_compile_checks.py
"""

from __future__ import annotations

import re
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from megatron_adapt.engine import fused_softmax, fused_update

HOPPER = GPUTarget("cuda", 90, 32)
SOFTMAX = {"places": "*i64", "columns": "i32", "softcap": "fp32"}
SUMS = {"add_statistics": ("top", "total", "chosen"), "gradient": ("log_total", "factor", "slope")}
UPDATE = {"table": "*i64", "rows": "i32", "changed": "*i64", "gradient_scale": "fp32"}


def accesses(kernel: Any, types: dict[str, str], **constants: Any) -> tuple[int, int]:
    """(loads, stores) of 16 bytes, where pointers and sizes are multiples of 16."""
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    aligned = [name for name in names if signature[name].startswith("*") or name == "columns"]
    source = ASTSource(
        fn=kernel, signature=signature, constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )  # fmt: skip
    compiled = triton.compile(source, target=HOPPER)
    assert compiled.asm["cubin"] and compiled.metadata.num_warps == 4
    return tuple(len(re.findall(rf"\b{kind}\.global\S*\.v4\.b32", compiled.asm["ptx"])) for kind in ("ld", "st"))


def softmax() -> None:
    for logits in ("*bf16", "*fp32"):
        for capped in (False, True):
            for name, sums in SUMS.items():
                types = {"logits": logits, **SOFTMAX, **dict.fromkeys(sums, "*fp32")}
                loads, stores = accesses(getattr(fused_softmax, f"_{name}"), types, CAPPED=capped, BLOCK=fused_softmax.BLOCK)
                assert loads and bool(stores) == (name == "gradient"), (name, logits, capped, loads, stores)


def update() -> None:
    exact = fused_update.EXACT
    ways = [(adam, rounding, False) for adam in (True, False) for rounding in (*fused_update.ROUNDINGS.values(), exact)]
    for adam, rounding, rates in (*ways, (True, 1, True), (False, exact, True)):
        options = {"ADAM": adam, "ROUNDING": rounding, "RATES": rates, "BLOCK": fused_update.BLOCK}
        more, twice = adam + (rounding == 2), 1 + (rounding == exact)  # second moments, compensations; float32
        found = accesses(fused_update._update, UPDATE, ALIGNED=True, **options)
        assert found == (twice * (3 + more), twice * (2 + more)), (options, found)
    assert accesses(fused_update._update, UPDATE, ALIGNED=False, **options) == (0, 0)


if __name__ == "__main__":
    for check in (softmax, update):
        check()
        print(check.__name__, flush=True)
