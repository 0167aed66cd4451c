"""A model's vocabulary exchanged: Hugging Face directory and tokenizer -> Hugging Face directory, no Megatron."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_adapt.steps.reporter import Reporter
from megatron_adapt.vocab import surgery


def run(source: Path, tokenizer: Path, output: Path, method: str, seed: int, pad_to_multiple: int, reporter: Reporter) -> dict[str, Any]:
    report = surgery.swap(source, tokenizer, output, method, seed, pad_to_multiple)
    reporter.log(
        f"{report['target_vocab_size']:,} tokens in {report['target_rows']:,} rows: {report['overlap']['total']:,} are in the old "
        f"vocabulary, {report['copied']:,} rows copied, {report['drawn']:,} drawn"
    )
    for warning in report["warnings"]:
        reporter.log(f"warning: {warning}")
    return report
