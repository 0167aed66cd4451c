"""Everything that needs Megatron Core, and the only place that does."""

import warnings

with warnings.catch_warnings():
    # Megatron says at import, once per module, that Transformer Engine and Apex are absent; logs and receipts name the
    # backend in use anyway.
    warnings.simplefilter("ignore")
    import megatron.core.optimizer
    import megatron.core.models.gpt  # noqa: F401
