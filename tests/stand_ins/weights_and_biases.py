"""What the project calls of the library wandb: it notes what it is asked."""

from __future__ import annotations

import importlib.machinery
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any


class Library(ModuleType):
    """Stands in for wandb: what is asked of it lies in ``calls``, and in ``file`` for other processes."""

    class Settings:
        model_fields = {"finish_timeout": None}

        def __init__(self, **values: Any) -> None:
            self.values = values

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.errors = SimpleNamespace(Error=type("Error", (Exception,), {}))
        self.error: Exception | None = None
        self.calls: list[tuple[str, Any]] = []
        self.file: Path | None = None

    def note(self, name: str, value: Any = None) -> None:
        self.calls.append((name, value))
        if self.file is not None:
            with self.file.open("a") as stream:
                stream.write(f"{name} {value.get('step', value.get('id')) if isinstance(value, dict) else ''}".strip() + "\n")

    def init(self, **arguments: Any) -> Any:
        if self.error is not None:
            raise self.error
        self.note("init", arguments)
        return SimpleNamespace(
            define_metric=lambda name, **options: self.note("define_metric", (name, options)),
            log=lambda values: self.note("log", values), finish=lambda: self.note("finish"),
        )  # fmt: skip

    def named(self, name: str) -> list[Any]:
        return [value for called, value in self.calls if called == name]
