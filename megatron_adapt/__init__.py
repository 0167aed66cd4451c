"""Teach a pretrained language model a new language on Megatron Core: raw corpora in, a Hugging Face checkpoint out."""

from __future__ import annotations

__version__ = "0.1.0"
INTERFACE = 6  # what these files expect of the compiled part: kInterface of csrc/bindings.cpp


def __getattr__(name: str) -> object:
    """``from megatron_adapt import _C`` at its first use: the compiled part, if it belongs to these files.

    Afterwards it is an ordinary attribute of the package, and this is not asked any more. Raises ``ConfigError`` for one
    that is not built, or that was built from other sources: ``git pull`` brings new Python files without a new build.
    """
    if name != "_C":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib
    from pathlib import Path

    from megatron_adapt.errors import ConfigError

    root = Path(__file__).resolve().parents[1]
    again = f"pip install -e {root}" if (root / "setup.py").exists() else "pip install --force-reinstall --no-deps megatron_adapt"
    try:
        module = importlib.import_module(f"{__name__}._C")
    except ImportError as error:
        raise ConfigError(f"the C++ extension cannot be loaded: {error}; build it: {again} (needs a C++17 compiler and "
                          "Python's headers)") from error  # fmt: skip
    found = getattr(module, "interface", 0)  # those from before the number have none
    if found != INTERFACE:
        globals().pop("_C", None)  # the import has set it, and the next use has to be told as well
        raise ConfigError(f"the C++ extension is out of date: {module.__file__} was built from other sources than these Python "
                          f"files (interface {found} instead of {INTERFACE}); build it again: {again}")  # fmt: skip
    return module
