// The part of megatron_adapt._C that filters corpora.

#pragma once

#include <pybind11/pybind11.h>

namespace megatron_adapt {

void bind_filters(pybind11::module_& module);

}  // namespace megatron_adapt
