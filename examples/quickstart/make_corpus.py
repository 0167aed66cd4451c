"""Write the quickstart's two corpora, corpus/en.jsonl and corpus/de.jsonl: the same bytes on every machine.

    python examples/quickstart/make_corpus.py            # rewrite them
    python examples/quickstart/make_corpus.py --check    # exit with 1 when they differ from what would be written

One JSON object {"id", "text"} per line. The texts are made from the word lists and sentence frames in texts/,
written for this purpose; the documents of the two languages are about the same things but no translations.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER / "texts"))
SIZE = 620_000  # bytes of text per language
SEEDS = {"en": 20, "de": 21}


def documents(language: str) -> list[str]:
    """The texts of one language, in order."""
    if language == "de":
        from corpus_de import Writer
    else:
        from corpus_en import Writer
    writer = Writer(SEEDS[language])
    texts: list[str] = []
    size = 0
    while size < SIZE:
        texts.append(writer.document())
        size += len(texts[-1].encode())
    return texts


def content(language: str) -> bytes:
    lines = (
        json.dumps({"id": f"{language}-{number:04d}", "text": text}, ensure_ascii=False)
        for number, text in enumerate(documents(language))
    )
    return "".join(line + "\n" for line in lines).encode()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed files instead of writing")
    parser.add_argument("--language", choices=sorted(SEEDS), action="append", help="only this one (default: both)")
    arguments = parser.parse_args()
    differing = []
    for language in arguments.language or sorted(SEEDS):
        target = FOLDER / "corpus" / f"{language}.jsonl"
        data = content(language)
        if arguments.check:
            if not target.is_file() or target.read_bytes() != data:
                differing.append(str(target))
            continue
        target.parent.mkdir(exist_ok=True)
        temporary = target.with_suffix(".part")
        temporary.write_bytes(data)
        os.replace(temporary, target)
        print(f"{target}: {len(data):,} bytes")
    if differing:
        print(f"differ from what {Path(__file__).name} writes: {', '.join(differing)}; run it without --check")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
