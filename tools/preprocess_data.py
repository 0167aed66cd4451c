#!/usr/bin/env python
"""Megatron's preprocess_data.py by its flags: raw text to .bin/.idx. The same as ``megatron-adapt preprocess``."""

from megatron_adapt.data.command import main

if __name__ == "__main__":
    raise SystemExit(main())
