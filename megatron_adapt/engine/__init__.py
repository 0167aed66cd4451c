"""Everything that needs Megatron Core, and the only place that does."""

import warnings

with warnings.catch_warnings():
    # Megatron says at import, once per module, that Transformer Engine and Apex are absent; logs and receipts name the
    # backend in use anyway.
    warnings.simplefilter("ignore")
    import megatron.core.models.gpt
    import megatron.core.optimizer

    # Needed in every run: imported here they cost forked ranks nothing.
    import megatron.core.dist_checkpointing.strategies.torch
    import megatron.core.models.gpt.gpt_layer_specs  # noqa: F401
