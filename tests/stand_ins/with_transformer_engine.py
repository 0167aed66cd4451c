"""A pytest plugin: tests run as on a machine with Transformer Engine, whose stand-in lies beside this file."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def transformer_engine(monkeypatch: pytest.MonkeyPatch):
    from megatron_adapt.engine import backend

    import transformer_engine as stand_in

    assert stand_in.__file__.endswith("stand_ins/transformer_engine.py")
    monkeypatch.setattr(backend, "transformer_engine_problem", lambda: "")
    stand_in.used.clear()
    return stand_in
