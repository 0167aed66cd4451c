"""Share of positions that hold tokens of samples when a text is denoised: windows packed, against a document a sequence.

    python benchmarks/denoising_fill.py --tokenizer DIR [--length 2048] CORPUS ...

Claim: packing leaves no more than a twentieth of a sequence free and every token of the text is used. The other way is that of the
published UL2 runs on repeated data (Muennighoff et al. 2023): a document is cut to what a sequence can hold, its rest is left out, and what
it leaves free is padding. Both by the formulas of the same mixture. Exits with 1 when more than a twentieth is left free.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

from megatron_adapt.config_denoising import Denoising
from megatron_adapt.data.denoising import Mixture
from megatron_adapt.data.preprocess import open_corpus, preprocess
from megatron_adapt.data.windows import DenoisedOrder
from megatron_adapt.hf.tokenizer import Tokenizer


def one_each(mixture: Mixture, sizes: np.ndarray, length: int) -> tuple[float, float]:
    """(share of positions with tokens, share of the text that is used) of documents of so many tokens, one in a sequence, over all denoisers."""
    text = np.maximum(sizes - mixture.bos - mixture.eos, 1)
    used = np.array([np.minimum(text, capacity) for capacity in mixture.capacities])
    filled = np.array([mixture.lengths(number, row).mean() for number, row in enumerate(used)])
    return float(mixture.shares @ filled / (length + 1)), float(mixture.shares @ used.sum(axis=1) / text.sum())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("corpora", nargs="+", type=Path)
    parser.add_argument("--tokenizer", required=True, type=Path)
    parser.add_argument("--length", type=int, default=2048, help="tokens per sequence")
    arguments = parser.parse_args()
    tokenizer, worst = Tokenizer.load(arguments.tokenizer), 1.0
    print("corpus, documents, tokens each | packed: filled, of the text | one a sequence: filled, of the text")
    for path in arguments.corpora:
        with tempfile.TemporaryDirectory() as folder:
            prefix = Path(folder) / "text"
            preprocess([path], tokenizer, prefix, append_eod=True)
            reader, stats = open_corpus(prefix)
            order = DenoisedOrder(reader, stats, Denoising(), None, arguments.length, 0)
            counts, (filled, used) = order.counts(0), one_each(order.mixture, reader.sizes.astype(np.int64), arguments.length)
        packed = counts.tokens / counts.samples / (arguments.length + 1)
        worst = min(worst, packed)
        print(f"{path.name}, {reader.num_documents:,}, {reader.num_tokens / reader.num_documents:,.0f} | {packed:.1%}, 100% | {filled:.1%}, {used:.1%}")
    return 0 if worst > 0.95 else 1


if __name__ == "__main__":
    sys.exit(main())
