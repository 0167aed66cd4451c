"""Model families: one declarative file each, found by itself. See README.md for how to add one."""

from megatron_adapt.families.family import Family, ModelShape, families, family_named, find_family
from megatron_adapt.families.initial import initial_tensors

__all__ = ["Family", "ModelShape", "families", "family_named", "find_family", "initial_tensors"]
