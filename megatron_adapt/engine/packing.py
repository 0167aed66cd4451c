"""Documents packed into one row of tokens without seeing one another, for attention of Transformer Engine and of ours.

Where one ends is known from the lengths stored with the corpus, never from looking for EOS among the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron.core.packed_seq_params import PackedSeqParams


@dataclass
class Documents(PackedSeqParams):
    """What Megatron hands to every layer of every pipeline stage and tensor rank, and what our attention needs besides.

    Attributes:
        lengths: of the documents in the row, in their order.
        within: int64 ``[tokens]``, the place of each token in its document.
        sizes: int64 ``[tokens]``, how many tokens that document has.
    """

    lengths: tuple[int, ...] = ()
    within: Tensor | None = None
    sizes: Tensor | None = None

    @classmethod
    def of(cls, lengths: Sequence[int], longest: int, device: torch.device) -> Documents:
        """``longest``: no document is longer; the same at every step, so that no kernel has to be chosen anew."""
        ends = torch.tensor([0, *lengths]).cumsum(0)
        counts = torch.tensor(lengths)
        within = torch.arange(int(ends[-1])) - torch.repeat_interleave(ends[:-1], counts)
        bounds = ends.to(device, torch.int32)
        return cls(
            qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds, max_seqlen_q=longest, max_seqlen_kv=longest,
            lengths=tuple(lengths), within=within.to(device), sizes=torch.repeat_interleave(counts, counts).to(device),
        )  # fmt: skip

    def apart(self, attend: Callable[[Tensor, Tensor, Tensor], Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``attend`` on each document alone; ``q [1, heads, tokens, d]``, ``k, v [1, groups, tokens, d]`` -> as ``q``."""
        parts = zip(*(tensor.split(self.lengths, dim=2) for tensor in (q, k, v)))
        return torch.cat([attend(*part) for part in parts], dim=2)
