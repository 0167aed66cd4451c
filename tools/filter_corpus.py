#!/usr/bin/env python
"""Raw text through filters: duplicates, repeated passages, rules, perplexity. The same as ``megatron-adapt filter``."""

from megatron_adapt.data.filter_command import main

if __name__ == "__main__":
    raise SystemExit(main())
