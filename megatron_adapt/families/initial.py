"""Fresh weights for a model trained from scratch."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Iterator

from megatron_adapt.families.rules import expand

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_adapt.families.family import Family, ModelShape


def initial_tensors(
    family: Family, shape: ModelShape, seed: int, dtype: str = "float32"
) -> Iterator[tuple[str, Tensor]]:
    """Yield (Hugging Face name, tensor) for every weight of a fresh model.

    Norms are neutral, biases 0, matrices N(0, init_std), and the two projections that write to the residual stream
    N(0, init_std / sqrt(2 * num_layers)), as in GPT-2 and Megatron. Every tensor is drawn in float32 from a generator
    of its own, seeded by (seed, name): a tensor does not depend on which others exist or on their order.

    Args:
        dtype: "float32", "bfloat16" or "float16".
    """
    import torch

    std = {"normal": shape.init_std, "residual": shape.init_std / math.sqrt(2 * shape.num_layers)}
    for rule in expand(family, shape):
        for name, size in zip(rule.hf, rule.hf_shapes(shape)):
            if rule.init in ("ones", "zeros"):
                tensor = torch.full(size, float(rule.init == "ones"), dtype=torch.float32, device="cpu")
            else:
                digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
                generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)
                tensor = torch.randn(size, generator=generator, dtype=torch.float32, device="cpu") * std[rule.init]
            yield name, tensor.to(getattr(torch, dtype))
