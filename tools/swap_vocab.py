#!/usr/bin/env python
"""Give a Hugging Face model another vocabulary. The same as ``megatron-adapt swap``, with its options."""

import sys

from megatron_adapt.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["swap"]
    main()
