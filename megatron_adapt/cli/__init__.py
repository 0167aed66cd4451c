"""The command line: arguments -> one call below. Heavy imports happen inside the verbs.

A verb takes either a recipe (``megatron-adapt swap recipe.yaml [path=value ...]``: its steps of that recipe) or plain
paths (``megatron-adapt swap HF_DIR OUT --tokenizer DIR``). Exit codes: 0 done, 2 something the user can correct,
75 stopped on request (the same command continues), 1 a step failed.
"""

from __future__ import annotations

# The order of these imports is the order of the verbs in --help: as a run goes.
from megatron_adapt.cli import recipes, corpora, vocabulary, models, laws  # isort: skip
from megatron_adapt.cli.application import app, main

__all__ = ["app", "main", "corpora", "laws", "models", "recipes", "vocabulary"]
