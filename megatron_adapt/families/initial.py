"""Fresh weights for a model trained from scratch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from megatron_adapt.families.rules import Rule, expand

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_adapt.families.family import Family, ModelShape
    from megatron_adapt.families.mup import Scaling


def initial_tensors(
    family: Family, shape: ModelShape, seed: int, dtype: str = "float32", scalings: Mapping[str, Scaling] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Yield (Hugging Face name, tensor) for every weight of a fresh model.

    Norms are neutral, biases 0, matrices N(0, init_std), and the two projections that write to the residual stream
    N(0, init_std / sqrt(2 * num_layers)), as in GPT-2 and Megatron. Every tensor is drawn in float32 from a generator
    of its own, seeded by (seed, name): a tensor does not depend on which others exist or on their order.

    Args:
        dtype: "float32", "bfloat16" or "float16".
        scalings: of muP, by Megatron's names: what initial values are multiplied by.
    """
    import torch

    std = initial_stds(shape)
    for rule in expand(family, shape):
        factors = _factors(rule, shape, scalings[rule.megatron]) if scalings else [1.0] * len(rule.hf)
        for name, size, factor in zip(rule.hf, rule.hf_shapes(shape), factors):
            if rule.init in ("ones", "zeros"):
                tensor = torch.full(size, float(rule.init == "ones"), dtype=torch.float32, device="cpu") * factor
            else:
                digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
                generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)
                drawn = torch.randn(size, generator=generator, dtype=torch.float32, device="cpu")
                tensor = drawn * (std[rule.init] * factor)
            yield name, tensor.to(getattr(torch, dtype))


def initial_stds(shape: ModelShape) -> dict[str, float]:
    """By a rule's ``init``: the standard deviation of what is drawn."""
    return {"normal": shape.init_std, "residual": shape.init_std / math.sqrt(2 * shape.num_layers)}


def _factors(rule: Rule, shape: ModelShape, scaling: Scaling) -> list[float | Tensor]:
    """Of each Hugging Face tensor of a rule; of its elements where matrices with different factors lie in one."""
    import torch

    if len(set(scaling.std)) == 1:
        return [scaling.std[0]] * len(rule.hf)
    of_rows = torch.tensor(scaling.std).repeat_interleave(torch.tensor(shape.qkv_turn)).repeat(shape.num_query_groups)
    size = rule.megatron_shape(shape)
    return list(rule.to_hf(of_rows.view(-1, *[1] * (len(size) - 1)).expand(size).contiguous(), shape))
