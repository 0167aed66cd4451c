"""Real token ids for the speed measurements: text, a tokenizer with as many tokens as the shape has rows, our preprocessing.

    python benchmarks/gpu/token_ids.py --output .gpu/tokens TEXT...      # beforehand, where there is text: .jsonl, .txt, .gz of them

writes a folder for each vocabulary, a few megabytes together, to take along to the GPU's machine. 128,256 different tokens
take some 20 MB of text in more than one language. Without such a folder the ids are those of the quickstart's text, of which
there are 8,192 different ones at most; each row of results says which.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Iterator

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from megatron_adapt.data.corpus import read_documents
from megatron_adapt.data.indexed import IndexedReader
from megatron_adapt.data.preprocess import preprocess
from megatron_adapt.hf.tokenizer import Tokenizer
from megatron_adapt.vocab.train import train_tokenizer

PREPARED = ROOT / ".gpu" / "tokens"
QUICKSTART = sorted((ROOT / "examples" / "quickstart" / "corpus").glob("*.jsonl"))
VOCABULARIES = (32_000, 128_256)
TOKENS = 1 << 20  # of a corpus, about
BYTES_PER_TOKEN = 4


def make(texts: list[Path], vocabulary: int, folder: Path, most: int = TOKENS) -> Path:
    """``folder/tokenizer`` of so many tokens, trained on all texts, and ``folder/corpus`` of documents of each in turn."""
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        partial = Path(scratch) / "made"
        partial.mkdir()
        train_tokenizer((document.text for document in read_documents(texts)), vocabulary, partial / "tokenizer")
        chosen = Path(scratch) / "chosen.jsonl"
        with chosen.open("w", encoding="utf-8") as file:
            for text in in_turn(texts, most * BYTES_PER_TOKEN):
                file.write(json.dumps({"text": text}) + "\n")
        preprocess([chosen], Tokenizer.load(partial / "tokenizer"), partial / "corpus")
        partial.rename(folder)
    return folder


def in_turn(texts: list[Path], size: int) -> Iterator[str]:
    """A document of each file after the other, until there are ``size`` characters."""
    rows = itertools.zip_longest(*(read_documents([path]) for path in texts))
    for document in (one for row in rows for one in row if one is not None):
        yield document.text
        size -= len(document.text)
        if size < 0:
            return


def corpus(vocabulary: int, scratch: Path, tiny: bool = False) -> Path:
    """A folder as ``make`` writes it: that prepared for this vocabulary, or one of the quickstart's text in ``scratch``."""
    prepared = PREPARED / str(vocabulary)
    if prepared.exists() and not tiny:
        return prepared
    size = 512 if tiny else min(vocabulary, 8192)
    return make(QUICKSTART, size, scratch / f"tokens-{size}", 1 << 14 if tiny else TOKENS)


def read(folder: Path, count: int) -> Tensor:
    """int64 ``[count]``, the corpus from its beginning, again and again."""
    tokens = torch.from_numpy(IndexedReader(folder / "corpus").tokens.astype("int64"))
    return tokens.repeat(-(-count // len(tokens)))[:count]


def described(folder: Path) -> str:
    """For a row of results: what the ids are."""
    return f"text, {Tokenizer.load(folder / 'tokenizer').vocab_size:,} tokens"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("texts", type=Path, nargs="+", metavar="TEXT")
    parser.add_argument("--output", type=Path, default=PREPARED)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=VOCABULARIES)
    arguments = parser.parse_args()
    for vocabulary in arguments.vocabulary:
        folder = make(arguments.texts, vocabulary, arguments.output / str(vocabulary))
        print(f"{folder}: {IndexedReader(folder / 'corpus').num_tokens:,} tokens of {vocabulary:,}")


if __name__ == "__main__":
    main()
