"""What conversions ask of tensors without copying them: are all bits equal, are all values finite."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from megatron_adapt.errors import CheckpointError
from megatron_adapt.hf.weights import bytes_of

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 16 * 2**20  # bytes compared at a time


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Equal shape, dtype and bits: a NaN equals itself, and 0 differs from -0."""
    import numpy as np

    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    ours, theirs = (np.frombuffer(bytes_of(tensor.contiguous()), np.uint8) for tensor in (one, other))
    return all(np.array_equal(ours[at : at + BLOCK], theirs[at : at + BLOCK]) for at in range(0, len(ours), BLOCK))


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    low, high = tensor.aminmax()  # both are NaN if any value is
    return math.isfinite(low) and math.isfinite(high)


def refuse_broken(names: list[str], where: str) -> None:
    """Raise ``CheckpointError`` naming tensors that are not finite, if there are any."""
    if names:
        shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        raise CheckpointError(
            f"{where}: NaN or infinite values in {len(names)} of the tensors: {shown}. Use an earlier state of this model."
        )
