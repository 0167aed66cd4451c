"""The part of a model that one rank has: usually one module; several under an interleaved pipeline (Narayanan et al. 2021, 2.2).

There each rank holds ``virtual_pipeline`` stages that do not follow one another: with 2 ranks and 2 stages each, of 8
layers, rank 0 has 0, 1, 4, 5. A pipeline of so many more, and so much shorter, stages idles less at both ends of a step.
"""

from __future__ import annotations

from typing import Any, Callable, Iterator

from torch import nn

from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.transformer_config import TransformerConfig


class Chunks(nn.ModuleList):
    """A rank's stages in the order in which a sample passes them, bare or wrapped, in the place of a single model."""

    @property
    def config(self) -> TransformerConfig:
        return self[0].config

    @property
    def share_embeddings_and_output_weights(self) -> bool:
        return self[0].share_embeddings_and_output_weights

    def sharded_state_dict(self, metadata: dict[str, Any]) -> dict[str, Any]:
        """Keys are those of ``state_dict``; what is stored under is the layers' global number, as of a single model."""
        return {
            f"{number}.{name}": entry
            for number, chunk in enumerate(self)
            for name, entry in chunk.sharded_state_dict(metadata=metadata).items()
        }


def chunks(model: nn.Module) -> list[nn.Module]:
    return list(model) if isinstance(model, Chunks) else [model]


def run(
    step: Callable, model: nn.Module, batches: Callable[[], Iterator], count: int, length: int, rows: int, forward_only: bool
) -> list:
    """Megatron's schedule for the layout: ``count`` micro-batches through all stages; what the losses' function gave of each,
    on the last stage.

    Args:
        step: Megatron's ``forward_step_func``.
        batches: the micro-batches, anew for each of the rank's stages.
        length, rows: the shape of what stages hand on, ``[length, rows, hidden]``.
    """
    parts = chunks(model)
    return get_forward_backward_func()(
        forward_step_func=step,
        data_iterator=[batches() for _ in parts],
        model=parts,
        num_microbatches=count,
        seq_length=length,
        micro_batch_size=rows,
        forward_only=forward_only,
    )
