#!/usr/bin/env python
"""Train a tokenizer on text. The same as ``megatron-adapt tokenizer train``, with its options."""

import sys

from megatron_adapt.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["tokenizer", "train"]
    main()
