"""``python -m megatron_adapt``: what torchrun starts."""

from megatron_adapt.cli import main

if __name__ == "__main__":
    main()
