"""Documents packed into one row of tokens without seeing one another, for attention of Transformer Engine and of ours.

Where one ends is known from the lengths stored with the corpus, never from looking for EOS among the tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron.core.packed_seq_params import PackedSeqParams
from megatron_adapt.engine import backend, context


@dataclass
class Documents(PackedSeqParams):
    """What Megatron hands to every layer of every pipeline stage and tensor rank, and what our attention needs besides.

    Attributes:
        within: int64 ``[tokens]``, the place of each token in its document.
        sizes: int64 ``[tokens]``, how many tokens that document has.
        lengths: of the runs of tokens in the row that are of one document, in their order: of whole documents, unless
            context-parallel ranks have a part of the row each.
        seen: of each run, how many tokens of its document it sees: those before it, and itself.
        keys: which rows of all ranks' keys these are, run by run; None: the runs are whole documents.
        both_ways: of each run, whether each of its tokens sees all of them; empty: in none.
    """

    within: Tensor | None = None
    sizes: Tensor | None = None
    lengths: tuple[int, ...] = ()
    seen: tuple[int, ...] = ()
    keys: Tensor | None = None
    both_ways: tuple[bool, ...] = ()

    @classmethod
    def of(cls, lengths: Sequence[int], sample: int, device: torch.device, prefixes: Sequence[int] | None = None) -> Documents:
        """This rank's part of a row of samples.

        Args:
            lengths: of the documents in the row.
            sample: no document is longer; the same at every step, so that no kernel has to be chosen anew. Context-parallel ranks
                cut samples of so many tokens, and no document goes on in another one.
            prefixes: so many tokens at the begin of each see one another in both directions (on ranks that share no sequences).
        """
        chunks = context.chunks(sample)
        runs: list[tuple[int, int, int, int]] = []  # begin and end of a run in the whole row; begin and length of its document
        begin = 0
        for number, length in enumerate(lengths):
            first, end = begin - begin % sample, begin + length
            parts = [(max(begin, first + chunk.start), min(end, first + chunk.stop)) for chunk in chunks]
            if len(chunks) == 1:
                middle = begin if prefixes is None else begin + prefixes[number]
                parts = [(begin, middle), (middle, end)]
            runs += [(low, high, begin, length) for low, high in parts if low < high]
            begin = end
        own, seen = tuple(high - low for low, high, _, _ in runs), tuple(high - begin for _, high, begin, _ in runs)
        keys, both_ways = None, ()
        if len(chunks) > 1 or prefixes is not None:
            places = _counted([begin for _, _, begin, _ in runs], seen)
            keys = backend.send(places if prefixes is not None else context.rows(places, sample, sum(lengths) // sample), device)
        if prefixes is not None:
            assert len(chunks) == 1, "the recipe is checked"
            ends = {begin + prefix for begin, prefix in zip(itertools.accumulate(lengths, initial=0), prefixes) if prefix}
            both_ways = tuple(high in ends for _, high, _, _ in runs)
        return cls(
            qkv_format="thd", cu_seqlens_q=_bounds(own, device), cu_seqlens_kv=_bounds(seen, device),
            max_seqlen_q=len(chunks[0]), max_seqlen_kv=sample,
            within=backend.send(_counted([low - begin for low, _, begin, _ in runs], own), device),
            sizes=backend.send(torch.repeat_interleave(torch.tensor([length for *_, length in runs]), torch.tensor(own)), device),
            lengths=own, seen=seen, keys=keys, both_ways=both_ways,
        )  # fmt: skip

    def apart(self, attend: Callable[[Tensor, Tensor, Tensor, bool], Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """``attend`` on each run alone, told whether it is seen in both directions; ``q [1, heads, tokens, d]``, ``k, v [1, groups,
        tokens seen, d]`` -> as ``q``."""
        both_ways = self.both_ways or (False,) * len(self.lengths)
        parts = zip(q.split(self.lengths, dim=2), k.split(self.seen, dim=2), v.split(self.seen, dim=2), both_ways)
        return torch.cat([attend(*part) for part in parts], dim=2)


def _bounds(lengths: Sequence[int], device: torch.device) -> Tensor:
    return backend.send(torch.tensor([0, *lengths]).cumsum(0).to(torch.int32), device)


def _counted(firsts: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """For each run its first number and those that follow."""
    ends, counts = torch.tensor(lengths).cumsum(0), torch.tensor(lengths)
    return torch.arange(int(ends[-1])) + torch.repeat_interleave(torch.tensor(firsts) - ends + counts, counts)
