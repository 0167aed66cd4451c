"""Megatron's distributed checkpoints on disk, read and written tensor by tensor: no Megatron, no model, no ranks.

The format is that of ``torch.distributed.checkpoint``: a pickled table (``.metadata``) says of every tensor into which
chunks it is cut and where in the ``.distcp`` files each chunk lies, and each chunk is a tensor that ``torch.save`` wrote.
Beside them Megatron keeps ``metadata.json`` (the format's name) and ``common.pt`` (what is no tensor).
"""
