"""How the ranks of a run are arranged."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_adapt.config import parts_of_sequences


@dataclass(frozen=True)
class Layout:
    """``tensor * context * pipeline * data`` ranks; ``sequence`` = sequence parallelism.

    ``virtual_pipeline``: stages that each pipeline rank has, 1 unless they are interleaved (``chunks.py``).
    ``distributed_optimizer``: data-parallel ranks share the optimizer's state instead of holding copies of it. ``layers``: those
    of ``te`` (Transformer Engine), of ``torch``, or ``auto`` (the first where it can).
    """

    tensor: int = 1
    pipeline: int = 1
    sequence: bool = False
    distributed_optimizer: bool = False
    layers: str = "auto"
    virtual_pipeline: int = 1
    context: int = 1

    @property
    def model_ranks(self) -> int:
        return self.tensor * self.context * self.pipeline

    @property
    def multiple(self) -> int:
        """What the number of a sample's positions has to be a multiple of."""
        return parts_of_sequences(self.tensor, self.context, self.sequence)
