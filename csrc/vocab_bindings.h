// The part of megatron_adapt._C that initialises embeddings.

#pragma once

#include <pybind11/pybind11.h>

namespace megatron_adapt {

void bind_vocab(pybind11::module_& module);

}  // namespace megatron_adapt
