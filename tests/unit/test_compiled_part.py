"""The compiled part of another version is named at its first use, with what to do."""

from __future__ import annotations

import hashlib
import re
import sys
import types

import pytest
from harness import ROOT

import megatron_adapt
from megatron_adapt.data.pool import Pool
from megatron_adapt.errors import ConfigError
from megatron_adapt.steps import doctor

# One for each interface, the first is number 1: another interface is another line, none is ever replaced.
INTERFACES = ["bd7664a66495", "d847433059d8", "5e24b336a5b0", "16b3371eedcf", "7788b5f22cac", "ced99c0dc7c7"]


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A compiled part from before there were interfaces, not used yet."""
    module = types.ModuleType("megatron_adapt._C")
    module.__file__ = "/somewhere/_C.so"
    monkeypatch.delattr(megatron_adapt, "_C", raising=False)
    monkeypatch.setitem(sys.modules, "megatron_adapt._C", module)
    return module


def test_every_use_of_an_old_one_is_refused(old: types.ModuleType) -> None:
    expected = (
        "the C++ extension is out of date: /somewhere/_C.so was built from other sources than these Python files "
        f"(interface 0 instead of {megatron_adapt.INTERFACE}); build it again: pip install -e {ROOT}"
    )
    for _ in range(2):
        with pytest.raises(ConfigError) as caught:
            from megatron_adapt import _C  # noqa: F401
        assert str(caught.value) == expected
    (finding,) = [finding for finding in doctor.run() if finding.topic == "C++ extension"]
    assert (finding.kind, finding.text) == ("problem", expected)


def test_the_next_one_is_refused_as_well(old: types.ModuleType) -> None:
    """The Python files may be the older ones: a build, then ``git checkout`` of what was before."""
    old.interface = megatron_adapt.INTERFACE + 1
    with pytest.raises(ConfigError, match=f"interface {megatron_adapt.INTERFACE + 1} instead of"):
        from megatron_adapt import _C  # noqa: F401


def test_one_that_belongs_is_asked_once() -> None:
    from megatron_adapt import _C

    assert vars(megatron_adapt)["_C"] is _C and _C.interface == megatron_adapt.INTERFACE


def test_a_command_says_so_itself(old: types.ModuleType) -> None:
    """And not each of its workers with a traceback."""
    with pytest.raises(ConfigError, match="the C[+][+] extension is out of date"):
        Pool().fork(lambda send: None)


def test_one_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(megatron_adapt, "_C", raising=False)
    monkeypatch.setitem(sys.modules, "megatron_adapt._C", None)
    with pytest.raises(ConfigError, match=f"cannot be loaded: .*_C.*; build it: pip install -e {ROOT} "):
        from megatron_adapt import _C  # noqa: F401


def test_an_installed_package_has_no_sources(old: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(megatron_adapt, "__file__", "/usr/lib/site-packages/megatron_adapt/__init__.py")
    with pytest.raises(ConfigError, match="build it again: pip install --force-reinstall --no-deps megatron_adapt$"):
        from megatron_adapt import _C  # noqa: F401


def test_other_names_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        megatron_adapt.nothing


def test_another_interface_has_another_number() -> None:
    """Names, arguments and their order, as the sources bind them."""
    words = []
    for file in sorted((ROOT / "csrc").glob("*bindings.cpp")):
        words += re.findall(r'(?:\bdef\w*|\bclass_<\w+>|\barg|\battr)\((?:module, )?"\w+"|py::init|kw_only', file.read_text())
    assert len(words) > 80  # it found them
    digest = hashlib.sha256("\n".join(words).encode()).hexdigest()[:12]
    (number,) = re.findall(r"kInterface = (\d+);", (ROOT / "csrc" / "bindings.cpp").read_text())
    assert int(number) == megatron_adapt.INTERFACE == len(INTERFACES)
    assert digest == INTERFACES[-1], (
        f"the bound names or arguments are others: raise kInterface in csrc/bindings.cpp and INTERFACE in "
        f"megatron_adapt/__init__.py, and add {digest!r} to INTERFACES here"
    )
