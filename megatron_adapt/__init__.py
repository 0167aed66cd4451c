"""Teach a pretrained language model a new language on Megatron Core: raw corpora in, a Hugging Face checkpoint out."""

__version__ = "0.1.0"
