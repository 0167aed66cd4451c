"""The C++ extension; everything else is declared in pyproject.toml."""

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup

setup(
    ext_modules=[
        Pybind11Extension(
            "megatron_adapt._C",
            ["csrc/indexed_dataset.cpp", "csrc/merge.cpp", "csrc/bindings.cpp"],
            depends=["csrc/indexed_dataset.h", "csrc/merge.h"],
            cxx_std=17,
        )
    ]
)
