"""What all mappings of a recipe have in common."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Frozen, without unknown keys. Of `alternatives` one holds: a later file that sets one displaces the others."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    alternatives: ClassVar[tuple[str, ...]] = ()
