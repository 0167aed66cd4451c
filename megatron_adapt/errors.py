"""The three errors a user can cause; the command line prints their message and exits with code 2.

Anything else that is raised is a defect of this project and keeps its traceback.
"""

from __future__ import annotations


class AdaptError(Exception):
    """What is wrong, where, and what to do: one or two sentences, no traceback needed."""


class ConfigError(AdaptError):
    """The recipe, an argument, or an unsupported model."""


class DataError(AdaptError):
    """A corpus, a tokenizer or an indexed dataset."""


class CheckpointError(AdaptError):
    """Weights: a Hugging Face directory or a Megatron distributed checkpoint."""
