#!/usr/bin/env python
"""Megatron's tools/checkpoint/convert.py by its flags: ``--loader hf --saver megatron`` is ``megatron-adapt import``,
``--loader megatron --saver hf`` is ``megatron-adapt export``.
"""

import argparse
import sys

from megatron_adapt.cli import main
from megatron_adapt.config_types import DTYPES, TIES, VERIFY


def command(arguments: list[str]) -> list[str]:
    """Our command line for Megatron's."""
    parser = argparse.ArgumentParser(prog="convert.py", description="Hugging Face <-> Megatron checkpoints", allow_abbrev=False)
    parser.add_argument("--model-type", choices=["GPT"], default="GPT")
    parser.add_argument("--loader", choices=["hf", "megatron"], required=True)
    parser.add_argument("--saver", choices=["hf", "megatron"], required=True)
    parser.add_argument("--load-dir", required=True, help="Hugging Face directory, or checkpoint (or folder of checkpoints)")
    parser.add_argument("--save-dir", required=True, help="must not exist yet")
    parser.add_argument("--verify", choices=VERIFY, help="default: logits if the model fits into memory, else weights")
    to_hf = parser.add_argument_group("to Hugging Face")
    to_hf.add_argument("--dtype", choices=DTYPES, help="default: bfloat16")
    to_hf.add_argument("--max-shard-size", help="default: 5GB")
    to_hf.add_argument("--tie", choices=TIES, help="default: keep")
    to_hf.add_argument("--family", help="of another program's checkpoint that fits several")
    to_hf.add_argument("--hf-config", help="config.json, or its directory, for another program's checkpoint")
    given = parser.parse_args(arguments)
    if given.loader == given.saver:
        parser.error(f"--loader {given.loader} --saver {given.saver}: one is hf, the other megatron")
    options = ["verify"] if given.loader == "hf" else ["verify", "dtype", "max_shard_size", "tie", "family", "hf_config"]
    for action in to_hf._group_actions:
        if action.dest not in options and getattr(given, action.dest) is not None:
            parser.error(f"{action.option_strings[0]} goes with --saver hf")
    words = ["import" if given.loader == "hf" else "export", given.load_dir, given.save_dir]
    for name in options:
        if (value := getattr(given, name)) is not None:
            words += [f"--{name.replace('_', '-')}", value]
    return words


if __name__ == "__main__":
    sys.argv[1:] = command(sys.argv[1:])
    main()
