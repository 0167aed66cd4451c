"""The C++ extension; everything else is declared in pyproject.toml."""

from glob import glob

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup

setup(
    ext_modules=[
        Pybind11Extension(
            "megatron_adapt._C",
            sorted(glob("csrc/*.cpp")),
            depends=sorted(glob("csrc/*.h")),
            cxx_std=17,
            extra_compile_args=["-O3", "-pthread"],  # loops over rows of numbers are to be vectorised; threads
            extra_link_args=["-pthread"],
        )
    ]
)
