// The part of megatron_adapt._C that turns raw text into documents and ids into sequences.

#pragma once

#include <pybind11/pybind11.h>

namespace megatron_adapt {

void bind_text(pybind11::module_& module);

}  // namespace megatron_adapt
