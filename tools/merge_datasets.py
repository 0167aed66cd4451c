#!/usr/bin/env python
"""Megatron's merge_datasets.py by its flags: several corpora of .bin/.idx (of chats .loss_mask, too) to one, in order, in constant memory."""

from megatron_adapt.data.merge_command import main

if __name__ == "__main__":
    raise SystemExit(main())
